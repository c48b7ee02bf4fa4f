//! The strict reader: shape by shape, then what fields mean together.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use serde_json::{Map, Value};

use super::fields::{DOCUMENT, Field, Shape, size};
use super::network::{Attachment, Mac};
use super::types::EndophyteVM;
use crate::field::{ErrorKind, FieldError, Path};
use crate::names;
use crate::quantity::Quantity;

const PAGE: u64 = 4096;
const HUGE_PAGE: u64 = 2 << 20;

impl EndophyteVM {
    /// Reads and checks a document; the errors are all that there are.
    pub fn from_value(value: &Value) -> Result<Self, Vec<FieldError>> {
        let mut errors = Vec::new();
        let value = &without_nulls(value);
        check(&DOCUMENT, &Path::default(), value, &mut errors);
        for field in ["apiVersion", "kind"] {
            if value.get(field).is_none() {
                let right = if field == "kind" { Self::KIND } else { Self::API_VERSION };
                errors.push(FieldError::required(&Path::new(field), format!("write `{field}: {right}`")));
            }
        }
        if value.pointer("/metadata/name").is_none() {
            let path = Path::new("metadata").child("name");
            errors.push(FieldError::required(&path, "give the virtual machine a name, for instance `name: legacy`"));
        }
        if !errors.is_empty() {
            return Err(errors);
        }
        let vm: Self = serde_json::from_value(value.clone())
            .map_err(|error| vec![FieldError::invalid(&Path::new("spec"), Value::Null, error.to_string())])?;
        vm.relations(&mut errors);
        if errors.is_empty() { Ok(vm) } else { Err(errors) }
    }

    /// What fields mean together.
    fn relations(&self, errors: &mut Vec<FieldError>) {
        let name = Path::new("metadata").child("name");
        if let Some(fault) = names::is_dns1123_label(&self.metadata.name).into_iter().next() {
            errors.push(FieldError::invalid(&name, self.metadata.name.as_str(), fault));
        }
        let spec = Path::new("spec");
        self.machine(&spec.child("vmSpec"), errors);
        let ram = &self.spec.distributed_ram.epoch_milliseconds;
        if ram.minimum > ram.maximum {
            let path = spec.child("distributedRAM").child("epochMilliseconds").child("minimum");
            let detail = format!("must not be above epochMilliseconds.maximum, which is {}: lower one", ram.maximum);
            errors.push(FieldError::invalid(&path, ram.minimum, detail));
        }
        let backups = &self.spec.backup_strategy;
        let nodes = spec.child("backupStrategy").child("nodes");
        let mut seen = BTreeSet::new();
        for (index, node) in backups.nodes.iter().enumerate().filter(|(_, node)| !seen.insert(node.as_str())) {
            errors.push(FieldError::duplicate(&nodes.index(index), node.as_str()));
        }
        if !backups.nodes.is_empty() && backups.nodes.len() < backups.node_count as usize {
            let path = spec.child("backupStrategy").child("nodeCount");
            let listed = backups.nodes.len();
            let detail = format!("must not be above the {listed} listed in nodes: list more, or ask for fewer");
            errors.push(FieldError::invalid(&path, backups.node_count, detail));
        }
    }

    fn machine(&self, path: &Path, errors: &mut Vec<FieldError>) {
        let memory = self.memory_bytes();
        let (unit, why) = match self.spec.performance_config.huge_pages {
            true => (HUGE_PAGE, "the size of a huge page (performanceConfig.hugePages)"),
            false => (PAGE, "the size of a page"),
        };
        if !memory.is_multiple_of(unit) {
            let near = size(memory.next_multiple_of(unit));
            let detail = format!("must be a multiple of {}, {why}: {near} is the next", size(unit));
            errors.push(FieldError::invalid(
                &path.child("memorySize"),
                self.spec.vm_spec.memory_size.to_string(),
                detail,
            ));
        }
        let os = &self.spec.vm_spec.os_config;
        for (given, field) in [(&os.initrd, "initrd"), (&os.command_line, "commandLine")] {
            if given.is_some() && os.kernel.is_none() {
                let path = path.child("osConfig").child(field);
                errors.push(FieldError::forbidden(&path, "means nothing without a kernel: give osConfig.kernel too"));
            }
        }
    }
}

/// As Kubernetes has it: null is the same as absent.
fn without_nulls(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            map.iter().filter(|(_, v)| !v.is_null()).map(|(k, v)| (k.clone(), without_nulls(v))).collect()
        }
        other => other.clone(),
    }
}

fn check(shape: &Shape, path: &Path, value: &Value, errors: &mut Vec<FieldError>) {
    match (shape, value) {
        (Shape::Any, _) => {}
        (Shape::Object(fields), Value::Object(map)) => object(fields, path, map, errors),
        (Shape::List(inner), Value::Array(values)) => {
            values.iter().enumerate().for_each(|(index, value)| check(inner, &path.index(index), value, errors));
        }
        (shape, value) => {
            if let Some((kind, detail)) = fault(shape, value) {
                errors.push(FieldError::new(kind, path, value.clone(), detail));
            }
        }
    }
}

fn object(fields: &[Field], path: &Path, map: &Map<String, Value>, errors: &mut Vec<FieldError>) {
    for (name, value) in map {
        match fields.iter().find(|field| field.name == name) {
            Some(field) => check(&field.shape, &path.child(field.name), value, errors),
            None => {
                errors.push(FieldError::new(
                    ErrorKind::Invalid,
                    &path.child(name),
                    value.clone(),
                    unknown(fields, name),
                ));
            }
        }
    }
}

fn unknown(fields: &[Field], name: &str) -> String {
    let known: Vec<&str> =
        fields.iter().filter(|field| !matches!(field.shape, Shape::Any)).map(|field| field.name).collect();
    let hint = nearest(fields, name).map(|near| format!("; did you mean `{near}`?")).unwrap_or_default();
    format!("unknown field{hint} Known here: {}", known.join(", ")).replace("field Known", "field. Known")
}

/// The field that was probably meant: known by this other name, or few letters away.
fn nearest(fields: &[Field], name: &str) -> Option<&'static str> {
    let lower = name.to_ascii_lowercase();
    let also = fields.iter().find(|field| field.also.iter().any(|also| also.eq_ignore_ascii_case(name)));
    also.map(|field| field.name).or_else(|| {
        fields
            .iter()
            .map(|field| (distance(&lower, &field.name.to_ascii_lowercase()), field.name))
            .filter(|(distance, near)| *distance <= (near.len() / 3).max(1))
            .min()
            .map(|(_, near)| near)
    })
}

/// How many letters must be put in, taken out or changed to turn one into the other.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, to) in b.iter().enumerate() {
            let changed = diagonal + usize::from(from != *to);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

/// What is wrong with a single value, and what would be right.
fn fault(shape: &Shape, value: &Value) -> Option<(ErrorKind, String)> {
    let must = || format!("must be {}", shape.allowed());
    let kind = match (shape, value) {
        (Shape::Text, Value::String(text)) if !text.is_empty() => return None,
        (Shape::Name, Value::String(text)) if is_name(text) => return None,
        (Shape::OneOf(values), Value::String(text)) => {
            return (!values.contains(&text.as_str()))
                .then(|| (ErrorKind::NotSupported, must().replace("must be", "must be one of")));
        }
        (Shape::Whole(min, max), Value::Number(number)) => {
            let fits = number.as_u64().is_some_and(|n| (*min..=*max).contains(&n));
            return (!fits).then(|| (ErrorKind::Invalid, must()));
        }
        (Shape::Number(min, max), Value::Number(number)) => {
            let fits = number.as_f64().is_some_and(|n| (*min..=*max).contains(&n));
            return (!fits).then(|| (ErrorKind::Invalid, must()));
        }
        (Shape::Flag, Value::Bool(_)) => return None,
        (Shape::Size(min, max), Value::String(_) | Value::Number(_)) => return size_fault(value, *min, *max, must()),
        (Shape::Address, Value::String(text)) if is_address(text) => return None,
        (Shape::Ip, Value::String(text)) if text.parse::<IpAddr>().is_ok() => return None,
        (Shape::Mac, Value::String(text)) => match text.parse::<Mac>() {
            Ok(_) => return None,
            Err(error) => return Some((ErrorKind::Invalid, error.to_string())),
        },
        (Shape::Attachment, Value::String(text)) => match text.parse::<Attachment>() {
            Ok(_) => return None,
            Err(error) => return Some((ErrorKind::Invalid, error.to_string())),
        },
        (Shape::Name | Shape::Address | Shape::Ip, Value::String(_)) => ErrorKind::Invalid,
        _ => ErrorKind::TypeInvalid,
    };
    Some((kind, must()))
}

fn size_fault(value: &Value, min: u64, max: u64, must: String) -> Option<(ErrorKind, String)> {
    match Quantity::from_json(value) {
        Err(error) => Some((ErrorKind::Invalid, format!("{must}: {error}"))),
        Ok(quantity) => {
            let fits = quantity.is_integer() && (i128::from(min)..=i128::from(max)).contains(&quantity.value());
            (!fits).then_some((ErrorKind::Invalid, must))
        }
    }
}

fn is_name(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 128
        && !text.starts_with('.')
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
}

/// `HOST:PORT`, the host an address (IPv6 in brackets) or a name.
fn is_address(text: &str) -> bool {
    if text.parse::<SocketAddr>().is_ok_and(|address| address.port() != 0) {
        return true;
    }
    let Some((host, port)) = text.rsplit_once(':') else { return false };
    let name = host.len() <= 253 && host.split('.').all(|label| names::is_dns1123_label(label).is_empty());
    name && port.parse::<u16>().is_ok_and(|port| port != 0)
}

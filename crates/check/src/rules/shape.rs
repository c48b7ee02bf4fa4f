//! Fields: unknown ones with what was meant, and values of the wrong type.

use mycelium_api::endophyte::EndophyteVM;
use mycelium_apimachinery::decode::{check_types, json_kind};
use mycelium_apimachinery::schema::{Scalar, Shape, Type, from_crd_schema, resource_of_kind, types};
use serde_json::{Map, Value};

use crate::finding::{Report, Severity};
use crate::near::nearest;
use crate::set::{Object, Set, served};
use crate::value::{flag, text};

pub fn check(set: &Set, report: &mut Report) {
    for object in set.local() {
        if let Some(ty) = types().for_gvk(&object.group, &object.version, &object.kind) {
            if resource_of_kind(&object.group, &object.version, &object.kind).is_some() {
                Walk { object, report }.value(ty, &object.value, "", None);
            }
        } else if let Some(ty) = custom_type(set, object) {
            Walk { object, report }.value(&ty, &object.value, "", None);
        } else if object.group == "mycelium.network" && object.kind == "EndophyteVM" {
            machine(object, report);
        }
    }
}

/// The type of a custom resource, if its definition is known.
fn custom_type(set: &Set, object: &Object) -> Option<Type> {
    set.of("apiextensions.k8s.io", "CustomResourceDefinition")
        .filter(|definition| {
            text(&definition.value, "/spec/group") == object.group
                && text(&definition.value, "/spec/names/kind") == object.kind
        })
        .find_map(|definition| {
            let preserve = flag(&definition.value, "/spec/preserveUnknownFields");
            let (_, schema) = served(&definition.value).find(|(name, _)| *name == object.version)?;
            Some(from_crd_schema(schema, preserve))
        })
}

/// A document of `mycelium vm run -f`.
fn machine(object: &Object, report: &mut Report) {
    if let Err(errors) = EndophyteVM::from_value(&object.value) {
        for error in errors {
            report.object(
                Severity::Error,
                "invalid",
                object,
                &error.path,
                format!("{}: {}", error.path, error.body()),
                "",
            );
        }
    }
}

struct Walk<'a> {
    object: &'a Object,
    report: &'a mut Report,
}

impl Walk<'_> {
    fn value(&mut self, ty: &Type, value: &Value, path: &str, outer: Option<&Type>) {
        match (&ty.shape, value) {
            (Shape::Any, _) | (_, Value::Null) => {}
            (Shape::Scalar(scalar), _) => self.scalar(*scalar, ty, value, path),
            (Shape::List { item, .. }, Value::Array(items)) => {
                for (index, value) in items.iter().enumerate() {
                    self.value(item, value, &format!("{path}[{index}]"), Some(ty));
                }
            }
            (Shape::Map { value: ty, .. }, Value::Object(map)) => {
                for (key, value) in map {
                    self.value(ty, value, &entry(path, key), None);
                }
            }
            (Shape::Struct { .. }, Value::Object(map)) => self.members(ty, map, path, outer),
            (Shape::List { .. }, _) => {
                let message = format!("{path} is {} where a list is needed", describe(value));
                self.wrong(path, message, "begin each entry with `- `");
            }
            _ => self.wrong(path, format!("{} is {} where fields are needed", named(path), describe(value)), ""),
        }
    }

    fn members(&mut self, ty: &Type, map: &Map<String, Value>, path: &str, outer: Option<&Type>) {
        for (key, value) in map {
            let below = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
            match ty.child(key) {
                Some(child) => self.value(child, value, &below, Some(ty)),
                None => self.unknown(ty, map, key, &below, outer),
            }
        }
    }

    fn unknown(&mut self, ty: &Type, map: &Map<String, Value>, key: &str, path: &str, outer: Option<&Type>) {
        let message =
            format!("{} has no field {key}", if ty.name.is_empty() { "this object" } else { ty.short_name() });
        let holders: Vec<&str> =
            ty.fields().iter().filter(|field| field.ty.field(key).is_some()).map(|field| field.name.as_ref()).collect();
        let emptied = holders.iter().find(|holder| map.get(**holder).is_some_and(Value::is_null));
        let (message, fix) = if let Some(holder) = emptied {
            let message = format!("{key} stands beside {holder}, which is left empty by it");
            (message, format!("indent {key} by two more spaces, so that it is below {holder}"))
        } else if let Some(near) = nearest(key, ty.fields().iter().map(|field| field.name.as_ref())) {
            (message, format!("did you mean {near}?"))
        } else if let [holder] = holders[..] {
            (message, format!("it belongs below {holder}"))
        } else if outer.is_some_and(|outer| outer.field(key).is_some()) {
            (message, "it belongs one level up".to_owned())
        } else {
            (message, String::new())
        };
        self.report.object(Severity::Error, "unknown-field", self.object, path, message, fix);
    }

    fn scalar(&mut self, scalar: Scalar, ty: &Type, value: &Value, path: &str) {
        if check_types(ty, value).is_ok() {
            return;
        }
        let wanted = match scalar {
            Scalar::String => "a text",
            Scalar::Int32 | Scalar::Int64 => "a whole number",
            Scalar::Bool => "true or false",
            Scalar::Double => "a number",
            Scalar::Bytes => "base64",
            Scalar::Time | Scalar::MicroTime => "a time such as 2026-01-31T12:00:00Z",
            Scalar::IntOrString => "a number or a name",
            Scalar::Quantity => "an amount such as 500m or 1Gi",
        };
        let fix = match (scalar, value) {
            (Scalar::String, Value::Bool(_) | Value::Number(_)) => format!("put it in quotes: \"{value}\""),
            (Scalar::Int32 | Scalar::Int64, Value::String(text)) if text.trim().parse::<i64>().is_ok() => {
                format!("write it without quotes: {}", text.trim())
            }
            (Scalar::Bool, Value::String(text)) if matches!(text.as_str(), "true" | "false") => {
                format!("write it without quotes: {text}")
            }
            (Scalar::Bytes, Value::String(_)) if path.starts_with("data") => {
                "give it as base64, or move it to stringData".to_owned()
            }
            (Scalar::Quantity, Value::String(text)) => quantity_fix(text),
            _ => String::new(),
        };
        self.wrong(path, format!("{} is {} where {wanted} is needed", named(path), describe(value)), fix);
    }

    fn wrong(&mut self, path: &str, message: String, fix: impl Into<String>) {
        self.report.object(Severity::Error, "wrong-type", self.object, path, message, fix);
    }
}

/// The path of an entry of a map: `data.key`, `metadata.labels[example.com/name]`.
fn entry(path: &str, key: &str) -> String {
    let plain = !key.is_empty() && key.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_'));
    if plain { format!("{path}.{key}") } else { format!("{path}[{key}]") }
}

fn named(path: &str) -> &str {
    if path.is_empty() { "the document" } else { path }
}

fn quantity_fix(text: &str) -> String {
    let squeezed: String = text.chars().filter(|c| !c.is_whitespace()).collect();
    let (number, unit) =
        squeezed.split_at(squeezed.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(squeezed.len()));
    match unit {
        "GB" | "gb" | "g" | "GiB" | "Gb" => format!("write {number}G or {number}Gi"),
        "MB" | "mb" | "MiB" | "Mb" => format!("write {number}M or {number}Mi"),
        "KB" | "kb" | "K" | "KiB" => format!("write {number}k or {number}Ki"),
        _ => String::new(),
    }
}

fn describe(value: &Value) -> String {
    const SHOWN: usize = 40;
    match value {
        Value::String(text) if text.chars().count() > SHOWN => "a long text".to_owned(),
        Value::String(text) => format!("the text {text:?}"),
        Value::Number(number) => format!("the number {number}"),
        Value::Bool(flag) => format!("{flag}"),
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "a group of fields".to_owned(),
        Value::Null => json_kind(value).to_owned(),
    }
}

//! Label and field selectors of a list or watch.

use std::borrow::Borrow;
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use memchr::memmem::Finder;
use mycelium_api::selector::{FieldSelector, Op, Selector};
use mycelium_store::Revision;
use serde_json::Value;

use crate::codec;
use crate::custom::conversion;
use crate::error::ApiError;
use crate::request::Query;
use crate::resources::Resource;

/// Which objects a request is about.
pub struct Filter {
    labels: Selector,
    fields: FieldSelector,
    /// Fields that only show once an object is made over for the request.
    late: FieldSelector,
    name: Option<String>,
    /// What the text of every object that passes contains.
    contained: Option<Finder<'static>>,
    resource: Arc<Resource>,
}

impl Filter {
    /// The selectors of a query, plus the name of a single-object watch.
    pub fn new(resource: &Arc<Resource>, query: &Query, name: &str) -> Result<Self, ApiError> {
        let labels = Selector::parse(query.get("labelSelector").unwrap_or(""))
            .map_err(|e| ApiError::bad(format!("unable to parse requirement: {e}")))?;
        let mut fields =
            FieldSelector::parse(query.get("fieldSelector").unwrap_or("")).map_err(|e| ApiError::bad(e.to_string()))?;
        if let Some(refused) = fields.0.iter().find_map(|r| label_error(resource, &r.path)) {
            return Err(ApiError::BadRequest(refused));
        }
        let exact = fields.exact("metadata.name").map(str::to_owned);
        if exact.is_some() {
            fields.0.retain(|r| r.path != "metadata.name" || Some(&r.value) != exact.as_ref());
        }
        let late = if conversion::is_foreign(resource) {
            fields.0.extract_if(.., |requirement| is_own(resource, &requirement.path)).collect()
        } else {
            Vec::new()
        };
        let late = FieldSelector(late);
        let name = if name.is_empty() { exact } else { Some(name.to_owned()) };
        let contained = contained(resource.custom.is_some(), &labels, &fields);
        let contained = contained.map(|value| Finder::new(&value).into_owned());
        Ok(Self { labels, fields, late, name, contained, resource: resource.clone() })
    }

    /// Whether every object passes.
    pub fn is_all(&self) -> bool {
        self.name.is_none() && !self.needs_object() && !self.is_late()
    }

    /// Whether the object itself has to be looked at, rather than only its key.
    pub fn needs_object(&self) -> bool {
        !self.labels.is_empty() || !self.fields.is_empty()
    }

    /// Whether it takes [`Self::passes_late`] to tell.
    pub fn is_late(&self) -> bool {
        !self.late.is_empty()
    }

    /// The one name that passes, if there is one.
    pub fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// Whether the name in a key passes.
    pub fn passes_key(&self, key: &str) -> bool {
        self.name.as_deref().is_none_or(|name| key.rsplit('/').next() == Some(name))
    }

    /// Whether an object as the request sees it passes what cannot be told of the stored one.
    pub fn passes_late(&self, object: &Value) -> bool {
        self.late.matches(|path| Some(selected(object, path)))
    }

    /// Whether a stored object passes the selectors. It is parsed only where its text does not show that it cannot.
    pub fn passes_text<O: Borrow<Value>>(
        &self,
        text: &[u8],
        parse: impl FnOnce() -> Result<O, ApiError>,
    ) -> Result<bool, ApiError> {
        if self.contained.as_ref().is_some_and(|contained| contained.find(text).is_none()) {
            return Ok(false);
        }
        Ok(!self.needs_object() || self.passes(parse()?.borrow()))
    }

    /// Whether a stored object passes the selectors.
    pub fn passes(&self, object: &Value) -> bool {
        self.labels.matches_value(&object["metadata"]["labels"])
            && self.fields.matches(|path| match is_own(&self.resource, path) {
                true => Some(selected(object, path)),
                false => self.resource.behaviour.selectable_fields(object, path),
            })
    }
}

/// A value that an object must have to pass, as it stands in JSON: that of a label, or the node of a pod. Other fields have
/// defaults, or are made of several.
fn contained(custom: bool, labels: &Selector, fields: &FieldSelector) -> Option<String> {
    let node = if custom { None } else { fields.exact("spec.nodeName") };
    let label = labels.requirements().iter().find_map(|requirement| match (requirement.op, &*requirement.values) {
        (Op::In, [value]) => Some(value.as_str()),
        _ => None,
    });
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let value = node.or(label).filter(|value| !value.is_empty() && value.chars().all(plain))?;
    Some(format!("\"{value}\""))
}

/// Whether a definition names a field for objects to be selected by.
fn is_own(resource: &Resource, path: &str) -> bool {
    resource.custom.as_ref().is_some_and(|custom| custom.selectable.iter().any(|known| known == path))
}

/// Why objects cannot be selected by a field.
fn label_error(resource: &Resource, path: &str) -> Option<String> {
    if is_own(resource, path) { None } else { resource.behaviour.field_label_error(path) }
}

/// The field of a custom resource that selectors compare with; what it has not is empty.
fn selected(object: &Value, path: &str) -> String {
    match path.split('.').fold(object, |value, key| &value[key]) {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

/// Recently parsed values, so that watchers of the same events share the work.
#[derive(Default)]
pub struct Parsed {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    values: BTreeMap<(Revision, Arc<str>), Arc<Value>>,
    /// With the length of the text, oldest first.
    order: VecDeque<((Revision, Arc<str>), usize)>,
    bytes: usize,
}

/// Limits of what is kept. A parsed object takes about ten times the memory of its text.
const PARSED_MAX: usize = 128;
const PARSED_BYTES_MAX: usize = 96 << 10;

impl Parsed {
    /// The object a value holds, as of a revision.
    pub fn get(&self, key: &Arc<str>, value: &Bytes, revision: Revision) -> Result<Arc<Value>, ApiError> {
        let id = (revision, key.clone());
        {
            let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(object) = inner.values.get(&id) {
                return Ok(object.clone());
            }
        }
        let object = Arc::new(codec::parse(value, revision)?);
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if inner.values.insert(id.clone(), object.clone()).is_none() {
            inner.order.push_back((id, value.len()));
            inner.bytes += value.len();
        }
        inner.shrink();
        Ok(object)
    }
}

impl Inner {
    fn shrink(&mut self) {
        while self.order.len() > PARSED_MAX || self.bytes > PARSED_BYTES_MAX {
            let Some((oldest, bytes)) = self.order.pop_front() else { return };
            self.values.remove(&oldest);
            self.bytes -= bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_looked_for_in_the_text_is_in_every_object_that_passes() {
        let of = |custom, labels: &str, fields: &str| {
            let labels = Selector::parse(labels).expect("labels");
            let fields = FieldSelector::parse(fields).expect("fields");
            contained(custom, &labels, &fields)
        };
        assert_eq!(of(false, "", "spec.nodeName=n-1.lan").as_deref(), Some("\"n-1.lan\""));
        assert_eq!(of(false, "tier!=x,app=web", "status.phase=Running").as_deref(), Some("\"web\""));
        assert_eq!(of(false, "app in (web)", "").as_deref(), Some("\"web\""));
        // What may be absent or written otherwise in an object that passes.
        for (custom, labels, fields) in [
            (false, "", ""),
            (false, "app in (web, db),tier notin (x),other", ""),
            (false, "app=", "spec.nodeName="),
            (false, "", "spec.nodeName!=n,status.phase=Running,spec.unschedulable=false"),
            (false, "", "spec.nodeName=a\\b"),
            (true, "", "spec.nodeName=5"),
        ] {
            assert_eq!(of(custom, labels, fields), None, "{labels} {fields}");
        }
    }
}

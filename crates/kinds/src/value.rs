//! Reading and filling JSON without trusting its shape: objects come from outside, and a wrong type must at most
//! mean that nothing happens here (the schema check reports it), never a panic.

use std::collections::BTreeMap;

use mycelium_api::quantity::Quantity;
use serde_json::{Map, Value};

/// The value at a path of object keys; null where it leads nowhere.
pub fn at<'a>(value: &'a Value, path: &[&str]) -> &'a Value {
    path.iter().fold(value, |value, key| &value[*key])
}

/// The text at a path; empty where there is none.
pub fn text<'a>(value: &'a Value, path: &[&str]) -> &'a str {
    at(value, path).as_str().unwrap_or_default()
}

/// The integer at a path.
pub fn int(value: &Value, path: &[&str]) -> Option<i64> {
    at(value, path).as_i64()
}

/// Whether the value at a path is `true`.
pub fn flag(value: &Value, path: &[&str]) -> bool {
    at(value, path).as_bool().unwrap_or_default()
}

/// The list at a path; empty where there is none.
pub fn list<'a>(value: &'a Value, path: &[&str]) -> &'a [Value] {
    at(value, path).as_array().map(Vec::as_slice).unwrap_or_default()
}

/// The entries of the object at a path.
pub fn entries<'a>(value: &'a Value, path: &[&str]) -> impl Iterator<Item = (&'a String, &'a Value)> + use<'a> {
    at(value, path).as_object().into_iter().flatten()
}

/// How many entries the object at a path has.
pub fn entry_count(value: &Value, path: &[&str]) -> usize {
    at(value, path).as_object().map_or(0, Map::len)
}

/// Whether the value at a path is there.
pub fn has(value: &Value, path: &[&str]) -> bool {
    !at(value, path).is_null()
}

/// The texts in the list at a path.
pub fn texts<'a>(value: &'a Value, path: &[&str]) -> impl Iterator<Item = &'a str> + use<'a> {
    list(value, path).iter().filter_map(Value::as_str)
}

/// The map of texts at a path, such as labels.
pub fn text_map(value: &Value, path: &[&str]) -> BTreeMap<String, String> {
    entries(value, path).filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned()))).collect()
}

/// Writable access to the object at a path, if every step exists and the end is an object.
pub fn object_at<'a>(value: &'a mut Value, path: &[&str]) -> Option<&'a mut Map<String, Value>> {
    path.iter().try_fold(value, |value, key| value.as_object_mut()?.get_mut(*key))?.as_object_mut()
}

/// Writable access to the object at a path; missing and null steps become objects. None where another type stands.
pub fn ensure_object<'a>(value: &'a mut Value, path: &[&str]) -> Option<&'a mut Map<String, Value>> {
    let end = path.iter().try_fold(value, |value, key| {
        let step = value.as_object_mut()?.entry((*key).to_owned()).or_insert(Value::Null);
        if step.is_null() {
            *step = Value::Object(Map::new());
        }
        Some(step)
    })?;
    end.as_object_mut()
}

/// Calls `change` on each element of the list at a path.
pub fn each(value: &mut Value, path: &[&str], mut change: impl FnMut(&mut Value)) {
    let Some((last, before)) = path.split_last() else { return };
    let list = object_at(value, before).and_then(|object| object.get_mut(*last)).and_then(Value::as_array_mut);
    list.into_iter().flatten().for_each(&mut change);
}

/// Calls `change` on the value at a path, if it is an object.
pub fn within(value: &mut Value, path: &[&str], change: impl FnOnce(&mut Value)) {
    let found = path.iter().try_fold(value, |value, key| value.as_object_mut()?.get_mut(*key));
    if let Some(found) = found.filter(|found| found.is_object()) {
        change(found);
    }
}

/// Sets a field that is missing or null.
pub fn fill(value: &mut Value, key: &str, default: impl Into<Value>) {
    if let Some(object) = value.as_object_mut() {
        fill_in(object, key, default);
    }
}

/// Sets a field that is missing or null.
pub fn fill_in(object: &mut Map<String, Value>, key: &str, default: impl Into<Value>) {
    let slot = object.entry(key.to_owned()).or_insert(Value::Null);
    if slot.is_null() {
        *slot = default.into();
    }
}

/// Sets a field that is missing, null, an empty text or zero: the types whose zero value means "not given".
pub fn fill_zero(value: &mut Value, key: &str, default: impl Into<Value>) {
    let Some(object) = value.as_object_mut() else { return };
    let slot = object.entry(key.to_owned()).or_insert(Value::Null);
    if slot.is_null() || slot.as_str() == Some("") || slot.as_i64() == Some(0) {
        *slot = default.into();
    }
}

/// Brings the quantity in a field to its canonical text.
pub fn canonical_quantity(value: &mut Value, key: &str) {
    if let Some(slot) = value.get_mut(key) {
        canonicalize(slot);
    }
}

/// Brings every quantity in a map of resources to its canonical text.
pub fn canonical_resources(value: &mut Value, path: &[&str]) {
    if let Some(resources) = object_at(value, path) {
        resources.values_mut().for_each(canonicalize);
    }
}

fn canonicalize(slot: &mut Value) {
    if let Ok(quantity) = Quantity::from_json(slot) {
        let rounded = if quantity.is_finer_than_milli() {
            i64::try_from(quantity.milli_value()).map_or(quantity, Quantity::from_milli)
        } else {
            quantity
        };
        let canonical = rounded.to_string();
        if slot.as_str() != Some(&canonical) {
            *slot = Value::String(canonical);
        }
    }
}

/// Removes every null member of every object: on the wire null means "not given".
pub fn drop_nulls(value: &mut Value) {
    match value {
        Value::Object(object) => {
            object.retain(|_, member| !member.is_null());
            object.values_mut().for_each(drop_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(drop_nulls),
        _ => {}
    }
}

/// Whether two values mean the same: a missing field, an empty one and a zero are equal, as are two ways to write
/// a quantity (which defaulting already made equal).
pub fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Object(a), Value::Object(b)) => {
            let shared = a.iter().all(|(key, value)| same(value, b.get(key).unwrap_or(&Value::Null)));
            shared && b.iter().all(|(key, value)| a.contains_key(key) || is_empty(value))
        }
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b)),
        (a, b) => a == b || (is_empty(a) && is_empty(b)),
    }
}

/// Whether a value is the zero of its type.
pub fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(value) => !value,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(object) => object.values().all(is_empty),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn absent_empty_and_zero_are_the_same() {
        assert!(same(&json!({"a": {}, "b": "x"}), &json!({"b": "x", "c": 0, "d": []})));
        assert!(!same(&json!({"b": "x"}), &json!({"b": "y"})));
        assert!(!same(&json!([1]), &json!([1, 0])));
    }

    #[test]
    fn filling_never_overwrites_a_wrong_type() {
        let mut value = json!({"spec": 3});
        assert!(ensure_object(&mut value, &["spec", "strategy"]).is_none());
        fill(&mut value, "spec", json!({}));
        assert_eq!(value, json!({"spec": 3}));
    }
}

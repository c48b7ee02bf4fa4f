//! Reading JSON values without fear.

use std::collections::BTreeMap;

use serde_json::Value;

/// Text at a JSON pointer; empty if there is none.
pub fn text<'v>(value: &'v Value, pointer: &str) -> &'v str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// The list at a JSON pointer; empty if there is none.
pub fn list<'v>(value: &'v Value, pointer: &str) -> &'v [Value] {
    value.pointer(pointer).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

/// The members of the object at a JSON pointer.
pub fn entries<'v>(value: &'v Value, pointer: &str) -> impl Iterator<Item = (&'v String, &'v Value)> {
    value.pointer(pointer).and_then(Value::as_object).into_iter().flatten()
}

/// The whole number at a JSON pointer.
pub fn int(value: &Value, pointer: &str) -> Option<i64> {
    value.pointer(pointer).and_then(Value::as_i64)
}

/// Whether there is `true` at a JSON pointer.
pub fn flag(value: &Value, pointer: &str) -> bool {
    value.pointer(pointer).and_then(Value::as_bool).unwrap_or_default()
}

/// Whether there is anything but null at a JSON pointer.
pub fn has(value: &Value, pointer: &str) -> bool {
    value.pointer(pointer).is_some_and(|value| !value.is_null())
}

/// A map of texts at a JSON pointer.
pub fn labels(value: &Value, pointer: &str) -> BTreeMap<String, String> {
    entries(value, pointer).filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned()))).collect()
}

/// `a, b and c`.
pub fn join<T: AsRef<str>>(words: &[T]) -> String {
    match words {
        [] => String::new(),
        [one] => one.as_ref().to_owned(),
        [first @ .., last] => {
            let first: Vec<&str> = first.iter().map(AsRef::as_ref).collect();
            format!("{} and {}", first.join(", "), last.as_ref())
        }
    }
}

/// `app=web,tier=front` of a map of labels or of a label selector.
pub fn show_selector(selector: &Value) -> String {
    let plain = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let is_selector = has(selector, "/matchLabels") || has(selector, "/matchExpressions");
    if !is_selector {
        return entries(selector, "").map(|(k, v)| format!("{k}={}", plain(v))).collect::<Vec<_>>().join(",");
    }
    let mut parts: Vec<String> =
        entries(selector, "/matchLabels").map(|(key, value)| format!("{key}={}", plain(value))).collect();
    for expression in list(selector, "/matchExpressions") {
        let values: Vec<String> = list(expression, "/values").iter().map(plain).collect();
        let (key, operator) = (text(expression, "/key"), text(expression, "/operator"));
        parts.push(format!("{key} {operator} ({})", values.join(",")).trim_end_matches(" ()").to_owned());
    }
    parts.join(",")
}

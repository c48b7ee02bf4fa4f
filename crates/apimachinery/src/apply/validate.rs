//! Whether a configuration fits its type, worded as structured-merge-diff does.

use std::collections::BTreeSet;

use serde_json::Value;

use super::set::display;
use super::walk::{View, items, view};
use crate::schema::{Scalar, Shape, Type};

/// The faults of a configuration; empty if there are none.
pub(super) fn faults(ty: &Type, config: &Value) -> Vec<String> {
    let mut found = Vec::new();
    check(ty, config, "", &mut found);
    found
}

fn check(ty: &Type, value: &Value, path: &str, found: &mut Vec<String>) {
    let mut fault = |text: String| found.push(format!("{path}: {text}"));
    match (&ty.shape, value) {
        (Shape::Any, _) | (_, Value::Null) => {}
        (Shape::Scalar(scalar), _) => {
            if let Some(expected) = scalar_fault(*scalar, value) {
                fault(format!("expected {expected}, got {}", go_value(value)));
            }
        }
        (Shape::List { item, .. }, Value::Array(values)) => match view(ty, value) {
            View::List(list) => {
                let mut seen = BTreeSet::new();
                for (index, value) in items(Some(value)).iter().enumerate() {
                    let Some(element) = list.element(value) else {
                        let missing = list.keys.first().map_or("", |k| k);
                        found.push(format!(
                            "{path}: element {index}: associative list with keys has an element that omits key field \
                             {missing:?} (and doesn't have default value)"
                        ));
                        continue;
                    };
                    let child = format!("{path}{}", display(&element));
                    check(item, value, &child, found);
                    if !seen.insert(element.clone()) {
                        found.push(format!("{path}: duplicate entries for key {}", display(&element)));
                    }
                }
            }
            _ => {
                for (index, value) in values.iter().enumerate() {
                    check(item, value, &format!("{path}[{index}]"), found);
                }
            }
        },
        (Shape::Map { .. } | Shape::Struct { .. }, Value::Object(map)) => {
            for (key, value) in map {
                let child = format!("{path}.{key}");
                match ty.child(key) {
                    Some(ty) => check(ty, value, &child, found),
                    None => found.push(format!("{child}: field not declared in schema")),
                }
            }
        }
        (Shape::List { .. }, _) => fault(format!("expected list, got {}", go_value(value))),
        _ => fault(format!("expected map, got {}", go_value(value))),
    }
}

fn scalar_fault(scalar: Scalar, value: &Value) -> Option<&'static str> {
    let (fits, expected) = match scalar {
        Scalar::Int32 | Scalar::Int64 | Scalar::Double => (value.is_number(), "numeric (int or float)"),
        Scalar::Bool => (value.is_boolean(), "boolean"),
        Scalar::IntOrString | Scalar::Quantity => (!value.is_object() && !value.is_array(), "scalar"),
        _ => (value.is_string(), "string"),
    };
    (!fits).then_some(expected)
}

/// What Go prints for the kind of a value.
fn go_value(value: &Value) -> String {
    match value {
        Value::Null => "nil".to_owned(),
        Value::Bool(_) | Value::Number(_) => format!("&value.valueUnstructured{{Value:{value}}}"),
        Value::String(_) => "string".to_owned(),
        Value::Array(_) => "list".to_owned(),
        Value::Object(_) => "map".to_owned(),
    }
}

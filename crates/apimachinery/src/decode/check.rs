//! A value against a type: wrong types, unknown fields, and what a typed decoder would have kept.

use mycelium_api::quantity::Quantity;
use serde_json::Value;

use super::MAX_WARNINGS;
use super::json::unknown_field;
use crate::schema::{Scalar, Shape, Type};

/// A value of the wrong type, worded as Go's decoder does.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct TypeError(String);

/// Checks that every known field has a value of its type; the first that has not is the error.
pub fn check_types(ty: &Type, value: &Value) -> Result<(), TypeError> {
    TypeCheck { owner: "", path: Vec::new() }.value(ty, value)
}

struct TypeCheck<'a> {
    /// Go's name of the struct that has the current field.
    owner: &'a str,
    path: Vec<&'a str>,
}

impl<'a> TypeCheck<'a> {
    fn value(&mut self, ty: &'a Type, value: &'a Value) -> Result<(), TypeError> {
        match (&ty.shape, value) {
            (Shape::Any, _) | (_, Value::Null) => Ok(()),
            (Shape::Scalar(scalar), _) => self.scalar(*scalar, ty, value),
            (Shape::List { item, .. }, Value::Array(items)) => items.iter().try_for_each(|v| self.value(item, v)),
            (Shape::Map { value: ty, .. }, Value::Object(map)) => map.values().try_for_each(|v| self.value(ty, v)),
            (Shape::Struct { .. }, Value::Object(map)) => {
                let outer = std::mem::replace(&mut self.owner, ty.short_name());
                for (key, value) in map {
                    if let Some(field) = ty.field(key) {
                        self.path.push(key);
                        self.value(&field.ty, value)?;
                        self.path.pop();
                    }
                }
                self.owner = outer;
                Ok(())
            }
            _ => self.fail(value, &ty.go_name()),
        }
    }

    fn scalar(&self, scalar: Scalar, ty: &Type, value: &Value) -> Result<(), TypeError> {
        let raw = |text: String| Err(TypeError(text));
        match (scalar, value) {
            (Scalar::String, Value::String(_)) | (Scalar::Bool, Value::Bool(_)) => Ok(()),
            (Scalar::Double, Value::Number(_)) => Ok(()),
            (Scalar::Int64, Value::Number(n)) if n.is_i64() => Ok(()),
            (Scalar::Int32, Value::Number(n)) if n.as_i64().is_some_and(|n| i32::try_from(n).is_ok()) => Ok(()),
            (Scalar::Int32 | Scalar::Int64, Value::Number(n)) => self.fail_as(&format!("number {n}"), &ty.go_name()),
            (Scalar::IntOrString, Value::String(_)) => Ok(()),
            (Scalar::IntOrString, Value::Number(n)) => match n.as_i64().map(i32::try_from) {
                Some(Ok(_)) => Ok(()),
                _ => raw(format!("json: cannot unmarshal number {n} into Go value of type int32")),
            },
            (Scalar::IntOrString, _) => {
                raw(format!("json: cannot unmarshal {} into Go value of type int32", json_kind(value)))
            }
            (Scalar::Quantity, _) => Quantity::from_json(value).map(drop).or_else(|error| raw(error.to_string())),
            (Scalar::Time | Scalar::MicroTime, Value::String(text)) => check_time(text, scalar).or_else(raw),
            (Scalar::Time | Scalar::MicroTime, _) => {
                raw(format!("json: cannot unmarshal {} into Go value of type string", json_kind(value)))
            }
            (Scalar::Bytes, Value::String(text)) => check_base64(text).or_else(raw),
            _ => self.fail(value, &ty.go_name()),
        }
    }

    fn fail(&self, value: &Value, expected: &str) -> Result<(), TypeError> {
        self.fail_as(json_kind(value), expected)
    }

    fn fail_as(&self, found: &str, expected: &str) -> Result<(), TypeError> {
        let place = match self.path.as_slice() {
            [] => "value".to_owned(),
            path => format!("struct field {}.{}", self.owner, path.join(".")),
        };
        Err(TypeError(format!("json: cannot unmarshal {found} into Go {place} of type {expected}")))
    }
}

/// The same check in the words of Go's converter, which Kubernetes uses where an object was not read from JSON: for
/// the outcome of a strategic merge patch.
pub fn check_conversion(ty: &Type, value: &Value) -> Result<(), TypeError> {
    let refuse = |what: &str| Err(TypeError(format!("cannot restore {what} {}", go_kind(value))));
    match (&ty.shape, value) {
        (Shape::Any, _) | (_, Value::Null) => Ok(()),
        (Shape::Scalar(scalar), _) => convert_scalar(*scalar, ty, value),
        (Shape::List { item, .. }, Value::Array(items)) => items.iter().try_for_each(|v| check_conversion(item, v)),
        (Shape::Map { value: ty, .. }, Value::Object(map)) => map.values().try_for_each(|v| check_conversion(ty, v)),
        (Shape::Struct { .. }, Value::Object(map)) => map
            .iter()
            .filter_map(|(key, value)| Some((ty.field(key)?, value)))
            .try_for_each(|(field, value)| check_conversion(&field.ty, value)),
        (Shape::List { .. }, _) => refuse("slice from"),
        (Shape::Map { .. }, _) => refuse("map from"),
        (Shape::Struct { .. }, _) => refuse("struct from:"),
    }
}

fn convert_scalar(scalar: Scalar, ty: &Type, value: &Value) -> Result<(), TypeError> {
    let checked = check_types(ty, value);
    let plain = match scalar {
        Scalar::String => "string",
        Scalar::Bool => "bool",
        Scalar::Int32 => "int32",
        Scalar::Int64 => "int64",
        Scalar::Double => "float64",
        // These read themselves from JSON.
        _ => return checked,
    };
    match (checked, value) {
        (Ok(()), _) => Ok(()),
        // Go turns a number into another, or into a text of one letter; the converter does not want that.
        (Err(_), Value::Number(number)) if !(number.is_f64() && plain == "string") => {
            let found = if number.is_f64() { "float64" } else { "int64" };
            Err(TypeError(format!("cannot convert {found} to {plain}")))
        }
        (Err(_), _) => Err(TypeError(format!("unrecognized type: {plain}"))),
    }
}

/// What Go calls the kind of a decoded value.
fn go_kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "invalid",
        Value::Bool(_) => "bool",
        Value::Number(number) if number.is_f64() => "float64",
        Value::Number(_) => "int64",
        Value::String(_) => "string",
        Value::Array(_) => "slice",
        Value::Object(_) => "map",
    }
}

/// What JSON calls the type of a value, as Go's decoder words it.
pub fn json_kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

fn check_time(text: &str, scalar: Scalar) -> Result<(), String> {
    if text.parse::<jiff::Timestamp>().is_ok() {
        return Ok(());
    }
    let layout = match scalar {
        Scalar::MicroTime => "2006-01-02T15:04:05.000000Z07:00",
        _ => "2006-01-02T15:04:05Z07:00",
    };
    Err(format!("parsing time {text:?} as {layout:?}: cannot parse {text:?} as \"2006\""))
}

/// Go's standard base64: padded, line ends are skipped.
fn check_base64(text: &str) -> Result<(), String> {
    let bytes: Vec<(usize, u8)> = text.bytes().enumerate().filter(|(_, b)| !matches!(b, b'\r' | b'\n')).collect();
    let padding = bytes.iter().rev().take_while(|(_, b)| *b == b'=').count();
    let data = &bytes[..bytes.len() - padding];
    let bad = data.iter().find(|(_, b)| !(b.is_ascii_alphanumeric() || matches!(b, b'+' | b'/')));
    match bad {
        Some((at, _)) => Err(format!("illegal base64 data at input byte {at}")),
        None if bytes.len().is_multiple_of(4) && padding <= 2 => Ok(()),
        None => {
            let at = if padding > 2 { data.len() } else { bytes.len() / 4 * 4 };
            Err(format!("illegal base64 data at input byte {at}"))
        }
    }
}

/// The fields that the type does not have: `unknown field "spec.foo"`.
pub fn check_strict(ty: &Type, value: &Value) -> Vec<String> {
    let mut found = Vec::new();
    unknown(ty, value, &mut String::new(), &mut found);
    found
}

fn unknown(ty: &Type, value: &Value, path: &mut String, found: &mut Vec<String>) {
    let length = path.len();
    match (&ty.shape, value) {
        (Shape::List { item, .. }, Value::Array(items)) if has_fields(item) => {
            for (index, value) in items.iter().enumerate() {
                path.push_str(&format!("[{index}]"));
                unknown(item, value, path, found);
                path.truncate(length);
            }
        }
        (Shape::Map { .. } | Shape::Struct { .. }, Value::Object(map)) => {
            for (key, value) in map {
                if length > 0 {
                    path.push('.');
                }
                path.push_str(key);
                match ty.child(key) {
                    Some(ty) => unknown(ty, value, path, found),
                    None if found.len() < MAX_WARNINGS => found.push(unknown_field(path)),
                    None => {}
                }
                path.truncate(length);
            }
        }
        _ => {}
    }
}

fn has_fields(ty: &Type) -> bool {
    !matches!(ty.shape, Shape::Any | Shape::Scalar(_))
}

/// Leaves what a typed decoder keeps: fields that the type does not have go, so do fields of built-in types that are
/// null, and quantities take their canonical form.
pub fn prune(ty: &Type, value: &mut Value) {
    match (&ty.shape, value) {
        (Shape::Scalar(Scalar::Quantity), value) => {
            if let Ok(quantity) = Quantity::from_json(value) {
                *value = Value::String(quantity.to_string());
            }
        }
        (Shape::List { item, .. }, Value::Array(items)) if has_children(item) => {
            items.iter_mut().for_each(|value| prune(item, value));
        }
        (Shape::Map { value: ty, .. }, Value::Object(map)) if has_children(ty) => {
            map.values_mut().for_each(|value| prune(ty, value));
        }
        (Shape::Struct { preserve_unknown, .. }, Value::Object(map)) => {
            let built_in = !ty.name.is_empty();
            map.retain(|key, value| match ty.field(key) {
                Some(_) if built_in && value.is_null() => false,
                Some(field) => {
                    prune(&field.ty, value);
                    true
                }
                None => *preserve_unknown,
            });
        }
        _ => {}
    }
}

fn has_children(ty: &Type) -> bool {
    has_fields(ty) || matches!(ty.shape, Shape::Scalar(Scalar::Quantity))
}

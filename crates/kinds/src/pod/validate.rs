//! What is wrong with a pod spec.

use mycelium_api::field::Path;
use serde_json::Value;

use crate::Errors;

/// What is wrong with a pod.
pub fn pod(_pod: &Value, _errors: &mut Errors) {}

/// What is wrong with a pod template.
pub fn template(_template: &Value, _path: &Path, _errors: &mut Errors) {}

/// A port number, or the name of one.
pub fn check_port_or_name(port: &Value, path: &Path, errors: &mut Errors) {
    use mycelium_api::field::FieldError;
    match port {
        Value::Number(_) => {
            let number = port.as_i64().unwrap_or_default();
            for wrong in mycelium_api::names::is_port_number(number) {
                errors.push(FieldError::invalid(path, number, wrong));
            }
        }
        Value::String(name) => {
            for wrong in mycelium_api::names::is_port_name(name) {
                errors.push(FieldError::invalid(path, name.as_str(), wrong));
            }
        }
        _ => {}
    }
}

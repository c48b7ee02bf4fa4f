//! Small checks that many kinds share.

use mycelium_api::field::{ErrorKind, FieldError, Path};
use serde_json::Value;

use crate::Errors;

/// One error for each message.
pub fn refuse(errors: &mut Errors, path: &Path, value: impl Into<Value>, messages: Vec<String>) {
    let value = value.into();
    errors.extend(messages.into_iter().map(|message| FieldError::invalid(path, value.clone(), message)));
}

/// A text of one's own: required, or one of those allowed.
pub fn one_of(errors: &mut Errors, path: &Path, value: &str, allowed: &[&str]) {
    if value.is_empty() {
        errors.push(FieldError::required(path, ""));
    } else {
        optional_one_of(errors, path, value, allowed);
    }
}

/// A text that may be missing, otherwise one of those allowed.
pub fn optional_one_of(errors: &mut Errors, path: &Path, value: &str, allowed: &[&str]) {
    if !value.is_empty() && !allowed.contains(&value) {
        errors.push(FieldError::not_supported(path, value, allowed));
    }
}

/// A number of at least 0.
pub fn not_negative(errors: &mut Errors, path: &Path, value: &Value) {
    if value.as_i64().is_some_and(|number| number < 0) {
        errors.push(FieldError::invalid(path, value.clone(), "must be greater than or equal to 0"));
    }
}

/// A number of at least 1.
pub fn positive(errors: &mut Errors, path: &Path, value: &Value) {
    if value.as_i64().is_none_or(|number| number <= 0) {
        errors.push(FieldError::invalid(path, value.as_i64().unwrap_or_default(), "must be greater than 0"));
    }
}

/// Something the value refers to does not exist.
pub fn not_found(errors: &mut Errors, path: &Path, value: &str) {
    errors.push(FieldError::new(ErrorKind::NotFound, path, value, ""));
}

/// A list or text beyond its limit.
pub fn too_long(errors: &mut Errors, path: &Path, limit: usize) {
    let detail = format!("may not be more than {limit} bytes");
    errors.push(FieldError::new(ErrorKind::TooLong, path, Value::Null, detail));
}

/// The permission bits of a file.
pub fn file_mode(errors: &mut Errors, path: &Path, value: &Value) {
    if let Some(mode) = value.as_i64().filter(|mode| !(0..=0o777).contains(mode)) {
        let detail = "must be a number between 0 and 0777 (octal), both inclusive";
        errors.push(FieldError::invalid(path, mode, detail));
    }
}

/// A path that stays below where it starts.
pub fn descending_path(errors: &mut Errors, path: &Path, target: &str) {
    if target.starts_with('/') {
        errors.push(FieldError::invalid(path, target, "must be a relative path"));
    }
    no_backsteps(errors, path, target);
}

/// A path without `..` in it.
pub fn no_backsteps(errors: &mut Errors, path: &Path, target: &str) {
    if target.split('/').any(|step| step == "..") {
        errors.push(FieldError::invalid(path, target, "must not contain '..'"));
    }
}

/// A path of a file in a volume: descending, and not one of the names the volume keeps for itself.
pub fn volume_path(errors: &mut Errors, path: &Path, target: &str) {
    descending_path(errors, path, target);
    if target.starts_with("..") && !target.starts_with("../") {
        errors.push(FieldError::invalid(path, target, "must not start with '..'"));
    }
}

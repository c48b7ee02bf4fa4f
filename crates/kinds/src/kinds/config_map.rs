//! ConfigMap.

use mycelium_api::field::{ErrorKind, FieldError, Path};
use mycelium_api::names::is_config_map_key;
use serde_json::Value;

use crate::table::{AGE_COLUMN, Column, NAME, age, name};
use crate::value::{entries, entry_count, flag, has, same};
use crate::{Errors, Kind};

/// All values together, of a ConfigMap or a Secret.
pub const SIZE_MAX: usize = 1024 * 1024;

pub static CONFIG_MAP: Kind = Kind {
    has_status: false,
    check,
    check_update: |new, old, _, errors| {
        check_frozen(new, old, &["data", "binaryData"], errors);
        check(new, errors);
    },
    columns: &[NAME, Column::text("Data", "How many entries there are."), AGE_COLUMN],
    cells: |map, now| {
        let count = entry_count(map, &["data"]) + entry_count(map, &["binaryData"]);
        vec![name(map), count.into(), age(map, now)]
    },
    ..Kind::new("", "ConfigMap", true)
};

fn check(map: &Value, errors: &mut Errors) {
    let mut size = 0;
    for (key, value) in entries(map, &["data"]) {
        let path = Path::new("data").key(key);
        errors.extend(is_config_map_key(key).into_iter().map(|wrong| FieldError::invalid(&path, key.as_str(), wrong)));
        if has(map, &["binaryData", key]) {
            let detail = "duplicate of key present in binaryData";
            errors.push(FieldError::invalid(&path, key.as_str(), detail));
        }
        size += value.as_str().map_or(0, str::len);
    }
    for (key, value) in entries(map, &["binaryData"]) {
        let path = Path::new("binaryData").key(key);
        errors.extend(is_config_map_key(key).into_iter().map(|wrong| FieldError::invalid(&path, key.as_str(), wrong)));
        size += value.as_str().map_or(0, |text| text.len() / 4 * 3);
    }
    if size > SIZE_MAX {
        let detail = format!("may not be more than {SIZE_MAX} bytes");
        errors.push(FieldError::new(ErrorKind::TooLong, &Path::default(), Value::Null, detail));
    }
}

/// Once `immutable` is set, it stays, and the data with it.
pub fn check_frozen(new: &Value, old: &Value, data: &[&str], errors: &mut Errors) {
    const DETAIL: &str = "field is immutable when `immutable` is set";
    if !flag(old, &["immutable"]) {
        return;
    }
    if !flag(new, &["immutable"]) {
        errors.push(FieldError::forbidden(&Path::new("immutable"), DETAIL));
    }
    for key in data {
        if !same(&new[*key], &old[*key]) {
            errors.push(FieldError::forbidden(&Path::new(key), DETAIL));
        }
    }
}

//! Secret.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use mycelium_api::field::{ErrorKind, FieldError, Path};
use mycelium_api::names::is_config_map_key;
use serde_json::Value;

use super::config_map::{SIZE_MAX, check_frozen};
use super::workload::check_immutable;
use crate::table::{AGE_COLUMN, Column, NAME, age, name, text_or};
use crate::value::{ensure_object, entries, entry_count, fill_zero, has, text};
use crate::{Errors, FieldLabels, Kind, Refusal, read_path};

pub static SECRET: Kind = Kind {
    has_status: false,
    defaults: |_, secret| {
        fold_string_data(secret);
        fill_zero(secret, "type", "Opaque");
    },
    on_update: |new, old, _| {
        if text(new, &["type"]).is_empty() {
            crate::meta::keep(new, old, "type");
        }
    },
    check,
    check_update: |new, old, _, errors| {
        check_immutable(new, old, &["type"], errors);
        check_frozen(new, old, &["data"], errors);
        check(new, errors);
    },
    columns: &[
        NAME,
        Column::text("Type", "What the secret is for."),
        Column::text("Data", "How many entries there are."),
        AGE_COLUMN,
    ],
    cells: |secret, now| {
        vec![name(secret), text_or(secret, &["type"], ""), entry_count(secret, &["data"]).into(), age(secret, now)]
    },
    labels: FieldLabels { paths: &["type"], read: read_path, refusal: Refusal::Plain },
    ..Kind::new("", "Secret", true)
};

/// `stringData` is for writing only: its plain texts go into `data`, where they win.
fn fold_string_data(secret: &mut Value) {
    let Some(object) = secret.as_object_mut() else { return };
    let Some(Value::Object(plain)) = object.remove("stringData") else { return };
    if plain.is_empty() {
        return;
    }
    let Some(data) = ensure_object(secret, &["data"]) else { return };
    for (key, value) in plain {
        data.insert(key, STANDARD.encode(value.as_str().unwrap_or_default()).into());
    }
}

fn check(secret: &Value, errors: &mut Errors) {
    let data = Path::new("data");
    let mut size = 0;
    for (key, value) in entries(secret, &["data"]) {
        let path = data.key(key);
        errors.extend(is_config_map_key(key).into_iter().map(|wrong| FieldError::invalid(&path, key.as_str(), wrong)));
        size += value.as_str().map_or(0, |text| text.len() / 4 * 3);
    }
    if size > SIZE_MAX {
        let detail = format!("may not be more than {SIZE_MAX} bytes");
        errors.push(FieldError::new(ErrorKind::TooLong, &data, Value::Null, detail));
    }
    let require = |keys: &[&str], errors: &mut Errors| {
        for key in keys.iter().filter(|key| !has(secret, &["data", key])) {
            errors.push(FieldError::required(&data.key(key), ""));
        }
    };
    match text(secret, &["type"]) {
        "kubernetes.io/service-account-token" => {
            let key = "kubernetes.io/service-account.name";
            if text(secret, &["metadata", "annotations", key]).is_empty() {
                let path = Path::new("metadata").child("annotations").key(key);
                errors.push(FieldError::required(&path, ""));
            }
        }
        "kubernetes.io/dockercfg" => {
            require(&[".dockercfg"], errors);
            check_json(secret, ".dockercfg", &data, errors);
        }
        "kubernetes.io/dockerconfigjson" => {
            require(&[".dockerconfigjson"], errors);
            check_json(secret, ".dockerconfigjson", &data, errors);
        }
        "kubernetes.io/basic-auth" if !has(secret, &["data", "username"]) && !has(secret, &["data", "password"]) => {
            require(&["username", "password"], errors);
        }
        "kubernetes.io/ssh-auth" if text(secret, &["data", "ssh-privatekey"]).is_empty() => {
            errors.push(FieldError::required(&data.key("ssh-privatekey"), ""));
        }
        "kubernetes.io/tls" => require(&["tls.crt", "tls.key"], errors),
        _ => {}
    }
}

fn check_json(secret: &Value, key: &str, data: &Path, errors: &mut Errors) {
    let Ok(bytes) = STANDARD.decode(text(secret, &["data", key])) else { return };
    if has(secret, &["data", key])
        && let Err(error) = serde_json::from_slice::<serde_json::Map<String, Value>>(&bytes)
    {
        errors.push(FieldError::invalid(&data.key(key), "<secret contents redacted>", error.to_string()));
    }
}

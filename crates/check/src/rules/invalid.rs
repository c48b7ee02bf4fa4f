//! The rules of the API itself: what it would refuse, and what it would warn of. Runs last, and leaves out what another
//! rule has explained better.

use mycelium_apimachinery::decode::{check_types, prune};
use mycelium_apimachinery::schema::{resource_of_kind, types};
use mycelium_kinds::convert;

use crate::finding::{Report, Severity};
use crate::set::{Object, Set};

pub fn check(set: &Set, report: &mut Report) {
    for object in set.local() {
        if resource_of_kind(&object.group, &object.version, &object.kind).is_some() {
            validate(object, report);
        }
    }
}

fn validate(object: &Object, report: &mut Report) {
    let Some(ty) = types().for_gvk(&object.group, &object.version, &object.kind) else { return };
    let mut value = object.value.clone();
    if check_types(ty, &value).is_err() || !value["metadata"].is_object() {
        return;
    }
    prune(ty, &mut value);
    if !object.namespace.is_empty() {
        value["metadata"]["namespace"] = object.namespace.as_str().into();
    }
    if let Some(prefix) = object.name.strip_suffix('*') {
        // The server chooses the rest of the name before it looks.
        value["metadata"]["name"] = format!("{prefix}x").into();
    }
    let kind = mycelium_kinds::kind(&object.group, &object.kind);
    kind.default(&object.version, &mut value);
    if let Some((group, version)) = convert::stored_version(&object.group, &object.kind) {
        convert::to_version(&mut value, group, version);
    }
    kind.prepare_create(&mut value);
    let name = object.to_string();
    let errors = kind.validate_create(&value);
    let explained = ["no-selector", "selector-mismatch"].iter().any(|code| report.has(&name, code));
    let fresh: Vec<_> = errors
        .iter()
        .filter(|error| !report.touches(&name, error.path.as_str()))
        .filter(|error| !(explained && error.detail.starts_with("`selector` does not match")))
        .collect();
    for error in fresh {
        let message = format!("{}: {}", error.path, error.body());
        report.object(Severity::Error, "invalid", object, &error.path, message, "");
    }
}

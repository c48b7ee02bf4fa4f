//! What is wrong with the mounts and devices of a container.

use std::collections::BTreeSet;

use mycelium_api::field::{FieldError, Path};
use serde_json::Value;

use super::validate_volume::{self as volume, Volumes};
use crate::Errors;
use crate::check::{descending_path, no_backsteps, not_found, optional_one_of};
use crate::value::{flag, list, text};

/// Volumes in the file system of the container.
pub fn check_mounts(container: &Value, volumes: &Volumes<'_>, path: &Path, errors: &mut Errors) {
    let devices = list(container, &["volumeDevices"]);
    let mut taken = BTreeSet::new();
    for (index, mount) in list(container, &["volumeMounts"]).iter().enumerate() {
        let item = path.index(index);
        let (name, target) = (text(mount, &["name"]), text(mount, &["mountPath"]));
        if name.is_empty() {
            errors.push(FieldError::required(&item.child("name"), ""));
        }
        if !volumes.contains_key(name) {
            not_found(errors, &item.child("name"), name);
        }
        if target.is_empty() {
            errors.push(FieldError::required(&item.child("mountPath"), ""));
        }
        if !taken.insert(target) {
            errors.push(FieldError::invalid(&item.child("mountPath"), target, "must be unique"));
        }
        if devices.iter().any(|device| text(device, &["name"]) == name) {
            errors.push(FieldError::invalid(&item.child("name"), name, "must not already exist in volumeDevices"));
        }
        if devices.iter().any(|device| text(device, &["devicePath"]) == target) {
            let detail = "must not already exist as a path in volumeDevices";
            errors.push(FieldError::invalid(&item.child("mountPath"), target, detail));
        }
        check_sub_path(mount, &item, path, errors);
        check_propagation(mount, container, path, errors);
    }
}

fn check_sub_path(mount: &Value, item: &Path, path: &Path, errors: &mut Errors) {
    let (sub_path, expression) = (text(mount, &["subPath"]), text(mount, &["subPathExpr"]));
    if !sub_path.is_empty() {
        descending_path(errors, &path.child("subPath"), sub_path);
    }
    if !expression.is_empty() {
        if !sub_path.is_empty() {
            let detail = "subPathExpr and subPath are mutually exclusive";
            errors.push(FieldError::invalid(&item.child("subPathExpr"), expression, detail));
        }
        descending_path(errors, &path.child("subPathExpr"), expression);
    }
}

fn check_propagation(mount: &Value, container: &Value, path: &Path, errors: &mut Errors) {
    let propagation = text(mount, &["mountPropagation"]);
    let propagation_path = path.child("mountPropagation");
    optional_one_of(errors, &propagation_path, propagation, &["Bidirectional", "HostToContainer", "None"]);
    if propagation == "Bidirectional" && !flag(container, &["securityContext", "privileged"]) {
        let detail = "Bidirectional mount propagation is available only to privileged containers";
        errors.push(FieldError::forbidden(&propagation_path, detail));
    }
    let recursive = text(mount, &["recursiveReadOnly"]);
    let recursive_path = path.child("recursiveReadOnly");
    optional_one_of(errors, &recursive_path, recursive, &["Disabled", "IfPossible", "Enabled"]);
    if matches!(recursive, "Enabled" | "IfPossible") {
        if !flag(mount, &["readOnly"]) {
            errors.push(FieldError::forbidden(&recursive_path, "may only be specified when readOnly is true"));
        }
        if !matches!(propagation, "" | "None") {
            let detail = "may only be specified when mountPropagation is None or not specified";
            errors.push(FieldError::forbidden(&recursive_path, detail));
        }
    }
}

/// Volumes as raw devices.
pub fn check_devices(container: &Value, volumes: &Volumes<'_>, path: &Path, errors: &mut Errors) {
    let mut names = BTreeSet::new();
    for (index, device) in list(container, &["volumeDevices"]).iter().enumerate() {
        let item = path.index(index);
        let (name, target) = (text(device, &["name"]), text(device, &["devicePath"]));
        if name.is_empty() {
            errors.push(FieldError::required(&item.child("name"), ""));
        }
        if !names.insert(name) {
            errors.push(FieldError::invalid(&item.child("name"), name, "must be unique"));
        }
        match volumes.get(name) {
            None => not_found(errors, &item.child("name"), name),
            Some(source) if !volume::is_claim(source) => {
                let detail = "can only use volume source type of PersistentVolumeClaim or Ephemeral for block mode";
                errors.push(FieldError::invalid(&item.child("name"), name, detail));
            }
            Some(_) => {}
        }
        if target.is_empty() {
            errors.push(FieldError::required(&item.child("devicePath"), ""));
        }
        let mut steps = Errors::new();
        no_backsteps(&mut steps, path, target);
        if !steps.is_empty() {
            let detail = "can not contain backsteps ('..')";
            errors.push(FieldError::invalid(&item.child("devicePath"), target, detail));
        }
    }
}

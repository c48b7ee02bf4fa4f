//! What is wrong with the volumes of a pod.

use std::collections::{BTreeMap, BTreeSet};

use mycelium_api::field::{FieldError, Path};
use mycelium_api::names;
use mycelium_api::quantity::Quantity;
use serde_json::Value;

use super::validate_env::{check_field_ref, check_resource_ref};
use crate::Errors;
use crate::check::{file_mode, no_backsteps, optional_one_of, refuse, volume_path};
use crate::value::{has, int, list, text};

/// The valid volumes of a pod, by name.
pub type Volumes<'a> = BTreeMap<&'a str, &'a Value>;

const SOURCES: &[&str] = &[
    "emptyDir",
    "hostPath",
    "gitRepo",
    "gcePersistentDisk",
    "awsElasticBlockStore",
    "secret",
    "nfs",
    "iscsi",
    "glusterfs",
    "flocker",
    "persistentVolumeClaim",
    "rbd",
    "cinder",
    "cephfs",
    "quobyte",
    "downwardAPI",
    "fc",
    "flexVolume",
    "configMap",
    "azureFile",
    "vsphereVolume",
    "photonPersistentDisk",
    "portworxVolume",
    "azureDisk",
    "storageos",
    "projected",
    "scaleIO",
    "csi",
    "ephemeral",
    "image",
];

const FIELDS: &[&str] =
    &["metadata.annotations", "metadata.labels", "metadata.name", "metadata.namespace", "metadata.uid"];

/// Whether a volume is a claim for storage.
pub fn is_claim(volume: &Value) -> bool {
    has(volume, &["persistentVolumeClaim"]) || has(volume, &["ephemeral"])
}

/// Checks all volumes; returns those that are valid, because mounts can refer only to them.
pub fn check_all<'a>(spec: &'a Value, pod_name: &str, path: &Path, errors: &mut Errors) -> Volumes<'a> {
    let mut valid = Volumes::new();
    let created: BTreeSet<String> = list(spec, &["volumes"])
        .iter()
        .filter(|volume| !pod_name.is_empty() && has(volume, &["ephemeral"]))
        .map(|volume| format!("{pod_name}-{}", text(volume, &["name"])))
        .collect();
    for (index, volume) in list(spec, &["volumes"]).iter().enumerate() {
        let path = path.index(index);
        let name = text(volume, &["name"]);
        let before = errors.len();
        check_source(volume, pod_name, &path, errors);
        if name.is_empty() {
            errors.push(FieldError::required(&path.child("name"), ""));
        } else {
            refuse(errors, &path.child("name"), name, names::is_dns1123_label(name));
        }
        if valid.contains_key(name) {
            errors.push(FieldError::duplicate(&path.child("name"), name));
        }
        if errors.len() == before {
            valid.insert(name, volume);
        }
        let claim = text(volume, &["persistentVolumeClaim", "claimName"]);
        if !claim.is_empty() && created.contains(claim) {
            let path = path.child("persistentVolumeClaim").child("claimName");
            let detail = "must not reference a PVC that gets created for an ephemeral volume";
            errors.push(FieldError::invalid(&path, claim, detail));
        }
    }
    valid
}

/// A token of the service account needs a service account.
pub fn check_no_tokens(spec: &Value, path: &Path, errors: &mut Errors) {
    for (index, volume) in list(spec, &["volumes"]).iter().enumerate() {
        let path = path.index(index).child("projected").child("sources");
        for (index, source) in list(volume, &["projected", "sources"]).iter().enumerate() {
            if has(source, &["serviceAccountToken"]) {
                let detail = "must not be specified when serviceAccountName is not set";
                errors.push(FieldError::forbidden(&path.index(index).child("serviceAccountToken"), detail));
            }
        }
    }
}

fn check_source(volume: &Value, pod_name: &str, path: &Path, errors: &mut Errors) {
    let mut given = 0;
    for key in SOURCES.iter().filter(|key| has(volume, &[key])) {
        let path = path.child(key);
        given += 1;
        if given > 1 {
            errors.push(FieldError::forbidden(&path, "may not specify more than 1 volume type"));
            continue;
        }
        check_kind(key, &volume[*key], &path, errors);
    }
    if given == 0 {
        errors.push(FieldError::required(path, "must specify a volume type"));
    }
    let name = text(volume, &["name"]);
    if has(volume, &["ephemeral"]) && !pod_name.is_empty() && !name.is_empty() {
        let claim = format!("{pod_name}-{name}");
        for wrong in names::is_dns1123_subdomain(&claim) {
            errors.push(FieldError::invalid(&path.child("name"), name, format!("PVC name {claim:?}: {wrong}")));
        }
    }
}

fn check_kind(kind: &str, source: &Value, path: &Path, errors: &mut Errors) {
    let require = |key: &str, errors: &mut Errors| {
        if text(source, &[key]).is_empty() {
            errors.push(FieldError::required(&path.child(key), ""));
        }
    };
    match kind {
        "emptyDir" if Quantity::from_json(&source["sizeLimit"]).is_ok_and(|limit| limit.is_negative()) => {
            let detail = "SizeLimit field must be a valid resource quantity";
            errors.push(FieldError::forbidden(&path.child("sizeLimit"), detail));
        }
        "hostPath" => check_host_path(source, path, errors),
        "secret" => {
            require("secretName", errors);
            check_items(source, path, errors);
        }
        "configMap" => {
            require("name", errors);
            check_items(source, path, errors);
        }
        "downwardAPI" => {
            file_mode(errors, &path.child("defaultMode"), &source["defaultMode"]);
            list(source, &["items"]).iter().for_each(|item| check_downward_file(item, path, errors));
        }
        "projected" => check_projected(source, path, errors),
        "persistentVolumeClaim" => require("claimName", errors),
        "nfs" => {
            require("server", errors);
            require("path", errors);
            let target = text(source, &["path"]);
            if !target.is_empty() && !target.starts_with('/') {
                errors.push(FieldError::invalid(&path.child("path"), target, "must be an absolute path"));
            }
        }
        "csi" => require("driver", errors),
        "image" => {
            require("reference", errors);
            let pull = text(source, &["pullPolicy"]);
            optional_one_of(errors, &path.child("pullPolicy"), pull, &["Always", "IfNotPresent", "Never"]);
        }
        "ephemeral" if !has(source, &["volumeClaimTemplate"]) => {
            errors.push(FieldError::required(&path.child("volumeClaimTemplate"), ""));
        }
        "ephemeral" => {
            let path = path.child("volumeClaimTemplate").child("spec");
            crate::kinds::check_claim_spec(&source["volumeClaimTemplate"]["spec"], &path, errors);
        }
        _ => {}
    }
}

fn check_host_path(source: &Value, path: &Path, errors: &mut Errors) {
    const TYPES: &[&str] =
        &["", "BlockDevice", "CharDevice", "Directory", "DirectoryOrCreate", "File", "FileOrCreate", "Socket"];
    let target = text(source, &["path"]);
    if target.is_empty() {
        errors.push(FieldError::required(&path.child("path"), ""));
        return;
    }
    no_backsteps(errors, &path.child("path"), target);
    optional_one_of(errors, &path.child("type"), text(source, &["type"]), TYPES);
}

fn check_items(source: &Value, path: &Path, errors: &mut Errors) {
    file_mode(errors, &path.child("defaultMode"), &source["defaultMode"]);
    for (index, item) in list(source, &["items"]).iter().enumerate() {
        check_item(item, &path.child("items").index(index), errors);
    }
}

fn check_item(item: &Value, path: &Path, errors: &mut Errors) {
    for key in ["key", "path"] {
        if text(item, &[key]).is_empty() {
            errors.push(FieldError::required(&path.child(key), ""));
        }
    }
    volume_path(errors, &path.child("path"), text(item, &["path"]));
    file_mode(errors, &path.child("mode"), &item["mode"]);
}

fn check_downward_file(item: &Value, path: &Path, errors: &mut Errors) {
    let target = text(item, &["path"]);
    if target.is_empty() {
        errors.push(FieldError::required(&path.child("path"), ""));
    }
    volume_path(errors, &path.child("path"), target);
    let (field, resource) = (has(item, &["fieldRef"]), has(item, &["resourceFieldRef"]));
    if field {
        check_field_ref(&item["fieldRef"], FIELDS, &path.child("fieldRef"), errors);
    }
    match (field, resource) {
        (true, true) => {
            let detail = "fieldRef and resourceFieldRef can not be specified simultaneously";
            errors.push(FieldError::invalid(path, "resource", detail));
        }
        (false, true) => {
            check_resource_ref(&item["resourceFieldRef"], true, &path.child("resourceFieldRef"), errors);
        }
        (false, false) => {
            errors.push(FieldError::required(path, "one of fieldRef and resourceFieldRef is required"));
        }
        (true, false) => {}
    }
    file_mode(errors, &path.child("mode"), &item["mode"]);
}

fn check_projected(source: &Value, path: &Path, errors: &mut Errors) {
    file_mode(errors, &path.child("defaultMode"), &source["defaultMode"]);
    let mut targets = BTreeSet::new();
    for (index, part) in list(source, &["sources"]).iter().enumerate() {
        let item = path.child("sources").index(index);
        let mut given = 0;
        for kind in ["secret", "configMap"] {
            if !has(part, &[kind]) {
                continue;
            }
            given += 1;
            let name = text(part, &[kind, "name"]);
            if name.is_empty() {
                errors.push(FieldError::required(&item.child(kind).child("name"), ""));
            }
            for (index, entry) in list(part, &[kind, "items"]).iter().enumerate() {
                check_item(entry, &item.child(kind).child("items").index(index), errors);
                let target = text(entry, &["path"]);
                if !target.is_empty() && !targets.insert(target) {
                    errors.push(FieldError::invalid(path, name, "conflicting duplicate paths"));
                }
            }
        }
        if has(part, &["downwardAPI"]) {
            given += 1;
            for entry in list(part, &["downwardAPI", "items"]) {
                check_downward_file(entry, &item.child("downwardAPI"), errors);
                let target = text(entry, &["path"]);
                if !target.is_empty() && !targets.insert(target) {
                    errors.push(FieldError::invalid(path, target, "conflicting duplicate paths"));
                }
            }
        }
        if has(part, &["serviceAccountToken"]) {
            given += 1;
            check_token(&part["serviceAccountToken"], &item.child("serviceAccountToken"), path, errors);
        }
        given += ["clusterTrustBundle", "podCertificate"].iter().filter(|kind| has(part, &[kind])).count();
        if given > 1 {
            errors.push(FieldError::forbidden(&item, "may not specify more than 1 volume type per source"));
        }
    }
}

fn check_token(token: &Value, item: &Path, path: &Path, errors: &mut Errors) {
    let seconds = int(token, &["expirationSeconds"]).unwrap_or_default();
    let detail = match seconds {
        ..600 => Some("may not specify a duration less than 10 minutes"),
        4_294_967_297.. => Some("may not specify a duration larger than 2^32 seconds"),
        _ => None,
    };
    if let Some(detail) = detail {
        errors.push(FieldError::invalid(&item.child("expirationSeconds"), seconds, detail));
    }
    match text(token, &["path"]) {
        "" => errors.push(FieldError::required(&path.child("path"), "")),
        target => volume_path(errors, &path.child("path"), target),
    }
}

//! Rules for `metadata`, the same for every kind.

use std::collections::BTreeMap;

use mycelium_api::field::{ErrorKind, FieldError, Path};
use mycelium_api::names;
use serde_json::Value;

use crate::value::{at, ensure_object, entries, flag, int, is_empty, list, same, text, texts};
use crate::{Errors, NameRule};

/// All keys and values of all annotations together.
const ANNOTATIONS_MAX: usize = 256 * 1024;

/// `field is immutable`.
pub const IMMUTABLE: &str = "field is immutable";

/// What is wrong with the metadata of a new object.
pub fn validate(object: &Value, namespaced: Option<bool>, name_rule: NameRule) -> Errors {
    let path = Path::new("metadata");
    let metadata = &object["metadata"];
    let mut errors = Errors::new();
    let prefix = text(metadata, &["generateName"]);
    if !prefix.is_empty() {
        for wrong in check_name(name_rule, prefix, true) {
            errors.push(FieldError::invalid(&path.child("generateName"), prefix, wrong));
        }
    }
    let name = text(metadata, &["name"]);
    if name.is_empty() {
        errors.push(FieldError::required(&path.child("name"), "name or generateName is required"));
    }
    let wrong_name = if name.is_empty() { Vec::new() } else { check_name(name_rule, name, false) };
    for wrong in wrong_name {
        errors.push(FieldError::invalid(&path.child("name"), name, wrong));
    }
    check_namespace(metadata, namespaced, &path.child("namespace"), &mut errors);
    if int(metadata, &["generation"]).is_some_and(|generation| generation < 0) {
        let value = metadata["generation"].clone();
        errors.push(FieldError::invalid(&path.child("generation"), value, "must be greater than or equal to 0"));
    }
    check_common(metadata, &path, &mut errors);
    errors
}

/// What is wrong with the metadata of an update.
pub fn validate_update(new: &Value, old: &Value) -> Errors {
    let path = Path::new("metadata");
    let (new, old) = (&new["metadata"], &old["metadata"]);
    let mut errors = Errors::new();
    if !is_empty(&old["deletionTimestamp"]) {
        check_no_new_finalizers(new, old, &path.child("finalizers"), &mut errors);
    }
    for field in ["name", "namespace", "uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds"] {
        if !same(&new[field], &old[field]) {
            errors.push(FieldError::invalid(&path.child(field), new[field].clone(), IMMUTABLE));
        }
    }
    check_common(new, &path, &mut errors);
    errors
}

/// Applies a kind's rule to a name, or to the prefix of a generated one.
pub fn check_name(rule: NameRule, name: &str, generate: bool) -> Vec<String> {
    if generate { rule(&names::mask_generated(name)) } else { rule(name) }
}

/// Takes from the old object what no update can change, where the writer left it out.
pub fn carry_over(new: &mut Value, old: &Value) {
    let Some(metadata) = ensure_object(new, &["metadata"]) else { return };
    let mut take = |key: &str, always: bool| {
        let kept = &old["metadata"][key];
        let given = metadata.get(key).is_some_and(|value| !is_empty(value));
        if !kept.is_null() && (always || !given) {
            metadata.insert(key.to_owned(), kept.clone());
        }
    };
    take("uid", false);
    take("creationTimestamp", true);
    take("deletionTimestamp", true);
    take("deletionGracePeriodSeconds", false);
}

/// Takes one member of the object from the old one, also its absence.
pub fn keep(new: &mut Value, old: &Value, member: &str) {
    let Some(new) = new.as_object_mut() else { return };
    match old.get(member) {
        Some(kept) => new.insert(member.to_owned(), kept.clone()),
        None => new.remove(member),
    };
}

/// Takes one member of the metadata from the old object, also its absence.
pub fn keep_in_metadata(new: &mut Value, old: &Value, member: &str) {
    if let Some(metadata) = new.get_mut("metadata") {
        keep(metadata, &old["metadata"], member);
    }
}

fn check_namespace(metadata: &Value, namespaced: Option<bool>, path: &Path, errors: &mut Errors) {
    let namespace = text(metadata, &["namespace"]);
    match namespaced {
        Some(true) if namespace.is_empty() => errors.push(FieldError::required(path, "")),
        Some(true) => {
            let wrong = names::is_dns1123_label(namespace);
            errors.extend(wrong.into_iter().map(|wrong| FieldError::invalid(path, namespace, wrong)));
        }
        Some(false) if !namespace.is_empty() => errors.push(FieldError::forbidden(path, "not allowed on this type")),
        _ => {}
    }
}

fn check_common(metadata: &Value, path: &Path, errors: &mut Errors) {
    check_labels(&metadata["labels"], &path.child("labels"), errors);
    check_annotations(&metadata["annotations"], &path.child("annotations"), errors);
    check_owners(&metadata["ownerReferences"], &path.child("ownerReferences"), errors);
    check_finalizers(metadata, &path.child("finalizers"), errors);
    check_managed_fields(metadata, &path.child("managedFields"), errors);
}

/// What is wrong with a map of labels.
pub fn check_labels(labels: &Value, path: &Path, errors: &mut Errors) {
    for (key, value) in entries(labels, &[]) {
        check_label_key(key, path, errors);
        let value = value.as_str().unwrap_or_default();
        for wrong in names::is_label_value(value) {
            errors.push(FieldError::invalid(path, value, wrong));
        }
    }
}

/// What is wrong with the key of a label.
pub fn check_label_key(key: &str, path: &Path, errors: &mut Errors) {
    errors.extend(names::is_qualified_name(key).into_iter().map(|wrong| FieldError::invalid(path, key, wrong)));
}

/// What is wrong with a map of annotations.
pub fn check_annotations(annotations: &Value, path: &Path, errors: &mut Errors) {
    let mut size = 0;
    for (key, value) in entries(annotations, &[]) {
        for wrong in names::is_qualified_name(&key.to_lowercase()) {
            errors.push(FieldError::invalid(path, key.as_str(), wrong));
        }
        size += key.len() + value.as_str().map_or(0, str::len);
    }
    if size > ANNOTATIONS_MAX {
        let detail = format!("may not be more than {ANNOTATIONS_MAX} bytes");
        errors.push(FieldError::new(ErrorKind::TooLong, path, Value::Null, detail));
    }
}

/// What is wrong with a `metav1.LabelSelector`.
pub fn check_selector(selector: &Value, path: &Path, errors: &mut Errors) {
    check_labels(&selector["matchLabels"], &path.child("matchLabels"), errors);
    for (index, expression) in list(selector, &["matchExpressions"]).iter().enumerate() {
        let path = path.child("matchExpressions").index(index);
        let given = list(expression, &["values"]).len();
        match text(expression, &["operator"]) {
            "In" | "NotIn" if given == 0 => errors.push(FieldError::required(
                &path.child("values"),
                "must be specified when `operator` is 'In' or 'NotIn'",
            )),
            "Exists" | "DoesNotExist" if given > 0 => errors.push(FieldError::forbidden(
                &path.child("values"),
                "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
            )),
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            other => {
                errors.push(FieldError::invalid(&path.child("operator"), other, "not a valid selector operator"));
            }
        }
        check_label_key(text(expression, &["key"]), &path.child("key"), errors);
        for (index, value) in list(expression, &["values"]).iter().enumerate() {
            let value = value.as_str().unwrap_or_default();
            for wrong in names::is_label_value(value) {
                errors.push(FieldError::invalid(&path.child("values").index(index), value, wrong));
            }
        }
    }
}

fn check_owners(owners: &Value, path: &Path, errors: &mut Errors) {
    let mut controller: Option<String> = None;
    for owner in list(owners, &[]) {
        let api_version = text(owner, &["apiVersion"]);
        if api_version.rsplit('/').next().unwrap_or_default().is_empty() {
            errors.push(FieldError::invalid(&path.child("apiVersion"), api_version, "version must not be empty"));
        }
        for field in ["kind", "name", "uid"] {
            if text(owner, &[field]).is_empty() {
                errors.push(FieldError::invalid(&path.child(field), "", "must not be empty"));
            }
        }
        if api_version == "v1" && text(owner, &["kind"]) == "Event" {
            let detail = "/v1, Kind=Event is disallowed from being an owner";
            errors.push(FieldError::invalid(path, owner.clone(), detail));
        }
        if flag(owner, &["controller"]) {
            let current = format!("{}/{}", text(owner, &["kind"]), text(owner, &["name"]));
            match &controller {
                Some(first) => {
                    let detail = format!(
                        "Only one reference can have Controller set to true. Found \"true\" in references for {first} and {current}"
                    );
                    errors.push(FieldError::invalid(path, owners.clone(), detail));
                }
                None => controller = Some(current),
            }
        }
    }
}

fn check_finalizers(metadata: &Value, path: &Path, errors: &mut Errors) {
    let mut seen = BTreeMap::new();
    for finalizer in texts(metadata, &["finalizers"]) {
        check_label_key(finalizer, path, errors);
        seen.insert(finalizer, ());
    }
    if seen.contains_key("orphan") && seen.contains_key("foregroundDeletion") {
        let detail = "finalizer orphan and foregroundDeletion cannot be both set";
        errors.push(FieldError::invalid(path, metadata["finalizers"].clone(), detail));
    }
}

fn check_no_new_finalizers(new: &Value, old: &Value, path: &Path, errors: &mut Errors) {
    let known: Vec<&str> = texts(old, &["finalizers"]).collect();
    let mut added: Vec<&str> = texts(new, &["finalizers"]).filter(|name| !known.contains(name)).collect();
    added.sort_unstable();
    added.dedup();
    if !added.is_empty() {
        let names = added.iter().map(|name| format!("{name:?}")).collect::<Vec<_>>().join(", ");
        let detail = format!(
            "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{names}}}"
        );
        errors.push(FieldError::forbidden(path, detail));
    }
}

fn check_managed_fields(metadata: &Value, path: &Path, errors: &mut Errors) {
    for (index, entry) in list(metadata, &["managedFields"]).iter().enumerate() {
        let path = path.index(index);
        let operation = text(entry, &["operation"]);
        if !matches!(operation, "Apply" | "Update") {
            errors.push(FieldError::invalid(&path.child("operation"), operation, "must be `Apply` or `Update`"));
        }
        let fields_type = text(entry, &["fieldsType"]);
        if !matches!(fields_type, "" | "FieldsV1") {
            errors.push(FieldError::invalid(&path.child("fieldsType"), fields_type, "must be `FieldsV1`"));
        }
        if text(entry, &["manager"]).len() > 128 {
            let detail = "may not be more than 128 bytes";
            errors.push(FieldError::new(ErrorKind::TooLong, &path.child("manager"), Value::Null, detail));
        }
    }
}

/// What a client should know about metadata that is accepted all the same.
pub fn warnings(object: &Value) -> Vec<String> {
    let plain = |finalizer: &&str| {
        !finalizer.contains('/') && !matches!(*finalizer, "orphan" | "foregroundDeletion" | "kubernetes")
    };
    texts(object, &["metadata", "finalizers"])
        .filter(plain)
        .map(|finalizer| {
            let path = if finalizer.contains('.') { " including a path (/)" } else { "" };
            format!(
                "metadata.finalizers: {finalizer:?}: prefer a domain-qualified finalizer name{path} to avoid accidental conflicts with other finalizer writers"
            )
        })
        .collect()
}

/// The reference to the owner that controls the object, if there is one.
pub fn controller_of(object: &Value) -> Option<&Value> {
    list(at(object, &["metadata"]), &["ownerReferences"]).iter().find(|owner| flag(owner, &["controller"]))
}

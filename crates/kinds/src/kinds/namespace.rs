//! Namespace.

use mycelium_api::names::is_dns1123_label;
use serde_json::{Value, json};

use crate::meta::keep;
use crate::table::{AGE_COLUMN, Column, NAME, age, name, text_or};
use crate::value::{at, ensure_object, text, texts};
use crate::{FieldLabels, Kind, Part, Refusal, read_path};

/// The label that carries a namespace's own name.
const NAME_LABEL: &str = "kubernetes.io/metadata.name";
/// The finalizer that lets the namespace controller empty the namespace first.
const FINALIZER: &str = "kubernetes";

pub static NAMESPACE: Kind = Kind {
    name_rule: is_dns1123_label,
    defaults: |_, namespace| label_with_name(namespace),
    on_create: |namespace| {
        label_with_name(namespace);
        let mut finalizers: Vec<String> = texts(namespace, &["spec", "finalizers"]).map(str::to_owned).collect();
        if !finalizers.iter().any(|finalizer| finalizer == FINALIZER) {
            finalizers.push(FINALIZER.to_owned());
        }
        if let Some(spec) = ensure_object(namespace, &["spec"]) {
            spec.insert("finalizers".to_owned(), finalizers.into());
        }
        if let Some(namespace) = namespace.as_object_mut() {
            namespace.insert("status".to_owned(), json!({"phase": "Active"}));
        }
    },
    on_update: |new, old, part| {
        label_with_name(new);
        if part != Part::Finalize && part != Part::Status {
            let finalizers = at(old, &["spec", "finalizers"]).clone();
            let spec = ensure_object(new, &["spec"]);
            if let Some(spec) = spec {
                if finalizers.is_null() {
                    spec.remove("finalizers");
                } else {
                    spec.insert("finalizers".to_owned(), finalizers);
                }
            }
        }
        if part == Part::Finalize {
            keep(new, old, "status");
        }
    },
    columns: &[NAME, Column::text("Status", "Phase of the namespace."), AGE_COLUMN],
    cells: |namespace, now| vec![name(namespace), text_or(namespace, &["status", "phase"], ""), age(namespace, now)],
    labels: FieldLabels { paths: &["status.phase"], read: read_path, refusal: Refusal::Plain },
    ..Kind::new("", "Namespace", false)
};

fn label_with_name(namespace: &mut Value) {
    let name = text(namespace, &["metadata", "name"]).to_owned();
    if name.is_empty() {
        return;
    }
    if let Some(labels) = ensure_object(namespace, &["metadata", "labels"]) {
        labels.insert(NAME_LABEL.to_owned(), name.into());
    }
}

//! ReplicationController: a ReplicaSet with a plain map as selector.

use mycelium_api::field::{FieldError, Path};
use mycelium_api::selector::Selector;
use serde_json::Value;

use super::replica_set::COLUMNS;
use super::workload::{check_not_negative, check_template};
use crate::meta::check_labels;
use crate::pod::defaults;
use crate::table::{age, containers, labels, name, number};
use crate::value::{at, ensure_object, fill, is_empty, text_map, within};
use crate::{Errors, FieldLabels, Generation, Kind, Part, Refusal, read_path};

pub static REPLICATION_CONTROLLER: Kind = Kind {
    generation: Generation::Spec,
    defaults: |_, controller| {
        ensure_object(controller, &["spec"]);
        within(controller, &["spec"], |spec| {
            fill(spec, "replicas", 1);
            if spec["template"].is_object() {
                defaults::template(spec);
            }
        });
        let from_template = at(controller, &["spec", "template", "metadata", "labels"]).clone();
        if is_empty(&from_template) {
            return;
        }
        for (holder, key) in [("spec", "selector"), ("metadata", "labels")] {
            if is_empty(&controller[holder][key])
                && let Some(holder) = ensure_object(controller, &[holder])
            {
                holder.insert(key.to_owned(), from_template.clone());
            }
        }
    },
    check,
    check_update: |new, _, part, errors| {
        if part != Part::Status {
            check(new, errors);
        }
    },
    advice: super::workload::advice,
    columns: COLUMNS,
    cells: |controller, now| {
        let [names, images] = containers(at(controller, &["spec", "template", "spec"]));
        vec![
            name(controller),
            number(controller, &["spec", "replicas"]),
            number(controller, &["status", "replicas"]),
            number(controller, &["status", "readyReplicas"]),
            age(controller, now),
            names,
            images,
            labels(controller, &["spec", "selector"]),
        ]
    },
    labels: FieldLabels { paths: &["status.replicas"], read: read_path, refusal: Refusal::Plain },
    ..Kind::new("", "ReplicationController", true)
};

fn check(controller: &Value, errors: &mut Errors) {
    let path = Path::new("spec");
    let spec = &controller["spec"];
    check_not_negative(&spec["minReadySeconds"], &path.child("minReadySeconds"), errors);
    if is_empty(&spec["selector"]) {
        errors.push(FieldError::required(&path.child("selector"), ""));
    }
    check_labels(&spec["selector"], &path.child("selector"), errors);
    check_not_negative(&spec["replicas"], &path.child("replicas"), errors);
    let labels = text_map(spec, &["selector"]);
    check_template(spec, &Selector::from_labels(labels), &path, "ReplicationController", errors);
}

//! ReplicaSet.

use mycelium_api::field::Path;
use serde_json::Value;

use super::workload::{check_immutable, check_not_negative, check_selector_and_template, wide_cells};
use crate::pod::defaults;
use crate::table::{AGE_COLUMN, CONTAINERS, Column, IMAGES, NAME, SELECTOR, age, name, number};
use crate::value::{ensure_object, fill, within};
use crate::{Errors, Generation, Kind, Part};

/// The columns of ReplicaSets and ReplicationControllers.
pub const COLUMNS: &[Column] = &[
    NAME,
    Column::integer("Desired", "Pods that are wanted."),
    Column::integer("Current", "Pods that exist."),
    Column::integer("Ready", "Pods that are ready."),
    AGE_COLUMN,
    CONTAINERS,
    IMAGES,
    SELECTOR,
];

pub static REPLICA_SET: Kind = Kind {
    generation: Generation::Spec,
    defaults: |_, set| {
        ensure_object(set, &["spec"]);
        within(set, &["spec"], |spec| {
            fill(spec, "replicas", 1);
            defaults::template(spec);
        });
    },
    check,
    check_update: |new, old, part, errors| {
        if part != Part::Status {
            check(new, errors);
            check_immutable(new, old, &["spec", "selector"], errors);
        }
    },
    advice: super::workload::advice,
    columns: COLUMNS,
    cells: |set, now| {
        let [names, images, selector] = wide_cells(set);
        vec![
            name(set),
            number(set, &["spec", "replicas"]),
            number(set, &["status", "replicas"]),
            number(set, &["status", "readyReplicas"]),
            age(set, now),
            names,
            images,
            selector,
        ]
    },
    ..Kind::new("apps", "ReplicaSet", true)
};

fn check(set: &Value, errors: &mut Errors) {
    let path = Path::new("spec");
    check_not_negative(&set["spec"]["replicas"], &path.child("replicas"), errors);
    check_not_negative(&set["spec"]["minReadySeconds"], &path.child("minReadySeconds"), errors);
    check_selector_and_template(&set["spec"], &path, errors);
}

//! Deployment.

use mycelium_api::field::{FieldError, Path};
use serde_json::{Value, json};

use super::workload::{
    check_at_most_all, check_immutable, check_int_or_percent, check_not_negative, check_selector_and_template, is_zero,
    wide_cells,
};
use crate::pod::defaults;
use crate::table::{AGE_COLUMN, CONTAINERS, Column, IMAGES, NAME, SELECTOR, age, name, number};
use crate::value::{at, ensure_object, fill, fill_zero, int, text, within};
use crate::{Errors, Generation, Kind, Part};

pub static DEPLOYMENT: Kind = Kind {
    generation: Generation::SpecAndAnnotations,
    defaults: |_, deployment| {
        ensure_object(deployment, &["spec", "strategy"]);
        within(deployment, &["spec"], fill_spec);
    },
    on_update: |new, old, part| {
        if part == Part::Status {
            crate::meta::keep_in_metadata(new, old, "labels");
        }
    },
    check: |deployment, errors| check(deployment, errors),
    check_update: |new, old, part, errors| {
        if part != Part::Status {
            check(new, errors);
            check_immutable(new, old, &["spec", "selector"], errors);
        }
    },
    advice: super::workload::advice,
    columns: &[
        NAME,
        Column::text("Ready", "Pods that are ready, of those wanted."),
        Column::text("Up-to-date", "Pods of the current template."),
        Column::text("Available", "Pods that have been ready for long enough."),
        AGE_COLUMN,
        CONTAINERS,
        IMAGES,
        SELECTOR,
    ],
    cells: |deployment, now| {
        let [names, images, selector] = wide_cells(deployment);
        let ready = int(deployment, &["status", "readyReplicas"]).unwrap_or_default();
        let wanted = int(deployment, &["spec", "replicas"]).unwrap_or_default();
        vec![
            name(deployment),
            format!("{ready}/{wanted}").into(),
            number(deployment, &["status", "updatedReplicas"]),
            number(deployment, &["status", "availableReplicas"]),
            age(deployment, now),
            names,
            images,
            selector,
        ]
    },
    ..Kind::new("apps", "Deployment", true)
};

fn fill_spec(spec: &mut Value) {
    fill(spec, "replicas", 1);
    within(spec, &["strategy"], |strategy| {
        fill_zero(strategy, "type", "RollingUpdate");
        if text(strategy, &["type"]) == "RollingUpdate" {
            fill(strategy, "rollingUpdate", json!({}));
            within(strategy, &["rollingUpdate"], |rolling| {
                fill(rolling, "maxUnavailable", "25%");
                fill(rolling, "maxSurge", "25%");
            });
        }
    });
    fill(spec, "revisionHistoryLimit", 10);
    fill(spec, "progressDeadlineSeconds", 600);
    defaults::template(spec);
}

fn check(deployment: &Value, errors: &mut Errors) {
    let path = Path::new("spec");
    let spec = &deployment["spec"];
    check_not_negative(&spec["replicas"], &path.child("replicas"), errors);
    check_selector_and_template(spec, &path, errors);
    check_strategy(&spec["strategy"], &path.child("strategy"), errors);
    check_not_negative(&spec["minReadySeconds"], &path.child("minReadySeconds"), errors);
    check_not_negative(&spec["revisionHistoryLimit"], &path.child("revisionHistoryLimit"), errors);
    if let Some(deadline) = int(spec, &["progressDeadlineSeconds"]) {
        let deadline_path = path.child("progressDeadlineSeconds");
        check_not_negative(&spec["progressDeadlineSeconds"], &deadline_path, errors);
        if deadline <= int(spec, &["minReadySeconds"]).unwrap_or_default() {
            errors.push(FieldError::invalid(&deadline_path, deadline, "must be greater than minReadySeconds"));
        }
    }
}

fn check_strategy(strategy: &Value, path: &Path, errors: &mut Errors) {
    let rolling = at(strategy, &["rollingUpdate"]);
    match text(strategy, &["type"]) {
        "Recreate" if !rolling.is_null() => {
            let detail = "may not be specified when strategy `type` is 'Recreate'";
            errors.push(FieldError::forbidden(&path.child("rollingUpdate"), detail));
        }
        "Recreate" => {}
        "RollingUpdate" if rolling.is_null() => {
            let detail = "this should be defaulted and never be nil";
            errors.push(FieldError::required(&path.child("rollingUpdate"), detail));
        }
        "RollingUpdate" => check_rolling(rolling, &path.child("rollingUpdate"), errors),
        other => errors.push(FieldError::not_supported(&path.child("type"), other, &["Recreate", "RollingUpdate"])),
    }
}

fn check_rolling(rolling: &Value, path: &Path, errors: &mut Errors) {
    let (unavailable, surge) = (&rolling["maxUnavailable"], &rolling["maxSurge"]);
    check_int_or_percent(unavailable, &path.child("maxUnavailable"), errors);
    check_int_or_percent(surge, &path.child("maxSurge"), errors);
    if is_zero(unavailable) && is_zero(surge) {
        let detail = "may not be 0 when `maxSurge` is 0";
        errors.push(FieldError::invalid(&path.child("maxUnavailable"), unavailable.clone(), detail));
    }
    check_at_most_all(unavailable, &path.child("maxUnavailable"), errors);
}

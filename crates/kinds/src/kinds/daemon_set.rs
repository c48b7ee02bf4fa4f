//! DaemonSet.

use mycelium_api::field::{FieldError, Path};
use mycelium_api::selector::Selector;
use serde_json::{Value, json};

use super::workload::{check_at_most_all, check_immutable, check_int_or_percent, check_template, is_zero, wide_cells};
use crate::check::not_negative;
use crate::meta::check_selector;
use crate::pod::defaults;
use crate::table::{AGE_COLUMN, CONTAINERS, Column, IMAGES, NAME, SELECTOR, age, labels, name, number};
use crate::value::{at, ensure_object, fill, fill_zero, has, is_empty, same, text, within};
use crate::{Errors, Generation, Kind, Part};

/// Where older clients look for how often the template changed.
const TEMPLATE_GENERATION: &str = "deprecated.daemonset.template.generation";

pub static DAEMON_SET: Kind = Kind {
    generation: Generation::Spec,
    defaults: |_, set| {
        ensure_object(set, &["spec", "updateStrategy"]);
        within(set, &["spec"], fill_spec);
    },
    on_create: |set| set_template_generation(set, 1),
    on_update: |new, old, part| {
        if part != Part::Status {
            let before = text(old, &["metadata", "annotations", TEMPLATE_GENERATION]).parse().unwrap_or(1);
            let changed = !same(at(new, &["spec", "template"]), at(old, &["spec", "template"]));
            set_template_generation(new, before + i64::from(changed));
        }
    },
    check,
    check_update: |new, old, part, errors| {
        if part != Part::Status {
            check_immutable(new, old, &["spec", "selector"], errors);
            check(new, errors);
        }
    },
    advice: super::workload::template_advice,
    columns: &[
        NAME,
        Column::integer("Desired", "Nodes that should run a pod."),
        Column::integer("Current", "Nodes that run one."),
        Column::integer("Ready", "Nodes whose pod is ready."),
        Column::integer("Up-to-date", "Nodes whose pod has the current template."),
        Column::integer("Available", "Nodes whose pod has been ready for long enough."),
        Column::text("Node Selector", "Labels of the nodes that get a pod."),
        AGE_COLUMN,
        CONTAINERS,
        IMAGES,
        SELECTOR,
    ],
    cells: |set, now| {
        let [names, images, selector] = wide_cells(set);
        let count = |key| number(set, &["status", key]);
        vec![
            name(set),
            count("desiredNumberScheduled"),
            count("currentNumberScheduled"),
            count("numberReady"),
            count("updatedNumberScheduled"),
            count("numberAvailable"),
            labels(set, &["spec", "template", "spec", "nodeSelector"]),
            age(set, now),
            names,
            images,
            selector,
        ]
    },
    ..Kind::new("apps", "DaemonSet", true)
};

fn set_template_generation(set: &mut Value, generation: i64) {
    if let Some(annotations) = ensure_object(set, &["metadata", "annotations"]) {
        annotations.insert(TEMPLATE_GENERATION.to_owned(), generation.to_string().into());
    }
}

fn fill_spec(spec: &mut Value) {
    within(spec, &["updateStrategy"], |strategy| {
        fill_zero(strategy, "type", "RollingUpdate");
        if text(strategy, &["type"]) == "RollingUpdate" {
            fill(strategy, "rollingUpdate", json!({}));
            within(strategy, &["rollingUpdate"], |rolling| {
                fill(rolling, "maxUnavailable", 1);
                fill(rolling, "maxSurge", 0);
            });
        }
    });
    fill(spec, "revisionHistoryLimit", 10);
    defaults::template(spec);
}

fn check(set: &Value, errors: &mut Errors) {
    let path = Path::new("spec");
    let spec = &set["spec"];
    let selector = &spec["selector"];
    let selector_path = path.child("selector");
    check_selector(selector, &selector_path, errors);
    if has(spec, &["selector"]) && is_empty(selector) {
        let detail = "empty selector is invalid for daemonset";
        errors.push(FieldError::invalid(&selector_path, selector.clone(), detail));
    }
    let parsed = Selector::from_value(selector).unwrap_or_default();
    check_template(spec, &parsed, &path, "DaemonSet", errors);
    not_negative(errors, &path.child("minReadySeconds"), &spec["minReadySeconds"]);
    check_strategy(&spec["updateStrategy"], &path.child("updateStrategy"), errors);
    not_negative(errors, &path.child("revisionHistoryLimit"), &spec["revisionHistoryLimit"]);
}

fn check_strategy(strategy: &Value, path: &Path, errors: &mut Errors) {
    let rolling = &strategy["rollingUpdate"];
    match text(strategy, &["type"]) {
        "OnDelete" => {}
        "RollingUpdate" if rolling.is_null() => {
            errors.push(FieldError::required(&path.child("rollingUpdate"), ""));
        }
        "RollingUpdate" => {
            let path = path.child("rollingUpdate");
            for key in ["maxUnavailable", "maxSurge"] {
                check_int_or_percent(&rolling[key], &path.child(key), errors);
                check_at_most_all(&rolling[key], &path.child(key), errors);
            }
            match (is_zero(&rolling["maxUnavailable"]), is_zero(&rolling["maxSurge"])) {
                (false, false) => {
                    let detail = "may not be set when maxUnavailable is non-zero";
                    errors.push(FieldError::invalid(&path.child("maxSurge"), rolling["maxSurge"].clone(), detail));
                }
                (true, true) => {
                    let detail = "cannot be 0 when maxSurge is 0";
                    errors.push(FieldError::required(&path.child("maxUnavailable"), detail));
                }
                _ => {}
            }
        }
        _ => errors.push(FieldError::not_supported(path, strategy.clone(), &["RollingUpdate", "OnDelete"])),
    }
}

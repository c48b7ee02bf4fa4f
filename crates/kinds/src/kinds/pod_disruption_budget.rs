//! PodDisruptionBudget.

use mycelium_api::field::{FieldError, Path};
use serde_json::Value;

use super::workload::{check_at_most_all, check_int_or_percent};
use crate::meta::check_selector;
use crate::table::{AGE_COLUMN, Column, NAME, age, name, number, scalar_or};
use crate::value::{has, text};
use crate::{Errors, Generation, Kind, Part};

pub static POD_DISRUPTION_BUDGET: Kind = Kind {
    generation: Generation::Spec,
    check,
    check_update: |new, _, part, errors| {
        if part != Part::Status {
            check(new, errors);
        }
    },
    columns: &[
        NAME,
        Column::text("Min Available", "Pods that must stay available."),
        Column::text("Max Unavailable", "Pods that may be unavailable."),
        Column::integer("Allowed Disruptions", "Pods that may be disrupted now."),
        AGE_COLUMN,
    ],
    cells: |budget, now| {
        vec![
            name(budget),
            scalar_or(budget, &["spec", "minAvailable"], "N/A"),
            scalar_or(budget, &["spec", "maxUnavailable"], "N/A"),
            number(budget, &["status", "disruptionsAllowed"]),
            age(budget, now),
        ]
    },
    ..Kind::new("policy", "PodDisruptionBudget", true)
};

fn check(budget: &Value, errors: &mut Errors) {
    let path = Path::new("spec");
    let spec = &budget["spec"];
    if has(spec, &["minAvailable"]) && has(spec, &["maxUnavailable"]) {
        let detail = "minAvailable and maxUnavailable cannot be both set";
        errors.push(FieldError::invalid(&path, spec.clone(), detail));
    }
    for key in ["minAvailable", "maxUnavailable"] {
        check_int_or_percent(&spec[key], &path.child(key), errors);
        check_at_most_all(&spec[key], &path.child(key), errors);
    }
    check_selector(&spec["selector"], &path.child("selector"), errors);
    let policy = text(spec, &["unhealthyPodEvictionPolicy"]);
    if !matches!(policy, "" | "AlwaysAllow" | "IfHealthyBudget") {
        let path = path.child("unhealthyPodEvictionPolicy");
        errors.push(FieldError::not_supported(&path, policy, &["AlwaysAllow", "IfHealthyBudget"]));
    }
}

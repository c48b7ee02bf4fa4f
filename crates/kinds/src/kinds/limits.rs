//! LimitRange and ResourceQuota.

use mycelium_api::quantity::Quantity;
use serde_json::Value;

use crate::Kind;
use crate::table::{AGE_COLUMN, Column, NAME, age, name};
use crate::value::{at, canonical_resources, each, ensure_object, entries, fill_in, text};

pub static LIMIT_RANGE: Kind = Kind {
    has_status: false,
    defaults: |_, range| {
        each(range, &["spec", "limits"], |limit| {
            for key in ["max", "min", "default", "defaultRequest", "maxLimitRequestRatio"] {
                canonical_resources(limit, &[key]);
            }
            if text(limit, &["type"]) == "Container" {
                fill_from(limit, "default", "max");
                fill_from(limit, "defaultRequest", "default");
                fill_from(limit, "defaultRequest", "min");
            }
        });
    },
    ..Kind::new("", "LimitRange", true)
};

pub static RESOURCE_QUOTA: Kind = Kind {
    defaults: |_, quota| {
        canonical_resources(quota, &["spec", "hard"]);
        canonical_resources(quota, &["status", "hard"]);
        canonical_resources(quota, &["status", "used"]);
    },
    columns: &[
        NAME,
        Column::text("Request", "What is used of the requests, of what is allowed."),
        Column::text("Limit", "What is used of the limits, of what is allowed."),
        AGE_COLUMN,
    ],
    cells: |quota, now| {
        let (mut requests, mut limits) = (Vec::new(), Vec::new());
        for (resource, hard) in entries(quota, &["status", "hard"]) {
            let amount = |value: &Value| Quantity::from_json(value).unwrap_or_default();
            let used = amount(at(quota, &["status", "used", resource]));
            let column = if resource.starts_with("limits.") { &mut limits } else { &mut requests };
            column.push(format!("{resource}: {used}/{}", amount(hard)));
        }
        vec![name(quota), requests.join(", ").into(), limits.join(", ").into(), age(quota, now)]
    },
    ..Kind::new("", "ResourceQuota", true)
};

fn fill_from(limit: &mut Value, target: &str, source: &str) {
    let amounts = limit[source].clone();
    let Some(target) = ensure_object(limit, &[target]) else { return };
    for (resource, amount) in amounts.as_object().into_iter().flatten() {
        fill_in(target, resource, amount.clone());
    }
}

//! LimitRange and ResourceQuota.

use std::collections::BTreeSet;

use mycelium_api::field::{FieldError, Path};
use mycelium_api::names::is_qualified_name;
use mycelium_api::quantity::Quantity;
use serde_json::Value;

use crate::check::refuse;
use crate::pod::resources::read;
use crate::table::{AGE_COLUMN, Column, NAME, age, name};
use crate::value::{at, canonical_resources, each, ensure_object, entries, entry_count, fill_in, has, list, text};
use crate::{Errors, Kind};

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
    check,
    check_update: |new, _, _, errors| check(new, errors),
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

const BOUNDS: [&str; 5] = ["max", "min", "default", "defaultRequest", "maxLimitRequestRatio"];

fn check(range: &Value, errors: &mut Errors) {
    let mut kinds = BTreeSet::new();
    for (index, limit) in list(range, &["spec", "limits"]).iter().enumerate() {
        let path = Path::new("spec").child("limits").index(index);
        let kind = text(limit, &["type"]);
        refuse(errors, &path.child("type"), kind, is_qualified_name(kind));
        if !kinds.insert(kind) {
            errors.push(FieldError::duplicate(&path.child("type"), kind));
        }
        for key in ["default", "defaultRequest"] {
            if kind == "Pod" && entry_count(limit, &[key]) > 0 {
                let detail = "may not be specified when `type` is 'Pod'";
                errors.push(FieldError::forbidden(&path.child(key), detail));
            }
        }
        if kind == "PersistentVolumeClaim" && !has(limit, &["min", "storage"]) && !has(limit, &["max", "storage"]) {
            let detail = "either minimum or maximum storage value is required, but neither was provided";
            errors.push(FieldError::required(&path.child("limits"), detail));
        }
        check_order(limit, &path, errors);
    }
}

/// For each resource: min <= default request <= default <= max, and a ratio of at least 1.
fn check_order(limit: &Value, path: &Path, errors: &mut Errors) {
    let bounds = BOUNDS.map(|key| read(limit, &[key]));
    let names: BTreeSet<&String> = bounds.iter().flat_map(|bound| bound.keys()).collect();
    for name in names {
        let [max, min, default, request, ratio] = [0, 1, 2, 3, 4].map(|index: usize| bounds[index].get(name));
        let mut at_most = |low: Option<&Quantity>,
                           high: Option<&Quantity>,
                           key: &str,
                           shown: Option<&Quantity>,
                           text: &dyn Fn(&Quantity, &Quantity) -> String| {
            if let (Some(low), Some(high), Some(shown)) = (low, high, shown)
                && low > high
            {
                let path = path.child(key).key(name);
                errors.push(FieldError::invalid(&path, shown.to_string(), text(low, high)));
            }
        };
        at_most(min, max, "min", min, &|low, high| format!("min value {low} is greater than max value {high}"));
        at_most(min, request, "defaultRequest", request, &|low, high| {
            format!("min value {low} is greater than default request value {high}")
        });
        at_most(request, max, "defaultRequest", request, &|low, high| {
            format!("default request value {low} is greater than max value {high}")
        });
        at_most(request, default, "defaultRequest", request, &|low, high| {
            format!("default request value {low} is greater than default limit value {high}")
        });
        at_most(min, default, "default", min, &|low, high| {
            format!("min value {low} is greater than default value {high}")
        });
        at_most(default, max, "default", max, &|low, high| {
            format!("default value {low} is greater than max value {high}")
        });
        if let Some(ratio) = ratio.filter(|ratio| ratio.as_f64() < 1.0) {
            let path = path.child("maxLimitRequestRatio").key(name);
            errors.push(FieldError::invalid(&path, ratio.to_string(), format!("ratio {ratio} is less than 1")));
        }
    }
}

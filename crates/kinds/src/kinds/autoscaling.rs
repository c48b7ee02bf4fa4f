//! HorizontalPodAutoscaler, stored in the form of `autoscaling/v2`, and Scale.

use mycelium_api::field::{FieldError, Path};
use serde_json::{Value, json};

use crate::check::positive;
use crate::table::{AGE_COLUMN, Column, NAME, age, name, number, scalar_or};
use crate::value::{at, each, ensure_object, fill, has, int, list, text, within};
use crate::{Errors, Kind, Part};

pub static HORIZONTAL_POD_AUTOSCALER: Kind = Kind {
    defaults: |version, autoscaler| {
        ensure_object(autoscaler, &["spec"]);
        within(autoscaler, &["spec"], |spec| {
            fill(spec, "minReplicas", 1);
            if version == "v2" {
                fill_v2(spec);
            }
        });
    },
    check,
    check_update: |new, _, part, errors| {
        if part != Part::Status {
            check(new, errors);
        }
    },
    columns: &[
        NAME,
        Column::text("Reference", "What is scaled."),
        Column::text("Targets", "Metrics, now and wanted."),
        Column::text("MinPods", "Fewest replicas."),
        Column::text("MaxPods", "Most replicas."),
        Column::text("Replicas", "Replicas now."),
        AGE_COLUMN,
    ],
    cells: |autoscaler, now| {
        let stored = crate::convert::autoscaler_to_v2(autoscaler);
        let target = at(autoscaler, &["spec", "scaleTargetRef"]);
        vec![
            name(autoscaler),
            format!("{}/{}", text(target, &["kind"]), text(target, &["name"])).into(),
            metrics(if has(&stored, &["spec", "metrics"]) { &stored } else { autoscaler }).into(),
            scalar_or(autoscaler, &["spec", "minReplicas"], "<unset>"),
            number(autoscaler, &["spec", "maxReplicas"]),
            number(autoscaler, &["status", "currentReplicas"]),
            age(autoscaler, now),
        ]
    },
    ..Kind::new("autoscaling", "HorizontalPodAutoscaler", true)
};

pub static SCALE: Kind = Kind {
    columns: &[
        Column { format: "", ..NAME },
        Column::integer("Desired", "Replicas that are wanted."),
        Column::integer("Available", "Replicas there are."),
        AGE_COLUMN,
    ],
    cells: |scale, now| {
        vec![name(scale), number(scale, &["spec", "replicas"]), number(scale, &["status", "replicas"]), age(scale, now)]
    },
    ..Kind::new("autoscaling", "Scale", true)
};

fn fill_v2(spec: &mut Value) {
    if list(spec, &["metrics"]).is_empty()
        && let Some(spec) = spec.as_object_mut()
    {
        let cpu = json!([{"type": "Resource", "resource":
                {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 80}}}]);
        spec.insert("metrics".to_owned(), cpu);
    }
    each(spec, &["metrics"], |metric| {
        for kind in ["resource", "containerResource", "pods", "object", "external"] {
            within(metric, &[kind, "target"], |target| {
                crate::value::canonical_quantity(target, "averageValue");
                crate::value::canonical_quantity(target, "value");
            });
        }
    });
    if !has(spec, &["behavior"]) {
        return;
    }
    let percent = json!({"type": "Percent", "value": 100, "periodSeconds": 15});
    let pods = json!({"type": "Pods", "value": 4, "periodSeconds": 15});
    ensure_object(spec, &["behavior", "scaleUp"]);
    ensure_object(spec, &["behavior", "scaleDown"]);
    within(spec, &["behavior", "scaleUp"], |rules| {
        fill(rules, "stabilizationWindowSeconds", 0);
        fill(rules, "selectPolicy", "Max");
        fill(rules, "policies", json!([pods, percent]));
    });
    within(spec, &["behavior", "scaleDown"], |rules| {
        fill(rules, "selectPolicy", "Max");
        fill(rules, "policies", json!([percent]));
    });
}

fn metrics(autoscaler: &Value) -> String {
    const SHOWN: usize = 2;
    let specs = list(autoscaler, &["spec", "metrics"]);
    let current = list(autoscaler, &["status", "currentMetrics"]);
    if specs.is_empty() {
        return "<none>".to_owned();
    }
    let mut shown: Vec<String> = specs
        .iter()
        .enumerate()
        .map(|(index, spec)| metric(spec, current.get(index).unwrap_or(&Value::Null)))
        .collect();
    let count = shown.len();
    shown.truncate(SHOWN);
    let text = shown.join(", ");
    if count > SHOWN { format!("{text} + {} more...", count - SHOWN) } else { text }
}

fn metric(spec: &Value, status: &Value) -> String {
    let kind = match text(spec, &["type"]) {
        "External" => "external",
        "Pods" => "pods",
        "Object" => "object",
        "Resource" => "resource",
        "ContainerResource" => "containerResource",
        _ => return "<unknown type>".to_owned(),
    };
    let target = at(spec, &[kind, "target"]);
    let current = at(status, &[kind, "current"]);
    let amount = |holder: &Value, key: &str| text(holder, &[key]).to_owned();
    let now = |key: &str| match amount(current, key) {
        empty if empty.is_empty() => "<unknown>".to_owned(),
        amount => amount,
    };
    let percent = |holder: &Value| int(holder, &["averageUtilization"]).map(|share| format!("{share}%"));
    let prefix = match kind {
        "resource" | "containerResource" => format!("{}: ", text(spec, &[kind, "name"])),
        _ => String::new(),
    };
    let averaged = has(target, &["averageValue"]);
    match kind {
        "external" | "object" if averaged => {
            format!("{}/{} (avg)", now("averageValue"), amount(target, "averageValue"))
        }
        "external" | "object" => format!("{}/{}", now("value"), amount(target, "value")),
        _ if averaged || kind == "pods" => {
            format!("{prefix}{}/{}", now("averageValue"), amount(target, "averageValue"))
        }
        _ => {
            let now = percent(current).unwrap_or_else(|| "<unknown>".to_owned());
            let wanted = percent(target).unwrap_or_else(|| "<auto>".to_owned());
            format!("{prefix}{now}/{wanted}")
        }
    }
}

fn check(autoscaler: &Value, errors: &mut Errors) {
    let path = Path::new("spec");
    let spec = &autoscaler["spec"];
    let fewest = int(spec, &["minReplicas"]).unwrap_or(1);
    let most = int(spec, &["maxReplicas"]).unwrap_or_default();
    if fewest < 1 {
        errors.push(FieldError::invalid(&path.child("minReplicas"), fewest, "must be greater than or equal to 1"));
    }
    positive(errors, &path.child("maxReplicas"), &spec["maxReplicas"]);
    if most < fewest {
        let detail = "must be greater than or equal to `minReplicas`";
        errors.push(FieldError::invalid(&path.child("maxReplicas"), most, detail));
    }
    let target_path = path.child("scaleTargetRef");
    for key in ["kind", "name"] {
        match text(spec, &["scaleTargetRef", key]) {
            "" => errors.push(FieldError::required(&target_path.child(key), "")),
            name => {
                let wrong = mycelium_api::names::is_path_segment(name);
                crate::check::refuse(errors, &target_path.child(key), name, wrong);
            }
        }
    }
}

//! StatefulSet and ControllerRevision.

use mycelium_api::field::{FieldError, Path};
use mycelium_api::names::{is_dns1123_label, is_dns1123_subdomain};
use mycelium_api::selector::Selector;
use serde_json::{Value, json};

use super::workload::{check_at_most_all, check_int_or_percent, check_required_selector, check_template, is_zero};
use crate::check::{not_negative, one_of, refuse};
use crate::meta::controller_of;
use crate::pod::defaults;
use crate::table::{AGE_COLUMN, CONTAINERS, Column, IMAGES, NAME, age, containers, name, number};
use crate::value::{at, each, ensure_object, fill, fill_zero, has, int, list, same, text, within};
use crate::{Errors, Generation, Kind, Part};

pub static STATEFUL_SET: Kind = Kind {
    name_rule: is_dns1123_label,
    generation: Generation::Spec,
    defaults: |_, set| {
        ensure_object(set, &["spec"]);
        within(set, &["spec"], fill_spec);
    },
    check,
    check_update: |new, old, part, errors| {
        if part != Part::Status {
            check(new, errors);
            check_change(new, old, errors);
        }
    },
    advice: super::workload::template_advice,
    columns: &[NAME, Column::text("Ready", "Pods that are ready, of those wanted."), AGE_COLUMN, CONTAINERS, IMAGES],
    cells: |set, now| {
        let [names, images] = containers(at(set, &["spec", "template", "spec"]));
        let ready = int(set, &["status", "readyReplicas"]).unwrap_or_default();
        let wanted = int(set, &["spec", "replicas"]).unwrap_or_default();
        vec![name(set), format!("{ready}/{wanted}").into(), age(set, now), names, images]
    },
    ..Kind::new("apps", "StatefulSet", true)
};

pub static CONTROLLER_REVISION: Kind = Kind {
    has_status: false,
    check: |revision, errors| {
        let path = Path::new("revision");
        not_negative(errors, &path, &revision["revision"]);
        if revision["data"].is_null() {
            errors.push(FieldError::required(&Path::new("data"), "data is mandatory"));
        }
    },
    check_update: |new, old, _, errors| super::workload::check_immutable(new, old, &["data"], errors),
    columns: &[
        NAME,
        Column::text("Controller", "Object that the revision belongs to."),
        Column::text("Revision", "Number of the revision."),
        AGE_COLUMN,
    ],
    cells: |revision, now| {
        let controller = controller_of(revision).map_or_else(
            || "<none>".to_owned(),
            |owner| {
                let group = text(owner, &["apiVersion"]).split_once('/').map_or("", |(group, _)| group);
                let dot = if group.is_empty() { "" } else { "." };
                format!("{}{dot}{group}/{}", text(owner, &["kind"]), text(owner, &["name"])).replacen(
                    text(owner, &["kind"]),
                    &text(owner, &["kind"]).to_lowercase(),
                    1,
                )
            },
        );
        vec![name(revision), controller.into(), number(revision, &["revision"]), age(revision, now)]
    },
    ..Kind::new("apps", "ControllerRevision", true)
};

fn fill_spec(spec: &mut Value) {
    fill_zero(spec, "podManagementPolicy", "OrderedReady");
    ensure_object(spec, &["updateStrategy"]);
    within(spec, &["updateStrategy"], |strategy| {
        if text(strategy, &["type"]).is_empty() {
            fill_zero(strategy, "type", "RollingUpdate");
            fill(strategy, "rollingUpdate", json!({}));
        }
        if text(strategy, &["type"]) == "RollingUpdate" {
            within(strategy, &["rollingUpdate"], |rolling| {
                fill(rolling, "partition", 0);
                fill(rolling, "maxUnavailable", 1);
            });
        }
    });
    ensure_object(spec, &["persistentVolumeClaimRetentionPolicy"]);
    within(spec, &["persistentVolumeClaimRetentionPolicy"], |policy| {
        fill_zero(policy, "whenDeleted", "Retain");
        fill_zero(policy, "whenScaled", "Retain");
    });
    fill(spec, "replicas", 1);
    fill(spec, "revisionHistoryLimit", 10);
    defaults::template(spec);
    each(spec, &["volumeClaimTemplates"], |claim| {
        fill(claim, "apiVersion", "v1");
        fill(claim, "kind", "PersistentVolumeClaim");
        super::storage::claim_defaults(claim);
    });
}

fn check(set: &Value, errors: &mut Errors) {
    let path = Path::new("spec");
    let spec = &set["spec"];
    let policy_path = path.child("podManagementPolicy");
    match text(spec, &["podManagementPolicy"]) {
        "" => errors.push(FieldError::required(&policy_path, "")),
        "OrderedReady" | "Parallel" => {}
        other => errors.push(FieldError::invalid(&policy_path, other, "must be 'OrderedReady' or 'Parallel'")),
    }
    check_strategy(&spec["updateStrategy"], &path.child("updateStrategy"), errors);
    let retention_path = path.child("persistentVolumeClaimRetentionPolicy");
    for key in ["whenDeleted", "whenScaled"] {
        let policy = text(spec, &["persistentVolumeClaimRetentionPolicy", key]);
        one_of(errors, &retention_path.child(key), policy, &["Delete", "Retain"]);
    }
    not_negative(errors, &path.child("replicas"), &spec["replicas"]);
    not_negative(errors, &path.child("minReadySeconds"), &spec["minReadySeconds"]);
    not_negative(errors, &path.child("ordinals.start"), &spec["ordinals"]["start"]);
    let service = text(spec, &["serviceName"]);
    if !service.is_empty() {
        refuse(errors, &path.child("serviceName"), service, is_dns1123_subdomain(service));
    }
    let selector = &spec["selector"];
    let selector_path = path.child("selector");
    check_required_selector(selector, &selector_path, "statefulset", errors);
    if let Ok(parsed) = Selector::from_value(selector) {
        check_template(&with_claims(spec), &parsed, &path, "StatefulSet", errors);
    }
}

/// The spec as its pods will see it: the claims of the set are volumes of theirs, host names come from the set.
fn with_claims(spec: &Value) -> Value {
    let claims: Vec<&str> =
        list(spec, &["volumeClaimTemplates"]).iter().map(|claim| text(claim, &["metadata", "name"])).collect();
    let mut seen = json!({"template": spec["template"]});
    let Some(pod) = ensure_object(&mut seen, &["template", "spec"]) else { return seen };
    pod.remove("hostname");
    pod.remove("subdomain");
    if !claims.is_empty() {
        let own = pod.get("volumes").and_then(Value::as_array).cloned().unwrap_or_default();
        let mut volumes: Vec<Value> =
            claims.iter().map(|name| json!({"name": name, "persistentVolumeClaim": {"claimName": name}})).collect();
        volumes.extend(own.into_iter().filter(|volume| !claims.contains(&text(volume, &["name"]))));
        pod.insert("volumes".to_owned(), volumes.into());
    }
    seen
}

fn check_strategy(strategy: &Value, path: &Path, errors: &mut Errors) {
    let rolling = at(strategy, &["rollingUpdate"]);
    let rolling_path = path.child("rollingUpdate");
    match text(strategy, &["type"]) {
        "" => errors.push(FieldError::required(path, "")),
        "OnDelete" if !rolling.is_null() => {
            let detail = "only allowed for updateStrategy 'RollingUpdate'";
            errors.push(FieldError::invalid(&rolling_path, rolling.clone(), detail));
        }
        "OnDelete" => {}
        "RollingUpdate" => {
            not_negative(errors, &rolling_path.child("partition"), &rolling["partition"]);
            let unavailable = &rolling["maxUnavailable"];
            let path = rolling_path.child("maxUnavailable");
            check_int_or_percent(unavailable, &path, errors);
            if is_zero(unavailable) {
                errors.push(FieldError::invalid(&path, unavailable.clone(), "cannot be 0"));
            }
            check_at_most_all(unavailable, &path, errors);
        }
        _ => errors.push(FieldError::invalid(path, strategy.clone(), "must be 'RollingUpdate' or 'OnDelete'")),
    }
}

fn check_change(new: &Value, old: &Value, errors: &mut Errors) {
    const CHANGEABLE: &[&str] = &[
        "replicas",
        "template",
        "updateStrategy",
        "minReadySeconds",
        "ordinals",
        "revisionHistoryLimit",
        "persistentVolumeClaimRetentionPolicy",
    ];
    let fixed = |set: &Value| {
        let mut spec = set["spec"].clone();
        if let Some(spec) = spec.as_object_mut() {
            spec.retain(|key, _| !CHANGEABLE.contains(&key.as_str()));
        }
        spec
    };
    if has(new, &["spec"]) && !same(&fixed(new), &fixed(old)) {
        let detail = "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden";
        errors.push(FieldError::forbidden(&Path::new("spec"), detail));
    }
}

//! Kinds that are served in more than one group or version, between their forms.
//!
//! Events are stored in the form of the core group, autoscalers in that of `autoscaling/v2`.

use serde_json::{Map, Value, json};

use crate::value::{at, has, int, is_empty, list, text};

/// The group and version in which objects of a kind are stored, if it is served in others as well.
pub fn stored_version(group: &str, kind: &str) -> Option<(&'static str, &'static str)> {
    match (group, kind) {
        ("events.k8s.io" | "", "Event") => Some(("", "v1")),
        ("autoscaling", "HorizontalPodAutoscaler") => Some(("autoscaling", "v2")),
        _ => None,
    }
}

/// Converts an object to another group and version of its kind, in place. Kinds of one form just get the new
/// `apiVersion`.
pub fn to_version(object: &mut Value, group: &str, version: &str) {
    let from = text(object, &["apiVersion"]).to_owned();
    let to = if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") };
    if from == to {
        return;
    }
    let converted = match (text(object, &["kind"]), from.as_str(), to.as_str()) {
        ("Event", "v1", "events.k8s.io/v1") => Some(event_to_new(object)),
        ("Event", "events.k8s.io/v1", "v1") => Some(event_to_core(object)),
        ("HorizontalPodAutoscaler", "autoscaling/v1", "autoscaling/v2") => Some(autoscaler_to_v2(object)),
        ("HorizontalPodAutoscaler", "autoscaling/v2", "autoscaling/v1") => Some(autoscaler_to_v1(object)),
        _ => None,
    };
    if let Some(converted) = converted {
        *object = converted;
    }
    if let Some(object) = object.as_object_mut() {
        object.insert("apiVersion".to_owned(), to.into());
    }
}

/// Names of the same field: in the core group, and in `events.k8s.io`.
const EVENT_FIELDS: &[(&str, &str)] = &[
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("source", "deprecatedSource"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("count", "deprecatedCount"),
    ("reportingComponent", "reportingController"),
];

/// An event in the form of the core group. One that is in it already stays as it is.
pub fn event_to_core(event: &Value) -> Value {
    rename(event, |key| EVENT_FIELDS.iter().find(|(_, new)| *new == key).map(|(core, _)| *core))
}

/// An event in the form of `events.k8s.io`.
pub fn event_to_new(event: &Value) -> Value {
    rename(event, |key| EVENT_FIELDS.iter().find(|(core, _)| *core == key).map(|(_, new)| *new))
}

fn rename(object: &Value, name: impl Fn(&str) -> Option<&'static str>) -> Value {
    let Some(members) = object.as_object() else { return object.clone() };
    let renamed = |key: &String| name(key).map_or_else(|| key.clone(), str::to_owned);
    Value::Object(members.iter().map(|(key, value)| (renamed(key), value.clone())).collect())
}

const METRICS: &str = "autoscaling.alpha.kubernetes.io/metrics";
const BEHAVIOR: &str = "autoscaling.alpha.kubernetes.io/behavior";
const CURRENT_METRICS: &str = "autoscaling.alpha.kubernetes.io/current-metrics";
const CONDITIONS: &str = "autoscaling.alpha.kubernetes.io/conditions";

fn is_cpu_utilization(metric: &Value) -> bool {
    text(metric, &["type"]) == "Resource"
        && text(metric, &["resource", "name"]) == "cpu"
        && has(metric, &["resource", "target", "averageUtilization"])
}

/// An autoscaler in its older form: CPU utilization is a field, what the older form has no field for an annotation.
pub fn autoscaler_to_v1(autoscaler: &Value) -> Value {
    let mut result = autoscaler.clone();
    let mut notes = Map::new();
    let mut note = |key: &str, value: Value| {
        if !is_empty(&value) {
            notes.insert(key.to_owned(), value.to_string().into());
        }
    };
    let metrics = list(autoscaler, &["spec", "metrics"]);
    let cpu = metrics.iter().position(is_cpu_utilization);
    let others = |of: &[Value], without: Option<usize>| {
        let kept = of.iter().enumerate().filter(|(index, _)| Some(*index) != without);
        Value::from(kept.map(|(_, metric)| metric.clone()).collect::<Vec<_>>())
    };
    note(METRICS, others(metrics, cpu));
    note(BEHAVIOR, at(autoscaler, &["spec", "behavior"]).clone());
    let current = list(autoscaler, &["status", "currentMetrics"]);
    let current_cpu = current.iter().position(|metric| {
        text(metric, &["resource", "name"]) == "cpu" && has(metric, &["resource", "current", "averageUtilization"])
    });
    note(CURRENT_METRICS, others(current, current_cpu));
    note(CONDITIONS, at(autoscaler, &["status", "conditions"]).clone());
    if let Some(spec) = crate::value::object_at(&mut result, &["spec"]) {
        spec.remove("metrics");
        spec.remove("behavior");
        if let Some(cpu) = cpu {
            let target = at(&metrics[cpu], &["resource", "target", "averageUtilization"]).clone();
            spec.insert("targetCPUUtilizationPercentage".to_owned(), target);
        }
    }
    if let Some(status) = crate::value::object_at(&mut result, &["status"]) {
        status.remove("currentMetrics");
        status.remove("conditions");
        if let Some(cpu) = current_cpu {
            let now = at(&current[cpu], &["resource", "current", "averageUtilization"]).clone();
            status.insert("currentCPUUtilizationPercentage".to_owned(), now);
        }
    }
    if !notes.is_empty()
        && let Some(annotations) = crate::value::ensure_object(&mut result, &["metadata", "annotations"])
    {
        annotations.extend(notes);
    }
    result
}

/// An autoscaler in its newer form.
pub fn autoscaler_to_v2(autoscaler: &Value) -> Value {
    let mut result = autoscaler.clone();
    let mut take = |key: &str| -> Value {
        let Some(notes) = crate::value::object_at(&mut result, &["metadata", "annotations"]) else {
            return Value::Null;
        };
        let noted = notes.remove(key);
        noted.and_then(|note| serde_json::from_str(note.as_str()?).ok()).unwrap_or_default()
    };
    let (noted_metrics, behavior, noted_current, conditions) =
        (take(METRICS), take(BEHAVIOR), take(CURRENT_METRICS), take(CONDITIONS));
    let mut metrics = Vec::new();
    if let Some(target) = int(autoscaler, &["spec", "targetCPUUtilizationPercentage"]) {
        metrics.push(json!({"type": "Resource", "resource":
            {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": target}}}));
    }
    metrics.extend(list(&noted_metrics, &[]).iter().cloned());
    let mut current = Vec::new();
    if let Some(now) = int(autoscaler, &["status", "currentCPUUtilizationPercentage"]) {
        current.push(json!({"type": "Resource", "resource":
            {"name": "cpu", "current": {"averageUtilization": now, "averageValue": "0"}}}));
    }
    current.extend(list(&noted_current, &[]).iter().cloned());
    put(&mut result, "spec", "targetCPUUtilizationPercentage", &[("metrics", metrics.into()), ("behavior", behavior)]);
    put(
        &mut result,
        "status",
        "currentCPUUtilizationPercentage",
        &[("currentMetrics", current.into()), ("conditions", conditions)],
    );
    let bare = crate::value::object_at(&mut result, &["metadata", "annotations"]).is_some_and(|notes| notes.is_empty());
    if let Some(metadata) = crate::value::object_at(&mut result, &["metadata"]).filter(|_| bare) {
        metadata.remove("annotations");
    }
    result
}

fn put(object: &mut Value, holder: &str, remove: &str, members: &[(&str, Value)]) {
    let Some(holder) = crate::value::object_at(object, &[holder]) else { return };
    holder.remove(remove);
    for (key, value) in members.iter().filter(|(_, value)| !is_empty(value)) {
        holder.insert((*key).to_owned(), value.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_keep_everything_on_the_way_there_and_back() {
        let core = json!({"apiVersion": "v1", "kind": "Event", "involvedObject": {"kind": "Pod"}, "message": "m",
            "source": {"component": "c"}, "count": 2, "reportingComponent": "r", "reason": "x"});
        let mut event = core.clone();
        to_version(&mut event, "events.k8s.io", "v1");
        assert_eq!(event["note"], "m");
        assert_eq!(event["regarding"]["kind"], "Pod");
        to_version(&mut event, "", "v1");
        assert_eq!(event, core);
    }

    #[test]
    fn autoscalers_keep_everything_on_the_way_there_and_back() {
        let new = json!({"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": {"name": "a"},
            "spec": {"maxReplicas": 3, "metrics": [
                {"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 80}}},
                {"type": "Pods", "pods": {"metric": {"name": "q"}, "target": {"type": "AverageValue", "averageValue": "3"}}},
            ]}, "status": {"desiredReplicas": 1}});
        let mut autoscaler = new.clone();
        to_version(&mut autoscaler, "autoscaling", "v1");
        assert_eq!(autoscaler["spec"]["targetCPUUtilizationPercentage"], 80);
        to_version(&mut autoscaler, "autoscaling", "v2");
        assert_eq!(autoscaler, new);
    }
}

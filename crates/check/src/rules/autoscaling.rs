//! Autoscalers: their targets, the replicas they override, two of them on one metric, requests they need.

use serde_json::Value;

use crate::finding::{Report, Severity};
use crate::near::nearest;
use crate::set::{Object, Set};
use crate::value::{has, int, list, text};
use crate::workload::{self, Container};

pub fn check(set: &Set, report: &mut Report) {
    for scaler in set.all().filter(|object| object.is("autoscaling", "HorizontalPodAutoscaler")) {
        let Some(target) = target(set, scaler, "spec.scaleTargetRef", report) else { continue };
        replicas(scaler, target, report);
        requests(scaler, target, report);
        vertical(set, scaler, report);
    }
    for scaler in set.all().filter(|object| object.is("autoscaling.k8s.io", "VerticalPodAutoscaler")) {
        let _ = target(set, scaler, "spec.targetRef", report);
    }
}

/// The group and kind that a reference names.
fn named(reference: &Value) -> (&str, &str, &str) {
    let api_version = text(reference, "/apiVersion");
    let group = api_version.rsplit_once('/').map_or("", |(group, _)| group);
    (group, text(reference, "/kind"), text(reference, "/name"))
}

fn reference(scaler: &Object) -> &Value {
    let field = if scaler.kind == "VerticalPodAutoscaler" { "targetRef" } else { "scaleTargetRef" };
    &scaler.value["spec"][field]
}

fn target<'a>(set: &'a Set, scaler: &Object, field: &str, report: &mut Report) -> Option<&'a Object> {
    let (group, kind, name) = named(reference(scaler));
    if kind.is_empty() || name.is_empty() {
        return None;
    }
    let found = set.find(group, kind, &scaler.namespace, name);
    if found.is_none() && !set.is_present(kind, name) {
        let message = format!("the autoscaler is for {kind} {name}, which is not in namespace {}", scaler.namespace);
        let kinds = set.all().filter(|object| object.kind == kind && object.namespace == scaler.namespace);
        let near = nearest(name, kinds.map(|object| object.name.as_str()));
        let same = set.all().find(|o| o.kind == kind && o.namespace == scaler.namespace && o.name == name);
        let fix = match (same, near) {
            (Some(object), _) => format!("write apiVersion: {}", object.api_version()),
            (None, Some(near)) => format!("did you mean {near}?"),
            (None, None) => String::new(),
        };
        report.object(Severity::Error, "hpa-target-missing", scaler, format!("{field}.name"), message, fix);
    }
    found
}

fn bounds(scaler: &Object) -> (i64, i64) {
    let min = int(&scaler.value, "/spec/minReplicas").unwrap_or(1);
    (min, int(&scaler.value, "/spec/maxReplicas").unwrap_or(i64::MAX))
}

fn replicas(scaler: &Object, target: &Object, report: &mut Report) {
    let Some(replicas) = int(&target.value, "/spec/replicas") else { return };
    let (min, max) = bounds(scaler);
    let message = if replicas < min || replicas > max {
        let at_once = if replicas < min { min } else { max };
        format!("replicas: {replicas} has no effect: the autoscaler {} makes it {at_once} at once", scaler.name)
    } else {
        format!(
            "replicas: {replicas} and the autoscaler {} override each other: every apply resets what it chose",
            scaler.name
        )
    };
    let fix = "leave replicas out and set minReplicas of the autoscaler";
    report.object(Severity::Warning, "hpa-overrides-replicas", target, "spec.replicas", message, fix);
}

/// The resources that an autoscaler measures in percent of what was asked for.
fn percentages(scaler: &Object) -> Vec<&str> {
    if has(&scaler.value, "/spec/targetCPUUtilizationPercentage") {
        return vec!["cpu"];
    }
    list(&scaler.value, "/spec/metrics")
        .iter()
        .filter(|metric| text(metric, "/resource/target/type") == "Utilization")
        .map(|metric| text(metric, "/resource/name"))
        .collect()
}

fn requests(scaler: &Object, target: &Object, report: &mut Report) {
    let Some(workload) = workload::of(target) else { return };
    if has(workload.spec(), "/resources/requests") {
        return;
    }
    for resource in percentages(scaler) {
        let asks = |container: &&Container<'_>| {
            ["requests", "limits"].iter().any(|which| has(container.value, &format!("/resources/{which}/{resource}")))
        };
        let containers = workload.containers();
        let Some(silent) = containers.iter().filter(|container| !container.init).find(|container| !asks(container))
        else {
            continue;
        };
        let message = format!(
            "the autoscaler measures {resource} in percent of the request, and container {} of {target} requests none",
            text(silent.value, "/name")
        );
        let fix = format!("give the container resources.requests.{resource}");
        report.object(Severity::Warning, "hpa-without-request", scaler, "spec.metrics", message, fix);
    }
}

/// A vertical autoscaler that changes requests for the same resources.
fn vertical(set: &Set, scaler: &Object, report: &mut Report) {
    for other in set.all().filter(|object| object.is("autoscaling.k8s.io", "VerticalPodAutoscaler")) {
        let off = text(&other.value, "/spec/updatePolicy/updateMode") == "Off";
        let same = other.namespace == scaler.namespace && named(reference(other)) == named(reference(scaler));
        if off || !same {
            continue;
        }
        let both: Vec<&str> = percentages(scaler).into_iter().filter(|resource| controls(other, resource)).collect();
        if !both.is_empty() {
            let message = format!(
                "HorizontalPodAutoscaler {} and VerticalPodAutoscaler {} both act on {}, and work against each other",
                scaler.name,
                other.name,
                both.join(" and ")
            );
            let fix = "set updateMode: \"Off\" of the vertical one, or let the other follow a metric of its own";
            let (at, field) = if other.is_local() { (other, "spec.updatePolicy") } else { (scaler, "spec.metrics") };
            report.object(Severity::Warning, "hpa-and-vpa", at, field, message, fix);
        }
    }
}

fn controls(vertical: &Object, resource: &str) -> bool {
    let policies = list(&vertical.value, "/spec/resourcePolicy/containerPolicies");
    let limits = |policy: &Value| {
        let controlled = list(policy, "/controlledResources");
        text(policy, "/mode") != "Off" && (controlled.is_empty() || controlled.iter().any(|name| name == resource))
    };
    policies.is_empty() || policies.iter().any(limits)
}

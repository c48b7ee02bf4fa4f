//! Selectors of workloads: missing, or not those of their own pods; the Service of a StatefulSet.

use mycelium_api::selector::Selector;

use crate::finding::{Report, Severity};
use crate::set::{Object, Set};
use crate::value::{entries, has, show_selector, text};
use crate::workload::{self, Workload};

pub fn check(set: &Set, report: &mut Report) {
    for object in set.local().filter(|object| object.group == "apps") {
        let selects = matches!(object.kind.as_str(), "Deployment" | "StatefulSet" | "DaemonSet" | "ReplicaSet");
        if let Some(workload) = workload::of(object).filter(|_| selects) {
            selector(object, &workload, report);
        }
        if object.kind == "StatefulSet" {
            service(set, object, report);
        }
    }
}

fn selector(object: &Object, workload: &Workload<'_>, report: &mut Report) {
    let labels = &workload.template["metadata"]["labels"];
    let kind = &object.kind;
    if !has(&object.value, "/spec/selector") {
        let message = format!("the {kind} has no spec.selector, so it cannot find its pods");
        let shown: Vec<String> = entries(labels, "").map(|(key, value)| format!("{key}: {value}")).collect();
        let fix = if shown.is_empty() {
            format!(
                "add spec.selector.matchLabels (app: {0}) and the same labels at spec.template.metadata.labels",
                object.name
            )
        } else {
            format!("add spec.selector.matchLabels with {}", shown.join(", "))
        };
        return report.object(Severity::Error, "no-selector", object, "spec.selector", message, fix);
    }
    let own = &object.value["spec"]["selector"];
    let Ok(selector) = Selector::from_value(own) else { return };
    if !own.is_object() || selector.is_empty() || selector.matches_value(labels) {
        return;
    }
    let has_labels = labels.as_object().is_some_and(|labels| !labels.is_empty());
    let template = if has_labels { format!("have {}", show_selector(labels)) } else { "have no labels".to_owned() };
    let message = format!("the selector asks for {}, and the pods of the template {template}", show_selector(own));
    let fix = "give the template the labels that the selector asks for";
    let field = if has_labels { "spec.selector" } else { "spec.template" };
    report.object(Severity::Error, "selector-mismatch", object, field, message, fix);
}

/// The Service that gives the pods of a StatefulSet their names.
fn service(set: &Set, object: &Object, report: &mut Report) {
    const FIELD: &str = "spec.serviceName";
    let name = text(&object.value, "/spec/serviceName");
    if !object.value["spec"].is_object() {
        return;
    }
    if name.is_empty() {
        let message = "the StatefulSet names no Service, so its pods have no names in DNS";
        let fix = format!("add serviceName: {0} and a Service {0} with clusterIP: None", object.name);
        return report.object(Severity::Warning, "statefulset-service", object, FIELD, message, fix);
    }
    let Some(service) = set.find("", "Service", &object.namespace, name) else {
        if !set.is_present("service", name) {
            let message = format!("serviceName is {name}, and there is no such Service in {}", object.namespace);
            let fix = format!("add a Service {name} with clusterIP: None that selects the pods");
            report.object(Severity::Error, "statefulset-service", object, FIELD, message, fix);
        }
        return;
    };
    if service.value["spec"]["clusterIP"] != "None" && service.is_local() {
        let message = format!("Service {name} is not headless, so the pods have no names of their own in DNS");
        let fix = format!("give Service {name} clusterIP: None, or name another one that has it");
        report.object(Severity::Warning, "statefulset-service", object, FIELD, message, fix);
    }
}

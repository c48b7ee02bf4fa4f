//! Services: what they select, and the ports they lead to.

use std::collections::BTreeMap;

use mycelium_api::selector::Selector;
use serde_json::Value;

use crate::finding::{Report, Severity};
use crate::near::nearest;
use crate::set::{Object, Set};
use crate::value::{int, join, list, show_selector, text};
use crate::workload::{Workload, protocol};

pub fn check(set: &Set, report: &mut Report) {
    for service in set.local_of("", "Service") {
        duplicates(service, report);
        if text(&service.value, "/spec/type") == "ExternalName" {
            continue;
        }
        let own = &service.value["spec"]["selector"];
        if own.as_object().is_none_or(serde_json::Map::is_empty) {
            continue;
        }
        let workloads = set.workloads_in(&service.namespace);
        let selector = Selector::from_map_value(own);
        let selected: Vec<&Workload<'_>> = workloads.iter().filter(|workload| workload.matches(&selector)).collect();
        if selected.is_empty() {
            nothing(set, service, &workloads, report);
        } else {
            targets(service, &selected, report);
        }
    }
}

fn nothing(set: &Set, service: &Object, workloads: &[Workload<'_>], report: &mut Report) {
    let own = &service.value["spec"]["selector"];
    let certain = (!workloads.is_empty() || set.context.cluster) && !set.may_have_other_pods(&service.namespace);
    let severity = if certain { Severity::Error } else { Severity::Warning };
    let message = format!("the selector {} fits no pod in namespace {}", show_selector(own), service.namespace);
    let elsewhere = set.workloads().into_iter().find(|workload| {
        workload.object.namespace != service.namespace && workload.matches(&Selector::from_map_value(own))
    });
    let fix = match (elsewhere, nearest_labels(own, workloads)) {
        (Some(other), _) => format!("{} has these labels, in another namespace; move one of them", other.object),
        (None, Some((object, labels))) => format!("the pods of {object} have {labels}"),
        (None, None) => String::new(),
    };
    report.object(severity, "service-selects-nothing", service, "spec.selector", message, fix);
}

/// The workload that shares most with a selector, and its labels.
fn nearest_labels(selector: &Value, workloads: &[Workload<'_>]) -> Option<(String, String)> {
    let score = |labels: &Value| {
        let shared = |(key, value): (&String, &Value)| match labels.get(key) {
            Some(label) if label == value => 2,
            Some(_) => 1,
            None => 0,
        };
        selector.as_object().into_iter().flatten().map(shared).sum::<u32>()
    };
    workloads
        .iter()
        .map(|workload| (score(&workload.template["metadata"]["labels"]), workload))
        .filter(|(score, _)| *score > 0)
        .max_by_key(|(score, _)| *score)
        .map(|(_, workload)| (workload.object.to_string(), show_selector(&workload.template["metadata"]["labels"])))
}

fn targets(service: &Object, selected: &[&Workload<'_>], report: &mut Report) {
    for (index, port) in list(&service.value, "/spec/ports").iter().enumerate() {
        let (target, key) = match port.get("targetPort") {
            Some(target) if !target.is_null() && *target != 0 => (target, "targetPort"),
            _ => (&port["port"], "port"),
        };
        let field = format!("spec.ports[{index}].{key}");
        match target {
            Value::String(name) => named_target(service, selected, (name, protocol(port)), &field, report),
            _ => {
                if let Some(number) = target.as_i64() {
                    numbered_target(service, selected, (number, protocol(port)), &field, report);
                }
            }
        }
    }
}

fn named_target(
    service: &Object,
    selected: &[&Workload<'_>],
    (name, protocol): (&str, &str),
    field: &str,
    report: &mut Report,
) {
    if name.parse::<u16>().is_ok() {
        let message = format!("targetPort is the text {name:?}, which is taken for the name of a port");
        let fix = format!("write it without quotes: {name}");
        return report.object(Severity::Error, "service-target-port", service, field, message, fix);
    }
    for workload in selected {
        let ports = workload.ports();
        if ports.iter().any(|port| port.name == name && port.protocol == protocol) {
            continue;
        }
        let message = format!("targetPort is {name}, and no container of {} has a port of that name", workload.object);
        let names: Vec<&str> = ports.iter().map(|port| port.name).filter(|name| !name.is_empty()).collect();
        let fix = match (nearest(name, names.iter().copied()), &names[..]) {
            (Some(near), _) => format!("did you mean {near}?"),
            (None, []) => format!("name the container's port {name}, or give its number"),
            (None, names) => format!("its ports are called {}", join(names)),
        };
        return report.object(Severity::Error, "service-target-port", service, field, message, fix);
    }
}

fn numbered_target(
    service: &Object,
    selected: &[&Workload<'_>],
    (number, protocol): (i64, &str),
    field: &str,
    report: &mut Report,
) {
    for workload in selected.iter().filter(|workload| workload.declares_all_ports()) {
        let ports = workload.ports();
        if ports.iter().any(|port| port.number == number && port.protocol == protocol) {
            continue;
        }
        let declared: Vec<String> = ports.iter().map(|port| format!("{}/{}", port.number, port.protocol)).collect();
        let message = format!(
            "the port leads to {number}/{protocol}, and the containers of {} declare {}",
            workload.object,
            join(&declared)
        );
        let fix = match &ports[..] {
            [only] if only.protocol == protocol => format!("write targetPort: {}", only.number),
            _ => "correct targetPort, or declare the port on the container that serves it".to_owned(),
        };
        return report.object(Severity::Warning, "service-target-port", service, field, message, fix);
    }
}

/// A number and protocol, or a name, that is there twice.
fn duplicates(service: &Object, report: &mut Report) {
    let mut numbers: BTreeMap<(i64, &str), usize> = BTreeMap::new();
    let mut names: BTreeMap<&str, usize> = BTreeMap::new();
    for (index, port) in list(&service.value, "/spec/ports").iter().enumerate() {
        let path = format!("spec.ports[{index}]");
        let number = int(port, "/port").unwrap_or_default();
        if let Some(first) = numbers.insert((number, protocol(port)), index) {
            let message = format!(
                "port {number}/{} is there twice (also as spec.ports[{first}]), which the API refuses",
                protocol(port)
            );
            let fix = "remove one of them; one port serves HTTP and WebSocket alike";
            report.object(Severity::Error, "duplicate-port", service, &path, message, fix);
        }
        let name = text(port, "/name");
        if !name.is_empty() && names.insert(name, index).is_some() {
            let message = format!("two ports of the Service are called {name}");
            report.object(Severity::Error, "duplicate-port", service, format!("{path}.name"), message, "");
        }
    }
}

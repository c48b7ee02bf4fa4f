//! Names of Services in texts, and monitors: written for another namespace than the one that is used.

use mycelium_api::selector::Selector;

use crate::finding::{Report, Severity};
use crate::set::{Object, Set};
use crate::value::{entries, flag, has, labels, list, text};

/// Longer texts are not looked through.
const TEXT_MAX: usize = 64 * 1024;

pub fn check(set: &Set, report: &mut Report) {
    for workload in set.workloads().iter().filter(|workload| workload.object.is_local()) {
        for container in workload.containers() {
            for (index, variable) in list(container.value, "/env").iter().enumerate() {
                let field = format!("{}.env[{index}].value", container.path);
                host_names(set, workload.object, text(variable, "/value"), &field, report);
            }
        }
    }
    for map in set.local_of("", "ConfigMap") {
        for (key, value) in entries(&map.value, "/data") {
            host_names(set, map, value.as_str().unwrap_or_default(), &format!("data[{key}]"), report);
        }
    }
    for monitor in set.local().filter(|object| object.is("monitoring.coreos.com", "ServiceMonitor")) {
        monitored(set, monitor, report);
    }
}

/// `service.namespace.svc` where the service is here, but in another namespace.
fn host_names(set: &Set, object: &Object, value: &str, field: &str, report: &mut Report) {
    if value.len() > TEXT_MAX {
        return;
    }
    let is_host = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.');
    for word in value.split(|c: char| !is_host(c)).filter(|word| word.contains(".svc")) {
        let parts: Vec<&str> = word.split('.').collect();
        let Some(at) = parts.iter().position(|part| *part == "svc").filter(|at| *at >= 2) else { continue };
        let (service, namespace) = (parts[at - 2], parts[at - 1]);
        let there = set.find("", "Service", namespace, service).is_some() || set.is_present("service", service);
        let here: Vec<&Object> = set.of("", "Service").filter(|known| known.name == service).collect();
        if let (false, [known, ..]) = (there, &here[..]) {
            let message =
                format!("{word} names namespace {namespace}, and Service {service} is in {}", known.namespace);
            let fix = format!("write {service}.{}.svc, or just {service} from within its namespace", known.namespace);
            return report.object(Severity::Warning, "service-name-elsewhere", object, field, message, fix);
        }
    }
}

/// A monitor that looks for services in namespaces where they are not.
fn monitored(set: &Set, monitor: &Object, report: &mut Report) {
    let own = &monitor.value["spec"]["selector"];
    let Ok(selector) = Selector::from_value(own) else { return };
    let fitting: Vec<&Object> =
        set.of("", "Service").filter(|service| selector.matches(&labels(&service.value, "/metadata/labels"))).collect();
    let namespaces = &monitor.value["spec"]["namespaceSelector"];
    let named = list(namespaces, "/matchNames");
    let looks_in = |service: &&Object| match named {
        [] => flag(namespaces, "/any") || service.namespace == monitor.namespace,
        names => names.iter().any(|name| name == service.namespace.as_str()),
    };
    if let (Some(service), false) = (fitting.first(), fitting.iter().any(looks_in)) {
        let message = format!("the monitor does not look into namespace {}, where {service} is", service.namespace);
        let fix = format!("write namespaceSelector.matchNames: [{}]", service.namespace);
        let field =
            if has(namespaces, "/matchNames") { "spec.namespaceSelector.matchNames" } else { "spec.namespaceSelector" };
        report.object(Severity::Warning, "monitor-elsewhere", monitor, field, message, fix);
    }
}

//! Pods: ports of probes and hooks, ports that are there twice, resources, volumes that are mounted but not there.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::finding::{Report, Severity};
use crate::near::nearest;
use crate::set::Set;
use crate::value::{entries, has, join, list, text};
use crate::workload::{Container, Workload};

const PROBES: &[&str] = &["livenessProbe", "readinessProbe", "startupProbe"];

pub fn check(set: &Set, report: &mut Report) {
    for workload in set.workloads().iter().filter(|workload| workload.object.is_local()) {
        duplicate_ports(workload, report);
        for container in workload.containers() {
            probes(workload, &container, report);
            resources(workload, &container, report);
            mounts(workload, &container, report);
        }
    }
}

fn probes(workload: &Workload<'_>, container: &Container<'_>, report: &mut Report) {
    let hooks = ["postStart", "preStop"].map(|hook| (format!("lifecycle.{hook}"), format!("/lifecycle/{hook}")));
    let probes = PROBES.iter().map(|probe| ((*probe).to_owned(), format!("/{probe}")));
    for (name, pointer) in probes.chain(hooks) {
        for how in ["httpGet", "tcpSocket", "grpc"] {
            let Some(port) = container.value.pointer(&format!("{pointer}/{how}/port")) else { continue };
            let host = container.value.pointer(&format!("{pointer}/{how}/host")).and_then(Value::as_str);
            if host.is_none_or(str::is_empty) {
                let field = format!("{}.{name}.{how}.port", container.path);
                probe(workload, container, (&name, port), &field, report);
            }
        }
    }
}

fn probe(
    workload: &Workload<'_>,
    container: &Container<'_>,
    (probe, port): (&str, &Value),
    field: &str,
    report: &mut Report,
) {
    let own = list(container.value, "/ports");
    let name = text(container.value, "/name");
    match port {
        Value::String(wanted) if wanted.parse::<u16>().is_ok() => {
            let message = format!("the port of {probe} is the text {wanted:?}, which is taken for a name");
            let fix = format!("write it without quotes: {wanted}");
            report.object(Severity::Error, "probe-port", workload.object, field, message, fix);
        }
        Value::String(wanted) if !own.iter().any(|port| text(port, "/name") == wanted) => {
            let names: Vec<&str> = own.iter().map(|port| text(port, "/name")).filter(|name| !name.is_empty()).collect();
            let message = format!("{probe} asks port {wanted}, and container {name} has no port of that name");
            let fix = match (nearest(wanted, names.iter().copied()), &names[..]) {
                (Some(near), _) => format!("did you mean {near}?"),
                (None, []) => format!("name the port {wanted} in ports, or give its number"),
                (None, names) => format!("its ports are called {}", join(names)),
            };
            report.object(Severity::Error, "probe-port", workload.object, field, message, fix);
        }
        Value::Number(number) => {
            // Containers of a pod share their addresses: another one may serve it.
            let known = workload.ports().iter().any(|port| Some(port.number) == number.as_i64());
            if known || !workload.declares_all_ports() {
                return;
            }
            let declared: Vec<String> = workload.ports().iter().map(|port| port.number.to_string()).collect();
            let message = format!("{probe} asks port {number}, and the pod's containers declare {}", join(&declared));
            let fix = "correct the port, or declare it in ports of the container that serves it";
            report.object(Severity::Warning, "probe-port", workload.object, field, message, fix);
        }
        _ => {}
    }
}

fn duplicate_ports(workload: &Workload<'_>, report: &mut Report) {
    let mut numbers: BTreeMap<(i64, &str), String> = BTreeMap::new();
    let mut names: BTreeMap<&str, String> = BTreeMap::new();
    for port in workload.ports() {
        if let Some(first) = numbers.insert((port.number, port.protocol), port.path.clone()) {
            let message =
                format!("port {}/{} is declared twice in the pod, first at {first}", port.number, port.protocol);
            let fix = "containers of a pod share their addresses: only one can listen on it";
            report.object(Severity::Warning, "duplicate-port", workload.object, &port.path, message, fix);
        } else if !port.name.is_empty() && names.insert(port.name, port.path.clone()).is_some() {
            let message = format!("two ports of the pod are called {}, so the name says nothing", port.name);
            let field = format!("{}.name", port.path);
            report.object(
                Severity::Warning,
                "duplicate-port",
                workload.object,
                field,
                message,
                "give one another name",
            );
        }
    }
}

/// Requests of what containers cannot ask for.
fn resources(workload: &Workload<'_>, container: &Container<'_>, report: &mut Report) {
    const KNOWN: &[&str] = &["cpu", "memory", "ephemeral-storage"];
    for which in ["requests", "limits"] {
        for (name, _) in entries(container.value, &format!("/resources/{which}")) {
            if KNOWN.contains(&name.as_str()) || name.starts_with("hugepages-") || name.contains('/') {
                continue;
            }
            let field = format!("{}.resources.{which}[{name}]", container.path);
            let message = format!("{name} is not a resource that a container can ask for");
            let fix = match (name.as_str(), nearest(name, KNOWN.iter().copied())) {
                ("storage" | "disk", _) => "for disk space that stays use a volume claim, else ephemeral-storage".to_owned(),
                (_, Some(near)) => format!("did you mean {near}?"),
                _ => "known are cpu, memory, ephemeral-storage, hugepages-SIZE and names with a domain such as example.com/gpu".to_owned(),
            };
            report.object(Severity::Error, "unknown-resource", workload.object, field, message, fix);
        }
    }
}

fn mounts(workload: &Workload<'_>, container: &Container<'_>, report: &mut Report) {
    let mut volumes: Vec<&str> = list(workload.spec(), "/volumes").iter().map(|volume| text(volume, "/name")).collect();
    volumes
        .extend(list(&workload.object.value, "/spec/volumeClaimTemplates").iter().map(|c| text(c, "/metadata/name")));
    for (index, mount) in list(container.value, "/volumeMounts").iter().enumerate() {
        let name = text(mount, "/name");
        if name.is_empty() || volumes.contains(&name) {
            continue;
        }
        let field = format!("{}.volumeMounts[{index}].name", container.path);
        let message =
            format!("container {} mounts volume {name}, which the pod does not have", text(container.value, "/name"));
        let fix = match nearest(name, volumes.iter().copied()) {
            Some(near) => format!("did you mean {near}?"),
            None if has(workload.spec(), "/volumes") => format!("the pod's volumes are {}", join(&volumes)),
            None => format!("add a volume called {name} to the pod"),
        };
        report.object(Severity::Error, "missing-volume", workload.object, field, message, fix);
    }
}

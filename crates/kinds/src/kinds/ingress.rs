//! Ingress and IngressClass.

use mycelium_api::field::{FieldError, Path};
use mycelium_api::names;
use serde_json::{Value, json};

use super::workload::check_immutable;
use crate::check::{refuse, too_long};
use crate::table::{AGE_COLUMN, Column, NAME, age, name, text_or};
use crate::value::{at, fill_zero, has, int, list, text, within};
use crate::{Errors, Generation, Kind, Part};

pub static INGRESS: Kind = Kind {
    generation: Generation::Spec,
    check: check_ingress,
    check_update: |new, _, part, errors| {
        if part != Part::Status {
            check_ingress(new, errors);
        }
    },
    columns: &[
        NAME,
        Column::text("Class", "Which ingress controller serves it."),
        Column::text("Hosts", "Host names, the first three."),
        Column::text("Address", "Where it can be reached."),
        Column::text("Ports", "Ports that are open."),
        AGE_COLUMN,
    ],
    cells: |ingress, now| {
        let tls = !list(ingress, &["spec", "tls"]).is_empty();
        vec![
            name(ingress),
            text_or(ingress, &["spec", "ingressClassName"], "<none>"),
            hosts(ingress).into(),
            addresses(ingress).into(),
            (if tls { "80, 443" } else { "80" }).into(),
            age(ingress, now),
        ]
    },
    ..Kind::new("networking.k8s.io", "Ingress", true)
};

pub static INGRESS_CLASS: Kind = Kind {
    has_status: false,
    generation: Generation::Spec,
    defaults: |_, class| {
        within(class, &["spec", "parameters"], |parameters| fill_zero(parameters, "scope", "Cluster"));
    },
    check: check_class,
    check_update: |new, old, _, errors| {
        check_immutable(new, old, &["spec", "controller"], errors);
        check_class(new, errors);
    },
    columns: &[
        NAME,
        Column::text("Controller", "Who serves ingresses of this class."),
        Column::text("Parameters", "Object with more settings."),
        AGE_COLUMN,
    ],
    cells: |class, now| {
        let parameters = at(class, &["spec", "parameters"]);
        let shown = if parameters.is_null() {
            "<none>".to_owned()
        } else {
            let group = text(parameters, &["apiGroup"]);
            let dot = if group.is_empty() { "" } else { "." };
            format!("{}{dot}{group}/{}", text(parameters, &["kind"]), text(parameters, &["name"]))
        };
        vec![name(class), text_or(class, &["spec", "controller"], ""), shown.into(), age(class, now)]
    },
    ..Kind::new("networking.k8s.io", "IngressClass", false)
};

fn hosts(ingress: &Value) -> String {
    const SHOWN: usize = 3;
    let rules = list(ingress, &["spec", "rules"]);
    let mut hosts: Vec<&str> = rules.iter().map(|rule| text(rule, &["host"])).filter(|host| !host.is_empty()).collect();
    let more = hosts.len() >= SHOWN && rules.len() > SHOWN;
    hosts.truncate(SHOWN);
    match hosts.join(",") {
        none if none.is_empty() => "*".to_owned(),
        hosts if more => format!("{hosts} + {} more...", rules.len() - SHOWN),
        hosts => hosts,
    }
}

fn addresses(ingress: &Value) -> String {
    let mut points: Vec<&str> = list(ingress, &["status", "loadBalancer", "ingress"])
        .iter()
        .map(|point| Some(text(point, &["ip"])).filter(|ip| !ip.is_empty()).unwrap_or(text(point, &["hostname"])))
        .filter(|point| !point.is_empty())
        .collect();
    points.sort_unstable();
    points.dedup();
    points.join(",")
}

fn check_ingress(ingress: &Value, errors: &mut Errors) {
    let path = Path::new("spec");
    let spec = &ingress["spec"];
    let rules = list(spec, &["rules"]);
    if rules.is_empty() && !has(spec, &["defaultBackend"]) {
        let detail = "either `defaultBackend` or `rules` must be specified";
        errors.push(FieldError::invalid(&path, json!([]), detail));
    }
    if has(spec, &["defaultBackend"]) {
        check_backend(&spec["defaultBackend"], &path.child("defaultBackend"), errors);
    }
    for (index, rule) in rules.iter().enumerate() {
        let path = path.child("rules").index(index);
        let host = text(rule, &["host"]);
        if host.contains('*') {
            refuse(errors, &path.child("host"), host, names::is_wildcard_dns1123_subdomain(host));
        } else if !host.is_empty() {
            refuse(errors, &path.child("host"), host, names::is_dns1123_subdomain(host));
        }
        if host.parse::<std::net::IpAddr>().is_ok() {
            let detail = "must be a DNS name, not an IP address";
            errors.push(FieldError::invalid(&path.child("host"), host, detail));
        }
        if has(rule, &["http"]) {
            check_paths(rule, &path.child("http").child("paths"), errors);
        }
    }
}

fn check_paths(rule: &Value, path: &Path, errors: &mut Errors) {
    let paths = list(rule, &["http", "paths"]);
    if paths.is_empty() {
        errors.push(FieldError::required(path, ""));
    }
    for (index, entry) in paths.iter().enumerate() {
        let path = path.index(index);
        let target = text(entry, &["path"]);
        let target_path = path.child("path");
        match text(entry, &["pathType"]) {
            "" => errors.push(FieldError::required(&path.child("pathType"), "pathType must be specified")),
            "Exact" | "Prefix" => {
                if !target.starts_with('/') {
                    errors.push(FieldError::invalid(&target_path, target, "must be an absolute path"));
                }
                for bad in ["//", "/./", "/../", "%2f", "%2F"] {
                    if target.contains(bad) {
                        errors.push(FieldError::invalid(&target_path, target, format!("must not contain '{bad}'")));
                    }
                }
            }
            "ImplementationSpecific" if !target.is_empty() && !target.starts_with('/') => {
                errors.push(FieldError::invalid(&target_path, target, "must be an absolute path"));
            }
            "ImplementationSpecific" => {}
            other => errors.push(FieldError::not_supported(
                &path.child("pathType"),
                other,
                &["Exact", "ImplementationSpecific", "Prefix"],
            )),
        }
        check_backend(&entry["backend"], &path.child("backend"), errors);
    }
}

fn check_backend(backend: &Value, path: &Path, errors: &mut Errors) {
    let (service, resource) = (has(backend, &["service"]), has(backend, &["resource"]));
    if service && resource {
        let detail = "cannot set both resource and service backends";
        errors.push(FieldError::invalid(path, "", detail));
    } else if !service && !resource {
        errors.push(FieldError::required(path, "resource or service backend is required"));
    } else if service {
        let service_path = path.child("service");
        match text(backend, &["service", "name"]) {
            "" => errors.push(FieldError::required(&service_path.child("name"), "")),
            name => refuse(errors, &service_path.child("name"), name, names::is_dns1035_label(name)),
        }
        let port_name = text(backend, &["service", "port", "name"]);
        let number = int(backend, &["service", "port", "number"]).unwrap_or_default();
        let port_path = service_path.child("port");
        match (port_name, number) {
            ("", 0) => errors.push(FieldError::required(&port_path, "port name or number is required")),
            ("", number) => refuse(errors, &port_path.child("number"), number, names::is_port_number(number)),
            (name, 0) => refuse(errors, &port_path.child("name"), name, names::is_port_name(name)),
            _ => errors.push(FieldError::invalid(&port_path, "", "cannot set both port name & port number")),
        }
    }
}

/// The controller is a path below a domain, such as `example.com/ingress`.
fn check_class(class: &Value, errors: &mut Errors) {
    let path = Path::new("spec").child("controller");
    let controller = text(class, &["spec", "controller"]);
    if controller.len() > 250 {
        too_long(errors, &path, 250);
    }
    match controller.split_once('/') {
        _ if controller.is_empty() => errors.push(FieldError::required(&path, "")),
        Some((domain, rest)) if !domain.is_empty() && !rest.is_empty() => {
            refuse(errors, &path, domain, names::is_dns1123_subdomain(domain));
        }
        _ => {
            let detail = "must be a domain-prefixed path (such as \"acme.io/foo\")";
            errors.push(FieldError::invalid(&path, controller, detail));
        }
    }
}

//! Ingress, IngressClass, NetworkPolicy, ServiceCIDR, IPAddress.

use mycelium_api::field::{FieldError, Path};
use mycelium_api::names;
use serde_json::{Value, json};

use crate::check::refuse;
use crate::meta::check_selector;
use crate::service::addresses::check_cidr;
use crate::table::{AGE_COLUMN, Column, NAME, age, name, selector, text_or};
use crate::value::{at, each, ensure_object, fill, fill_zero, has, int, list, text, texts, within};
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

pub static NETWORK_POLICY: Kind = Kind {
    has_status: false,
    generation: Generation::Spec,
    defaults: |_, policy| {
        ensure_object(policy, &["spec"]);
        within(policy, &["spec"], |spec| {
            for direction in ["ingress", "egress"] {
                each(spec, &[direction], |rule| each(rule, &["ports"], |port| fill(port, "protocol", "TCP")));
            }
            if list(spec, &["policyTypes"]).is_empty() {
                let both = !list(spec, &["egress"]).is_empty();
                let types = if both { json!(["Ingress", "Egress"]) } else { json!(["Ingress"]) };
                fill(spec, "podSelector", json!({}));
                if let Some(spec) = spec.as_object_mut() {
                    spec.insert("policyTypes".to_owned(), types);
                }
            }
        });
    },
    check: check_policy,
    check_update: |new, _, _, errors| check_policy(new, errors),
    columns: &[NAME, Column::text("Pod-Selector", "Labels of the pods it applies to."), AGE_COLUMN],
    cells: |policy, now| vec![name(policy), selector(policy, &["spec", "podSelector"]), age(policy, now)],
    ..Kind::new("networking.k8s.io", "NetworkPolicy", true)
};

pub static SERVICE_CIDR: Kind = Kind {
    columns: &[NAME, Column::text("CIDRs", "Ranges for addresses of services."), AGE_COLUMN],
    cells: |range, now| {
        let cidrs: Vec<&str> = texts(range, &["spec", "cidrs"]).collect();
        vec![name(range), cidrs.join(",").into(), age(range, now)]
    },
    ..Kind::new("networking.k8s.io", "ServiceCIDR", false)
};

pub static IP_ADDRESS: Kind = Kind {
    has_status: false,
    columns: &[NAME, Column::text("ParentRef", "Object that has the address."), AGE_COLUMN],
    cells: |address, now| {
        let parent = at(address, &["spec", "parentRef"]);
        let mut shown = text(parent, &["resource"]).to_lowercase();
        let group = text(parent, &["group"]);
        if !group.is_empty() {
            shown = format!("{shown}.{group}");
        }
        for key in ["namespace", "name"] {
            let part = text(parent, &[key]);
            if !part.is_empty() {
                shown = format!("{shown}/{part}");
            }
        }
        let shown = if parent.is_null() { "<none>".to_owned() } else { shown };
        vec![name(address), shown.into(), age(address, now)]
    },
    ..Kind::new("networking.k8s.io", "IPAddress", false)
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

fn check_policy(policy: &Value, errors: &mut Errors) {
    let path = Path::new("spec");
    let spec = &policy["spec"];
    check_selector(&spec["podSelector"], &path.child("podSelector"), errors);
    for (direction, peers) in [("ingress", "from"), ("egress", "to")] {
        for (index, rule) in list(spec, &[direction]).iter().enumerate() {
            let path = path.child(direction).index(index);
            for (index, port) in list(rule, &["ports"]).iter().enumerate() {
                check_policy_port(port, &path.child("ports").index(index), errors);
            }
            for (index, peer) in list(rule, &[peers]).iter().enumerate() {
                check_peer(peer, &path.child(peers).index(index), errors);
            }
        }
    }
    for (index, kind) in texts(spec, &["policyTypes"]).enumerate() {
        if !matches!(kind, "Ingress" | "Egress") {
            let path = path.child("policyTypes").index(index);
            errors.push(FieldError::not_supported(&path, kind, &["Egress", "Ingress"]));
        }
    }
}

fn check_policy_port(port: &Value, path: &Path, errors: &mut Errors) {
    let protocol = text(port, &["protocol"]);
    if !matches!(protocol, "TCP" | "UDP" | "SCTP") {
        errors.push(FieldError::not_supported(&path.child("protocol"), protocol, &["SCTP", "TCP", "UDP"]));
    }
    if has(port, &["port"]) {
        crate::pod::validate::check_port_or_name(&port["port"], &path.child("port"), errors);
    }
    let Some(end) = int(port, &["endPort"]) else { return };
    let end_path = path.child("endPort");
    match int(port, &["port"]) {
        None if has(port, &["port"]) => {
            let detail = "may not be specified when `port` is non-numeric";
            errors.push(FieldError::invalid(&end_path, end, detail));
        }
        None => errors.push(FieldError::invalid(&end_path, end, "must be specified along with `port`")),
        Some(start) if end < start => {
            errors.push(FieldError::invalid(&end_path, end, "must be greater than or equal to `port`"));
        }
        Some(_) => refuse(errors, &end_path, end, names::is_port_number(end)),
    }
}

fn check_peer(peer: &Value, path: &Path, errors: &mut Errors) {
    let given: Vec<&str> =
        ["podSelector", "namespaceSelector", "ipBlock"].into_iter().filter(|key| has(peer, &[key])).collect();
    if given.is_empty() {
        errors.push(FieldError::required(path, "must specify a peer"));
    } else if given.len() > 1 && given.contains(&"ipBlock") {
        let detail = "may not specify both ipBlock and another peer";
        errors.push(FieldError::forbidden(path, detail));
    }
    for key in ["podSelector", "namespaceSelector"] {
        check_selector(&peer[key], &path.child(key), errors);
    }
    if has(peer, &["ipBlock"]) {
        let path = path.child("ipBlock");
        match text(peer, &["ipBlock", "cidr"]) {
            "" => errors.push(FieldError::required(&path.child("cidr"), "")),
            cidr => check_cidr(cidr, &path.child("cidr"), errors),
        }
        for (index, cidr) in texts(peer, &["ipBlock", "except"]).enumerate() {
            check_cidr(cidr, &path.child("except").index(index), errors);
        }
    }
}

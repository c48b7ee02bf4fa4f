//! What is wrong with a Service.

use std::collections::BTreeSet;

use mycelium_api::field::{FieldError, Path};
use mycelium_api::names;
use serde_json::{Value, json};

use super::addresses::{check_cidr, check_endpoint_ip, check_ip, parse_ip};
use super::{HEADLESS, externally_accessible, is_headless, needs_health_check_port};
use crate::value::{at, has, int, list, same, text, texts};
use crate::{Errors, Part};

/// What is wrong with a Service.
pub fn check(service: &Value, errors: &mut Errors) {
    let path = Path::new("spec");
    let spec = &service["spec"];
    let kind = text(spec, &["type"]);
    check_type(service, kind, &path, errors);
    let ports = list(spec, &["ports"]);
    let mut names = BTreeSet::new();
    for (index, port) in ports.iter().enumerate() {
        check_port(port, ports.len() > 1, &mut names, &path.child("ports").index(index), errors);
    }
    crate::meta::check_labels(&spec["selector"], &path.child("selector"), errors);
    check_affinity(spec, &path, errors);
    check_addresses(service, &path, errors);
    for (index, ip) in texts(spec, &["externalIPs"]).enumerate() {
        let path = path.child("externalIPs").index(index);
        if check_ip(ip, &path, errors) {
            check_endpoint_ip(ip, &path, errors);
        }
    }
    const TYPES: &[&str] = &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"];
    match kind {
        "" => errors.push(FieldError::required(&path.child("type"), "")),
        kind if !TYPES.contains(&kind) => errors.push(FieldError::not_supported(&path.child("type"), kind, TYPES)),
        _ => {}
    }
    check_port_pairs(ports, kind, &path.child("ports"), errors);
    check_load_balancer(service, kind, &path, errors);
    check_traffic(service, kind, &path, errors);
}

fn check_type(service: &Value, kind: &str, path: &Path, errors: &mut Errors) {
    let spec = &service["spec"];
    if list(spec, &["ports"]).is_empty() && !is_headless(service) && kind != "ExternalName" {
        errors.push(FieldError::required(&path.child("ports"), ""));
    }
    if matches!(kind, "LoadBalancer" | "NodePort") && is_headless(service) {
        let detail = format!("may not be set to 'None' for {kind} services");
        errors.push(FieldError::invalid(&path.child("clusterIPs").index(0), HEADLESS, detail));
    }
    if kind != "ExternalName" {
        return;
    }
    let refused = ["clusterIPs", "ipFamilies", "ipFamilyPolicy"];
    for key in refused.iter().filter(|key| !crate::value::is_empty(&spec[**key])) {
        errors.push(FieldError::forbidden(&path.child(key), "may not be set for ExternalName services"));
    }
    let name_path = path.child("externalName");
    match text(spec, &["externalName"]).trim_end_matches('.') {
        "" => errors.push(FieldError::required(&name_path, "")),
        name => {
            let wrong = names::is_dns1123_subdomain(name);
            errors.extend(wrong.into_iter().map(|wrong| FieldError::invalid(&name_path, name, wrong)));
        }
    }
}

fn check_port<'a>(port: &'a Value, needs_name: bool, names: &mut BTreeSet<&'a str>, path: &Path, errors: &mut Errors) {
    let name = text(port, &["name"]);
    if !name.is_empty() {
        let wrong = names::is_dns1123_label(name);
        errors.extend(wrong.into_iter().map(|wrong| FieldError::invalid(&path.child("name"), name, wrong)));
        if !names.insert(name) {
            errors.push(FieldError::duplicate(&path.child("name"), name));
        }
    } else if needs_name {
        errors.push(FieldError::required(&path.child("name"), ""));
    }
    let number = int(port, &["port"]).unwrap_or_default();
    for wrong in names::is_port_number(number) {
        errors.push(FieldError::invalid(&path.child("port"), number, wrong));
    }
    match text(port, &["protocol"]) {
        "" => errors.push(FieldError::required(&path.child("protocol"), "")),
        "TCP" | "UDP" | "SCTP" => {}
        other => errors.push(FieldError::not_supported(&path.child("protocol"), other, &["SCTP", "TCP", "UDP"])),
    }
    if has(port, &["targetPort"]) {
        crate::pod::validate::check_port_or_name(&port["targetPort"], &path.child("targetPort"), errors);
    }
    if has(port, &["appProtocol"]) {
        let protocol = text(port, &["appProtocol"]);
        for wrong in names::is_qualified_name(protocol) {
            errors.push(FieldError::invalid(&path.child("appProtocol"), protocol, wrong));
        }
    }
}

fn check_affinity(spec: &Value, path: &Path, errors: &mut Errors) {
    let config_path = path.child("sessionAffinityConfig");
    match text(spec, &["sessionAffinity"]) {
        "" => errors.push(FieldError::required(&path.child("sessionAffinity"), "")),
        "None" if has(spec, &["sessionAffinityConfig"]) => {
            errors.push(FieldError::forbidden(&config_path, "must not be set when session affinity is None"));
        }
        "None" => {}
        "ClientIP" => match int(spec, &["sessionAffinityConfig", "clientIP", "timeoutSeconds"]) {
            None => {
                let detail = "when session affinity type is ClientIP";
                errors.push(FieldError::required(&config_path, detail));
            }
            Some(seconds) if !(1..=86400).contains(&seconds) => {
                let detail = "must be greater than 0 and less than 86400";
                let path = config_path.child("clientIP").child("timeoutSeconds");
                errors.push(FieldError::invalid(&path, seconds, detail));
            }
            Some(_) => {}
        },
        other => {
            let path = path.child("sessionAffinity");
            errors.push(FieldError::not_supported(&path, other, &["ClientIP", "None"]));
        }
    }
}

fn check_addresses(service: &Value, path: &Path, errors: &mut Errors) {
    let spec = &service["spec"];
    if text(spec, &["type"]) == "ExternalName" {
        return;
    }
    let list_path = path.child("clusterIPs");
    let addresses: Vec<&str> = texts(spec, &["clusterIPs"]).collect();
    let shown = || spec["clusterIPs"].clone();
    match (text(spec, &["clusterIP"]), addresses.first()) {
        ("", Some(_)) => {
            let detail = "must be empty when `clusterIP` is not specified";
            errors.push(FieldError::invalid(&list_path, shown(), detail));
        }
        ("", None) => {}
        (_, None) => errors.push(FieldError::required(&list_path, "")),
        (one, Some(first)) if one != *first => {
            errors.push(FieldError::invalid(&list_path, shown(), "first value must match `clusterIP`"));
        }
        _ => {}
    }
    check_families(spec, path, errors);
    let before = errors.len();
    for (index, address) in addresses.iter().enumerate() {
        if index == 0 && *address == HEADLESS {
            if addresses.len() > 1 {
                let detail = "'None' must be the first and only value";
                errors.push(FieldError::invalid(&list_path, shown(), detail));
            }
            continue;
        }
        check_ip(address, &list_path.index(index), errors);
    }
    if addresses.len() > 2 {
        errors.push(FieldError::invalid(&list_path, shown(), "may only hold up to 2 values"));
    }
    if errors.len() > before || is_headless(service) {
        return;
    }
    let is_v4: Vec<bool> = addresses.iter().filter_map(|ip| parse_ip(ip)).map(|ip| ip.is_ipv4()).collect();
    if is_v4.len() > 1 && is_v4.iter().all(|v4| *v4 == is_v4[0]) {
        let detail = "may specify no more than one IP for each IP family";
        errors.push(FieldError::invalid(&list_path, shown(), detail));
    }
    for (index, (v4, family)) in is_v4.iter().zip(texts(spec, &["ipFamilies"])).enumerate() {
        if *v4 != (family == "IPv4") {
            let detail = format!("expected an {family} value as indicated by `ipFamilies[{index}]`");
            errors.push(FieldError::invalid(&list_path.index(index), addresses[index], detail));
        }
    }
}

fn check_families(spec: &Value, path: &Path, errors: &mut Errors) {
    let mut seen = BTreeSet::new();
    for (index, family) in texts(spec, &["ipFamilies"]).enumerate() {
        let path = path.child("ipFamilies").index(index);
        if !matches!(family, "IPv4" | "IPv6") {
            errors.push(FieldError::not_supported(&path, family, &["IPv4", "IPv6"]));
        }
        if !seen.insert(family) {
            errors.push(FieldError::duplicate(&path, family));
        }
    }
    const POLICIES: &[&str] = &["PreferDualStack", "RequireDualStack", "SingleStack"];
    let policy = text(spec, &["ipFamilyPolicy"]);
    if !policy.is_empty() && !POLICIES.contains(&policy) {
        errors.push(FieldError::not_supported(&path.child("ipFamilyPolicy"), policy, POLICIES));
    }
}

fn check_port_pairs(ports: &[Value], kind: &str, path: &Path, errors: &mut Errors) {
    let (mut node_ports, mut numbers) = (BTreeSet::new(), BTreeSet::new());
    for (index, port) in ports.iter().enumerate() {
        let node_port = int(port, &["nodePort"]).unwrap_or_default();
        let path = path.index(index).child("nodePort");
        if kind == "ClusterIP" && node_port != 0 {
            errors.push(FieldError::forbidden(&path, "may not be used when `type` is 'ClusterIP'"));
        }
        if node_port != 0 && !node_ports.insert((text(port, &["protocol"]), node_port)) {
            errors.push(FieldError::duplicate(&path, node_port));
        }
    }
    for (index, port) in ports.iter().enumerate() {
        let key = (text(port, &["protocol"]), int(port, &["port"]));
        if !numbers.insert(key) {
            let shown = json!({"protocol": key.0, "port": key.1});
            errors.push(FieldError::duplicate(&path.index(index), shown));
        }
    }
}

fn check_load_balancer(service: &Value, kind: &str, path: &Path, errors: &mut Errors) {
    const ONLY: &str = "may only be used when `type` is 'LoadBalancer'";
    let spec = &service["spec"];
    let balanced = kind == "LoadBalancer";
    let ranges_path = path.child("LoadBalancerSourceRanges");
    if !list(spec, &["loadBalancerSourceRanges"]).is_empty() && !balanced {
        errors.push(FieldError::forbidden(&ranges_path, ONLY));
    }
    for (index, range) in texts(spec, &["loadBalancerSourceRanges"]).enumerate() {
        check_cidr(range.trim(), &ranges_path.index(index), errors);
    }
    if has(spec, &["allocateLoadBalancerNodePorts"]) && !balanced {
        errors.push(FieldError::forbidden(&path.child("allocateLoadBalancerNodePorts"), ONLY));
    }
    if has(spec, &["loadBalancerClass"]) {
        let class_path = path.child("loadBalancerClass");
        let class = text(spec, &["loadBalancerClass"]);
        if !balanced {
            errors.push(FieldError::forbidden(&class_path, ONLY));
        }
        for wrong in names::is_qualified_name(class) {
            errors.push(FieldError::invalid(&class_path, class, wrong));
        }
    }
}

fn check_traffic(service: &Value, kind: &str, path: &Path, errors: &mut Errors) {
    let spec = &service["spec"];
    let external_path = path.child("externalTrafficPolicy");
    match (text(spec, &["externalTrafficPolicy"]), externally_accessible(service)) {
        ("", true) => errors.push(FieldError::required(&external_path, "")),
        ("", false) | ("Cluster" | "Local", true) => {}
        (other, true) => errors.push(FieldError::not_supported(&external_path, other, &["Cluster", "Local"])),
        (other, false) => {
            let detail = "may only be set for externally-accessible services";
            errors.push(FieldError::invalid(&external_path, other, detail));
        }
    }
    let health_path = path.child("healthCheckNodePort");
    match (int(spec, &["healthCheckNodePort"]).unwrap_or_default(), needs_health_check_port(service)) {
        (0, true) => errors.push(FieldError::required(&health_path, "")),
        (0, false) => {}
        (port, true) => {
            let wrong = names::is_port_number(port);
            errors.extend(wrong.into_iter().map(|wrong| FieldError::invalid(&health_path, port, wrong)));
        }
        (port, false) => {
            let detail = "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'";
            errors.push(FieldError::invalid(&health_path, port, detail));
        }
    }
    let internal_path = path.child("internalTrafficPolicy");
    match text(spec, &["internalTrafficPolicy"]) {
        "" if matches!(kind, "ClusterIP" | "NodePort" | "LoadBalancer") => {
            errors.push(FieldError::required(&internal_path, ""));
        }
        "" | "Cluster" | "Local" => {}
        other => errors.push(FieldError::not_supported(&internal_path, other, &["Cluster", "Local"])),
    }
    const DISTRIBUTIONS: &[&str] = &["PreferClose", "PreferSameZone", "PreferSameNode"];
    let distribution = text(spec, &["trafficDistribution"]);
    if has(spec, &["trafficDistribution"]) && !DISTRIBUTIONS.contains(&distribution) {
        let path = path.child("trafficDistribution");
        errors.push(FieldError::not_supported(&path, distribution, DISTRIBUTIONS));
    }
}

/// What is wrong with an update of a Service.
pub fn check_update(new: &Value, old: &Value, part: Part, errors: &mut Errors) {
    if part == Part::Status {
        check_status(new, errors);
        return;
    }
    check_address_change(new, old, errors);
    let path = Path::new("spec");
    let balanced = |service: &Value| text(service, &["spec", "type"]) == "LoadBalancer";
    let class = ["spec", "loadBalancerClass"];
    if balanced(new) && balanced(old) && !same(at(new, &class), at(old, &class)) {
        let detail = "may not change once set";
        errors.push(FieldError::invalid(&path.child("loadBalancerClass"), at(new, &class).clone(), detail));
    }
    let health = ["spec", "healthCheckNodePort"];
    let both = needs_health_check_port(old) && needs_health_check_port(new);
    if both && !same(at(new, &health), at(old, &health)) {
        errors.push(FieldError::forbidden(&path.child("healthCheckNodePort"), "field is immutable"));
    }
    check(new, errors);
}

fn check_address_change(new: &Value, old: &Value, errors: &mut Errors) {
    let external = |service: &Value| text(service, &["spec", "type"]) == "ExternalName";
    if external(new) || external(old) || (is_headless(new) && is_headless(old)) {
        return;
    }
    let path = Path::new("spec").child("clusterIPs").index(0);
    let shown = at(new, &["spec", "clusterIPs"]).clone();
    let first = |service| texts(service, &["spec", "clusterIPs"]).next();
    match (first(old), first(new)) {
        (Some(_), None) => errors.push(FieldError::invalid(&path, shown, "primary clusterIP can not be unset")),
        (Some(before), Some(now)) if before != now => {
            errors.push(FieldError::invalid(&path, shown, "may not change once set"));
        }
        _ => {}
    }
    let family = |service| texts(service, &["spec", "ipFamilies"]).next();
    if let (Some(before), Some(now)) = (family(old), family(new))
        && before != now
        && !is_headless(old)
    {
        let path = Path::new("spec").child("ipFamilies").index(0);
        errors.push(FieldError::invalid(&path, at(new, &["spec", "ipFamilies"]).clone(), "may not change once set"));
    }
}

fn check_status(service: &Value, errors: &mut Errors) {
    let path = Path::new("status").child("loadBalancer").child("ingress");
    let ingress = list(service, &["status", "loadBalancer", "ingress"]);
    if text(service, &["spec", "type"]) != "LoadBalancer" && !ingress.is_empty() {
        errors.push(FieldError::forbidden(&path, "may only be used when `spec.type` is 'LoadBalancer'"));
        return;
    }
    for (index, point) in ingress.iter().enumerate() {
        let path = path.index(index);
        let ip = text(point, &["ip"]);
        if !ip.is_empty() {
            check_ip(ip, &path.child("ip"), errors);
        }
        match text(point, &["ipMode"]) {
            "" if !ip.is_empty() => {
                errors.push(FieldError::required(&path.child("ipMode"), "must be specified when `ip` is set"));
            }
            "" => {}
            _ if ip.is_empty() => {
                errors.push(FieldError::forbidden(&path.child("ipMode"), "may not be specified when `ip` is not set"));
            }
            "VIP" | "Proxy" => {}
            other => errors.push(FieldError::not_supported(&path.child("ipMode"), other, &["Proxy", "VIP"])),
        }
        let host = text(point, &["hostname"]);
        if !host.is_empty() {
            for wrong in names::is_dns1123_subdomain(host) {
                errors.push(FieldError::invalid(&path.child("hostname"), host, wrong));
            }
            if parse_ip(host).is_some() {
                let detail = "must be a DNS name, not an IP address";
                errors.push(FieldError::invalid(&path.child("hostname"), host, detail));
            }
        }
    }
}

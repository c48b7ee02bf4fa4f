//! What is wrong with a pod, a pod template, a pod spec.

use std::collections::BTreeSet;

use mycelium_api::field::{FieldError, Path};
use mycelium_api::names;
use serde_json::Value;

use super::validate_container::{self as container, Scope};
use super::validate_probes::check_probes_and_hooks;
use super::validate_resources::check_resources;
use super::{validate_scheduling as scheduling, validate_security as security, validate_volume as volume};
use crate::check::{one_of, optional_one_of, refuse, too_long};
use crate::meta::{check_annotations, check_labels};
use crate::service::addresses::check_ip;
use crate::value::{at, flag, has, int, list, text, texts};
use crate::{Errors, NameRule};

/// What is wrong with a new pod.
pub fn pod(pod: &Value, errors: &mut Errors) {
    let path = Path::new("spec");
    let spec = &pod["spec"];
    any_pod(pod, errors);
    if !list(spec, &["ephemeralContainers"]).is_empty() {
        errors.push(FieldError::forbidden(&path.child("ephemeralContainers"), "cannot be set on create"));
    }
    if !text(spec, &["nodeName"]).is_empty() && !list(spec, &["schedulingGates"]).is_empty() {
        let detail = "cannot be set until all schedulingGates have been cleared";
        errors.push(FieldError::forbidden(&path.child("nodeName"), detail));
    }
}

/// What is wrong with a pod, new or not.
pub fn any_pod(pod: &Value, errors: &mut Errors) {
    let path = Path::new("spec");
    let spec = &pod["spec"];
    pod_spec(spec, text(pod, &["metadata", "name"]), true, &path, errors);
    if text(spec, &["serviceAccountName"]).is_empty() {
        volume::check_no_tokens(spec, &path.child("volumes"), errors);
    }
    for key in ["containers", "initContainers"] {
        for (index, container) in list(spec, &[key]).iter().enumerate() {
            container::check_image_spaces(container, &path.child(key).index(index), errors);
        }
    }
}

/// What is wrong with a pod template.
pub fn template(template: &Value, path: &Path, errors: &mut Errors) {
    check_labels(at(template, &["metadata", "labels"]), &path.child("labels"), errors);
    check_annotations(at(template, &["metadata", "annotations"]), &path.child("annotations"), errors);
    pod_spec(&template["spec"], "", false, &path.child("spec"), errors);
    if !list(template, &["spec", "ephemeralContainers"]).is_empty() {
        let detail = "ephemeral containers not allowed in pod template";
        errors.push(FieldError::forbidden(&path.child("spec").child("ephemeralContainers"), detail));
    }
}

/// What is wrong with a pod spec. `is_pod` tells a pod from a template.
fn pod_spec(spec: &Value, pod_name: &str, is_pod: bool, path: &Path, errors: &mut Errors) {
    if !has(spec, &["terminationGracePeriodSeconds"]) {
        errors.push(FieldError::required(&path.child("terminationGracePeriodSeconds"), ""));
    }
    let volumes = volume::check_all(spec, pod_name, &path.child("volumes"), errors);
    let scope = Scope::new(spec, volumes);
    containers(spec, &scope, path, errors);
    init_containers(spec, &scope, path, errors);
    ephemeral_containers(spec, &scope, path, errors);
    pod_resources(spec, path, errors);
    host_network_ports(spec, is_pod, path, errors);
    let policy = text(spec, &["restartPolicy"]);
    one_of(errors, &path.child("restartPolicy"), policy, &["Always", "OnFailure", "Never"]);
    const DNS: &[&str] = &["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"];
    one_of(errors, &path.child("dnsPolicy"), text(spec, &["dnsPolicy"]), DNS);
    check_labels(&spec["nodeSelector"], &path.child("nodeSelector"), errors);
    security::check_pod(spec, &path.child("securityContext"), errors);
    scheduling::check_affinity(&spec["affinity"], &path.child("affinity"), errors);
    dns_config(spec, &path.child("dnsConfig"), errors);
    scheduling::check_gates(spec, path, errors);
    scheduling::check_spread(spec, &path.child("topologySpreadConstraints"), errors);
    security::check_host_users(spec, path, errors);
    identity(spec, path, errors);
    scheduling::check_tolerations(spec, &path.child("tolerations"), errors);
    host_aliases(spec, &path.child("hostAliases"), errors);
    classes(spec, path, errors);
}

fn containers(spec: &Value, scope: &Scope<'_>, path: &Path, errors: &mut Errors) {
    let path = path.child("containers");
    let containers = list(spec, &["containers"]);
    if containers.is_empty() {
        errors.push(FieldError::required(&path, ""));
        return;
    }
    let mut names = BTreeSet::new();
    for (index, container) in containers.iter().enumerate() {
        let path = path.index(index);
        container::check(container, scope, &path, errors);
        let name = text(container, &["name"]);
        if !names.insert(name) {
            errors.push(FieldError::duplicate(&path.child("name"), name));
        }
        check_probes_and_hooks(container, scope.grace, &path, errors);
        container::check_restart_policy(container, &path, errors);
    }
    container::check_host_ports(containers, &path, errors);
}

fn init_containers(spec: &Value, scope: &Scope<'_>, path: &Path, errors: &mut Errors) {
    let path = path.child("initContainers");
    let mut names: BTreeSet<&str> = list(spec, &["containers"]).iter().map(|c| text(c, &["name"])).collect();
    for (index, container) in list(spec, &["initContainers"]).iter().enumerate() {
        let item = path.index(index);
        container::check(container, scope, &item, errors);
        container::check_restart_policy(container, &item, errors);
        let name = text(container, &["name"]);
        if !name.is_empty() && !names.insert(name) {
            errors.push(FieldError::duplicate(&item.child("name"), name));
        }
        container::check_host_ports(std::slice::from_ref(container), &path, errors);
        if super::is_sidecar(container) {
            check_probes_and_hooks(container, scope.grace, &item, errors);
            continue;
        }
        let detail = "may not be set for init containers without restartPolicy=Always";
        for key in ["lifecycle", "livenessProbe", "readinessProbe", "startupProbe"] {
            if has(container, &[key]) {
                errors.push(FieldError::forbidden(&item.child(key), detail));
            }
        }
    }
}

fn ephemeral_containers(spec: &Value, scope: &Scope<'_>, path: &Path, errors: &mut Errors) {
    let path = path.child("ephemeralContainers");
    let others: BTreeSet<&str> = ["containers", "initContainers"]
        .iter()
        .flat_map(|key| list(spec, &[key]))
        .map(|container| text(container, &["name"]))
        .collect();
    let mut names = others.clone();
    for (index, container) in list(spec, &["ephemeralContainers"]).iter().enumerate() {
        let path = path.index(index);
        container::check(container, scope, &path, errors);
        container::check_image_spaces(container, &path, errors);
        let name = text(container, &["name"]);
        if !names.insert(name) {
            errors.push(FieldError::duplicate(&path.child("name"), name));
        }
        let target = text(container, &["targetContainerName"]);
        if !target.is_empty() && !others.contains(target) {
            crate::check::not_found(errors, &path.child("targetContainerName"), target);
        }
        container::check_ephemeral(container, &path, errors);
    }
}

fn pod_resources(spec: &Value, path: &Path, errors: &mut Errors) {
    let path = path.child("resources");
    let resources = &spec["resources"];
    if resources.is_null() {
        return;
    }
    if has(resources, &["claims"]) {
        let detail = "claims may not be set for Resources at pod-level";
        errors.push(FieldError::forbidden(&path.child("claims"), detail));
    }
    check_resources(resources, &path, true, errors);
}

fn host_network_ports(spec: &Value, is_pod: bool, path: &Path, errors: &mut Errors) {
    if !flag(spec, &["hostNetwork"]) {
        return;
    }
    for (index, container) in list(spec, &["containers"]).iter().enumerate() {
        let path = path.child("containers").index(index).child("ports");
        for (index, port) in list(container, &["ports"]).iter().enumerate() {
            let host = int(port, &["hostPort"]).unwrap_or_default();
            if (is_pod || host != 0) && Some(host) != int(port, &["containerPort"]) {
                let detail = "must match `containerPort` when `hostNetwork` is true";
                errors.push(FieldError::invalid(&path.index(index).child("hostPort"), host, detail));
            }
        }
    }
}

fn dns_config(spec: &Value, path: &Path, errors: &mut Errors) {
    let config = &spec["dnsConfig"];
    let servers: Vec<&str> = texts(config, &["nameservers"]).collect();
    let servers_path = path.child("nameservers");
    if text(spec, &["dnsPolicy"]) == "None" && servers.is_empty() {
        errors.push(if config.is_null() {
            FieldError::required(path, "must provide `dnsConfig` when `dnsPolicy` is None")
        } else {
            let detail = "must provide at least one DNS nameserver when `dnsPolicy` is None";
            FieldError::required(&servers_path, detail)
        });
        return;
    }
    if servers.len() > 3 {
        let shown = config["nameservers"].clone();
        errors.push(FieldError::invalid(&servers_path, shown, "must not have more than 3 nameservers"));
    }
    for (index, server) in servers.iter().enumerate() {
        check_ip(server, &servers_path.index(index), errors);
    }
    let searches: Vec<&str> = texts(config, &["searches"]).collect();
    let searches_path = path.child("searches");
    if searches.len() > 32 {
        let shown = config["searches"].clone();
        errors.push(FieldError::invalid(&searches_path, shown, "must not have more than 32 search paths"));
    }
    if searches.join(" ").len() > 2048 {
        let detail = "must not have more than 2048 characters (including spaces) in the search list";
        errors.push(FieldError::invalid(&searches_path, config["searches"].clone(), detail));
    }
    for (index, search) in searches.iter().enumerate().filter(|(_, search)| **search != ".") {
        // Search domains may have underscores, as names of records do.
        let plain = search.strip_suffix('.').unwrap_or(search).replace('_', "a");
        refuse(errors, &searches_path.index(index), *search, names::is_dns1123_subdomain(&plain));
    }
    for (index, option) in list(config, &["options"]).iter().enumerate() {
        if text(option, &["name"]).is_empty() {
            errors.push(FieldError::required(&path.child("options").index(index), "must not be empty"));
        }
    }
}

fn identity(spec: &Value, path: &Path, errors: &mut Errors) {
    let rules: [(&str, NameRule); 4] = [
        ("serviceAccountName", names::is_dns1123_subdomain),
        ("nodeName", names::is_dns1123_subdomain),
        ("hostname", names::is_dns1123_label),
        ("subdomain", names::is_dns1123_label),
    ];
    for (key, rule) in rules {
        let name = text(spec, &[key]);
        if !name.is_empty() {
            refuse(errors, &path.child(key), name, rule(name));
        }
    }
    if let Some(seconds) = int(spec, &["activeDeadlineSeconds"]) {
        let limit = i64::from(i32::MAX);
        if !(1..=limit).contains(&seconds) {
            let detail = names::outside(1, limit);
            errors.push(FieldError::invalid(&path.child("activeDeadlineSeconds"), seconds, detail));
        }
    }
    if has(spec, &["hostnameOverride"]) {
        let path = path.child("hostnameOverride");
        let name = text(spec, &["hostnameOverride"]);
        if flag(spec, &["setHostnameAsFQDN"]) {
            errors.push(FieldError::forbidden(&path, "may not be specified when setHostnameAsFQDN is true"));
        }
        if flag(spec, &["hostNetwork"]) {
            errors.push(FieldError::forbidden(&path, "may not be specified when hostNetwork is true"));
        }
        if name.len() > 64 {
            too_long(errors, &path, 64);
        }
        refuse(errors, &path, name, names::is_dns1123_subdomain(name));
    }
}

fn host_aliases(spec: &Value, path: &Path, errors: &mut Errors) {
    for (index, alias) in list(spec, &["hostAliases"]).iter().enumerate() {
        let path = path.index(index);
        check_ip(text(alias, &["ip"]), &path.child("ip"), errors);
        for (index, name) in texts(alias, &["hostnames"]).enumerate() {
            refuse(errors, &path.child("hostnames").index(index), name, names::is_dns1123_subdomain(name));
        }
    }
}

fn classes(spec: &Value, path: &Path, errors: &mut Errors) {
    for key in ["priorityClassName", "runtimeClassName"] {
        let name = text(spec, &[key]);
        if !name.is_empty() {
            refuse(errors, &path.child(key), name, names::is_dns1123_subdomain(name));
        }
    }
    let policy = text(spec, &["preemptionPolicy"]);
    optional_one_of(errors, &path.child("preemptionPolicy"), policy, &["PreemptLowerPriority", "Never"]);
    if has(spec, &["overhead"]) {
        let as_limits = serde_json::json!({"limits": spec["overhead"]});
        check_resources(&as_limits, &path.child("overhead"), false, errors);
    }
    if has(spec, &["os"]) {
        one_of(errors, &path.child("os"), text(spec, &["os", "name"]), &["linux", "windows"]);
    }
}

/// A port number, or the name of one.
pub fn check_port_or_name(port: &Value, path: &Path, errors: &mut Errors) {
    match port {
        Value::Number(_) | Value::Null => {
            let number = port.as_i64().unwrap_or_default();
            refuse(errors, path, number, names::is_port_number(number));
        }
        Value::String(name) => refuse(errors, path, name.as_str(), names::is_port_name(name)),
        _ => {}
    }
}

//! What is wrong with a container.

use std::collections::{BTreeMap, BTreeSet};

use mycelium_api::field::{FieldError, Path};
use mycelium_api::names;
use mycelium_api::quantity::Quantity;
use serde_json::Value;

use super::validate::check_port_or_name;
use super::validate_security as security;
use super::validate_volume::{self as volume, Volumes};
use crate::Errors;
use crate::check::{descending_path, no_backsteps, not_found, not_negative, one_of, optional_one_of, refuse};
use crate::value::{at, entries, flag, has, int, list, text, texts};

/// What checks of a container need to know of its pod.
pub struct Scope<'a> {
    volumes: Volumes<'a>,
    grace: Option<i64>,
    restart_policy: &'a str,
    host_users: bool,
}

impl<'a> Scope<'a> {
    /// The scope of a pod spec with these valid volumes.
    pub fn new(spec: &'a Value, volumes: Volumes<'a>) -> Self {
        Self {
            volumes,
            grace: int(spec, &["terminationGracePeriodSeconds"]),
            restart_policy: text(spec, &["restartPolicy"]),
            host_users: at(spec, &["hostUsers"]).as_bool() != Some(false),
        }
    }
}

/// What holds for containers of every sort.
pub fn check(container: &Value, scope: &Scope<'_>, path: &Path, errors: &mut Errors) {
    let name = text(container, &["name"]);
    if name.is_empty() {
        errors.push(FieldError::required(&path.child("name"), ""));
    } else {
        refuse(errors, &path.child("name"), name, names::is_dns1123_label(name));
    }
    if text(container, &["image"]).is_empty() {
        errors.push(FieldError::required(&path.child("image"), ""));
    }
    let policy = text(container, &["terminationMessagePolicy"]);
    one_of(errors, &path.child("terminationMessagePolicy"), policy, &["File", "FallbackToLogsOnError"]);
    check_ports(container, &path.child("ports"), errors);
    check_env(container, &path.child("env"), errors);
    check_env_from(container, &path.child("envFrom"), errors);
    check_mounts(container, scope, &path.child("volumeMounts"), errors);
    check_devices(container, scope, &path.child("volumeDevices"), errors);
    let pull = text(container, &["imagePullPolicy"]);
    one_of(errors, &path.child("imagePullPolicy"), pull, &["Always", "IfNotPresent", "Never"]);
    check_resources(&container["resources"], &path.child("resources"), false, errors);
    check_resize(container, scope, &path.child("resizePolicy"), errors);
    security::check_container(container, scope.host_users, &path.child("securityContext"), errors);
}

/// An image name must not begin or end with spaces. Templates are not held to this.
pub fn check_image_spaces(container: &Value, path: &Path, errors: &mut Errors) {
    let image = text(container, &["image"]);
    if image.trim() != image {
        let detail = "must not have leading or trailing whitespace";
        errors.push(FieldError::invalid(&path.child("image"), image, detail));
    }
}

/// What a container added to a running pod must do without.
pub fn check_ephemeral(container: &Value, path: &Path, errors: &mut Errors) {
    const DETAIL: &str = "cannot be set for an Ephemeral Container";
    for key in ["ports", "livenessProbe", "readinessProbe", "startupProbe", "lifecycle", "resources", "resizePolicy"] {
        if !crate::value::is_empty(&container[key]) {
            errors.push(FieldError::forbidden(&path.child(key), DETAIL));
        }
    }
    for (index, mount) in list(container, &["volumeMounts"]).iter().enumerate() {
        for key in ["subPath", "subPathExpr"] {
            if !text(mount, &[key]).is_empty() {
                errors.push(FieldError::forbidden(&path.child("volumeMounts").index(index).child(key), DETAIL));
            }
        }
    }
}

/// A container's own restart policy.
pub fn check_restart_policy(container: &Value, path: &Path, errors: &mut Errors) {
    let policy = text(container, &["restartPolicy"]);
    let policy_path = path.child("restartPolicy");
    optional_one_of(errors, &policy_path, policy, &["Always", "Never", "OnFailure"]);
    if policy.is_empty() && !list(container, &["restartPolicyRules"]).is_empty() {
        let detail = "must specify restartPolicy when restart rules are used";
        errors.push(FieldError::required(&policy_path, detail));
    }
    for (index, rule) in list(container, &["restartPolicyRules"]).iter().enumerate() {
        let path = path.child("restartPolicyRules").index(index);
        let action = text(rule, &["action"]);
        if action != "Restart" {
            errors.push(FieldError::not_supported(&path.child("action"), action, &["Restart"]));
        }
        if !has(rule, &["exitCodes"]) {
            errors.push(FieldError::required(&path.child("exitCodes"), "must be specified"));
            continue;
        }
        let operator = text(rule, &["exitCodes", "operator"]);
        if !matches!(operator, "In" | "NotIn") {
            let path = path.child("exitCodes").child("operator");
            errors.push(FieldError::not_supported(&path, operator, &["In", "NotIn"]));
        }
    }
}

fn check_ports(container: &Value, path: &Path, errors: &mut Errors) {
    let mut names = BTreeSet::new();
    for (index, port) in list(container, &["ports"]).iter().enumerate() {
        let path = path.index(index);
        let name = text(port, &["name"]);
        if !name.is_empty() {
            let wrong = names::is_port_name(name);
            if wrong.is_empty() && !names.insert(name) {
                errors.push(FieldError::duplicate(&path.child("name"), name));
            }
            refuse(errors, &path.child("name"), name, wrong);
        }
        match int(port, &["containerPort"]).unwrap_or_default() {
            0 => errors.push(FieldError::required(&path.child("containerPort"), "")),
            number => refuse(errors, &path.child("containerPort"), number, names::is_port_number(number)),
        }
        let host = int(port, &["hostPort"]).unwrap_or_default();
        if host != 0 {
            refuse(errors, &path.child("hostPort"), host, names::is_port_number(host));
        }
        one_of(errors, &path.child("protocol"), text(port, &["protocol"]), &["SCTP", "TCP", "UDP"]);
    }
}

/// No two containers can have the same port of the node.
pub fn check_host_ports(containers: &[Value], path: &Path, errors: &mut Errors) {
    let mut taken = BTreeSet::new();
    for (index, container) in containers.iter().enumerate() {
        let path = path.index(index).child("ports");
        for (index, port) in list(container, &["ports"]).iter().enumerate() {
            let host = int(port, &["hostPort"]).unwrap_or_default();
            let key = format!("{}/{}/{host}", text(port, &["protocol"]), text(port, &["hostIP"]));
            if host != 0 && !taken.insert(key.clone()) {
                errors.push(FieldError::duplicate(&path.index(index).child("hostPort"), key));
            }
        }
    }
}

const ENV_SOURCES: [&str; 5] = ["fieldRef", "resourceFieldRef", "configMapKeyRef", "secretKeyRef", "fileKeyRef"];
const ENV_FIELDS: &[&str] = &[
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];

fn check_env(container: &Value, path: &Path, errors: &mut Errors) {
    for (index, variable) in list(container, &["env"]).iter().enumerate() {
        let path = path.index(index);
        let name = text(variable, &["name"]);
        if name.is_empty() {
            errors.push(FieldError::required(&path.child("name"), ""));
        } else {
            refuse(errors, &path.child("name"), name, names::is_env_var_name(name));
        }
        if has(variable, &["valueFrom"]) {
            check_value_from(variable, &path.child("valueFrom"), errors);
        }
    }
}

fn check_value_from(variable: &Value, path: &Path, errors: &mut Errors) {
    let from = &variable["valueFrom"];
    if has(from, &["fieldRef"]) {
        check_field_ref(&from["fieldRef"], ENV_FIELDS, &path.child("fieldRef"), errors);
    }
    if has(from, &["resourceFieldRef"]) {
        check_resource_ref(&from["resourceFieldRef"], false, &path.child("resourceFieldRef"), errors);
    }
    for source in ["configMapKeyRef", "secretKeyRef"] {
        if has(from, &[source]) {
            check_key_ref(&from[source], &path.child(source), errors);
        }
    }
    let given = ENV_SOURCES.iter().filter(|source| has(from, &[source])).count();
    let detail = match given {
        0 => "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef` or `secretKeyRef`",
        _ if !text(variable, &["value"]).is_empty() => "may not be specified when `value` is not empty",
        1 => return,
        _ => "may not have more than one field specified at a time",
    };
    errors.push(FieldError::invalid(path, "", detail));
}

fn check_key_ref(reference: &Value, path: &Path, errors: &mut Errors) {
    let name = text(reference, &["name"]);
    refuse(errors, &path.child("name"), name, names::is_dns1123_subdomain(name));
    match text(reference, &["key"]) {
        "" => errors.push(FieldError::required(&path.child("key"), "")),
        key => refuse(errors, &path.child("key"), key, names::is_config_map_key(key)),
    }
}

/// A field of the pod, perhaps one label or annotation: `metadata.labels['app']`.
pub fn check_field_ref(reference: &Value, allowed: &[&str], path: &Path, errors: &mut Errors) {
    if text(reference, &["apiVersion"]).is_empty() {
        errors.push(FieldError::required(&path.child("apiVersion"), ""));
        return;
    }
    let field = text(reference, &["fieldPath"]);
    let field_path = path.child("fieldPath");
    if field.is_empty() {
        errors.push(FieldError::required(&field_path, ""));
        return;
    }
    let subscript = field.strip_suffix("']").and_then(|field| field.split_once("['"));
    match subscript {
        Some(("metadata.annotations", key)) => {
            let key = key.to_lowercase();
            refuse(errors, path, key.as_str(), names::is_qualified_name(&key));
        }
        Some(("metadata.labels", key)) => refuse(errors, path, key, names::is_qualified_name(key)),
        Some((field, _)) if is_known_field(field) => {
            errors.push(FieldError::invalid(path, field, "does not support subscript"));
        }
        _ if !is_known_field(field) => {
            let detail = format!("error converting fieldPath: field label not supported: {field}");
            errors.push(FieldError::invalid(&field_path, field, detail));
        }
        _ if !allowed.contains(&field) => errors.push(FieldError::not_supported(&field_path, field, allowed)),
        _ => {}
    }
}

fn is_known_field(field: &str) -> bool {
    ENV_FIELDS.contains(&field)
        || matches!(
            field,
            "metadata.annotations" | "metadata.labels" | "spec.restartPolicy" | "spec.schedulerName" | "status.phase"
        )
}

const RESOURCE_FIELDS: &[&str] = &[
    "limits.cpu",
    "limits.ephemeral-storage",
    "limits.memory",
    "requests.cpu",
    "requests.ephemeral-storage",
    "requests.memory",
];

/// A request or limit of a container.
pub fn check_resource_ref(reference: &Value, in_volume: bool, path: &Path, errors: &mut Errors) {
    let resource = text(reference, &["resource"]);
    let huge = resource.starts_with("limits.hugepages-") || resource.starts_with("requests.hugepages-");
    if in_volume && text(reference, &["containerName"]).is_empty() {
        errors.push(FieldError::required(&path.child("containerName"), ""));
    } else if resource.is_empty() {
        errors.push(FieldError::required(&path.child("resource"), ""));
    } else if !RESOURCE_FIELDS.contains(&resource) && !huge {
        errors.push(FieldError::not_supported(&path.child("resource"), resource, RESOURCE_FIELDS));
    }
    let divisor = text(reference, &["divisor"]);
    const SIZES: &[&str] = &["1", "1k", "1M", "1G", "1T", "1P", "1E", "1Ki", "1Mi", "1Gi", "1Ti", "1Pi", "1Ei"];
    let sizes = SIZES.join(", ");
    let detail = match resource.split_once('.').map(|(_, resource)| resource) {
        _ if matches!(divisor, "" | "0") => return,
        Some("cpu") if !matches!(divisor, "1" | "1m") => {
            "only divisor's values 1m and 1 are supported with the cpu resource".to_owned()
        }
        Some("memory") if !SIZES.contains(&divisor) => {
            format!("only divisor's values {sizes} are supported with the memory resource")
        }
        Some("ephemeral-storage") if !SIZES.contains(&divisor) => {
            format!("only divisor's values {sizes} are supported with the local ephemeral storage resource")
        }
        _ => return,
    };
    errors.push(FieldError::invalid(&path.child("divisor"), resource, detail));
}

fn check_env_from(container: &Value, path: &Path, errors: &mut Errors) {
    for (index, source) in list(container, &["envFrom"]).iter().enumerate() {
        let item = path.index(index);
        let prefix = text(source, &["prefix"]);
        if !prefix.is_empty() {
            refuse(errors, &item.child("prefix"), prefix, names::is_env_var_name(prefix));
        }
        let mut given = 0;
        for key in ["configMapRef", "secretRef"] {
            if has(source, &[key]) {
                given += 1;
                let name = text(source, &[key, "name"]);
                refuse(errors, &item.child(key).child("name"), name, names::is_dns1123_subdomain(name));
            }
        }
        let detail = match given {
            0 => "must specify one of: `configMapRef` or `secretRef`",
            1 => continue,
            _ => "may not have more than one field specified at a time",
        };
        errors.push(FieldError::invalid(path, "", detail));
    }
}

fn check_mounts(container: &Value, scope: &Scope<'_>, path: &Path, errors: &mut Errors) {
    let devices = list(container, &["volumeDevices"]);
    let mut taken = BTreeSet::new();
    for (index, mount) in list(container, &["volumeMounts"]).iter().enumerate() {
        let item = path.index(index);
        let (name, target) = (text(mount, &["name"]), text(mount, &["mountPath"]));
        if name.is_empty() {
            errors.push(FieldError::required(&item.child("name"), ""));
        }
        if !scope.volumes.contains_key(name) {
            not_found(errors, &item.child("name"), name);
        }
        if target.is_empty() {
            errors.push(FieldError::required(&item.child("mountPath"), ""));
        }
        if !taken.insert(target) {
            errors.push(FieldError::invalid(&item.child("mountPath"), target, "must be unique"));
        }
        if devices.iter().any(|device| text(device, &["name"]) == name) {
            errors.push(FieldError::invalid(&item.child("name"), name, "must not already exist in volumeDevices"));
        }
        if devices.iter().any(|device| text(device, &["devicePath"]) == target) {
            let detail = "must not already exist as a path in volumeDevices";
            errors.push(FieldError::invalid(&item.child("mountPath"), target, detail));
        }
        check_sub_path(mount, &item, path, errors);
        check_propagation(mount, container, path, errors);
    }
}

fn check_sub_path(mount: &Value, item: &Path, path: &Path, errors: &mut Errors) {
    let (sub_path, expression) = (text(mount, &["subPath"]), text(mount, &["subPathExpr"]));
    if !sub_path.is_empty() {
        descending_path(errors, &path.child("subPath"), sub_path);
    }
    if !expression.is_empty() {
        if !sub_path.is_empty() {
            let detail = "subPathExpr and subPath are mutually exclusive";
            errors.push(FieldError::invalid(&item.child("subPathExpr"), expression, detail));
        }
        descending_path(errors, &path.child("subPathExpr"), expression);
    }
}

fn check_propagation(mount: &Value, container: &Value, path: &Path, errors: &mut Errors) {
    let propagation = text(mount, &["mountPropagation"]);
    let propagation_path = path.child("mountPropagation");
    optional_one_of(errors, &propagation_path, propagation, &["Bidirectional", "HostToContainer", "None"]);
    if propagation == "Bidirectional" && !flag(container, &["securityContext", "privileged"]) {
        let detail = "Bidirectional mount propagation is available only to privileged containers";
        errors.push(FieldError::forbidden(&propagation_path, detail));
    }
    let recursive = text(mount, &["recursiveReadOnly"]);
    let recursive_path = path.child("recursiveReadOnly");
    optional_one_of(errors, &recursive_path, recursive, &["Disabled", "IfPossible", "Enabled"]);
    if matches!(recursive, "Enabled" | "IfPossible") {
        if !flag(mount, &["readOnly"]) {
            errors.push(FieldError::forbidden(&recursive_path, "may only be specified when readOnly is true"));
        }
        if !matches!(propagation, "" | "None") {
            let detail = "may only be specified when mountPropagation is None or not specified";
            errors.push(FieldError::forbidden(&recursive_path, detail));
        }
    }
}

fn check_devices(container: &Value, scope: &Scope<'_>, path: &Path, errors: &mut Errors) {
    let mut names = BTreeSet::new();
    for (index, device) in list(container, &["volumeDevices"]).iter().enumerate() {
        let item = path.index(index);
        let (name, target) = (text(device, &["name"]), text(device, &["devicePath"]));
        if name.is_empty() {
            errors.push(FieldError::required(&item.child("name"), ""));
        }
        if !names.insert(name) {
            errors.push(FieldError::invalid(&item.child("name"), name, "must be unique"));
        }
        match scope.volumes.get(name) {
            None => not_found(errors, &item.child("name"), name),
            Some(source) if !volume::is_claim(source) => {
                let detail = "can only use volume source type of PersistentVolumeClaim or Ephemeral for block mode";
                errors.push(FieldError::invalid(&item.child("name"), name, detail));
            }
            Some(_) => {}
        }
        if target.is_empty() {
            errors.push(FieldError::required(&item.child("devicePath"), ""));
        }
        let mut steps = Errors::new();
        no_backsteps(&mut steps, path, target);
        if !steps.is_empty() {
            let detail = "can not contain backsteps ('..')";
            errors.push(FieldError::invalid(&item.child("devicePath"), target, detail));
        }
    }
}

fn check_resize(container: &Value, scope: &Scope<'_>, path: &Path, errors: &mut Errors) {
    let mut seen = BTreeSet::new();
    for (index, policy) in list(container, &["resizePolicy"]).iter().enumerate() {
        let (resource, restart) = (text(policy, &["resourceName"]), text(policy, &["restartPolicy"]));
        if !seen.insert(resource) {
            errors.push(FieldError::duplicate(&path.index(index), resource));
        }
        one_of(errors, path, resource, &["cpu", "memory"]);
        one_of(errors, path, restart, &["NotRequired", "RestartContainer"]);
        if scope.restart_policy == "Never" && restart != "NotRequired" {
            let detail = "must be 'NotRequired' when `restartPolicy` is 'Never'";
            errors.push(FieldError::invalid(path, restart, detail));
        }
    }
}

fn is_huge_page(resource: &str) -> bool {
    resource.starts_with("hugepages-")
}

fn is_native(resource: &str) -> bool {
    !resource.contains('/') || resource.contains("kubernetes.io/")
}

/// Resources that may be promised beyond what there is.
fn can_overcommit(resource: &str) -> bool {
    is_native(resource) && !is_huge_page(resource)
}

fn check_resource_name(name: &str, pod_level: bool, path: &Path, errors: &mut Errors) {
    let wrong = names::is_qualified_name(name);
    let well_formed = wrong.is_empty();
    refuse(errors, path, name, wrong);
    let standard = matches!(name, "cpu" | "memory" | "ephemeral-storage") || is_huge_page(name);
    if pod_level {
        if !super::resources::is_pod_level(name) {
            errors.push(FieldError::not_supported(path, name, &["cpu", "hugepages-", "memory"]));
        }
        return;
    }
    if !well_formed || standard {
        return;
    }
    if !name.contains('/') {
        let generic = matches!(
            name,
            "pods"
                | "services"
                | "secrets"
                | "configmaps"
                | "storage"
                | "requests.cpu"
                | "limits.cpu"
                | "requests.memory"
                | "limits.memory"
                | "requests.storage"
                | "persistentvolumeclaims"
                | "replicationcontrollers"
                | "resourcequotas"
        );
        if !generic {
            let detail = "must be a standard resource type or fully qualified";
            errors.push(FieldError::invalid(path, name, detail));
        }
        errors.push(FieldError::invalid(path, name, "must be a standard resource for containers"));
    } else if !is_native(name) && name.starts_with("requests.") {
        errors.push(FieldError::invalid(path, name, "doesn't follow extended resource name standard"));
    }
}

/// Requests and limits.
pub fn check_resources(resources: &Value, path: &Path, pod_level: bool, errors: &mut Errors) {
    let mut quantities: BTreeMap<(&str, &str), Quantity> = BTreeMap::new();
    for which in ["limits", "requests"] {
        for (name, amount) in entries(resources, &[which]) {
            let path = path.child(which).key(name);
            check_resource_name(name, pod_level, &path, errors);
            let Ok(quantity) = Quantity::from_json(amount) else { continue };
            if quantity.is_negative() {
                let detail = "must be greater than or equal to 0";
                errors.push(FieldError::invalid(&path, quantity.to_string(), detail));
            }
            if !is_native(name) && !quantity.is_integer() {
                errors.push(FieldError::invalid(&path, quantity.to_string(), "must be an integer"));
            }
            quantities.insert((which, name), quantity);
        }
    }
    for ((_, name), request) in quantities.iter().filter(|((which, _), _)| *which == "requests") {
        let limit = quantities.get(&("limits", *name));
        let requests_path = path.child("requests");
        let detail = match limit {
            None if !can_overcommit(name) => {
                let detail = "Limit must be set for non overcommitable resources";
                errors.push(FieldError::required(&path.child("limits"), detail));
                continue;
            }
            Some(limit) if request != limit && !can_overcommit(name) => {
                format!("must be equal to {name} limit of {limit}")
            }
            Some(limit) if request > limit => format!("must be less than or equal to {name} limit of {limit}"),
            _ => continue,
        };
        errors.push(FieldError::invalid(&requests_path, request.to_string(), detail));
    }
    let any = |matches: fn(&str) -> bool| quantities.keys().any(|(_, name)| matches(name));
    if any(is_huge_page) && !any(|name| matches!(name, "cpu" | "memory")) {
        errors.push(FieldError::forbidden(path, "HugePages require cpu or memory"));
    }
}

/// Probes and lifecycle hooks, for containers that stay.
pub fn check_probes_and_hooks(container: &Value, scope: &Scope<'_>, path: &Path, errors: &mut Errors) {
    for hook in ["postStart", "preStop"] {
        let handler = at(container, &["lifecycle", hook]);
        if !handler.is_null() {
            let actions = ["exec", "httpGet", "tcpSocket", "sleep"];
            check_handler(handler, &actions, scope.grace, &path.child("lifecycle").child(hook), errors);
        }
    }
    for key in ["livenessProbe", "readinessProbe", "startupProbe"] {
        let probe = &container[key];
        if !probe.is_null() {
            check_probe(probe, key, &path.child(key), errors);
        }
    }
}

fn check_probe(probe: &Value, key: &str, path: &Path, errors: &mut Errors) {
    check_handler(probe, &["exec", "httpGet", "tcpSocket", "grpc"], None, path, errors);
    for number in ["initialDelaySeconds", "timeoutSeconds", "periodSeconds", "successThreshold", "failureThreshold"] {
        not_negative(errors, &path.child(number), &probe[number]);
    }
    let grace_path = path.child("terminationGracePeriodSeconds");
    let grace = int(probe, &["terminationGracePeriodSeconds"]);
    if let Some(seconds) = grace.filter(|seconds| *seconds <= 0) {
        errors.push(FieldError::invalid(&grace_path, seconds, "must be greater than 0"));
    }
    if key == "readinessProbe" {
        if let Some(seconds) = grace {
            errors.push(FieldError::invalid(&grace_path, seconds, "must not be set for readinessProbes"));
        }
    } else if let Some(threshold) = int(probe, &["successThreshold"]).filter(|threshold| *threshold != 1) {
        errors.push(FieldError::invalid(&path.child("successThreshold"), threshold, "must be 1"));
    }
}

fn check_handler(handler: &Value, actions: &[&str], grace: Option<i64>, path: &Path, errors: &mut Errors) {
    let mut given = 0;
    for action in actions.iter().filter(|action| has(handler, &[action])) {
        let path = path.child(action);
        given += 1;
        if given > 1 {
            errors.push(FieldError::forbidden(&path, "may not specify more than 1 handler type"));
            continue;
        }
        check_action(action, &handler[*action], grace, &path, errors);
    }
    if given == 0 {
        errors.push(FieldError::required(path, "must specify a handler type"));
    }
}

fn check_action(action: &str, handler: &Value, grace: Option<i64>, path: &Path, errors: &mut Errors) {
    match action {
        "exec" if texts(handler, &["command"]).next().is_none() => {
            errors.push(FieldError::required(&path.child("command"), ""));
        }
        "httpGet" => {
            if text(handler, &["path"]).is_empty() {
                errors.push(FieldError::required(&path.child("path"), ""));
            }
            check_port_or_name(&handler["port"], &path.child("port"), errors);
            let scheme = text(handler, &["scheme"]);
            if !matches!(scheme, "HTTP" | "HTTPS") {
                errors.push(FieldError::not_supported(&path.child("scheme"), scheme, &["HTTP", "HTTPS"]));
            }
            for header in list(handler, &["httpHeaders"]) {
                let name = text(header, &["name"]);
                refuse(errors, &path.child("httpHeaders"), name, names::is_http_header_name(name));
            }
        }
        "tcpSocket" | "grpc" => check_port_or_name(&handler["port"], &path.child("port"), errors),
        "sleep" => {
            let seconds = int(handler, &["seconds"]).unwrap_or_default();
            if let Some(grace) = grace.filter(|grace| seconds < 0 || seconds > *grace) {
                let detail = format!("must be non-negative and less than terminationGracePeriodSeconds ({grace})");
                errors.push(FieldError::invalid(path, seconds, detail));
            }
        }
        _ => {}
    }
}

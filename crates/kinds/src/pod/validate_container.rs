//! What is wrong with a container.

use std::collections::BTreeSet;

use mycelium_api::field::{FieldError, Path};
use mycelium_api::names;
use serde_json::Value;

use super::validate_env::{check_env, check_env_from};
use super::validate_mounts::{check_devices, check_mounts};
use super::validate_resources::check_resources;
use super::validate_security as security;
use super::validate_volume::Volumes;
use crate::Errors;
use crate::check::{one_of, optional_one_of, refuse};
use crate::value::{at, has, int, list, text};

/// What checks of a container need to know of its pod.
pub struct Scope<'a> {
    volumes: Volumes<'a>,
    /// How long the pod has to end.
    pub grace: Option<i64>,
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
    check_mounts(container, &scope.volumes, &path.child("volumeMounts"), errors);
    check_devices(container, &scope.volumes, &path.child("volumeDevices"), errors);
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

//! What is wrong with probes and lifecycle hooks.

use mycelium_api::field::{FieldError, Path};
use mycelium_api::names;
use serde_json::Value;

use super::validate::check_port_or_name;
use crate::Errors;
use crate::check::{not_negative, refuse};
use crate::value::{at, has, int, list, text, texts};

/// Probes and lifecycle hooks, for containers that stay.
pub fn check_probes_and_hooks(container: &Value, grace: Option<i64>, path: &Path, errors: &mut Errors) {
    for hook in ["postStart", "preStop"] {
        let handler = at(container, &["lifecycle", hook]);
        if !handler.is_null() {
            let actions = ["exec", "httpGet", "tcpSocket", "sleep"];
            check_handler(handler, &actions, grace, &path.child("lifecycle").child(hook), errors);
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

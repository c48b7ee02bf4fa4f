//! Ingresses: backends, certificates, annotations.

use serde_json::Value;

use crate::facts::{NGINX, NGINX_ANNOTATIONS, NGINX_MEANT};
use crate::finding::{Report, Severity};
use crate::near::nearest;
use crate::set::{Object, Set};
use crate::value::{entries, has, int, join, list, text};

pub fn check(set: &Set, report: &mut Report) {
    for ingress in set.local_of("networking.k8s.io", "Ingress") {
        backend(set, ingress, &ingress.value["spec"]["defaultBackend"], "spec.defaultBackend", report);
        for (rule_index, rule) in list(&ingress.value, "/spec/rules").iter().enumerate() {
            for (index, path) in list(rule, "/http/paths").iter().enumerate() {
                let field = format!("spec.rules[{rule_index}].http.paths[{index}].backend");
                backend(set, ingress, &path["backend"], &field, report);
            }
        }
        certificates(set, ingress, report);
        annotations(ingress, report);
        rewrite(ingress, report);
    }
}

fn backend(set: &Set, ingress: &Object, backend: &Value, field: &str, report: &mut Report) {
    let name = text(backend, "/service/name");
    if name.is_empty() {
        return;
    }
    let Some(service) = set.find("", "Service", &ingress.namespace, name) else {
        if !set.is_present("service", name) {
            missing_service(set, ingress, name, field, report);
        }
        return;
    };
    let ports = list(&service.value, "/spec/ports");
    let (wanted, port_name) = (int(backend, "/service/port/number"), text(backend, "/service/port/name"));
    let found = match wanted {
        Some(number) => ports.iter().any(|port| int(port, "/port") == Some(number)),
        None if port_name.is_empty() => return,
        None => ports.iter().any(|port| text(port, "/name") == port_name),
    };
    if found || text(&service.value, "/spec/type") == "ExternalName" {
        return;
    }
    let shown: Vec<String> = ports
        .iter()
        .map(|port| match text(port, "/name") {
            "" => int(port, "/port").unwrap_or_default().to_string(),
            name => format!("{} ({name})", int(port, "/port").unwrap_or_default()),
        })
        .collect();
    let wanted_shown = wanted.map_or_else(|| port_name.to_owned(), |number| number.to_string());
    let message = format!("Service {name} has no port {wanted_shown}; it has {}", join(&shown));
    let as_target = wanted.and_then(|number| {
        ports.iter().find(|port| int(port, "/targetPort") == Some(number)).and_then(|port| int(port, "/port"))
    });
    let fix = match (as_target, nearest(port_name, ports.iter().map(|port| text(port, "/name")))) {
        (Some(port), _) => format!("an Ingress names the Service's own port, {port}, not the one of the container"),
        (None, Some(near)) if wanted.is_none() => format!("did you mean {near}?"),
        _ => String::new(),
    };
    let which = if wanted.is_some() { "number" } else { "name" };
    let field = format!("{field}.service.port.{which}");
    report.object(Severity::Error, "ingress-port", ingress, field, message, fix);
}

fn missing_service(set: &Set, ingress: &Object, name: &str, field: &str, report: &mut Report) {
    let message = format!("the Ingress leads to Service {name}, which is not in namespace {}", ingress.namespace);
    let services: Vec<&Object> = set.of("", "Service").collect();
    let here = services.iter().filter(|service| service.namespace == ingress.namespace);
    let elsewhere = services.iter().find(|service| service.name == name);
    let fix = match (elsewhere, nearest(name, here.map(|service| service.name.as_str()))) {
        (Some(service), _) => format!("it is in {}; an Ingress reaches its own namespace only", service.namespace),
        (None, Some(near)) => format!("did you mean {near}?"),
        (None, None) => format!("add a Service {name}"),
    };
    report.object(Severity::Error, "ingress-service", ingress, format!("{field}.service.name"), message, fix);
}

/// Secrets with certificates; those that somebody issues are made later.
fn certificates(set: &Set, ingress: &Object, report: &mut Report) {
    let issued = entries(&ingress.value, "/metadata/annotations")
        .any(|(key, _)| key.starts_with("cert-manager.io/") || key == "kubernetes.io/tls-acme");
    for (index, tls) in list(&ingress.value, "/spec/tls").iter().enumerate() {
        let name = text(tls, "/secretName");
        let known = name.is_empty()
            || issued
            || set.is_present("secret", name)
            || super::references::secret(set, &ingress.namespace, name).is_some();
        if !known {
            let field = format!("spec.tls[{index}].secretName");
            let message = format!("the certificate is to be in Secret {name}, which is not here");
            let fix = "create it (kubectl create secret tls ...), or ask for one with a cert-manager.io/cluster-issuer annotation";
            report.object(Severity::Warning, "ingress-tls-secret", ingress, field, message, fix);
        }
    }
}

fn annotations(ingress: &Object, report: &mut Report) {
    for (key, _) in entries(&ingress.value, "/metadata/annotations") {
        let Some(name) = key.strip_prefix(NGINX) else {
            misspelt_prefix(ingress, key, report);
            continue;
        };
        if NGINX_ANNOTATIONS.contains(&name) {
            continue;
        }
        let meant = NGINX_MEANT.iter().find(|(wrong, _)| *wrong == name).map(|(_, right)| (*right).to_owned());
        let near = || nearest(name, NGINX_ANNOTATIONS.iter().copied()).map(str::to_owned);
        let fix = meant.or_else(near).map(|right| format!("what does it is {right}")).unwrap_or_default();
        let message = format!("no controller serves the annotation {key}, so it does nothing");
        report.object(Severity::Warning, "ingress-annotation", ingress, annotation(key), message, fix);
    }
}

/// `ingress.kubernetes.io/...` and such, which once were served.
fn misspelt_prefix(ingress: &Object, key: &str, report: &mut Report) {
    let Some((prefix, name)) = key.split_once('/') else { return };
    let near = matches!(prefix, "ingress.kubernetes.io" | "nginx.kubernetes.io" | "ingress.nginx.kubernetes.io")
        || prefix == "nginx.ingress.kubernetes.io.";
    if near && NGINX_ANNOTATIONS.contains(&name) {
        let message = format!("no controller serves the annotation {key}, so it does nothing");
        report.object(
            Severity::Warning,
            "ingress-annotation",
            ingress,
            annotation(key),
            message,
            format!("write {NGINX}{name}"),
        );
    }
}

fn annotation(key: &str) -> String {
    format!("metadata.annotations[{key}]")
}

/// A target without a captured group sends every path to the same place.
fn rewrite(ingress: &Object, report: &mut Report) {
    let key = format!("{NGINX}rewrite-target");
    let target = ingress.value["metadata"]["annotations"][&key].as_str().unwrap_or_default();
    if !target.starts_with('/') || target.contains('$') {
        return;
    }
    let longer: Vec<String> = list(&ingress.value, "/spec/rules")
        .iter()
        .flat_map(|rule| list(rule, "/http/paths"))
        .filter(|path| has(path, "/backend") && text(path, "/pathType") != "Exact")
        .map(|path| text(path, "/path").to_owned())
        .filter(|path| path.trim_end_matches('/') != target.trim_end_matches('/') && !path.is_empty())
        .collect();
    if longer.is_empty() {
        return;
    }
    let mut shown: Vec<&String> = longer.iter().collect();
    shown.dedup();
    let message = format!("rewrite-target {target} sends everything below {} to {target} of the Service", join(&shown));
    let fix = "leave it out to keep paths, or take the rest along: path /api(/|$)(.*) with pathType ImplementationSpecific, \
               use-regex \"true\" and rewrite-target /$2";
    report.object(Severity::Warning, "ingress-rewrite-root", ingress, annotation(&key), message, fix);
}

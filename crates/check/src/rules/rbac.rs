//! Bindings to roles that are not there, and subjects that are not there.

use crate::facts::CLUSTER_ROLES;
use crate::finding::{Report, Severity};
use crate::near::nearest;
use crate::set::{Object, Set};
use crate::value::{list, text};

const GROUP: &str = "rbac.authorization.k8s.io";

pub fn check(set: &Set, report: &mut Report) {
    for binding in set.local().filter(|object| object.group == GROUP && object.kind.ends_with("RoleBinding")) {
        role(set, binding, report);
        subjects(set, binding, report);
    }
}

fn role(set: &Set, binding: &Object, report: &mut Report) {
    let (kind, name) = (text(&binding.value, "/roleRef/kind"), text(&binding.value, "/roleRef/name"));
    let namespace = match kind {
        "Role" if binding.kind == "RoleBinding" => binding.namespace.as_str(),
        "ClusterRole" => "",
        _ => return,
    };
    let always = kind == "ClusterRole" && (CLUSTER_ROLES.contains(&name) || name.starts_with("system:"));
    if name.is_empty() || always || set.find(GROUP, kind, namespace, name).is_some() || set.is_present(kind, name) {
        return;
    }
    // A ClusterRole often comes with another product.
    let certain = kind == "Role" || set.context.cluster;
    let severity = if certain { Severity::Error } else { Severity::Warning };
    let message = format!("the binding is to {kind} {name}, which is not here, so it gives nobody anything");
    let known = set.all().filter(|role| role.group == GROUP && role.kind == kind && role.namespace == namespace);
    let always = if kind == "ClusterRole" { CLUSTER_ROLES } else { &[] };
    let near = nearest(name, known.map(|role| role.name.as_str()).chain(always.iter().copied()));
    let other = if kind == "Role" { "ClusterRole" } else { "Role" };
    let is_other = set.all().any(|role| role.group == GROUP && role.kind == other && role.name == name);
    let fix = match near {
        _ if is_other => format!("there is a {other} of that name: write kind: {other}"),
        Some(near) => format!("did you mean {near}?"),
        None => format!("add the {kind}"),
    };
    report.object(severity, "missing-role", binding, "roleRef.name", message, fix);
}

fn subjects(set: &Set, binding: &Object, report: &mut Report) {
    for (index, subject) in list(&binding.value, "/subjects").iter().enumerate() {
        let (kind, name) = (text(subject, "/kind"), text(subject, "/name"));
        let namespace = match text(subject, "/namespace") {
            "" => binding.namespace.as_str(),
            namespace => namespace,
        };
        let unknown = kind == "ServiceAccount"
            && !matches!(name, "" | "default")
            && !namespace.is_empty()
            && namespace != "kube-system"
            && set.find("", "ServiceAccount", namespace, name).is_none()
            && !set.is_present("serviceaccount", name);
        if !unknown {
            continue;
        }
        let message = format!("the binding is for service account {namespace}/{name}, which is not here");
        let elsewhere = set.of("", "ServiceAccount").find(|account| account.name == name);
        let near = nearest(name, set.of("", "ServiceAccount").map(|account| account.name.as_str()));
        let fix = match (elsewhere, near) {
            (Some(account), _) => format!("there is one in namespace {}", account.namespace),
            (None, Some(near)) => format!("did you mean {near}?"),
            (None, None) => format!("add a ServiceAccount {name}"),
        };
        let field = format!("subjects[{index}].name");
        report.object(Severity::Warning, "missing-service-account", binding, field, message, fix);
    }
}

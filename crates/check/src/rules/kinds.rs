//! Kinds: those that are gone, those that nobody knows, those that need a definition first.

use mycelium_apimachinery::schema::{resource_of_kind, resources};

use crate::facts::{self, Instead};
use crate::finding::{Report, Severity};
use crate::near::nearest;
use crate::set::{Object, Set, is_builtin_group, served};
use crate::value::{join, text};

pub fn check(set: &Set, report: &mut Report) {
    for object in set.local() {
        if resource_of_kind(&object.group, &object.version, &object.kind).is_none() && !is_ours(object) {
            unknown(set, object, report);
        }
    }
}

/// Documents of our own that commands take, not the API.
fn is_ours(object: &Object) -> bool {
    object.group == "mycelium.network" && object.version == "v1" && object.kind == "EndophyteVM"
        || object.group == "kustomize.config.k8s.io"
}

fn unknown(set: &Set, object: &Object, report: &mut Report) {
    let (api_version, kind) = (object.api_version(), object.kind.as_str());
    if let Some(removed) = facts::removed(api_version, kind) {
        let (message, fix) = match removed.instead {
            Instead::Version(now) => (
                format!("{kind} of {api_version} was removed in Kubernetes {}; {now} has it now", removed.since),
                format!("write apiVersion: {now} and adapt the fields that differ"),
            ),
            Instead::Other(fix) => (format!("{kind} was removed in Kubernetes {}", removed.since), fix.to_owned()),
        };
        return report.object(Severity::Error, "removed-api", object, "apiVersion", message, fix);
    }
    let known: Vec<String> =
        resources().iter().filter(|resource| resource.kind == kind).map(|resource| resource.api_version()).collect();
    if !known.is_empty() && (is_builtin_group(&object.group) || !object.group.contains('.')) {
        let known = distinct(known);
        let message = format!("{api_version} has no kind {kind}; it is in {}", join(&known));
        let fix = format!("write apiVersion: {}", known[0]);
        return report.object(Severity::Error, "unknown-kind", object, "apiVersion", message, fix);
    }
    custom(set, object, report);
}

fn distinct(mut names: Vec<String>) -> Vec<String> {
    names.sort();
    names.dedup();
    names
}

fn custom(set: &Set, object: &Object, report: &mut Report) {
    let (api_version, kind) = (object.api_version(), object.kind.as_str());
    let mut definitions = set.of("apiextensions.k8s.io", "CustomResourceDefinition").filter(|definition| {
        text(&definition.value, "/spec/group") == object.group && text(&definition.value, "/spec/names/kind") == kind
    });
    if let Some(definition) = definitions.next() {
        let versions: Vec<&str> = served(&definition.value).map(|(name, _)| name).collect();
        if !versions.contains(&object.version.as_str()) {
            let message = format!("{kind} is not served as {api_version}: its definition has {}", join(&versions));
            report.object(Severity::Error, "unknown-kind", object, "apiVersion", message, "");
        }
        return;
    }
    let builtin = is_builtin_group(&object.group) || !object.group.contains('.');
    if builtin || set.context.cluster {
        let own = resources().iter().map(|resource| resource.kind);
        let fix = match nearest(kind, own) {
            Some(near) => format!("did you mean {near}?"),
            None => "for a kind of your own, apply its CustomResourceDefinition first".to_owned(),
        };
        let message = format!("there is no kind {kind} in {api_version}");
        return report.object(Severity::Error, "unknown-kind", object, "kind", message, fix);
    }
    let (message, fix) = match facts::product(&object.group) {
        Some(product) => (
            format!("{kind} is a kind of {product}, which must be installed before"),
            "install it, or leave the object out".to_owned(),
        ),
        None => (
            format!("no CustomResourceDefinition here defines {kind} of {}", object.group),
            "apply the definition first, or leave the object out".to_owned(),
        ),
    };
    report.object(Severity::Warning, "unknown-kind", object, "kind", message, fix);
}

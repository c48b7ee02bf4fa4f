//! Names: missing ones, and objects that are there twice.

use std::collections::BTreeMap;

use crate::finding::{Report, Severity};
use crate::set::{Object, Set};

pub fn check(set: &Set, report: &mut Report) {
    let mut seen: BTreeMap<(&str, &str, &str, &str), &Object> = BTreeMap::new();
    for object in set.local() {
        if object.name.is_empty() && !object.group.contains("kustomize") {
            let fix = "give the object a name";
            report.object(Severity::Error, "no-name", object, "metadata.name", "metadata.name is missing", fix);
            continue;
        }
        if object.name.ends_with('*') {
            continue;
        }
        let id = (object.group.as_str(), object.kind.as_str(), object.namespace.as_str(), object.name.as_str());
        let Some(first) = seen.get(&id) else {
            seen.insert(id, object);
            continue;
        };
        let (file, line) = first.place("metadata.name").unwrap_or_default();
        let message = format!("the object is defined twice, first at {file}:{line}");
        let fix = "remove one of them, or give it another name; applied together, the last one wins";
        report.object(Severity::Error, "duplicate-object", object, "metadata.name", message, fix);
    }
    if set.context.cluster {
        namespaces(set, report);
    }
}

/// A namespace that neither the files nor the cluster have.
fn namespaces(set: &Set, report: &mut Report) {
    for object in set.local().filter(|object| !object.namespace.is_empty()) {
        if set.find("", "Namespace", "", &object.namespace).is_none() && !set.is_present("namespace", &object.namespace)
        {
            let message = format!("namespace {} does not exist", object.namespace);
            let fix = format!("create it first: kubectl create namespace {}", object.namespace);
            report.object(Severity::Error, "missing-namespace", object, "metadata.namespace", message, fix);
        }
    }
}

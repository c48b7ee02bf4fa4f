//! Volume claims and storage classes.

use mycelium_api::storage::DEFAULT_CLASS;

use crate::facts::ALIASED_CLASSES;
use crate::finding::{Report, Severity};
use crate::near::nearest;
use crate::set::{Object, Set};
use crate::value::{has, list, text};

pub fn check(set: &Set, report: &mut Report) {
    for workload in set.workloads().iter().filter(|workload| workload.object.is_local()) {
        for (index, volume) in list(workload.spec(), "/volumes").iter().enumerate() {
            let name = text(volume, "/persistentVolumeClaim/claimName");
            let field = workload.path(&format!("spec.volumes[{index}].persistentVolumeClaim.claimName"));
            claim(set, workload.object, name, &field, report);
            let class = text(volume, "/ephemeral/volumeClaimTemplate/spec/storageClassName");
            let field =
                workload.path(&format!("spec.volumes[{index}].ephemeral.volumeClaimTemplate.spec.storageClassName"));
            storage_class(set, workload.object, class, &field, report);
        }
        for (index, template) in list(&workload.object.value, "/spec/volumeClaimTemplates").iter().enumerate() {
            let field = format!("spec.volumeClaimTemplates[{index}].spec.storageClassName");
            storage_class(set, workload.object, text(template, "/spec/storageClassName"), &field, report);
        }
    }
    for claim in set.local_of("", "PersistentVolumeClaim") {
        if !has(&claim.value, "/spec/volumeName") {
            let class = text(&claim.value, "/spec/storageClassName");
            storage_class(set, claim, class, "spec.storageClassName", report);
        }
    }
}

fn claim(set: &Set, object: &Object, name: &str, field: &str, report: &mut Report) {
    let namespace = &object.namespace;
    let known = name.is_empty()
        || set.find("", "PersistentVolumeClaim", namespace, name).is_some()
        || set.is_present("persistentvolumeclaim", name)
        || of_stateful_set(set, namespace, name);
    if known {
        return;
    }
    let here = set.of("", "PersistentVolumeClaim").filter(|claim| claim.namespace == *namespace);
    let fix = match nearest(name, here.map(|claim| claim.name.as_str())) {
        Some(near) => format!("did you mean {near}?"),
        None => format!("add a PersistentVolumeClaim {name}"),
    };
    let message = format!("volume claim {name} is not in namespace {namespace}, so the pods stay Pending");
    report.object(Severity::Error, "missing-claim", object, field, message, fix);
}

/// Whether a claim is one that a StatefulSet makes: `data-db-0`.
fn of_stateful_set(set: &Set, namespace: &str, name: &str) -> bool {
    set.of("apps", "StatefulSet").filter(|object| object.namespace == namespace).any(|object| {
        list(&object.value, "/spec/volumeClaimTemplates").iter().any(|template| {
            let prefix = format!("{}-{}-", text(template, "/metadata/name"), object.name);
            name.strip_prefix(&prefix).is_some_and(|ordinal| ordinal.parse::<u32>().is_ok())
        })
    })
}

fn storage_class(set: &Set, object: &Object, name: &str, field: &str, report: &mut Report) {
    let of_volume = |volume: &&Object| volume.value["spec"]["storageClassName"] == name;
    let known = name.is_empty()
        || set.find("storage.k8s.io", "StorageClass", "", name).is_some()
        || set.is_present("storageclass", name)
        || set.of("", "PersistentVolume").any(|volume| of_volume(&volume))
        || name == DEFAULT_CLASS
        || ALIASED_CLASSES.contains(&name);
    if known {
        return;
    }
    let severity = if set.context.cluster { Severity::Error } else { Severity::Warning };
    let message = format!("storage class {name} is not here; where the cluster lacks it, claims stay Pending");
    let fix = match nearest(name, set.of("storage.k8s.io", "StorageClass").map(|class| class.name.as_str())) {
        Some(near) => format!("did you mean {near}?"),
        None => "leave storageClassName out for the cluster's default, or add the StorageClass".to_owned(),
    };
    report.object(severity, "missing-storage-class", object, field, message, fix);
}

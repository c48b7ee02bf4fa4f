//! Claims of a StatefulSet's pods: one per claim template and pod, and who takes them along at the end.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;

use crate::objects::{controller_reference, name};

type Claims = BTreeMap<String, Arc<PersistentVolumeClaim>>;

fn templates(set: &StatefulSet) -> impl Iterator<Item = &PersistentVolumeClaim> {
    set.spec.iter().flat_map(|spec| spec.volume_claim_templates.iter().flatten())
}

/// Volume and claim, for each claim of a pod.
pub fn names(set: &StatefulSet, pod: &str) -> Vec<(String, String)> {
    let pair = |template: &PersistentVolumeClaim| {
        let volume = name(&template.metadata);
        (volume.to_owned(), format!("{volume}-{pod}"))
    };
    templates(set).map(pair).collect()
}

/// The claims of a pod that are not there.
pub fn missing(set: &StatefulSet, pod: &Pod, claims: &Claims) -> Vec<PersistentVolumeClaim> {
    let selected = set.spec.as_ref().and_then(|spec| spec.selector.match_labels.clone()).unwrap_or_default();
    let pod_name = name(&pod.metadata);
    let new = |template: &PersistentVolumeClaim| {
        let mut claim = template.clone();
        claim.metadata.name = Some(format!("{}-{pod_name}", name(&template.metadata)));
        claim.metadata.namespace.clone_from(&set.metadata.namespace);
        claim.metadata.labels.get_or_insert_default().extend(selected.clone());
        claim.status = None;
        claim
    };
    templates(set).map(new).filter(|claim| !claims.contains_key(name(&claim.metadata))).collect()
}

/// Whether a claim of the pod goes with a former pod of its name, or goes already.
pub fn stale(set: &StatefulSet, pod: &Pod, claims: &Claims) -> bool {
    let former = |owner: &OwnerReference| {
        owner.kind == "Pod" && owner.name == name(&pod.metadata) && Some(&owner.uid) != pod.metadata.uid.as_ref()
    };
    held(set, pod, claims).any(|claim| claim.metadata.owner_references.iter().flatten().any(former))
}

fn held<'a>(
    set: &StatefulSet,
    pod: &Pod,
    claims: &'a Claims,
) -> impl Iterator<Item = &'a Arc<PersistentVolumeClaim>> + use<'a> {
    let names = names(set, name(&pod.metadata));
    names.into_iter().filter_map(|(_, claim)| claims.get(&claim))
}

/// The claims of a pod whose owners are not those that the retention policy asks for, as they are and as they should be.
pub fn owned(
    set: &StatefulSet,
    pod: &Pod,
    condemned: bool,
    claims: &Claims,
) -> Vec<(Arc<PersistentVolumeClaim>, PersistentVolumeClaim)> {
    let policy = set.spec.as_ref().and_then(|spec| spec.persistent_volume_claim_retention_policy.clone());
    let policy = policy.unwrap_or_default();
    let with_set = policy.when_deleted.as_deref() == Some("Delete");
    let with_scale = policy.when_scaled.as_deref() == Some("Delete");
    let (by_set, by_pod) = (with_set && !(with_scale && condemned), with_scale && condemned);
    let owners = [(controller_reference(set), by_set), (controller_reference(pod), by_pod)];
    let mut changed = Vec::new();
    for claim in held(set, pod, claims).filter(|claim| claim.metadata.deletion_timestamp.is_none()) {
        let mut updated = claim.as_ref().clone();
        let references = updated.metadata.owner_references.get_or_insert_default();
        for (owner, wanted) in &owners {
            let there = references.iter().any(|held| held.uid == owner.uid);
            if *wanted && !there {
                references.push(owner.clone());
            } else if !*wanted && there {
                references.retain(|held| held.uid != owner.uid);
            }
        }
        if references.is_empty() {
            updated.metadata.owner_references = None;
        }
        if updated.metadata.owner_references != claim.metadata.owner_references {
            changed.push((claim.clone(), updated));
        }
    }
    changed
}

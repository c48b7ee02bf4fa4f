//! Pods of a StatefulSet: their identity, and how they fare.

use std::collections::BTreeMap;
use std::ops::Range;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{PersistentVolumeClaimVolumeSource, Pod, PodTemplateSpec, Volume};

use super::claims;
use crate::children;
use crate::history::{REVISION_LABEL, label};
use crate::objects::{available_at, is_ready, name, phase};

const POD_NAME: &str = "statefulset.kubernetes.io/pod-name";
const POD_INDEX: &str = "apps.kubernetes.io/pod-index";

/// The first ordinal.
pub fn start(set: &StatefulSet) -> i32 {
    set.spec.as_ref().and_then(|spec| spec.ordinals.as_ref()?.start).unwrap_or(0)
}

/// The ordinals that should have a pod.
pub fn range(set: &StatefulSet) -> Range<i32> {
    let replicas = set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1).max(0);
    start(set)..start(set).saturating_add(replicas)
}

/// The ordinal in the name of a pod, if the name is one of this set's.
pub fn ordinal(set: &StatefulSet, pod: &Pod) -> Option<i32> {
    let (parent, number) = name(&pod.metadata).rsplit_once('-')?;
    if parent != name(&set.metadata) || !number.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    number.parse().ok()
}

/// The name of the revision a pod was made from.
pub fn revision_of(pod: &Pod) -> Option<&str> {
    label(&pod.metadata, REVISION_LABEL)
}

/// Whether the pod is being deleted.
pub fn is_going(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some()
}

/// Whether it runs and is ready.
pub fn is_running_and_ready(pod: &Pod) -> bool {
    phase(pod) == "Running" && is_ready(pod)
}

/// Whether it has been ready for long enough.
pub fn is_available(pod: &Pod, min_ready_seconds: i32, now: Timestamp) -> bool {
    phase(pod) == "Running" && available_at(pod, min_ready_seconds).is_some_and(|at| at <= now)
}

/// The pod of an ordinal.
pub fn new(set: &StatefulSet, template: &PodTemplateSpec, number: i32, revision: &str) -> Pod {
    let mut pod = children::pod(template, set);
    let pod_name = format!("{}-{number}", name(&set.metadata));
    pod.metadata.name = Some(pod_name.clone());
    let labels = pod.metadata.labels.get_or_insert_default();
    identify(labels, &pod_name, number);
    labels.insert(REVISION_LABEL.into(), revision.to_owned());
    let spec = pod.spec.get_or_insert_default();
    spec.hostname = Some(pod_name.clone());
    spec.subdomain = set.spec.as_ref().and_then(|spec| spec.service_name.clone()).filter(|name| !name.is_empty());
    let own = spec.volumes.take().unwrap_or_default();
    let claimed = claims::names(set, &pod_name);
    let mut volumes: Vec<Volume> = claimed
        .iter()
        .map(|(volume, claim)| Volume {
            name: volume.clone(),
            persistent_volume_claim: Some(PersistentVolumeClaimVolumeSource {
                claim_name: claim.clone(),
                read_only: None,
            }),
            ..Volume::default()
        })
        .collect();
    volumes.extend(own.into_iter().filter(|volume| !claimed.iter().any(|(claimed, _)| *claimed == volume.name)));
    spec.volumes = (!volumes.is_empty()).then_some(volumes);
    pod
}

fn identify(labels: &mut BTreeMap<String, String>, pod_name: &str, number: i32) {
    labels.insert(POD_NAME.into(), pod_name.to_owned());
    labels.insert(POD_INDEX.into(), number.to_string());
}

/// The pod with its labels restored, if somebody has taken them away.
pub fn repaired(set: &StatefulSet, pod: &Pod) -> Option<Pod> {
    let mut repaired = pod.clone();
    identify(repaired.metadata.labels.get_or_insert_default(), name(&pod.metadata), ordinal(set, pod)?);
    (repaired.metadata.labels != pod.metadata.labels).then_some(repaired)
}

//! A Deployment's ReplicaSets: which is new, which are old, what their annotations say.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet, ReplicaSetSpec};
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::objects::{TEMPLATE_HASH, annotation, controller_reference, name, same_template, scaled, template_hash};
pub use crate::replicaset::plan::wanted as size;

pub const REVISION: &str = "deployment.kubernetes.io/revision";
const HISTORY: &str = "deployment.kubernetes.io/revision-history";
const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";
const MAXIMUM: &str = "deployment.kubernetes.io/max-replicas";
const NOT_COPIED: [&str; 6] = [
    "kubectl.kubernetes.io/last-applied-configuration",
    REVISION,
    HISTORY,
    DESIRED,
    MAXIMUM,
    "deprecated.deployment.rollback.to",
];
/// The history of revisions of a ReplicaSet grows to at most this many bytes.
const HISTORY_BYTES: usize = 2000;
/// The longest name of an object.
const NAME_BYTES: usize = 253;

/// Replicas wanted; 1 if the Deployment does not say.
pub fn desired(deployment: &Deployment) -> i32 {
    deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1)
}

/// Whether the Deployment rolls, rather than replaces all at once.
pub fn is_rolling(deployment: &Deployment) -> bool {
    let strategy = deployment.spec.as_ref().and_then(|spec| spec.strategy.as_ref()?.type_.as_deref());
    strategy.unwrap_or("RollingUpdate") == "RollingUpdate"
}

fn limits(deployment: &Deployment) -> (Option<&IntOrString>, Option<&IntOrString>) {
    let rolling = deployment.spec.as_ref().and_then(|spec| spec.strategy.as_ref()?.rolling_update.as_ref());
    (rolling.and_then(|r| r.max_surge.as_ref()), rolling.and_then(|r| r.max_unavailable.as_ref()))
}

/// How many pods there may be beyond those desired.
pub fn max_surge(deployment: &Deployment) -> i32 {
    if is_rolling(deployment) { scaled(limits(deployment).0, desired(deployment), true) } else { 0 }
}

/// How many of the desired pods may be unavailable. Never zero together with the surge: the rollout could not move.
pub fn max_unavailable(deployment: &Deployment) -> i32 {
    let total = desired(deployment);
    if !is_rolling(deployment) || total == 0 {
        return 0;
    }
    let unavailable = scaled(limits(deployment).1, total, false);
    let stuck = unavailable == 0 && max_surge(deployment) == 0;
    if stuck { 1 } else { unavailable.min(total) }
}

/// Available replicas.
pub fn available(set: &ReplicaSet) -> i32 {
    set.status.as_ref().and_then(|status| status.available_replicas).unwrap_or(0)
}

/// Replicas that exist.
pub fn actual(set: &ReplicaSet) -> i32 {
    set.status.as_ref().map_or(0, |status| status.replicas)
}

/// The revision of a ReplicaSet; 0 if it has none.
pub fn revision(set: &ReplicaSet) -> i64 {
    annotation(&set.metadata, REVISION).and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// Oldest first.
pub fn by_age(set: &ReplicaSet) -> (Option<jiff::Timestamp>, String) {
    (set.metadata.creation_timestamp.as_ref().map(|time| time.0), name(&set.metadata).to_owned())
}

/// The replica count that the Deployment had when it last scaled this set.
pub fn desired_before(set: &ReplicaSet) -> Option<i32> {
    count(set, DESIRED)
}

/// The most pods the Deployment could have when it last scaled this set.
pub fn maximum_before(set: &ReplicaSet) -> Option<i32> {
    count(set, MAXIMUM)
}

fn count(set: &ReplicaSet, key: &str) -> Option<i32> {
    annotation(&set.metadata, key)?.parse().ok().filter(|count| *count >= 0)
}

/// The oldest set whose template is the Deployment's.
pub fn find_new(deployment: &Deployment, sets: &[ReplicaSet]) -> Option<usize> {
    let template = &deployment.spec.as_ref()?.template;
    let same = |set: &ReplicaSet| {
        set.spec.as_ref().and_then(|spec| spec.template.as_ref()).is_some_and(|other| same_template(template, other))
    };
    (0..sets.len()).filter(|index| same(&sets[*index])).min_by_key(|index| by_age(&sets[*index]))
}

/// Whether a set is large enough and available, as of the Deployment's present size.
pub fn is_saturated(deployment: &Deployment, set: &ReplicaSet) -> bool {
    let total = desired(deployment);
    size(set) == total && desired_before(set) == Some(total) && available(set) == total
}

/// Notes the size of the Deployment on a set, for the next proportional scaling.
pub fn note_size(deployment: &Deployment, set: &mut ReplicaSet) {
    let total = desired(deployment);
    let annotations = set.metadata.annotations.get_or_insert_default();
    annotations.insert(DESIRED.into(), total.to_string());
    annotations.insert(MAXIMUM.into(), (total + max_surge(deployment)).to_string());
}

/// Copies the Deployment's annotations to its new set and raises the set's revision.
pub fn annotate_new(deployment: &Deployment, set: &mut ReplicaSet, new_revision: i64) {
    let copied = deployment.metadata.annotations.iter().flatten();
    let copied: BTreeMap<_, _> = copied.filter(|(key, _)| !NOT_COPIED.contains(&key.as_str())).collect();
    let before = annotation(&set.metadata, REVISION).map(str::to_owned);
    let annotations = set.metadata.annotations.get_or_insert_default();
    annotations.extend(copied.into_iter().map(|(key, value)| (key.clone(), value.clone())));
    let current = match before.as_deref().map(str::parse::<i64>) {
        Some(Err(_)) => return,
        Some(Ok(current)) => current,
        None => 0,
    };
    if current < new_revision {
        annotations.insert(REVISION.into(), new_revision.to_string());
        if let Some(before) = before {
            let history = annotations.entry(HISTORY.into()).or_default();
            *history = lengthen(history, &before);
        }
    }
}

/// Adds a revision to the history; the oldest go when it grows too long.
fn lengthen(history: &str, revision: &str) -> String {
    let mut all: Vec<&str> = history.split(',').filter(|part| !part.is_empty()).collect();
    all.push(revision);
    while all.len() > 1 && all.iter().map(|part| part.len() + 1).sum::<usize>() > HISTORY_BYTES + 1 {
        all.remove(0);
    }
    all.join(",")
}

/// A new set for the Deployment's template, without replicas yet.
pub fn make_new(deployment: &Deployment) -> ReplicaSet {
    let spec = deployment.spec.clone().unwrap_or_default();
    let collisions = deployment.status.as_ref().and_then(|status| status.collision_count);
    let hash = template_hash(&spec.template, collisions);
    let mut template: PodTemplateSpec = spec.template;
    let labels = template.metadata.get_or_insert_default().labels.get_or_insert_default();
    labels.insert(TEMPLATE_HASH.into(), hash.clone());
    let labels = labels.clone();
    let mut selector = spec.selector;
    selector.match_labels.get_or_insert_default().insert(TEMPLATE_HASH.into(), hash.clone());
    let mut prefix = name(&deployment.metadata).to_owned();
    prefix.truncate(NAME_BYTES - 1 - hash.len());
    ReplicaSet {
        metadata: ObjectMeta {
            name: Some(format!("{prefix}-{hash}")),
            namespace: deployment.metadata.namespace.clone(),
            labels: Some(labels),
            owner_references: Some(vec![controller_reference(deployment)]),
            ..ObjectMeta::default()
        },
        spec: Some(ReplicaSetSpec {
            replicas: Some(0),
            min_ready_seconds: spec.min_ready_seconds,
            selector,
            template: Some(template),
        }),
        status: None,
    }
}

/// Order for growing: largest first, and of equals the newest.
pub fn larger_then_newer(set: &ReplicaSet) -> impl Ord + use<> {
    (Reverse(size(set)), Reverse(by_age(set)))
}

/// Order for shrinking: largest first, and of equals the oldest.
pub fn larger_then_older(set: &ReplicaSet) -> impl Ord + use<> {
    (Reverse(size(set)), by_age(set))
}

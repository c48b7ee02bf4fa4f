//! What a ReplicaSet needs, as a pure function of it and its pods.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetCondition, ReplicaSetStatus};
use k8s_openapi::api::core::v1::Pod;

use super::rank;
use crate::claim::{Claims, claim};
use crate::labels::Matcher;
use crate::objects::{available_at, is_active, is_ready, is_terminal, labels, seconds};

/// At most this many pods are created or deleted in one go.
const BURST: usize = 500;

/// What to do about the pods of a ReplicaSet.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// Orphans to take over.
    pub adopt: Vec<Arc<Pod>>,
    /// Pods to let go.
    pub release: Vec<Arc<Pod>>,
    /// How many pods to create.
    pub create: usize,
    /// Pods to delete.
    pub delete: Vec<Arc<Pod>>,
}

impl Plan {
    /// Whether pods are adopted, created or deleted because of what the set says.
    pub fn acts_for_set(&self) -> bool {
        !self.adopt.is_empty() || self.create > 0 || !self.delete.is_empty()
    }
}

/// Replicas wanted; 1 if the ReplicaSet does not say.
pub fn wanted(set: &ReplicaSet) -> i32 {
    set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1).max(0)
}

fn selector(set: &ReplicaSet) -> Matcher {
    Matcher::optional(set.spec.as_ref().map(|spec| &spec.selector))
}

fn claims(set: &ReplicaSet, pods: &[Arc<Pod>]) -> Claims<Pod> {
    let active: Vec<_> = pods.iter().filter(|pod| is_active(pod)).cloned().collect();
    claim(set, &selector(set), &active)
}

/// Plans for the pods that `set` owns and the orphans beside them. `related` are the pods of the same Deployment.
pub fn plan(set: &ReplicaSet, pods: &[Arc<Pod>], related: &[Arc<Pod>], now: Timestamp) -> Plan {
    let Claims { mine, adopt, release } = claims(set, pods);
    let mut plan = Plan { adopt, release, ..Plan::default() };
    if set.metadata.deletion_timestamp.is_some() {
        return plan;
    }
    let want = usize::try_from(wanted(set)).unwrap_or(0);
    if mine.len() < want {
        plan.create = (want - mine.len()).min(BURST);
    } else if mine.len() > want {
        plan.delete = rank::victims(&mine, related, (mine.len() - want).min(BURST), now);
    }
    plan
}

/// Why pods could not be created or deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// `FailedCreate` or `FailedDelete`.
    pub reason: &'static str,
    /// What the API said.
    pub message: String,
}

/// The status as it should be, and when it changes by itself because a pod will have been ready long enough.
pub fn status(
    set: &ReplicaSet,
    pods: &[Arc<Pod>],
    failure: Option<&Failure>,
    now: Timestamp,
) -> (ReplicaSetStatus, Option<Duration>) {
    let mine = claims(set, pods).mine;
    let template = set.spec.as_ref().and_then(|spec| spec.template.as_ref()?.metadata.as_ref()?.labels.as_ref());
    let template = template.map(Matcher::exact).unwrap_or_default();
    let settle = set.spec.as_ref().and_then(|spec| spec.min_ready_seconds).unwrap_or(0);
    let available = |pod: &Arc<Pod>| available_at(pod, settle).is_some_and(|at| at <= now);
    let next = mine.iter().filter_map(|pod| available_at(pod, settle)).filter(|at| *at > now).min();
    let terminating = |pod: &&Arc<Pod>| {
        let owned = crate::objects::is_controlled_by(&pod.metadata, set.metadata.uid.as_deref());
        owned
            && pod.metadata.deletion_timestamp.is_some()
            && !is_terminal(pod)
            && selector(set).matches(labels(&pod.metadata))
    };
    let status = ReplicaSetStatus {
        replicas: count(mine.len()),
        fully_labeled_replicas: some(mine.iter().filter(|pod| template.matches(labels(&pod.metadata))).count()),
        ready_replicas: some(mine.iter().filter(|pod| is_ready(pod)).count()),
        available_replicas: some(mine.iter().filter(|pod| available(pod)).count()),
        terminating_replicas: Some(count(pods.iter().filter(terminating).count())),
        observed_generation: set.metadata.generation,
        conditions: conditions(set, failure, now),
    };
    let wait = next.map(|at| Duration::try_from(at.duration_since(now)).unwrap_or_default() + Duration::from_millis(1));
    (status, wait)
}

fn conditions(set: &ReplicaSet, failure: Option<&Failure>, now: Timestamp) -> Option<Vec<ReplicaSetCondition>> {
    let held = set.status.as_ref().and_then(|status| status.conditions.clone()).unwrap_or_default();
    let (failed, mut conditions): (Vec<_>, Vec<_>) = held.into_iter().partition(|c| c.type_ == "ReplicaFailure");
    if let Some(failure) = failure {
        conditions.push(failed.into_iter().next().unwrap_or_else(|| ReplicaSetCondition {
            type_: "ReplicaFailure".into(),
            status: "True".into(),
            reason: Some(failure.reason.into()),
            message: Some(failure.message.clone()),
            last_transition_time: Some(seconds(now)),
        }));
    }
    (!conditions.is_empty()).then_some(conditions)
}

fn count(number: usize) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}

/// Kubernetes leaves zero counts out.
fn some(number: usize) -> Option<i32> {
    (number > 0).then(|| count(number))
}

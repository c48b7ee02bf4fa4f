//! How many pods a PodDisruptionBudget can spare, as a pure function of it and its pods.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::objects::{controller_of, is_ready, name, scaled, seconds};

/// A pod that was to be evicted and is still there after this long counts again.
const PATIENCE: SignedDuration = SignedDuration::from_mins(2);

/// By the uid of the manager of some pods: who decides on their number (it or its own manager) and what that is; or why
/// that is not known.
pub type Scales = BTreeMap<String, Result<(String, i32), String>>;

/// What comes of a look at a budget.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// The status as it should be.
    pub status: PodDisruptionBudgetStatus,
    /// Why the number of expected pods could not be told.
    pub failure: Option<String>,
    /// When to look again although nothing happens.
    pub again: Option<Duration>,
}

/// Whether the budget needs to know how many pods there should be.
pub fn needs_scales(budget: &PodDisruptionBudget) -> bool {
    let spec = budget.spec.clone().unwrap_or_default();
    spec.max_unavailable.is_some() || matches!(spec.min_available, Some(IntOrString::String(_)))
}

/// Works out the status. `pods` are all that the budget selects.
pub fn status(budget: &PodDisruptionBudget, pods: &[Arc<Pod>], scales: &Scales, now: Timestamp) -> Outcome {
    let held = budget.status.clone().unwrap_or_default();
    let (expected, desired) = match expected(budget, pods, scales) {
        Ok(counts) => counts,
        Err(failure) => return failed(budget, held, failure, now),
    };
    let (disrupted, again) = disrupted(&held, pods, now);
    let counts = |pod: &&Arc<Pod>| {
        pod.metadata.deletion_timestamp.is_none() && !disrupted.contains_key(name(&pod.metadata)) && is_ready(pod)
    };
    let healthy = i32::try_from(pods.iter().filter(counts).count()).unwrap_or(i32::MAX);
    let allowed = if expected > 0 { (healthy - desired).max(0) } else { 0 };
    let (value, reason) = if allowed > 0 { ("True", "SufficientPods") } else { ("False", "InsufficientPods") };
    let status = PodDisruptionBudgetStatus {
        conditions: Some(with_condition(&held, budget, value, reason, "", now)),
        current_healthy: healthy,
        desired_healthy: desired,
        disrupted_pods: (!disrupted.is_empty()).then_some(disrupted),
        disruptions_allowed: allowed,
        expected_pods: expected,
        observed_generation: budget.metadata.generation,
    };
    Outcome { status, failure: None, again }
}

/// Without knowledge nothing may be disrupted.
fn failed(budget: &PodDisruptionBudget, held: PodDisruptionBudgetStatus, failure: String, now: Timestamp) -> Outcome {
    let conditions = with_condition(&held, budget, "False", "SyncFailed", &failure, now);
    let status = PodDisruptionBudgetStatus {
        conditions: Some(conditions),
        disruptions_allowed: 0,
        observed_generation: budget.metadata.generation,
        ..held
    };
    Outcome { status, failure: Some(failure), again: None }
}

fn with_condition(
    held: &PodDisruptionBudgetStatus,
    budget: &PodDisruptionBudget,
    value: &str,
    reason: &str,
    message: &str,
    now: Timestamp,
) -> Vec<Condition> {
    let mut all = held.conditions.clone().unwrap_or_default();
    let before = all.iter().position(|condition| condition.type_ == "DisruptionAllowed");
    let since = before.map(|at| &all[at]).filter(|c| c.status == value).map(|c| c.last_transition_time.clone());
    let new = Condition {
        type_: "DisruptionAllowed".into(),
        status: value.into(),
        reason: reason.into(),
        message: message.into(),
        observed_generation: budget.metadata.generation,
        last_transition_time: since.unwrap_or_else(|| seconds(now)),
    };
    match before {
        Some(at) => all[at] = new,
        None => all.push(new),
    }
    all
}

/// How many pods there should be, and how many of them must be well.
fn expected(budget: &PodDisruptionBudget, pods: &[Arc<Pod>], scales: &Scales) -> Result<(i32, i32), String> {
    let spec = budget.spec.clone().unwrap_or_default();
    let there = i32::try_from(pods.len()).unwrap_or(i32::MAX);
    match (&spec.max_unavailable, &spec.min_available) {
        (Some(most), _) => {
            let expected = expected_scale(pods, scales)?;
            Ok((expected, (expected - scaled(Some(most), expected, true)).max(0)))
        }
        (None, Some(IntOrString::Int(least))) => Ok((there, *least)),
        (None, Some(share)) => {
            let expected = expected_scale(pods, scales)?;
            Ok((expected, scaled(Some(share), expected, true)))
        }
        (None, None) => Ok((there, 0)),
    }
}

/// The sum of what the pods' managers want. Pods without one do not count.
fn expected_scale(pods: &[Arc<Pod>], scales: &Scales) -> Result<i32, String> {
    let mut managers: BTreeMap<&str, &Arc<Pod>> = BTreeMap::new();
    for pod in pods {
        if let Some(owner) = controller_of(&pod.metadata) {
            managers.insert(&owner.uid, pod);
        }
    }
    let mut seen: BTreeMap<&str, i32> = BTreeMap::new();
    for (uid, pod) in managers {
        match scales.get(uid) {
            Some(Ok((decider, scale))) => drop(seen.insert(decider, *scale)),
            Some(Err(why)) => return Err(why.clone()),
            None => return Err(format!("found no controllers for pod {:?}", name(&pod.metadata))),
        }
    }
    Ok(seen.values().sum())
}

/// Pods that were promised to go and have not gone yet, and when the first of them is given up.
fn disrupted(
    held: &PodDisruptionBudgetStatus,
    pods: &[Arc<Pod>],
    now: Timestamp,
) -> (BTreeMap<String, Time>, Option<Duration>) {
    let mut waiting = BTreeMap::new();
    let mut next: Option<Timestamp> = None;
    for (pod, since) in held.disrupted_pods.iter().flatten() {
        let limit = since.0.checked_add(PATIENCE).unwrap_or(Timestamp::MAX);
        let there = pods.iter().any(|p| name(&p.metadata) == pod && p.metadata.deletion_timestamp.is_none());
        if there && limit > now {
            waiting.insert(pod.clone(), since.clone());
            next = Some(next.map_or(limit, |sooner| sooner.min(limit)));
        }
    }
    (waiting, next.map(|at| Duration::try_from(at.duration_since(now)).unwrap_or_default() + Duration::from_millis(1)))
}

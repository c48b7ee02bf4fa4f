//! What an autoscaler makes of its metrics, as a pure function.

use jiff::Timestamp;
use k8s_openapi::api::autoscaling::v2::{HorizontalPodAutoscalerCondition, HorizontalPodAutoscalerSpec};

use super::limits::{Past, limit};
use crate::objects::seconds;

/// What one metric asks for.
#[derive(Clone, Debug, PartialEq)]
pub struct Proposal {
    /// Replicas.
    pub replicas: i32,
    /// What the metric is called in messages.
    pub name: String,
}

/// Why a metric says nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// One word.
    pub reason: &'static str,
    /// What went wrong.
    pub message: String,
}

/// A condition to set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// `AbleToScale`, `ScalingActive` or `ScalingLimited`.
    pub type_: &'static str,
    /// Whether it is true.
    pub status: bool,
    /// One word.
    pub reason: String,
    /// A sentence.
    pub message: String,
}

impl Told {
    /// A condition from its parts.
    pub fn new(type_: &'static str, status: bool, reason: &str, message: impl Into<String>) -> Self {
        Self { type_, status, reason: reason.into(), message: message.into() }
    }
}

/// What is to be done.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Decision {
    /// Replicas, if the metrics could tell.
    pub replicas: Option<i32>,
    /// Why they change.
    pub reason: String,
    /// Conditions to set.
    pub told: Vec<Told>,
    /// What to complain of when the metrics could not tell.
    pub complaint: Option<String>,
}

/// Whether the target's replicas are bounds' business, and the metrics need not be asked.
pub fn without_metrics(spec: &HorizontalPodAutoscalerSpec, current: i32) -> Option<Decision> {
    let least = spec.min_replicas.unwrap_or(1);
    let decide =
        |replicas, reason: &str| Decision { replicas: Some(replicas), reason: reason.into(), ..Decision::default() };
    if current == 0 && least != 0 {
        let why = "scaling is disabled since the replica count of the target is zero";
        let told = vec![Told::new("ScalingActive", false, "ScalingDisabled", why)];
        return Some(Decision { replicas: Some(0), told, ..Decision::default() });
    }
    if current > spec.max_replicas {
        return Some(decide(spec.max_replicas, "Current number of replicas above Spec.MaxReplicas"));
    }
    (current < least).then(|| decide(least, "Current number of replicas below Spec.MinReplicas"))
}

/// Decides by the metrics. The largest number any of them asks for counts; when some cannot tell, replicas never shrink.
pub fn decide(
    spec: &HorizontalPodAutoscalerSpec,
    current: i32,
    proposals: &[Result<Proposal, Failure>],
    past: &mut Past,
    now: Timestamp,
) -> Decision {
    let failures: Vec<_> = proposals.iter().filter_map(|proposal| proposal.as_ref().err()).collect();
    let best = proposals.iter().flatten().reduce(|a, b| if b.replicas > a.replicas { b } else { a });
    let Some(best) = best.filter(|best| failures.is_empty() || best.replicas >= current) else {
        let Some(first) = failures.first() else { return Decision::default() };
        let (count, all) = (failures.len(), proposals.len());
        let message = format!("the HPA was unable to compute the replica count: {}", first.message);
        return Decision {
            told: vec![Told::new("ScalingActive", false, first.reason, message)],
            complaint: Some(format!(
                "invalid metrics ({count} invalid out of {all}), first error is: {}",
                first.message
            )),
            ..Decision::default()
        };
    };
    let found = format!("the HPA was able to successfully calculate a replica count from {}", best.name);
    let limited = limit(spec, current, best.replicas, past, now);
    let told = |type_, (status, reason, message): (bool, &str, &str)| Told::new(type_, status, reason, message);
    Decision {
        replicas: Some(limited.replicas),
        reason: match limited.replicas.cmp(&current) {
            std::cmp::Ordering::Greater => format!("{} above target", best.name),
            std::cmp::Ordering::Less => "All metrics below target".into(),
            std::cmp::Ordering::Equal => String::new(),
        },
        told: vec![
            Told::new("ScalingActive", true, "ValidMetricFound", found),
            told("AbleToScale", limited.able),
            told("ScalingLimited", limited.limited),
        ],
        complaint: None,
    }
}

/// Sets a condition.
pub fn set(conditions: &mut Vec<HorizontalPodAutoscalerCondition>, told: &Told, now: Timestamp) {
    let status = if told.status { "True" } else { "False" };
    let held = conditions.iter().position(|condition| condition.type_ == told.type_);
    let since = held.map(|at| &conditions[at]).filter(|held| held.status == status);
    let new = HorizontalPodAutoscalerCondition {
        type_: told.type_.into(),
        status: status.into(),
        reason: Some(told.reason.clone()),
        message: Some(told.message.clone()),
        last_transition_time: since.map_or_else(|| Some(seconds(now)), |held| held.last_transition_time.clone()),
    };
    match held {
        Some(at) => conditions[at] = new,
        None => conditions.push(new),
    }
}

//! Status and conditions of a Deployment.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::apps::v1::{Deployment, DeploymentCondition, DeploymentStatus, ReplicaSet, ReplicaSetCondition};

use super::plan::Draft;
use super::sets::{actual, available, desired, max_unavailable};
use crate::objects::{name, seconds};

const PROGRESSING: &str = "Progressing";
const TIMED_OUT: &str = "ProgressDeadlineExceeded";
const PAUSED: &str = "DeploymentPaused";
const COMPLETE: &str = "NewReplicaSetAvailable";

/// The progress deadline, unless it is set to "for ever".
fn deadline(deployment: &Deployment) -> Option<i32> {
    let deadline = deployment.spec.as_ref().and_then(|spec| spec.progress_deadline_seconds);
    deadline.filter(|seconds| *seconds != i32::MAX)
}

fn condition(type_: &str, status: &str, reason: &str, message: String, now: Timestamp) -> DeploymentCondition {
    DeploymentCondition {
        type_: type_.into(),
        status: status.into(),
        reason: Some(reason.into()),
        message: Some(message),
        last_update_time: Some(seconds(now)),
        last_transition_time: Some(seconds(now)),
    }
}

fn find<'a>(status: &'a DeploymentStatus, type_: &str) -> Option<&'a DeploymentCondition> {
    status.conditions.iter().flatten().find(|condition| condition.type_ == type_)
}

fn drop_condition(status: &mut DeploymentStatus, type_: &str) {
    if let Some(conditions) = &mut status.conditions {
        conditions.retain(|condition| condition.type_ != type_);
        if conditions.is_empty() {
            status.conditions = None;
        }
    }
}

/// Sets a condition. One with the same status and reason stays as it is.
fn set(status: &mut DeploymentStatus, mut condition: DeploymentCondition) {
    if let Some(held) = find(status, &condition.type_).filter(|held| held.status == condition.status) {
        if held.reason == condition.reason {
            return;
        }
        condition.last_transition_time.clone_from(&held.last_transition_time);
    }
    drop_condition(status, &condition.type_);
    status.conditions.get_or_insert_default().push(condition);
}

fn progressing(draft: &mut Draft, status: &str, reason: &str, message: String) {
    if deadline(&draft.deployment).is_some() {
        let condition = condition(PROGRESSING, status, reason, message, draft.now);
        set(draft.deployment.status.get_or_insert_default(), condition);
    }
}

fn reason_of_progress(deployment: &Deployment) -> Option<&str> {
    find(deployment.status.as_ref()?, PROGRESSING)?.reason.as_deref()
}

/// Notes that the template's set was there already, if nothing else is known about progress.
pub fn found_new(draft: &mut Draft, index: usize) {
    if reason_of_progress(&draft.deployment).is_none() {
        let message = format!("Found new replica set \"{}\"", name(&draft.sets[index].metadata));
        progressing(draft, "True", "FoundNewReplicaSet", message);
    }
}

/// Notes that a set was made for the template.
pub fn created_new(draft: &mut Draft, set: &str) {
    progressing(draft, "True", "NewReplicaSetCreated", format!("Created new replica set \"{set}\""));
}

/// Notes that the set could not be made.
pub fn create_failed(deployment: &mut Deployment, set_name: &str, error: &str, now: Timestamp) {
    if deadline(deployment).is_some() {
        let message = format!("Failed to create new replica set \"{set_name}\": {error}");
        let failed = condition(PROGRESSING, "False", "ReplicaSetCreateError", message, now);
        set(deployment.status.get_or_insert_default(), failed);
    }
}

/// Notes a pause, and the end of one, so that its length does not count against the deadline.
pub fn note_pause(draft: &mut Draft, paused: bool) {
    match reason_of_progress(&draft.deployment) {
        Some(TIMED_OUT) => {}
        Some(PAUSED) if !paused => {
            progressing(draft, "Unknown", "DeploymentResumed", "Deployment is resumed".into());
        }
        reason if paused && reason != Some(PAUSED) => {
            progressing(draft, "Unknown", PAUSED, "Deployment is paused".into());
        }
        _ => {}
    }
}

/// Counts and availability, from the sets.
fn counted(draft: &Draft) -> DeploymentStatus {
    let some = |count: i32| (count != 0).then_some(count);
    let held = draft.deployment.status.clone().unwrap_or_default();
    let sets = &draft.sets;
    let available_now: i32 = sets.iter().map(available).sum();
    let ready = |set: &ReplicaSet| set.status.as_ref().and_then(|status| status.ready_replicas).unwrap_or(0);
    let mut status = DeploymentStatus {
        observed_generation: draft.deployment.metadata.generation,
        replicas: some(sets.iter().map(actual).sum()),
        updated_replicas: some(draft.new_set().map_or(0, actual)),
        ready_replicas: some(sets.iter().map(ready).sum()),
        available_replicas: some(available_now),
        unavailable_replicas: some((draft.total() - available_now).max(0)),
        terminating_replicas: terminating(sets),
        collision_count: held.collision_count,
        conditions: held.conditions,
    };
    let enough = available_now >= desired(&draft.deployment) - max_unavailable(&draft.deployment);
    let (value, reason, message) = if enough {
        ("True", "MinimumReplicasAvailable", "Deployment has minimum availability.")
    } else {
        ("False", "MinimumReplicasUnavailable", "Deployment does not have minimum availability.")
    };
    set(&mut status, condition("Available", value, reason, message.into(), draft.now));
    status
}

/// Terminating replicas, if every set that was looked at counts them.
fn terminating(sets: &[ReplicaSet]) -> Option<i32> {
    let observed = sets.iter().filter_map(|set| set.status.as_ref()).filter(|s| s.observed_generation.unwrap_or(0) > 0);
    observed.map(|status| status.terminating_replicas).sum()
}

/// Brings the counts up to date.
pub fn refresh(draft: &mut Draft) {
    draft.deployment.status = Some(counted(draft));
}

fn complete(deployment: &Deployment, status: &DeploymentStatus) -> bool {
    let want = desired(deployment);
    let all = [status.updated_replicas, status.replicas, status.available_replicas];
    all.iter().all(|count| count.unwrap_or(0) == want) && status.observed_generation >= deployment.metadata.generation
}

/// Whether the status known so far shows a finished rollout.
pub fn is_complete(deployment: &Deployment) -> bool {
    deployment.status.as_ref().is_some_and(|status| complete(deployment, status))
}

fn advanced(old: &DeploymentStatus, new: &DeploymentStatus) -> bool {
    let count = |value: Option<i32>| value.unwrap_or(0);
    let outdated = |status: &DeploymentStatus| count(status.replicas) - count(status.updated_replicas);
    count(new.updated_replicas) > count(old.updated_replicas)
        || outdated(new) < outdated(old)
        || count(new.ready_replicas) > count(old.ready_replicas)
        || count(new.available_replicas) > count(old.available_replicas)
}

/// When a rollout that shows no progress is given up.
fn gives_up_at(deployment: &Deployment, status: &DeploymentStatus) -> Option<Timestamp> {
    let updated = find(status, PROGRESSING)?.last_update_time.as_ref()?.0;
    let allowed = SignedDuration::from_secs(deadline(deployment)?.into());
    Some(updated.saturating_add(allowed).unwrap_or(Timestamp::MAX))
}

/// Counts, progress and failures during a rollout.
pub fn roll_out(draft: &mut Draft) {
    let old = draft.deployment.status.clone().unwrap_or_default();
    let mut status = counted(draft);
    let reason = find(&old, PROGRESSING).and_then(|condition| condition.reason.as_deref());
    let done_before = status.replicas == status.updated_replicas && reason == Some(COMPLETE);
    if deadline(&draft.deployment).is_none() {
        drop_condition(&mut status, PROGRESSING);
    } else if !done_before {
        progress(draft, &old, &mut status);
    }
    match failure(draft) {
        Some(failure) => set(&mut status, failure),
        None => drop_condition(&mut status, "ReplicaFailure"),
    }
    draft.deployment.status = Some(status);
}

fn progress(draft: &Draft, old: &DeploymentStatus, status: &mut DeploymentStatus) {
    let subject = draft.new_set().map_or_else(
        || format!("Deployment \"{}\"", name(&draft.deployment.metadata)),
        |set| format!("ReplicaSet \"{}\"", name(&set.metadata)),
    );
    let now = draft.now;
    let held = find(old, PROGRESSING);
    if complete(&draft.deployment, status) {
        let message = format!("{subject} has successfully progressed.");
        set(status, condition(PROGRESSING, "True", COMPLETE, message, now));
    } else if advanced(old, status) {
        let mut moved = condition(PROGRESSING, "True", "ReplicaSetUpdated", format!("{subject} is progressing."), now);
        if let Some(held) = held.filter(|held| held.status == "True") {
            moved.last_transition_time.clone_from(&held.last_transition_time);
        }
        drop_condition(status, PROGRESSING);
        set(status, moved);
    } else if held.is_some_and(|held| held.reason.as_deref() != Some(COMPLETE))
        && gives_up_at(&draft.deployment, status).is_some_and(|at| at < now)
    {
        let message = format!("{subject} has timed out progressing.");
        set(status, condition(PROGRESSING, "False", TIMED_OUT, message, now));
    }
}

/// A failure of one of the sets, the new one's first.
fn failure(draft: &Draft) -> Option<DeploymentCondition> {
    let of = |set: &ReplicaSet| -> Option<ReplicaSetCondition> {
        set.status.as_ref()?.conditions.as_ref()?.iter().find(|c| c.type_ == "ReplicaFailure").cloned()
    };
    let found = draft.new_set().and_then(of).or_else(|| draft.sets.iter().find_map(of))?;
    Some(DeploymentCondition {
        type_: found.type_,
        status: found.status,
        reason: found.reason,
        message: found.message,
        last_update_time: found.last_transition_time.clone(),
        last_transition_time: found.last_transition_time,
    })
}

/// When the deadline must be checked although nothing happens.
pub fn next_check(draft: &Draft) -> Option<Duration> {
    let status = draft.deployment.status.as_ref()?;
    let reason = reason_of_progress(&draft.deployment)?;
    if reason == TIMED_OUT || reason == PAUSED || reason == COMPLETE || complete(&draft.deployment, status) {
        return None;
    }
    let left = gives_up_at(&draft.deployment, status)?.duration_since(draft.now);
    Some(Duration::try_from(left).unwrap_or_default() + Duration::from_secs(1))
}

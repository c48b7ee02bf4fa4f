//! The status of a StatefulSet.

use std::time::Duration;

use super::plan::{self, View};
use super::pods::{is_available, is_going, is_running_and_ready, revision_of};
use crate::objects::{available_at, name};
use k8s_openapi::api::apps::v1::StatefulSetStatus;

/// The status as it should be, and when it changes by itself; none while the history is not up to date.
pub fn status(view: &View<'_>) -> Option<(StatefulSetStatus, Option<Duration>)> {
    let revisions = plan::revisions(view).ok()?;
    let (current, update) = (name(&revisions.current.metadata), name(&revisions.update.metadata));
    let mine = plan::members(view.set, view.pods, &mut plan::Plan::default());
    let spec = plan::spec(view.set);
    let settle = spec.min_ready_seconds.unwrap_or(0);
    let ready: Vec<_> = mine.iter().filter(|pod| is_running_and_ready(pod)).collect();
    let of = |revision: &str| mine.iter().filter(|pod| !is_going(pod) && revision_of(pod) == Some(revision)).count();
    let mut status = StatefulSetStatus {
        observed_generation: view.set.metadata.generation,
        replicas: count(mine.len()),
        ready_replicas: some(ready.len()),
        available_replicas: Some(count(ready.iter().filter(|pod| is_available(pod, settle, view.now)).count())),
        current_replicas: some(of(current)),
        updated_replicas: some(of(update)),
        current_revision: Some(current.to_owned()),
        update_revision: Some(update.to_owned()),
        collision_count: Some(plan::collisions(view.set)),
        conditions: view.set.status.as_ref().and_then(|status| status.conditions.clone()),
    };
    let rolling = spec.update_strategy.as_ref().and_then(|strategy| strategy.type_.as_deref()) != Some("OnDelete");
    let wanted = spec.replicas.unwrap_or(1);
    let all = [status.updated_replicas.unwrap_or(0), status.ready_replicas.unwrap_or(0), status.replicas];
    if rolling && all.iter().all(|count| *count == wanted) {
        status.current_replicas = status.updated_replicas;
        status.current_revision.clone_from(&status.update_revision);
    }
    let next = ready.iter().filter_map(|pod| available_at(pod, settle)).filter(|at| *at > view.now).min();
    let wait =
        next.map(|at| Duration::try_from(at.duration_since(view.now)).unwrap_or_default() + Duration::from_millis(1));
    Some((status, wait))
}

fn count(number: usize) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}

/// Kubernetes leaves zero counts out.
fn some(number: usize) -> Option<i32> {
    (number > 0).then(|| count(number))
}

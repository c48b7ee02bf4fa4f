//! Resizing a Deployment while several of its ReplicaSets have pods: each takes its share, so that a bad template that is
//! half rolled out does not gain ground.

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};

use super::plan::Draft;
use super::sets::{
    desired, is_rolling, is_saturated, larger_then_newer, larger_then_older, max_surge, maximum_before, note_size, size,
};

/// Gives the sets their sizes after the Deployment was resized.
pub fn proportionally(draft: &mut Draft) {
    let active: Vec<usize> = (0..draft.sets.len()).filter(|index| size(&draft.sets[*index]) > 0).collect();
    let want = desired(&draft.deployment);
    if active.len() <= 1 {
        let newest_old = draft.old().last().copied();
        if let Some(index) = active.first().copied().or(draft.new).or(newest_old) {
            if size(&draft.sets[index]) < want && !draft.is_settled() {
                return;
            }
            draft.resize(index, want);
            note_size(&draft.deployment, &mut draft.sets[index]);
        }
        return;
    }
    if draft.new_set().is_some_and(|set| is_saturated(&draft.deployment, set)) {
        for index in draft.old() {
            draft.resize(index, 0);
        }
    } else if is_rolling(&draft.deployment) {
        share_out(draft, active);
    }
}

fn share_out(draft: &mut Draft, mut active: Vec<usize>) {
    let want = desired(&draft.deployment);
    let allowed = if want > 0 { want + max_surge(&draft.deployment) } else { 0 };
    let change = allowed - active.iter().map(|index| size(&draft.sets[*index])).sum::<i32>();
    if change > 0 && !draft.is_settled() {
        return;
    }
    if change > 0 {
        active.sort_by_key(|index| larger_then_newer(&draft.sets[*index]));
    } else if change < 0 {
        active.sort_by_key(|index| larger_then_older(&draft.sets[*index]));
    }
    let mut given = 0;
    let mut sizes = Vec::with_capacity(active.len());
    for &index in &active {
        let part = portion(&draft.deployment, &draft.sets[index], change, given);
        given += part;
        sizes.push(size(&draft.sets[index]) + part);
    }
    if let Some(first) = sizes.first_mut() {
        *first = (*first + change - given).max(0);
    }
    for (index, replicas) in active.into_iter().zip(sizes) {
        draft.resize(index, replicas);
        note_size(&draft.deployment, &mut draft.sets[index]);
    }
}

/// The part of the change that falls to one set.
fn portion(deployment: &Deployment, set: &ReplicaSet, change: i32, given: i32) -> i32 {
    let left = change - given;
    if change == 0 || left == 0 {
        return 0;
    }
    let share = share(deployment, set);
    if change > 0 { share.min(left) } else { share.max(left) }
}

fn share(deployment: &Deployment, set: &ReplicaSet) -> i32 {
    let (want, current) = (desired(deployment), size(set));
    if want == 0 {
        return -current;
    }
    let known = deployment.status.as_ref().and_then(|status| status.replicas).unwrap_or(0);
    let before = maximum_before(set).filter(|maximum| *maximum > 0).unwrap_or(known);
    if before == 0 {
        return 0;
    }
    let now = want + max_surge(deployment);
    let exact = f64::from(current) * f64::from(now) / f64::from(before);
    // The product of two replica counts over a third fits.
    #[allow(clippy::cast_possible_truncation)]
    let rounded = exact.round() as i32;
    rounded - current
}

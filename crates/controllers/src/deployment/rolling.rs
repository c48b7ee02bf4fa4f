//! Steps of a rolling update.

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};

use super::plan::Draft;
use super::sets::{available, desired, is_rolling, max_surge, max_unavailable, size};

/// The size of the new set, given the sum of all and its own, that the surge permits.
pub fn new_size(deployment: &Deployment, total: i32, current: i32) -> i32 {
    let want = desired(deployment);
    if !is_rolling(deployment) {
        return want;
    }
    let room = want.saturating_add(max_surge(deployment)) - total;
    if room <= 0 { current } else { current + room.min(want - current) }
}

/// Grows (or trims) the new set. Tells whether it did.
pub fn grow_new(draft: &mut Draft) -> bool {
    let Some(index) = draft.new else { return false };
    let (current, want) = (size(&draft.sets[index]), desired(&draft.deployment));
    let target = if current > want {
        want
    } else if draft.is_settled() {
        new_size(&draft.deployment, draft.most(), current)
    } else {
        current
    };
    draft.sets[index].metadata.uid.is_some() && draft.resize(index, target)
}

/// Shrinks old sets as far as availability allows: first what is unhealthy anyway. Tells whether it did.
pub fn shrink_old(draft: &mut Draft) -> bool {
    let old: Vec<usize> = draft.old().into_iter().filter(|index| size(&draft.sets[*index]) > 0).collect();
    let Some(new) = draft.new_set() else { return false };
    let least = desired(&draft.deployment) - max_unavailable(&draft.deployment);
    let new_unavailable = size(new) - available(new);
    let spare = draft.total() - least - new_unavailable;
    if old.is_empty() || spare <= 0 {
        return false;
    }
    let unhealthy = drop_unhealthy(draft, &old, spare);
    let healthy = drop_healthy(draft, &old, least, spare - unhealthy);
    unhealthy + healthy > 0
}

fn drop_unhealthy(draft: &mut Draft, old: &[usize], most: i32) -> i32 {
    let mut dropped = 0;
    for &index in old {
        let (current, healthy) = (size(&draft.sets[index]), available(&draft.sets[index]));
        let step = (current - healthy).min(most - dropped);
        if step > 0 && draft.resize(index, current - step) {
            dropped += step;
        }
    }
    dropped
}

/// A set's status may be older than its size: it has no more pods to count on than it should have.
fn sure(set: &ReplicaSet) -> i32 {
    available(set).min(size(set))
}

fn drop_healthy(draft: &mut Draft, old: &[usize], least: i32, most: i32) -> i32 {
    let spare = (draft.sets.iter().map(sure).sum::<i32>() - least).min(most);
    let mut dropped = 0;
    for &index in old {
        let current = size(&draft.sets[index]);
        let step = current.min(spare - dropped);
        if step > 0 && draft.resize(index, current - step) {
            dropped += step;
        }
    }
    dropped
}

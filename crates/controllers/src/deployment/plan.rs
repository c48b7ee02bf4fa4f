//! What a Deployment needs, as a pure function of it, its ReplicaSets and their pods.
//!
//! The plan is worked out on copies: [`Draft`] holds the Deployment and its sets as they should become, and what changed
//! is read off at the end. Kubernetes reaches the same state in several rounds; doing it in one saves writes, and each
//! single write keeps the limits of surge and availability.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

use super::sets::{
    REVISION, actual, annotate_new, by_age, desired, desired_before, find_new, is_rolling, make_new, note_size,
    revision, size,
};
use super::{rolling, scale, status};
use crate::claim::{Claims, claim};
use crate::labels::Matcher;
use crate::objects::{annotation, controller_of, is_terminal, name};

/// What to do about a Deployment, in this order.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// Orphaned ReplicaSets to take over.
    pub adopt: Vec<Arc<ReplicaSet>>,
    /// ReplicaSets to let go.
    pub release: Vec<Arc<ReplicaSet>>,
    /// The ReplicaSet to create.
    pub create: Option<ReplicaSet>,
    /// ReplicaSets to change, as they are and as they should be.
    pub update: Vec<(Arc<ReplicaSet>, ReplicaSet)>,
    /// ReplicaSets of old revisions to delete.
    pub delete: Vec<Arc<ReplicaSet>>,
    /// The Deployment with its new status and revision, if they change.
    pub deployment: Option<Deployment>,
    /// The selector is empty, which Kubernetes refuses to act on.
    pub selects_all: bool,
    /// When to look again although nothing changes.
    pub again: Option<Duration>,
}

impl Plan {
    /// Whether ReplicaSets are touched because of what the Deployment says.
    pub fn acts_on_sets(&self) -> bool {
        !self.adopt.is_empty() || self.create.is_some() || !self.update.is_empty() || !self.delete.is_empty()
    }
}

/// The state being worked towards.
pub struct Draft {
    /// The Deployment.
    pub deployment: Deployment,
    /// Its sets, the new one included.
    pub sets: Vec<ReplicaSet>,
    /// Index of the set with the Deployment's template.
    pub new: Option<usize>,
    /// The time of planning.
    pub now: Timestamp,
}

impl Draft {
    /// Indices of the sets of older templates, oldest first.
    pub fn old(&self) -> Vec<usize> {
        let mut old: Vec<usize> = (0..self.sets.len()).filter(|index| Some(*index) != self.new).collect();
        old.sort_by_key(|index| by_age(&self.sets[*index]));
        old
    }

    /// The set with the Deployment's template.
    pub fn new_set(&self) -> Option<&ReplicaSet> {
        self.new.map(|index| &self.sets[index])
    }

    /// Sum of what the sets should have.
    pub fn total(&self) -> i32 {
        self.sets.iter().map(size).sum()
    }

    /// The most pods there may be now: a set that was shrunk may not have deleted its pods yet.
    pub fn most(&self) -> i32 {
        self.sets.iter().map(|set| size(set).max(actual(set))).sum()
    }

    /// Whether every set has acted on its present size, so that [`Draft::most`] can be relied on. Growing waits for that;
    /// Kubernetes does not, and may exceed the surge for a moment.
    pub fn is_settled(&self) -> bool {
        let existing = self.sets.iter().filter(|set| set.metadata.uid.is_some());
        existing.into_iter().all(|set| {
            let observed = set.status.as_ref().and_then(|status| status.observed_generation);
            observed >= set.metadata.generation
        })
    }

    /// Gives a set a size. Tells whether it changed.
    pub fn resize(&mut self, index: usize, replicas: i32) -> bool {
        let set = &mut self.sets[index];
        if size(set) == replicas {
            return false;
        }
        set.spec.get_or_insert_default().replicas = Some(replicas);
        note_size(&self.deployment, set);
        true
    }

    /// Makes the new set, or brings its annotations up to date; and notes the revision on the Deployment.
    fn sync_revision(&mut self, create: bool) {
        let newest = self.old().into_iter().map(|index| revision(&self.sets[index])).max().unwrap_or(0) + 1;
        match self.new {
            Some(index) => {
                let settle = self.deployment.spec.as_ref().and_then(|spec| spec.min_ready_seconds);
                let set = &mut self.sets[index];
                annotate_new(&self.deployment, set, newest);
                set.spec.get_or_insert_default().min_ready_seconds = settle;
                status::found_new(self, index);
            }
            None if create => {
                let mut set = make_new(&self.deployment);
                annotate_new(&self.deployment, &mut set, newest);
                note_size(&self.deployment, &mut set);
                let settled = self.is_settled() || !is_rolling(&self.deployment);
                let replicas = if settled { rolling::new_size(&self.deployment, self.most(), 0) } else { 0 };
                set.spec.get_or_insert_default().replicas = Some(replicas);
                status::created_new(self, name(&set.metadata));
                self.new = Some(self.sets.len());
                self.sets.push(set);
            }
            None => return,
        }
        if let Some(text) = self.new_set().and_then(|set| annotation(&set.metadata, REVISION)).map(str::to_owned) {
            self.deployment.metadata.annotations.get_or_insert_default().insert(REVISION.into(), text);
        }
    }
}

/// Plans for a Deployment. `sets` are the ReplicaSets of its namespace, `pods` those of its sets.
pub fn plan(deployment: &Deployment, sets: &[Arc<ReplicaSet>], pods: &[Arc<Pod>], now: Timestamp) -> Plan {
    let Some(spec) = &deployment.spec else { return Plan::default() };
    if spec.selector == LabelSelector::default() {
        let mut seen = deployment.clone();
        seen.status.get_or_insert_default().observed_generation = deployment.metadata.generation;
        let deployment = (seen != *deployment).then_some(seen);
        return Plan { selects_all: true, deployment, ..Plan::default() };
    }
    let Claims { mine, adopt, release } = claim(deployment, &Matcher::new(&spec.selector), sets);
    let working: Vec<ReplicaSet> = mine.iter().map(|set| set.as_ref().clone()).collect();
    let new = find_new(deployment, &working);
    let mut draft = Draft { deployment: deployment.clone(), sets: working, new, now };
    let doomed = decide(&mut draft, pods);
    finish(deployment, draft, &mine, doomed, Plan { adopt, release, ..Plan::default() })
}

/// Chooses what kind of step this is and takes it. Returns the sets to delete.
fn decide(draft: &mut Draft, pods: &[Arc<Pod>]) -> Vec<usize> {
    let paused = draft.deployment.spec.as_ref().and_then(|spec| spec.paused).unwrap_or(false);
    if draft.deployment.metadata.deletion_timestamp.is_some() {
        draft.sync_revision(false);
        status::refresh(draft);
        return Vec::new();
    }
    status::note_pause(draft, paused);
    if paused || is_scaling(draft) {
        draft.sync_revision(false);
        scale::proportionally(draft);
        status::refresh(draft);
        return if paused { outdated(draft) } else { Vec::new() };
    }
    let settled = if is_rolling(&draft.deployment) { rolling(draft) } else { recreate(draft, pods) };
    let doomed = if settled && status::is_complete(&draft.deployment) { outdated(draft) } else { Vec::new() };
    status::roll_out(draft);
    doomed
}

/// Whether the Deployment was resized since its sets were.
fn is_scaling(draft: &Draft) -> bool {
    let total = desired(&draft.deployment);
    draft.sets.iter().filter(|set| size(set) > 0).any(|set| desired_before(set).is_some_and(|before| before != total))
}

fn rolling(draft: &mut Draft) -> bool {
    draft.sync_revision(true);
    !rolling::grow_new(draft) && !rolling::shrink_old(draft)
}

fn recreate(draft: &mut Draft, pods: &[Arc<Pod>]) -> bool {
    draft.sync_revision(false);
    let mut shrunk = false;
    for index in draft.old() {
        shrunk |= draft.resize(index, 0);
    }
    if shrunk || old_pods_run(draft, pods) {
        return false;
    }
    if draft.new.is_none() {
        draft.sync_revision(true);
    }
    if let Some(index) = draft.new {
        draft.resize(index, desired(&draft.deployment));
    }
    true
}

fn old_pods_run(draft: &Draft, pods: &[Arc<Pod>]) -> bool {
    let old = draft.old();
    let uid_of = |index: &usize| draft.sets[*index].metadata.uid.as_deref();
    let is_old =
        |pod: &Pod| controller_of(&pod.metadata).is_some_and(|o| old.iter().any(|i| uid_of(i) == Some(&o.uid)));
    old.iter().any(|index| actual(&draft.sets[*index]) > 0) || pods.iter().any(|pod| is_old(pod) && !is_terminal(pod))
}

/// Sets beyond the revision history limit that have nothing left.
fn outdated(draft: &Draft) -> Vec<usize> {
    let Some(limit) = draft.deployment.spec.as_ref().and_then(|spec| spec.revision_history_limit) else {
        return Vec::new();
    };
    let alive = |index: &usize| draft.sets[*index].metadata.deletion_timestamp.is_none();
    let mut old: Vec<usize> = draft.old().into_iter().filter(alive).collect();
    old.sort_by_key(|index| (revision(&draft.sets[*index]), by_age(&draft.sets[*index])));
    let excess = old.len().saturating_sub(usize::try_from(limit).unwrap_or(usize::MAX));
    let unused = |index: &usize| {
        let set = &draft.sets[*index];
        let observed = set.status.as_ref().and_then(|status| status.observed_generation);
        size(set) == 0 && actual(set) == 0 && set.metadata.generation <= observed
    };
    old.into_iter().take(excess).filter(unused).collect()
}

/// Reads the plan off the draft.
fn finish(before: &Deployment, draft: Draft, mine: &[Arc<ReplicaSet>], doomed: Vec<usize>, mut plan: Plan) -> Plan {
    plan.again = status::next_check(&draft);
    plan.delete = doomed.iter().filter_map(|index| mine.get(*index).cloned()).collect();
    let mut sets = draft.sets.into_iter();
    for (index, (old, new)) in mine.iter().zip(sets.by_ref()).enumerate() {
        if *old.as_ref() != new && !doomed.contains(&index) {
            plan.update.push((old.clone(), new));
        }
    }
    plan.create = sets.next();
    plan.deployment = (draft.deployment != *before).then_some(draft.deployment);
    plan
}

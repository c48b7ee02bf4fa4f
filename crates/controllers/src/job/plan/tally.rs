//! What a job's pods come to: how many have succeeded and failed, and which indexes.

use std::collections::BTreeSet;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;

use super::{Draft, FAILED, SUCCEEDED, count, some};
use crate::job::indexes::Indexes;
use crate::job::pods::{self, finished_at, has_failed, index_of, is_indexed, is_tracked};
use crate::job::policy::{self, Judgement};
use crate::objects::phase;

impl Draft<'_> {
    /// Uids whose pods have lost their finalizer become numbers.
    pub(super) fn count_untracked(&mut self) {
        let held = self.status.uncounted_terminated_pods.take().unwrap_or_default();
        let tracked: BTreeSet<&str> =
            self.mine.iter().filter(|pod| is_tracked(pod)).filter_map(|pod| pod.metadata.uid.as_deref()).collect();
        let split = |uids: Option<Vec<String>>| -> (Vec<String>, Vec<String>) {
            uids.unwrap_or_default().into_iter().partition(|uid| tracked.contains(uid.as_str()))
        };
        let (succeeded, counted) = split(held.succeeded);
        self.status.succeeded = some(self.status.succeeded.unwrap_or(0) + count(counted.len()));
        let (failed, counted) = split(held.failed);
        self.status.failed = some(self.status.failed.unwrap_or(0) + count(counted.len()));
        self.uncounted = [succeeded, failed];
    }

    fn is_uncounted(&self, pod: &Pod) -> bool {
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        self.uncounted.iter().flatten().any(|held| held == uid)
    }

    /// Whether an end of this pod is news.
    pub(super) fn is_new(&self, pod: &Pod) -> bool {
        is_tracked(pod) && !self.is_uncounted(pod) && (!is_indexed(self.spec) || index_of(pod, self.spec).is_some())
    }

    fn new_ends(&self, ended: impl Fn(&Pod) -> bool) -> i32 {
        count(self.mine.iter().filter(|pod| ended(pod) && self.is_new(pod)).count())
    }

    pub(super) fn tally(&mut self) {
        let counts = |pod: &Pod| has_failed(pod, self.spec) && policy::judge(self.spec, pod) != Judgement::Ignored;
        self.failed = self.status.failed.unwrap_or(0) + count(self.uncounted[FAILED].len()) + self.new_ends(counts);
        if !is_indexed(self.spec) {
            let succeeded = self.status.succeeded.unwrap_or(0) + count(self.uncounted[SUCCEEDED].len());
            self.succeeded = succeeded + self.new_ends(|pod| phase(pod) == "Succeeded");
            return;
        }
        let completions = self.spec.completions.unwrap_or(0);
        let index = |pod: &Arc<Pod>| index_of(pod, self.spec);
        // One that was let go of has been counted: it may have been told to go, as a failure, and succeed all the same.
        let ended_well = |pod: &&Arc<Pod>| phase(pod) == "Succeeded" && is_tracked(pod);
        let succeeded = self.mine.iter().filter(ended_well).filter_map(index).collect();
        let known = self.status.completed_indexes.as_deref().unwrap_or_default();
        self.done = Indexes::parse(known, completions).with(&succeeded);
        self.succeeded = self.done.len();
        if self.spec.backoff_limit_per_index.is_some() {
            self.tally_failures_by_index(completions);
        }
    }

    fn tally_failures_by_index(&mut self, completions: i32) {
        let limit = self.spec.backoff_limit_per_index.unwrap_or(0);
        let given_up = |pod: &&Arc<Pod>| match policy::judge(self.spec, pod) {
            Judgement::FailsIndex => true,
            Judgement::Ignored => false,
            _ => pods::failures_before(pod).0 >= limit,
        };
        let failed: Vec<_> = self.mine.iter().filter(|pod| has_failed(pod, self.spec)).cloned().collect();
        let index = |pod: &Arc<Pod>| index_of(pod, self.spec);
        let new = failed.iter().filter(given_up).filter_map(index).collect();
        let known = self.status.failed_indexes.as_deref().unwrap_or_default();
        self.failed_indexes = Indexes::parse(known, completions).with(&new);
        let active: BTreeSet<i32> = self.active.iter().filter_map(index).collect();
        for pod in failed.iter().filter(|pod| is_tracked(pod)) {
            let Some(index) = index(pod) else { continue };
            if self.done.has(index) || self.failed_indexes.has(index) || active.contains(&index) {
                continue;
            }
            let rank = |pod: &Pod| {
                let (failed, ignored) = pods::failures_before(pod);
                (failed + ignored, finished_at(pod))
            };
            if self.delayed.get(&index).is_none_or(|held| rank(held) <= rank(pod)) {
                self.delayed.insert(index, pod.clone());
            }
        }
    }
}

//! What a Job needs, as a pure function of it and its pods.
//!
//! Every pod is counted exactly once, although the job's status and the pods are separate objects:
//!
//! ```text
//!  pod ends ─► its uid goes into the status as uncounted ─► its finalizer is taken off ─► the uid becomes a number
//! ```
//!
//! After a crash anywhere in between the next look goes on from what is written. The end of a job is told in two steps
//! as well: that it will succeed or fail (pods are stopped from then on), and that it has (every pod is gone or counted).

mod tally;
mod verdict;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::batch::v1::{Job, JobCondition, JobSpec, JobStatus, UncountedTerminatedPods};
use k8s_openapi::api::core::v1::Pod;

use super::indexes::Indexes;
use super::pods::{self, TRACKING, finished_at, has_failed, index_of, is_indexed, is_tracked};
use super::policy::{self, Judgement};
use crate::claim::claim;
use crate::events::Type;
use crate::labels::Matcher;
use crate::objects::{is_active, is_ready, is_terminal, phase, seconds};
use crate::replicaset::rank;
use verdict::Verdict;

/// At most this many pods are created or deleted in one go.
const BURST: usize = 500;
/// At most this many pods wait in the status to be counted.
const UNCOUNTED_MAX: usize = 500;
/// After a failure the next pod waits this long, and twice as long after each further one.
const FIRST_DELAY: SignedDuration = SignedDuration::from_secs(10);
const LONGEST_DELAY: SignedDuration = SignedDuration::from_mins(10);
const OWN_MANAGER: &str = "kubernetes.io/job-controller";

/// Something to tell about the job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// Good or bad.
    pub type_: Type,
    /// One word.
    pub reason: String,
    /// A sentence.
    pub message: String,
}

/// What to do, in this order.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// Orphans to take over.
    pub adopt: Vec<Arc<Pod>>,
    /// Pods to let go.
    pub release: Vec<Arc<Pod>>,
    /// Pods to delete without counting them.
    pub discard: Vec<Arc<Pod>>,
    /// Pods to delete because the job is decided.
    pub stop: Vec<Arc<Pod>>,
    /// Pods to create.
    pub create: Vec<Pod>,
    /// The status to write.
    pub status: JobStatus,
    /// Pods whose finalizer goes once the status is written.
    pub untrack: Vec<Arc<Pod>>,
    /// What to tell once the status is written.
    pub notes: Vec<Note>,
    /// When to look again although nothing happens.
    pub again: Option<Duration>,
}

impl Plan {
    /// Whether pods are adopted, created or deleted because of what the job says.
    pub fn acts_for_job(&self) -> bool {
        !(self.adopt.is_empty() && self.create.is_empty() && self.discard.is_empty() && self.stop.is_empty())
    }
}

/// A condition of a job that is true.
pub fn condition<'a>(job: &'a Job, type_: &str) -> Option<&'a JobCondition> {
    let conditions = job.status.as_ref()?.conditions.as_ref()?;
    conditions.iter().find(|condition| condition.type_ == type_ && condition.status == "True")
}

/// The condition that ended the job.
pub fn ended(job: &Job) -> Option<&JobCondition> {
    condition(job, "Complete").or_else(|| condition(job, "Failed"))
}

struct Draft<'a> {
    job: &'a Job,
    spec: &'a JobSpec,
    now: Timestamp,
    mine: Vec<Arc<Pod>>,
    active: Vec<Arc<Pod>>,
    terminating: i32,
    status: JobStatus,
    uncounted: [Vec<String>; 2],
    succeeded: i32,
    failed: i32,
    done: Indexes,
    failed_indexes: Indexes,
    /// The last failed pod of each index whose next pod is still to be made.
    delayed: BTreeMap<i32, Arc<Pod>>,
    plan: Plan,
}

const SUCCEEDED: usize = 0;
const FAILED: usize = 1;

/// Makes the plan. `pods` are those the job manages and those nobody manages.
pub fn plan(job: &Job, pods: &[Arc<Pod>], now: Timestamp) -> Plan {
    let status = job.status.clone().unwrap_or_default();
    let Some(spec) = job.spec.as_ref().filter(|spec| is_ours(spec)) else {
        return Plan { status, ..Plan::default() };
    };
    let claims = claim(job, &Matcher::optional(spec.selector.as_ref()), pods);
    if ended(job).is_some() {
        let untrack = claims.mine.into_iter().filter(|pod| is_tracked(pod)).collect();
        return Plan { status, untrack, ..Plan::default() };
    }
    let mut draft = Draft::new(job, spec, claims.mine, now);
    draft.plan.adopt = claims.adopt;
    draft.plan.release = claims.release;
    draft.work();
    draft.plan.status = draft.status;
    draft.plan
}

/// Whether this controller is the one that looks after the job.
fn is_ours(spec: &JobSpec) -> bool {
    spec.managed_by.as_deref().is_none_or(|manager| manager == OWN_MANAGER)
}

fn count(number: usize) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}

/// Kubernetes leaves zero counts out.
fn some(number: i32) -> Option<i32> {
    (number != 0).then_some(number)
}

impl<'a> Draft<'a> {
    fn new(job: &'a Job, spec: &'a JobSpec, mine: Vec<Arc<Pod>>, now: Timestamp) -> Self {
        let terminating = |pod: &&Arc<Pod>| pod.metadata.deletion_timestamp.is_some() && !is_terminal(pod);
        let mut draft = Self {
            active: mine.iter().filter(|pod| is_active(pod)).cloned().collect(),
            terminating: count(mine.iter().filter(terminating).count()),
            status: job.status.clone().unwrap_or_default(),
            uncounted: [Vec::new(), Vec::new()],
            succeeded: 0,
            failed: 0,
            done: Indexes::default(),
            failed_indexes: Indexes::default(),
            delayed: BTreeMap::new(),
            plan: Plan::default(),
            job,
            spec,
            now,
            mine,
        };
        draft.count_untracked();
        draft.tally();
        draft
    }

    fn is_suspended(&self) -> bool {
        self.spec.suspend.unwrap_or(false)
    }

    fn work(&mut self) {
        if self.status.start_time.is_none() && !self.is_suspended() {
            self.status.start_time = Some(seconds(self.now));
        }
        let going = self.job.metadata.deletion_timestamp.is_some();
        let verdict = if going { None } else { self.verdict() };
        if verdict.is_some() {
            self.plan.stop.clone_from(&self.active);
        } else if !going {
            self.note_suspension();
            self.manage();
        }
        // A verdict takes effect once no pod runs any more.
        let verdict = verdict.filter(|_| self.active.is_empty());
        self.track(verdict.as_ref());
        self.report();
        if let Some(verdict) = verdict {
            self.close(&verdict);
        }
    }

    fn look_again(&mut self, after: SignedDuration) {
        let after = Duration::try_from(after).unwrap_or_default() + Duration::from_millis(1);
        self.plan.again = Some(self.plan.again.map_or(after, |sooner| sooner.min(after)));
    }

    /// Sets a condition; tells whether that changed anything. What was never true need not be said to be false.
    fn set(&mut self, type_: &str, status: &str, reason: &str, message: &str) -> bool {
        let conditions = self.status.conditions.get_or_insert_default();
        let held = conditions.iter().position(|condition| condition.type_ == type_);
        let same = held.is_some_and(|at| {
            let held = &conditions[at];
            held.status == status && held.reason.as_deref() == Some(reason) && held.message.as_deref() == Some(message)
        });
        let changes = !same && (held.is_some() || status == "True");
        if changes {
            let new = JobCondition {
                type_: type_.into(),
                status: status.into(),
                reason: Some(reason.into()),
                message: Some(message.into()),
                last_probe_time: Some(seconds(self.now)),
                last_transition_time: Some(seconds(self.now)),
            };
            match held {
                Some(at) => conditions[at] = new,
                None => conditions.push(new),
            }
        } else if conditions.is_empty() {
            self.status.conditions = None;
        }
        changes
    }

    fn note_suspension(&mut self) {
        let (status, reason, message) = if self.is_suspended() {
            ("True", "JobSuspended", "Job suspended")
        } else {
            ("False", "JobResumed", "Job resumed")
        };
        if self.set("Suspended", status, reason, message) {
            self.note(Type::Normal, if self.is_suspended() { "Suspended" } else { "Resumed" }, message);
            if !self.is_suspended() {
                self.status.start_time = Some(seconds(self.now));
            }
        }
    }

    fn note(&mut self, type_: Type, reason: &str, message: &str) {
        self.plan.notes.push(Note { type_, reason: reason.into(), message: message.into() });
    }

    /// How many pods should run now.
    fn wanted(&self) -> i32 {
        let parallelism = self.spec.parallelism.unwrap_or(1);
        match self.spec.completions {
            _ if self.is_suspended() => 0,
            None if self.succeeded > 0 => count(self.active.len()),
            None => parallelism,
            Some(completions) => (completions - self.succeeded).min(parallelism).max(0),
        }
    }

    fn manage(&mut self) {
        let wanted = self.wanted();
        let running = count(self.active.len());
        let mut discard = self.superfluous(usize::try_from(running - wanted).unwrap_or(0));
        discard.truncate(BURST);
        if !discard.is_empty() {
            self.plan.discard = discard;
            return;
        }
        let held = if pods::waits_for_failure(self.spec) { self.terminating } else { 0 };
        let lacking = usize::try_from(wanted - running - held).unwrap_or(0).min(BURST);
        if lacking == 0 || self.is_suspended() {
            return;
        }
        if self.spec.backoff_limit_per_index.is_none() {
            let wait = self.delay_after_failures();
            if wait > SignedDuration::ZERO {
                return self.look_again(wait);
            }
        }
        self.plan.create = if is_indexed(self.spec) {
            let ready = self.indexes_to_start(lacking);
            ready
                .iter()
                .map(|index| pods::new(self.job, self.spec, Some(*index), self.delayed.get(index).map(|p| &**p)))
                .collect()
        } else {
            vec![pods::new(self.job, self.spec, None, None); lacking]
        };
    }

    /// Active pods to remove: `least` of them, and every one whose index is invalid or taken.
    fn superfluous(&self, least: usize) -> Vec<Arc<Pod>> {
        let (mut remove, mut left) = (Vec::new(), Vec::new());
        if is_indexed(self.spec) {
            let mut by_index: BTreeMap<i32, Vec<Arc<Pod>>> = BTreeMap::new();
            for pod in &self.active {
                match index_of(pod, self.spec) {
                    Some(index) => by_index.entry(index).or_default().push(pod.clone()),
                    None => remove.push(pod.clone()),
                }
            }
            for same in by_index.values() {
                let twins = rank::victims(same, &[], same.len() - 1, self.now);
                left.extend(same.iter().filter(|pod| !twins.iter().any(|twin| Arc::ptr_eq(twin, pod))).cloned());
                remove.extend(twins);
            }
        } else {
            left.clone_from(&self.active);
        }
        let more = least.saturating_sub(remove.len());
        remove.extend(rank::victims(&left, &[], more, self.now));
        remove
    }

    /// How long the next pod has to wait because the last ones failed.
    fn delay_after_failures(&self) -> SignedDuration {
        let mut ends: Vec<(Option<Timestamp>, bool)> = Vec::new();
        for pod in &self.mine {
            if phase(pod) == "Succeeded" {
                ends.push((finished_at(pod), false));
            } else if has_failed(pod, self.spec) {
                ends.push((finished_at(pod), true));
            }
        }
        ends.sort_unstable();
        let failures = ends.iter().rev().take_while(|(_, failed)| *failed).count();
        match ends.last() {
            Some((Some(last), true)) => delay(count(failures)) - self.now.duration_since(*last),
            _ => SignedDuration::ZERO,
        }
    }

    fn indexes_to_start(&mut self, most: usize) -> Vec<i32> {
        let index = |pod: &Arc<Pod>| index_of(pod, self.spec);
        let mut taken: BTreeSet<i32> = self.active.iter().filter_map(index).collect();
        if pods::waits_for_failure(self.spec) {
            let going = self.mine.iter().filter(|p| p.metadata.deletion_timestamp.is_some() && !is_terminal(p));
            taken.extend(going.filter_map(index));
        }
        let free = |index: &i32| !taken.contains(index) && !self.done.has(*index) && !self.failed_indexes.has(*index);
        let pending: Vec<i32> = (0..self.spec.completions.unwrap_or(0)).filter(free).take(most).collect();
        let (mut ready, mut soonest) = (Vec::new(), None::<SignedDuration>);
        for index in pending {
            let wait = self.delayed.get(&index).map_or(SignedDuration::ZERO, |pod| {
                let (failed, ignored) = pods::failures_before(pod);
                let since = finished_at(pod).map_or(LONGEST_DELAY, |end| self.now.duration_since(end));
                delay(failed + ignored + 1) - since
            });
            if wait > SignedDuration::ZERO {
                soonest = Some(soonest.map_or(wait, |sooner| sooner.min(wait)));
            } else {
                ready.push(index);
            }
        }
        if let Some(wait) = soonest {
            self.look_again(wait);
        }
        ready
    }

    /// Takes down the uids of pods that have ended, and lets go of those pods.
    fn track(&mut self, verdict: Option<&Verdict>) {
        let going = self.job.metadata.deletion_timestamp.is_some();
        let failing = verdict.is_some_and(|verdict| !verdict.success);
        let mut tracked: Vec<_> = self.mine.iter().filter(|pod| is_tracked(pod)).cloned().collect();
        tracked.sort_by_key(|pod| index_of(pod, self.spec));
        let mut news = self.uncounted.iter().map(Vec::len).sum::<usize>();
        for pod in tracked {
            if news >= UNCOUNTED_MAX {
                break;
            }
            let succeeded = phase(&pod) == "Succeeded";
            // Pods that are stopped because enough have succeeded did not fail.
            let stopped = verdict.is_some_and(|verdict| verdict.success) && phase(&pod) != "Failed";
            let failed = !succeeded && !stopped && (has_failed(&pod, self.spec) || failing);
            let kept = index_of(&pod, self.spec).and_then(|index| self.delayed.get(&index));
            let kept = verdict.is_none() && kept.is_some_and(|kept| kept.metadata.uid == pod.metadata.uid);
            if !(going || verdict.is_some() || succeeded || failed && !kept) {
                continue;
            }
            if self.is_new(&pod) {
                let uid = pod.metadata.uid.clone().unwrap_or_default();
                if succeeded && !is_indexed(self.spec) {
                    self.uncounted[SUCCEEDED].push(uid);
                    news += 1;
                } else if failed && policy::judge(self.spec, &pod) != Judgement::Ignored {
                    self.uncounted[FAILED].push(uid);
                    news += 1;
                }
            }
            self.plan.untrack.push(pod);
        }
    }

    fn report(&mut self) {
        let [succeeded, failed] = &self.uncounted;
        let list = |uids: &Vec<String>| (!uids.is_empty()).then(|| uids.clone());
        let waiting = UncountedTerminatedPods { succeeded: list(succeeded), failed: list(failed) };
        self.status.uncounted_terminated_pods = Some(waiting);
        let ready = count(self.active.iter().filter(|pod| is_ready(pod)).count());
        self.status.active = some(count(self.active.len()));
        self.status.ready = Some(ready);
        self.status.terminating = Some(self.terminating);
        if is_indexed(self.spec) {
            self.status.succeeded = some(self.done.len());
            self.status.completed_indexes = (!self.done.is_empty()).then(|| self.done.to_string());
            if self.spec.backoff_limit_per_index.is_some() {
                self.status.failed_indexes = Some(self.failed_indexes.to_string());
            }
        }
    }

    /// Announces the end, and closes the job once every pod is counted and gone.
    fn close(&mut self, verdict: &Verdict) {
        let (announced, closed) = verdict.types();
        self.set(announced, "True", &verdict.reason, &verdict.message);
        let waiting = self.uncounted.iter().any(|uids| !uids.is_empty()) || !self.plan.untrack.is_empty();
        if waiting || self.terminating > 0 {
            return;
        }
        self.set(closed, "True", &verdict.reason, &verdict.message);
        if !verdict.success {
            self.note(Type::Warning, &verdict.reason, &verdict.message);
            return;
        }
        self.status.completion_time = Some(seconds(self.now));
        if self.spec.completions.is_some_and(|completions| self.succeeded > completions) {
            self.note(
                Type::Warning,
                "TooManySucceededPods",
                "Too many succeeded pods running after completion count reached",
            );
        }
        self.note(Type::Normal, "Completed", "Job completed");
    }
}

/// The delay after this many failures in a row.
fn delay(failures: i32) -> SignedDuration {
    let doublings = u32::try_from(failures - 1).unwrap_or(0).min(10);
    (FIRST_DELAY * 2_i32.pow(doublings)).min(LONGEST_DELAY)
}

/// Whether a pod without a job to count it is still held back for being counted.
pub fn is_forgotten(pod: &Pod, job: Option<&Job>) -> bool {
    let finalizer = pod.metadata.finalizers.iter().flatten().any(|held| held == TRACKING);
    finalizer && job.is_none_or(|job| ended(job).is_some())
}

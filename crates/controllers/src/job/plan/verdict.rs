//! Whether a job will succeed or fail, and why.

use jiff::SignedDuration;
use k8s_openapi::api::batch::v1::JobCondition;

use super::{Draft, condition};
use crate::job::pods::{has_failed, is_indexed};
use crate::job::policy::{self, Judgement};
use crate::objects::phase;

/// How the job will end.
#[derive(Clone, Debug)]
pub(super) struct Verdict {
    pub(super) success: bool,
    pub(super) reason: String,
    pub(super) message: String,
}

impl Verdict {
    fn failure(reason: &str, message: &str) -> Self {
        Self { success: false, reason: reason.into(), message: message.into() }
    }

    fn of(condition: &JobCondition, success: bool) -> Self {
        let text = |value: &Option<String>| value.clone().unwrap_or_default();
        Self { success, reason: text(&condition.reason), message: text(&condition.message) }
    }

    /// The condition that announces it, and the one that closes the job.
    pub(super) fn types(&self) -> (&'static str, &'static str) {
        if self.success { ("SuccessCriteriaMet", "Complete") } else { ("FailureTarget", "Failed") }
    }
}

impl Draft<'_> {
    pub(super) fn verdict(&mut self) -> Option<Verdict> {
        if let Some(met) = condition(self.job, "SuccessCriteriaMet") {
            return Some(Verdict::of(met, true));
        }
        if let Some(failed) = condition(self.job, "FailureTarget") {
            return Some(Verdict::of(failed, false));
        }
        self.failure().or_else(|| self.success())
    }

    fn failure(&mut self) -> Option<Verdict> {
        let failed = self.mine.iter().filter(|pod| has_failed(pod, self.spec));
        let fatal = failed.map(|pod| policy::judge(self.spec, pod));
        if let Some(message) = fatal.filter_map(|j| if let Judgement::FailsJob(m) = j { Some(m) } else { None }).next()
        {
            return Some(Verdict::failure("PodFailurePolicy", &message));
        }
        if self.failed > self.spec.backoff_limit.unwrap_or(6) || self.restarted_too_often() {
            return Some(Verdict::failure("BackoffLimitExceeded", "Job has reached the specified backoff limit"));
        }
        if self.is_past_deadline() {
            return Some(Verdict::failure("DeadlineExceeded", "Job was active longer than specified deadline"));
        }
        self.failure_by_index()
    }

    fn failure_by_index(&self) -> Option<Verdict> {
        let failed = self.failed_indexes.len();
        if self.spec.max_failed_indexes.is_some_and(|most| failed > most) {
            let message = "Job has exceeded the specified maximal number of failed indexes";
            return Some(Verdict::failure("MaxFailedIndexesExceeded", message));
        }
        let all = failed + self.done.len() >= self.spec.completions.unwrap_or(0);
        (failed > 0 && all).then(|| Verdict::failure("FailedIndexes", "Job has failed indexes"))
    }

    /// Containers that are restarted in place count against the limit, too.
    fn restarted_too_often(&self) -> bool {
        if self.spec.template.spec.as_ref().and_then(|spec| spec.restart_policy.as_deref()) != Some("OnFailure") {
            return false;
        }
        let waiting = self.mine.iter().filter(|pod| matches!(phase(pod), "Running" | "Pending"));
        let statuses = waiting
            .filter_map(|pod| pod.status.as_ref())
            .flat_map(|status| status.init_container_statuses.iter().chain(&status.container_statuses).flatten());
        let restarts: i32 = statuses.map(|container| container.restart_count).sum();
        restarts >= self.spec.backoff_limit.unwrap_or(6).max(1)
    }

    fn is_past_deadline(&mut self) -> bool {
        let Some(deadline) = self.spec.active_deadline_seconds.filter(|_| !self.is_suspended()) else { return false };
        let Some(start) = self.status.start_time.as_ref() else { return false };
        let left = SignedDuration::from_secs(deadline) - self.now.duration_since(start.0);
        if left > SignedDuration::ZERO {
            self.look_again(left);
        }
        left <= SignedDuration::ZERO
    }

    fn success(&self) -> Option<Verdict> {
        if let Some(message) = policy::succeeded(self.spec, &self.done).filter(|_| is_indexed(self.spec)) {
            return Some(Verdict { success: true, reason: "SuccessPolicy".into(), message });
        }
        let enough = match self.spec.completions {
            Some(completions) => self.succeeded >= completions,
            None => self.succeeded > 0,
        };
        (enough && self.active.is_empty()).then(|| Verdict {
            success: true,
            reason: "CompletionsReached".into(),
            message: "Reached expected number of succeeded pods".into(),
        })
    }
}

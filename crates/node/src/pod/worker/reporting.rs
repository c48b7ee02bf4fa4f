//! What the worker tells: to the node's other parts at once, to the API server as a status; and what it looks at again.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::PodStatus;
use tokio::time::Instant;

use super::super::handle::Message;
use super::super::model::SandboxView;
use super::super::{report, sandbox, status};
use super::{FIRST_REPORT, REFRESH, Worker};
use crate::events::Kind;

impl Worker {
    pub(super) fn publish(&self) {
        let ips = match &self.sandbox {
            SandboxView::Ready { ips } if !ips.is_empty() => ips,
            _ => &self.ctx.host.ips,
        };
        self.shared.send_if_modified(|shared| {
            let same = Arc::ptr_eq(&shared.pod, &self.pod)
                && shared.pid == self.pid
                && shared.ips == *ips
                && shared.containers == self.containers;
            if !same {
                shared.pod = self.pod.clone();
                shared.pid = self.pid;
                shared.ips.clone_from(ips);
                shared.containers.clone_from(&self.containers);
            }
            !same
        });
    }

    pub(super) fn report(&mut self) {
        if self.reporting || self.gone || self.confirming {
            return;
        }
        if self.report_failed_until.is_some_and(|at| at > Instant::now()) {
            return;
        }
        (self.report_failed_until, self.report_at) = (None, None);
        let status = status::build(&self.view(), &self.ctx.host);
        if self.reported.as_ref() == Some(&status) {
            return;
        }
        if status["phase"] == "Pending" && self.born.elapsed() < FIRST_REPORT && report::is_plain(&status) {
            self.report_at = Some(self.born + FIRST_REPORT);
            return;
        }
        self.reporting = true;
        let (client, pod, tell) = (self.ctx.client.clone(), self.pod.clone(), self.tell.clone());
        tokio::spawn(async move {
            let outcome = report::write(client, &pod, status).await;
            let _ = tell.send(Message::Reported(outcome));
        });
    }

    pub(super) fn reported(&mut self, outcome: report::Outcome) {
        self.reporting = false;
        match outcome {
            report::Outcome::Written(status) => {
                // Times of conditions are compared with what is known: until the API's answer comes round, that is this.
                if let Ok(own) = serde_json::from_value::<PodStatus>((*status).clone()) {
                    report::take_over(Arc::make_mut(&mut self.pod), own);
                }
                self.reported = Some(*status);
            }
            report::Outcome::Gone => {}
            report::Outcome::Failed => self.report_failed_until = Some(Instant::now() + Duration::from_secs(1)),
        }
    }

    /// Fills the volumes again when it is time.
    pub(super) fn refresh(&mut self) {
        if self.refresh_at.is_none_or(|at| at > Instant::now()) {
            return;
        }
        let SandboxView::Ready { ips } = &self.sandbox else { return };
        self.refresh_at = Some(Instant::now() + REFRESH);
        let (ctx, pod, dir, ips) = (self.ctx.clone(), self.pod.clone(), self.dir.clone(), ips.clone());
        let (tokens, pid) = (self.tokens.clone(), self.pid);
        tokio::spawn(async move {
            if let Err(reason) = sandbox::refresh(&ctx, &pod, &dir, pid, &tokens, &ips).await {
                ctx.events.pod(&pod, None, Kind::Warning, "FailedMount", reason);
            }
        });
    }

    pub(super) fn confirm(&mut self) -> bool {
        if self.confirming || self.reporting || self.retry_at.is_some_and(|at| at > Instant::now()) {
            return false;
        }
        self.retry_at = None;
        self.confirming = true;
        let status = status::build(&self.view(), &self.ctx.host);
        let news = (self.reported.as_ref() != Some(&status)).then_some(status);
        let (client, pod, tell) = (self.ctx.client.clone(), self.pod.clone(), self.tell.clone());
        tokio::spawn(async move {
            if let Some(status) = news {
                report::write(client.clone(), &pod, status).await;
            }
            let _ = tell.send(Message::Confirmed(report::confirm(client, &pod).await));
        });
        false
    }
}

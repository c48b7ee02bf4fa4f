//! The worker's part in a resize: asking the node for what the spec wants, and giving running containers what was promised.

use std::time::Duration;

use serde_json::json;
use tokio::time::Instant;

use super::super::disk;
use super::super::handle::Message;
use super::super::model::{Unhealthy, describe, find_container};
use super::super::resize::{self, Amounts, Change};
use super::{SandboxView, Worker};
use crate::events::Kind;

/// What was refused for want of room is asked for again after this time.
const ASK_AGAIN: Duration = Duration::from_secs(1);
/// What could not be written is tried again after this time.
const TRY_AGAIN: Duration = Duration::from_secs(5);

impl Worker {
    /// What the pod has at its start: what its running containers were given, or what it wants.
    pub(super) fn allocate(&mut self) {
        let Some(spec) = &self.pod.spec else { return };
        let mut allocated = resize::wanted(spec);
        for (name, view) in &self.containers {
            let has =
                view.current.as_ref().filter(|run| run.exit().is_none()).and_then(|run| run.record.resources.as_ref());
            if let (Some(slot), Some(has)) = (allocated.get_mut(name), has) {
                *slot = has.clone();
            }
        }
        self.resizing.allocated = allocated;
        let held = resize::need(&resize::with(&self.pod, &self.resizing.allocated));
        self.ctx.ledger.set(&self.uid, held);
    }

    /// Asks for what the spec wants, and sees to it that containers get what was promised.
    pub(super) fn resize(&mut self) {
        if self.resize_at.is_some_and(|at| at > Instant::now()) {
            return;
        }
        self.resize_at = None;
        let Some(spec) = &self.pod.spec else { return };
        let wanted = resize::wanted(spec);
        if wanted == self.resizing.allocated {
            self.resizing.refused = None;
        } else {
            match self.ctx.ledger.ask(&self.uid, resize::need(&self.pod), self.ctx.offers()) {
                Ok(()) => {
                    self.resizing = resize::Resizing { allocated: wanted, ..resize::Resizing::default() };
                    self.tell_of_resize(Kind::Normal, "ResizeStarted", "Pod resize started");
                }
                Err(refusal) => self.refused(refusal),
            }
        }
        self.actuate();
    }

    fn refused(&mut self, refusal: resize::Refusal) {
        if matches!(refusal, resize::Refusal::Deferred(_)) {
            self.resize_at = Some(Instant::now() + ASK_AGAIN);
        }
        if self.resizing.refused.as_ref() == Some(&refusal) {
            return;
        }
        let (reason, message) = refusal.condition();
        let (reason, text) = match reason {
            "Deferred" => ("ResizeDeferred", format!("Pod resize Deferred: {message}")),
            _ => ("ResizeInfeasible", format!("Pod resize Infeasible: {message}")),
        };
        self.event(None, Kind::Warning, reason, text);
        self.resizing.refused = Some(refusal);
    }

    fn tell_of_resize(&self, kind: Kind, reason: &'static str, start: &str) {
        let containers: Vec<_> = self
            .pod
            .spec
            .iter()
            .flat_map(|s| &s.containers)
            .map(|container| json!({"name": container.name, "resources": container.resources}))
            .collect();
        let about = json!({"containers": containers, "generation": self.pod.metadata.generation});
        self.event(None, kind, reason, format!("{start}: {about}"));
    }

    fn actuate(&mut self) {
        if self.writing_limits || !matches!(self.sandbox, SandboxView::Ready { .. }) {
            return;
        }
        let Some(spec) = &self.pod.spec else { return };
        let (mut changes, mut restarts) = (Vec::new(), Vec::new());
        for (name, has, gets) in resize::unequal(&self.containers, &self.resizing.allocated) {
            let Some(view) = self.containers.get(name).filter(|view| view.busy.is_none()) else { continue };
            let (Some((mut container, _)), Some(run)) = (find_container(spec, name), &view.current) else { continue };
            if resize::needs_restart(&container, has, gets) {
                restarts.push(name.to_owned());
                continue;
            }
            gets.set(&mut container);
            changes.push(Change { name: name.to_owned(), run: run.record.id.clone(), gets: gets.clone(), container });
        }
        for name in restarts {
            self.restart_for_resize(&name);
        }
        if !changes.is_empty() {
            self.write_limits(changes);
        }
    }

    fn restart_for_resize(&mut self, name: &str) {
        let dir = self.dir.clone();
        let Some(view) = self.containers.get_mut(name).filter(|view| view.unhealthy.is_none()) else { return };
        let Some(run) = &mut view.current else { return };
        run.record.resized = true;
        if let Err(error) = disk::save(&dir, &run.record) {
            tracing::warn!(%error, name, "cannot note that a container restarts for a resize");
        }
        let message = format!("Container {name} resize requires restart");
        view.unhealthy = Some(Unhealthy { message, grace_secs: None });
    }

    fn write_limits(&mut self, changes: Vec<Change>) {
        let had = self.resizing.allocated.iter().map(|(name, gets)| {
            let has = self.containers.get(name).and_then(|v| v.current.as_ref()?.record.resources.clone());
            (name.clone(), has.unwrap_or_else(|| gets.clone()))
        });
        let before = resize::with(&self.pod, &had.collect());
        let after = resize::with(&self.pod, &self.resizing.allocated);
        let group = self.cgroup.clone();
        let tell = self.tell.clone();
        self.writing_limits = true;
        tokio::task::spawn_blocking(move || {
            let (Some(before), Some(after)) = (&before.spec, &after.spec) else { return };
            let (done, result) = resize::apply(&group, before, after, changes);
            let done = done.into_iter().map(|change| (change.name, change.run, change.gets)).collect();
            let _ = tell.send(Message::Resized(done, result));
        });
    }

    /// Notes what containers have now.
    pub(super) fn resized(&mut self, done: Vec<(String, String, Amounts)>, result: Result<(), String>) {
        self.writing_limits = false;
        for (name, id, gets) in done {
            let run = self.containers.get_mut(&name).and_then(|view| view.current.as_mut());
            let Some(run) = run.filter(|run| run.record.id == id) else { continue };
            run.record.resources = Some(gets);
            if let Err(error) = disk::save(&self.dir, &run.record) {
                tracing::warn!(%error, name, "cannot note what a container may use");
            }
        }
        match result {
            Ok(()) => {
                self.resizing.failed = None;
                if resize::unequal(&self.containers, &self.resizing.allocated).is_empty() {
                    self.tell_of_resize(Kind::Normal, "ResizeCompleted", "Pod resize completed");
                }
            }
            Err(text) => {
                if self.resizing.failed.as_ref() != Some(&text) {
                    tracing::info!(pod = describe(&self.pod), text, "a resize cannot be carried out yet");
                    self.event(None, Kind::Warning, "ResizeError", format!("Pod resize error: {text}"));
                }
                self.resizing.failed = Some(text);
                self.resize_at = Some(Instant::now() + TRY_AGAIN);
            }
        }
    }
}

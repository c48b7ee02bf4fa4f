//! A pod's worker from outside: what it is told, and what it lets others know.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;

use super::model::{Record, View, all_containers};
use super::probe::{ProbeKind, Told};
use super::report;
use super::resize::Amounts;
use super::sandbox::{SandboxError, Up};
use super::start::StartError;
use crate::shim::protocol::Snapshot;
use crate::volumes::ObjectKind;

/// What a worker is told.
pub enum Message {
    /// The pod as the API has it now.
    Pod(Arc<Pod>),
    /// The API has it no longer.
    Gone,
    /// A config map or secret has changed.
    Changed(ObjectKind, String),
    /// The shim's state.
    Snapshot(Snapshot),
    /// The shim is gone.
    ShimLost(i32),
    /// The sandbox is up, or not.
    Sandbox(Box<Result<Up, SandboxError>>),
    /// The sandbox is removed, or not.
    SandboxStopped(Result<(), String>),
    /// A run is about to be made.
    Made(Record),
    /// A run has been started, or not.
    Started(String, Result<Record, StartError>),
    /// The hook after a start has ended.
    Hooked(String, Result<(), String>),
    /// A run that an earlier engine had not finished making came to nothing: its name and id.
    Unmade(String, String),
    /// A container's stop has done all it could.
    Stopped(String),
    /// A probe has something to tell about a run.
    Probe(String, String, ProbeKind, Told),
    /// The pod goes for the sake of others.
    Evict {
        /// Why, for its status.
        message: String,
        /// Seconds it gets to end by itself.
        grace_secs: i64,
    },
    /// The limits of running containers were written: names, runs and what they have; and whether all went well.
    Resized(Vec<(String, String, Amounts)>, Result<(), String>),
    /// The status is written, or not.
    Reported(report::Outcome),
    /// The API has confirmed the deletion, or not.
    Confirmed(bool),
}

/// What others may know of a pod: for logs, exec and the like.
#[derive(Clone, Debug, Default)]
pub struct Shared {
    /// The pod as the API has it.
    pub pod: Arc<Pod>,
    /// The shim's process id, while it lives.
    pub pid: i32,
    /// The pod's addresses.
    pub ips: Vec<String>,
    /// Its containers.
    pub containers: BTreeMap<String, View>,
}

/// A running worker, from outside.
#[derive(Clone)]
pub struct Handle {
    /// To tell it things.
    pub tell: mpsc::UnboundedSender<Message>,
    /// What it lets others know.
    pub shared: watch::Receiver<Shared>,
    /// The pod's folder.
    pub dir: PathBuf,
    pub(super) task: AbortHandle,
}

impl Handle {
    /// Ends the worker; the pod runs on.
    pub fn abandon(&self) {
        self.task.abort();
    }
}

/// Every image that some container of the pod uses.
pub fn images_of(shared: &Shared) -> Vec<String> {
    let spec = shared.pod.spec.as_ref();
    let added = spec.into_iter().flat_map(|s| s.ephemeral_containers.iter().flatten()).filter_map(|c| c.image.clone());
    let wanted = spec.into_iter().flat_map(all_containers).filter_map(|c| c.image.clone()).chain(added);
    let used =
        shared.containers.values().flat_map(|v| v.current.iter().chain(&v.previous)).map(|r| r.record.image_id.clone());
    wanted.chain(used).collect()
}

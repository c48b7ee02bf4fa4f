//! No container runs before the policies that select its pod hold.
//!
//! A pod is connected before its containers start. Who connects it waits here until the rules in force know it, which
//! costs nothing in a cluster without policies.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::sync::watch;

use crate::cluster::Cluster;

/// Longest wait: after that, something is wrong that a pod that never starts would not make better.
const WAIT_MAX: Duration = Duration::from_secs(5);

/// Which pods the rules in force know.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Guard {
    /// Nobody follows the cluster.
    #[default]
    Off,
    /// The cluster is not known yet.
    Learning,
    /// There are no policies.
    Open,
    /// These, by uid.
    Knows(BTreeSet<String>),
}

impl Guard {
    /// Once the rules of this cluster are in force.
    pub(crate) fn of(cluster: &Cluster) -> Self {
        if cluster.policies.is_empty() {
            return Self::Open;
        }
        let known = cluster.pods.values().filter(|pod| pod.ip.is_some());
        Self::Knows(known.map(|pod| pod.uid.clone()).collect())
    }

    /// Whether a pod that was just connected is still unknown to the rules.
    pub(crate) fn is_open_to(&self, uid: &str) -> bool {
        match self {
            Self::Off | Self::Open => false,
            Self::Learning => true,
            Self::Knows(uids) => !uids.contains(uid),
        }
    }
}

/// Waits until the rules in force know a pod.
pub(crate) async fn wait(guard: &watch::Sender<Guard>, uid: &str) {
    let mut guard = guard.subscribe();
    let known = guard.wait_for(|guard| !guard.is_open_to(uid));
    if tokio::time::timeout(WAIT_MAX, known).await.is_err() {
        tracing::warn!(uid, "a pod starts although the network policies that may select it are not in force yet");
    }
}

/// The time in which somebody follows the cluster.
pub(crate) struct Guarding<'a>(&'a watch::Sender<Guard>);

impl<'a> Guarding<'a> {
    /// Until the value is dropped.
    pub(crate) fn begin(guard: &'a watch::Sender<Guard>) -> Self {
        guard.send_replace(Guard::Learning);
        Self(guard)
    }
}

impl Drop for Guarding<'_> {
    fn drop(&mut self) {
        self.0.send_replace(Guard::Off);
    }
}

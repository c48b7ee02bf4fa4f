//! What the node needs of a pod network.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::PodSpec;

/// A pod network.
pub trait PodNetwork: Send + Sync + 'static {
    /// Connects the network namespace at `namespace`; returns the pod's addresses.
    fn attach<'a>(&'a self, uid: &'a str, namespace: &'a Path) -> BoxFuture<'a, Result<Vec<String>, String>>;

    /// Takes the pod off. Fine when it is not there.
    fn detach<'a>(&'a self, uid: &'a str) -> BoxFuture<'a, Result<(), String>>;

    /// The network namespace that is the node's own network; none where that is the one this process is in.
    fn namespace(&self) -> Option<Arc<OwnedFd>> {
        None
    }

    /// The pod's `/etc/resolv.conf`.
    fn resolv_conf(&self, namespace: &str, spec: &PodSpec) -> String;
}

/// No network but the loopback interface: for tests, and for machines whose pods all use the machine's network.
pub struct NoNetwork;

impl PodNetwork for NoNetwork {
    fn attach<'a>(&'a self, _uid: &'a str, _namespace: &'a Path) -> BoxFuture<'a, Result<Vec<String>, String>> {
        Box::pin(async { Ok(vec!["127.0.0.1".to_owned()]) })
    }

    fn detach<'a>(&'a self, _uid: &'a str) -> BoxFuture<'a, Result<(), String>> {
        Box::pin(async { Ok(()) })
    }

    fn resolv_conf(&self, _namespace: &str, _spec: &PodSpec) -> String {
        std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default()
    }
}

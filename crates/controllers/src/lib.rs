//! Scheduler and built-in controllers: pure plans and the thin shells that carry them out.
//!
//! Every controller looks at shared, watched copies of the API's objects ([`cache`]), works out what to do in a pure
//! function of what it sees and the time, and does it through the API ([`write`]). None knows whether the API server is
//! in the same process.

pub mod aggregation;
pub mod autoscaler;
pub mod cache;
pub mod certificates;
pub mod children;
mod claim;
mod context;
pub mod cronjob;
pub mod daemonset;
pub mod deployment;
pub mod discovery;
pub mod disruption;
pub mod endpoints;
pub mod events;
pub mod garbage;
pub mod history;
pub mod job;
pub mod labels;
pub mod namespace;
pub mod node_lifecycle;
pub mod objects;
pub mod pod_gc;
pub mod queue;
pub mod replicaset;
pub mod scheduler;
pub mod service_account;
pub mod statefulset;
pub mod stream;
pub mod volumes;
pub mod write;

use std::time::Duration;

use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::ReplicationController;
use kube::Client;
use mycelium_api::env::Env;
use tokio::task::JoinSet;

pub use context::{Caches, Context};

/// Settings of the controllers.
#[derive(Clone, Debug)]
pub struct Options {
    /// Certificate of the cluster's authority (PEM), published in every namespace; none publishes nothing.
    pub root_ca: Option<String>,
    /// Signs what approved CertificateSigningRequests ask for; none leaves them to others.
    pub signer: Option<certificates::Signer>,
    /// A node that is not heard of for so long is taken for lost.
    pub node_grace: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self { root_ca: None, signer: None, node_grace: node_lifecycle::plan::GRACE }
    }
}

/// Runs the scheduler and every controller until the future is dropped, which stops them all.
pub async fn run(client: Client, env: Env, options: Options) {
    let mut tasks = JoinSet::new();
    let (events, recording) = events::Events::new(client.clone(), env.clone());
    tasks.spawn(recording);
    let caches = Caches::default();
    let writer = write::Writer::new(client.clone(), write::MANAGER);
    let context = Context { caches, writer, env, events };
    tasks.spawn(scheduler::start(&context));
    tasks.spawn(replicaset::start::<ReplicaSet>(&context));
    tasks.spawn(replicaset::start::<ReplicationController>(&context));
    tasks.spawn(statefulset::start(&context));
    tasks.spawn(daemonset::start(&context));
    tasks.spawn(job::start(&context));
    tasks.spawn(cronjob::start(&context));
    tasks.spawn(disruption::start(&context));
    tasks.spawn(autoscaler::start(&context));
    tasks.spawn(deployment::start(&context));
    tasks.spawn(endpoints::start(&context));
    tasks.spawn(endpoints::mirror::start(&context));
    tasks.spawn(namespace::start(&context));
    tasks.spawn(garbage::start(&context));
    if let Some(signer) = options.signer {
        tasks.spawn(certificates::start(&context, signer));
    }
    tasks.spawn(service_account::start(&context, options.root_ca));
    tasks.spawn(node_lifecycle::start(&context, options.node_grace));
    tasks.spawn(pod_gc::start(&context));
    tasks.spawn(volumes::start(&context));
    tasks.spawn(aggregation::start(&context));
    tasks.spawn(volumes::ephemeral::start(&context));
    context.caches.start(&client, &mut tasks);
    while let Some(ended) = tasks.join_next().await {
        if let Err(error) = ended {
            tracing::error!(%error, "a controller ended");
        }
    }
}

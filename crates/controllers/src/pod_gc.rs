//! Pods that nobody will clean up: on nodes that no longer exist, never started, or finished in great numbers.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod, PodCondition};
use tokio::time::Instant;

use crate::context::Context;
use crate::objects::{is_terminal, node_name, seconds};
use crate::write::{Delete, Error, Part};

const EVERY: Duration = Duration::from_secs(20);
/// A node must be gone for this long before its pods are taken for lost.
const QUARANTINE: Duration = Duration::from_secs(40);
/// Finished pods beyond this many are deleted, oldest first.
const KEPT: usize = 12_500;

/// What to do with the leftovers.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// Pods of nodes that are gone for good: fail them, then delete them.
    pub lost: Vec<Arc<Pod>>,
    /// Pods to delete as they are.
    pub delete: Vec<Arc<Pod>>,
}

/// Plans over all pods. `gone` tells whether a node has been missing for long enough.
pub fn plan(pods: &[Arc<Pod>], gone: impl Fn(&str) -> bool) -> Plan {
    let mut plan = Plan::default();
    let mut finished: Vec<&Arc<Pod>> = Vec::new();
    for pod in pods {
        let deleting = pod.metadata.deletion_timestamp.is_some();
        match node_name(pod) {
            Some(node) if gone(node) => plan.lost.push(pod.clone()),
            None if deleting => plan.delete.push(pod.clone()),
            _ if is_terminal(pod) && !deleting => finished.push(pod),
            _ => {}
        }
    }
    if finished.len() > KEPT {
        finished.sort_by_key(|pod| pod.metadata.creation_timestamp.as_ref().map(|time| time.0));
        plan.delete.extend(finished[..finished.len() - KEPT].iter().map(|pod| Arc::clone(pod)));
    }
    plan
}

/// Returns the controller's work.
pub fn start(context: &Context) -> impl Future<Output = ()> + Send + use<> {
    let context = context.clone();
    async move {
        context.caches.synced().await;
        let mut missing: BTreeMap<String, Instant> = BTreeMap::new();
        loop {
            let pods = context.caches.pods.all();
            note_missing(&context, &pods, &mut missing);
            let now = Instant::now();
            let overdue = |node: &str| missing.get(node).is_some_and(|since| now.duration_since(*since) >= QUARANTINE);
            carry_out(&context, plan(&pods, overdue)).await;
            tokio::time::sleep(EVERY).await;
        }
    }
}

fn note_missing(context: &Context, pods: &[Arc<Pod>], missing: &mut BTreeMap<String, Instant>) {
    let exists = |node: &str| context.caches.nodes.get(&crate::cache::Key::new("", node)).is_some();
    missing.retain(|node, _| !exists(node));
    for node in pods.iter().filter_map(|pod| node_name(pod)).filter(|node| !exists(node)) {
        missing.entry(node.to_owned()).or_insert_with(Instant::now);
    }
}

async fn carry_out(context: &Context, plan: Plan) {
    let now = context.env.now();
    for pod in &plan.lost {
        let result = match fail(context, pod, now).await {
            Ok(true) => delete_now(context, pod).await,
            other => other.map(|_| ()),
        };
        log(result);
    }
    for pod in &plan.delete {
        log(delete_now(context, pod).await);
    }
}

fn log(result: Result<(), Error>) {
    if let Err(error) = result.or_else(|error| if error.is_not_found() { Ok(()) } else { Err(error) }) {
        tracing::debug!(error = error.message(), "pod not cleaned up, will be tried again");
    }
}

async fn delete_now(context: &Context, pod: &Pod) -> Result<(), Error> {
    let how = Delete { grace_seconds: Some(0), propagation: None };
    context.writer.delete(&context.caches.pods, pod, how).await
}

/// Marks a pod as failed. Tells whether it may be deleted now.
async fn fail(context: &Context, pod: &Pod, now: Timestamp) -> Result<bool, Error> {
    // The node may have come back, and with it the pod.
    if context.writer.get::<Node>(None, node_name(pod).unwrap_or_default()).await?.is_some() {
        return Ok(false);
    }
    if is_terminal(pod) {
        return Ok(true);
    }
    let mut failed = pod.clone();
    let status = failed.status.get_or_insert_default();
    status.phase = Some("Failed".into());
    let conditions = status.conditions.get_or_insert_default();
    conditions.retain(|condition| condition.type_ != "DisruptionTarget");
    conditions.push(PodCondition {
        type_: "DisruptionTarget".into(),
        status: "True".into(),
        reason: Some("DeletionByPodGC".into()),
        message: Some("PodGC: node no longer exists".into()),
        last_transition_time: Some(seconds(now)),
        observed_generation: pod.metadata.generation,
        ..PodCondition::default()
    });
    context.writer.update(&context.caches.pods, pod, &failed, Part::Status).await.map(|_| true)
}

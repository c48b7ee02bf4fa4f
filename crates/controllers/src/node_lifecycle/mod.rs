//! Lost nodes: told from live ones by their leases, marked and tainted; their pods leave when their patience ends.

pub mod plan;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod, PodCondition, Taint};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, Time};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::cache::Key;
use crate::context::Context;
use crate::events::Type;
use crate::objects::{is_ready, is_terminal, name, seconds};
use crate::write::{Delete, Error, Part};
use plan::Stay;

const COMPONENT: &str = "node-controller";
const EVICTOR: &str = "taint-eviction-controller";
const EVERY: Duration = Duration::from_secs(5);
const LEASES: &str = "kube-node-lease";

/// What was last heard of a node, and when. Only that it changed counts, not what its clock says.
struct Heard {
    sign: (Option<MicroTime>, Option<Time>),
    at: Instant,
}

/// Returns the controller's work. A node that is not heard of for `grace` is taken for lost.
pub fn start(context: &Context, grace: Duration) -> impl Future<Output = ()> + Send + use<> {
    let changed = Arc::new(Notify::new());
    let wake = changed.clone();
    context.caches.nodes.subscribe(move |change| {
        let looks = |node: &Option<Arc<Node>>| {
            node.as_ref().map(|node| (node.spec.clone(), plan::readiness(node).map(str::to_owned)))
        };
        if looks(&change.old) != looks(&change.new) {
            wake.notify_one();
        }
    });
    let context = context.clone();
    async move {
        context.caches.synced().await;
        let mut heard = BTreeMap::new();
        let mut first_seen = Seen::new();
        loop {
            if let Err(error) = look(&context, &mut heard, grace, &mut first_seen).await {
                tracing::debug!(error = error.message(), "node not brought up to date, will be tried again");
            }
            tokio::select! {
                biased;
                () = changed.notified() => {}
                () = tokio::time::sleep(EVERY.min(grace / 4)) => {}
            }
        }
    }
}

/// When each node was last heard of.
type Signs = BTreeMap<String, Heard>;

/// Takes note of a sign that a node has given since it was last asked; returns how long it has been silent.
fn listen(context: &Context, heard: &mut Signs, node: &Node) -> Duration {
    let now = Instant::now();
    let node_name = name(&node.metadata).to_owned();
    let lease = context.caches.leases.get(&Key::new(LEASES, node_name.clone()));
    let renewed = lease.and_then(|lease| lease.spec.as_ref()?.renew_time.clone());
    let conditions = node.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let beat = conditions.filter(|c| c.type_ == "Ready").find_map(|c| c.last_heartbeat_time.clone());
    let sign = (renewed, beat);
    match heard.get(&node_name) {
        Some(last) if last.sign == sign => now.duration_since(last.at),
        _ => {
            heard.insert(node_name, Heard { sign, at: now });
            Duration::ZERO
        }
    }
}

/// When a taint that does not say when it was added was first seen, by node, key, value and effect.
type Seen = BTreeMap<(String, String, Option<String>), Timestamp>;

/// Taints with the time since when pods' patience with them runs.
fn timed(node: &Node, first_seen: &mut Seen, now: Timestamp) -> Vec<Taint> {
    let mut taints = node.spec.as_ref().and_then(|spec| spec.taints.clone()).unwrap_or_default();
    let node = name(&node.metadata);
    let is =
        |taint: &Taint, (_, key, value): &(String, String, Option<String>)| taint.key == *key && taint.value == *value;
    first_seen.retain(|seen, _| seen.0 != node || taints.iter().any(|taint| is(taint, seen)));
    for taint in taints.iter_mut().filter(|taint| taint.effect == "NoExecute" && taint.time_added.is_none()) {
        let seen = (node.to_owned(), taint.key.clone(), taint.value.clone());
        taint.time_added = Some(Time(*first_seen.entry(seen).or_insert(now)));
    }
    taints
}

async fn look(context: &Context, heard: &mut Signs, grace: Duration, first_seen: &mut Seen) -> Result<(), Error> {
    let nodes = context.caches.nodes.all();
    heard.retain(|known, _| nodes.iter().any(|node| name(&node.metadata) == known));
    let silences: Vec<Duration> = nodes.iter().map(|node| listen(context, heard, node)).collect();
    let any_healthy = nodes.iter().zip(silences).any(|(node, silence)| plan::is_healthy(node, silence, grace));
    let mut result = Ok(());
    for key in nodes.iter().map(|node| Key::of(node.as_ref())) {
        let Some(node) = context.caches.nodes.get(&key) else { continue };
        // To look after the nodes before this one may have taken long: what it has given a sign of meanwhile counts.
        let silent = (listen(context, heard, &node), grace);
        // One node that cannot be written must not keep the others from being looked after.
        if let Err(error) = tend(context, node, silent, any_healthy, first_seen).await {
            result = Err(error);
        }
    }
    result
}

async fn tend(
    context: &Context,
    node: Arc<Node>,
    (silence, grace): (Duration, Duration),
    any_healthy: bool,
    first_seen: &mut Seen,
) -> Result<(), Error> {
    let cache = &context.caches.nodes;
    let now = context.env.now();
    let mut node = node.as_ref().clone();
    if let Some(conditions) = plan::conditions(&node, silence, grace, now) {
        let was_ready = plan::readiness(&node) == Some("True");
        let mut lost = node.clone();
        lost.status.get_or_insert_default().conditions = Some(conditions);
        node = context.writer.update(cache, &node, &lost, Part::Status).await?;
        if was_ready {
            let message = format!("Node {} status is now: NodeNotReady", name(&node.metadata));
            context.tell(&node, Type::Normal, "NodeNotReady", message, COMPONENT);
        }
    }
    if let Some(taints) = plan::taints(&node, any_healthy, now) {
        let mut tainted = node.clone();
        tainted.spec.get_or_insert_default().taints = (!taints.is_empty()).then_some(taints);
        node = context.writer.update(cache, &node, &tainted, Part::Main).await?;
    }
    let pods = context.caches.pods.by_index(&format!("node:{}", name(&node.metadata)));
    if plan::readiness(&node) == Some("Unknown") {
        for pod in pods.iter().filter(|pod| is_ready(pod)) {
            mark_unready(context, pod, now).await?;
        }
    }
    if plan::is_written_off(&node) {
        for pod in pods.iter().filter(|pod| pod.metadata.deletion_timestamp.is_some()) {
            write_off(context, pod).await?;
        }
    }
    evict(context, &pods, timed(&node, first_seen, now), now).await
}

/// Ends a pod that nobody is left to end, so that its successor may start.
async fn write_off(context: &Context, pod: &Pod) -> Result<(), Error> {
    if !is_terminal(pod) {
        let mut failed = pod.clone();
        failed.status.get_or_insert_default().phase = Some("Failed".into());
        match context.writer.update(&context.caches.pods, pod, &failed, Part::Status).await {
            Err(error) if error.is_not_found() || error.is_conflict() => return Ok(()),
            other => other?,
        };
    }
    let now = Delete { grace_seconds: Some(0), propagation: None };
    match context.writer.delete(&context.caches.pods, pod, now).await {
        Err(error) if error.is_not_found() || error.is_conflict() => Ok(()),
        other => other,
    }
}

fn set_condition(pod: &Pod, condition: PodCondition) -> Pod {
    let mut updated = pod.clone();
    let conditions = updated.status.get_or_insert_default().conditions.get_or_insert_default();
    match conditions.iter_mut().find(|held| held.type_ == condition.type_) {
        Some(held) => *held = condition,
        None => conditions.push(condition),
    }
    updated
}

async fn mark_unready(context: &Context, pod: &Pod, now: Timestamp) -> Result<(), Error> {
    let condition = PodCondition {
        type_: "Ready".into(),
        status: "False".into(),
        reason: Some("NodeNotReady".into()),
        last_transition_time: Some(seconds(now)),
        observed_generation: pod.metadata.generation,
        ..PodCondition::default()
    };
    let marked = set_condition(pod, condition);
    match context.writer.update(&context.caches.pods, pod, &marked, Part::Status).await {
        Err(error) if error.is_not_found() || error.is_conflict() => Ok(()),
        other => {
            other?;
            context.tell(pod, Type::Warning, "NodeNotReady", "Node is not ready".into(), COMPONENT);
            Ok(())
        }
    }
}

async fn evict(context: &Context, pods: &[Arc<Pod>], taints: Vec<Taint>, now: Timestamp) -> Result<(), Error> {
    for pod in pods {
        if !matches!(plan::stay(pod, &taints), Stay::Until(at) if at <= now) {
            continue;
        }
        context.tell(
            pod.as_ref(),
            Type::Normal,
            "TaintManagerEviction",
            format!("Marking for deletion Pod {}", Key::of(pod.as_ref())),
            EVICTOR,
        );
        let condition = PodCondition {
            type_: "DisruptionTarget".into(),
            status: "True".into(),
            reason: Some("DeletionByTaintManager".into()),
            message: Some("Taint manager: deleting due to NoExecute taint".into()),
            last_transition_time: Some(seconds(now)),
            observed_generation: pod.metadata.generation,
            ..PodCondition::default()
        };
        let marked = set_condition(pod, condition);
        match context.writer.update(&context.caches.pods, pod.as_ref(), &marked, Part::Status).await {
            Err(error) if error.is_not_found() => continue,
            other => other?,
        };
        context.writer.delete(&context.caches.pods, pod.as_ref(), Delete::default()).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::sync::Mutex;

    use http::{Request, Response};
    use k8s_openapi::api::coordination::v1::Lease;
    use kube::Client;
    use kube::client::Body;
    use mycelium_api::env::Env;
    use serde_json::{Value, json};

    use super::*;
    use crate::context::Caches;
    use crate::events::Events;
    use crate::write::Writer;

    fn node(name: &str, ready: &str) -> Value {
        json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "resourceVersion": "2"},
            "status": {"conditions": [{"type": "Ready", "status": ready}]}})
    }

    fn renew(caches: &Caches, name: &str, second: u32) {
        let lease = json!({"metadata": {"name": name, "namespace": LEASES, "resourceVersion": (second + 3).to_string()},
            "spec": {"renewTime": format!("2026-01-01T00:00:{second:02}.000000Z")}});
        caches.leases.observe(serde_json::from_value::<Lease>(lease).expect("a lease"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_sign_that_comes_while_other_nodes_are_looked_after_counts() {
        let (caches, written) = (Caches::default(), Arc::new(Mutex::new(Vec::new())));
        for name in ["a", "b"] {
            caches.nodes.observe(serde_json::from_value(node(name, "True")).expect("a node"));
            renew(&caches, name, 1);
        }
        // Whenever anything is written, `b` has just given a sign.
        let (seen, signs) = (written.clone(), caches.clone());
        let answer = move |request: Request<Body>| {
            let path = request.uri().path().to_owned();
            let name = path.split('/').nth(4).unwrap_or_default().to_owned();
            renew(&signs, "b", 2);
            seen.lock().expect("not poisoned").push(path);
            let answer = Response::new(Body::from(node(&name, "Unknown").to_string().into_bytes()));
            async move { Ok::<_, Infallible>(answer) }
        };
        let client = Client::new(tower::service_fn(answer), "default");
        let env = Env::new(|| Timestamp::UNIX_EPOCH, || 4);
        let (events, _task) = Events::new(client.clone(), env.clone());
        let context = Context { caches, writer: Writer::new(client, "test"), env, events };

        let (mut heard, mut first_seen) = (Signs::new(), Seen::new());
        look(&context, &mut heard, plan::GRACE, &mut first_seen).await.expect("nothing to write");
        assert!(written.lock().expect("not poisoned").is_empty());
        tokio::time::advance(plan::GRACE).await;
        look(&context, &mut heard, plan::GRACE, &mut first_seen).await.expect("written");
        let written = written.lock().expect("not poisoned");
        assert_eq!(written.first().map(String::as_str), Some("/api/v1/nodes/a/status"));
        assert!(written.iter().all(|path| path.contains("/nodes/a")), "{written:?}");
    }
}

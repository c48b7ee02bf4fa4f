//! The scheduler: gives each new pod a node.
//!
//! [`plan::Board`] decides; this shell feeds it from the caches, binds the pods, and tells why a pod has to wait.

mod around;
mod backlog;
mod budgets;
mod census;
mod node;
pub mod plan;
mod pod;
mod preempt;
mod resources;
mod score;
mod storage;
mod why;

use std::collections::BTreeSet;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Binding, ObjectReference, Pod, PodCondition, PodStatus};
use kube::Resource;
use kube::api::ObjectMeta;
use kube::core::Request;
use serde_json::Value;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::cache::{Cache, Key, Object};
use crate::context::Context;
use crate::events::Type;
use crate::objects::{is_terminal, node_name, pod_condition, seconds};
use crate::volumes::claims_of;
use crate::write::{Delete, Error, Part, Writer};
use backlog::Backlog;
use plan::Board;
pub use pod::tolerates;
pub use preempt::Preemption;
use storage::Storage;
pub use why::Unfit;

/// Whether the node is one that the pod's node selector and affinity allow.
pub fn allows(pod: &Pod, node: &k8s_openapi::api::core::v1::Node) -> bool {
    let mut described = node::Node::default();
    described.describe(node);
    pod::PodInfo::new(pod).allows(&described)
}

const COMPONENT: &str = "default-scheduler";
const FIELD_MANAGER: &str = "kube-scheduler";
/// Pods placed before the scheduler looks up again.
const ROUND: usize = 64;
/// Volumes that were asked for and are not there after this long are asked for again.
const VOLUMES_RETRY: Duration = Duration::from_secs(10);
/// Writes under way at once.
const WRITES: usize = 128;

/// Keys that changed since the scheduler last looked.
#[derive(Clone, Default)]
struct Changed {
    keys: Arc<Mutex<BTreeSet<Key>>>,
    notify: Arc<Notify>,
}

impl Changed {
    fn of<K: Object>(cache: &Cache<K>, notify: &Arc<Notify>) -> Self {
        let changed = Self { keys: Arc::default(), notify: notify.clone() };
        let sink = changed.clone();
        cache.subscribe(move |change| {
            sink.keys.lock().unwrap_or_else(PoisonError::into_inner).insert(change.key());
            sink.notify.notify_one();
        });
        changed
    }

    fn take(&self) -> BTreeSet<Key> {
        std::mem::take(&mut *self.keys.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Subscribes to what scheduling depends on, and returns the scheduler's work.
pub fn start(context: &Context) -> impl Future<Output = ()> + Send + use<> {
    let notify = Arc::new(Notify::new());
    let caches = &context.caches;
    let scheduler = Scheduler {
        pods: Changed::of(&caches.pods, &notify),
        nodes: Changed::of(&caches.nodes, &notify),
        namespaces: Changed::of(&caches.namespaces, &notify),
        claims: Changed::of(&caches.claims, &notify),
        volumes: Changed::of(&caches.volumes, &notify),
        classes: Changed::of(&caches.classes, &notify),
        notify,
        context: context.clone(),
        writer: Writer::new(context.writer.client().clone(), FIELD_MANAGER),
        board: Board::default(),
        backlog: Backlog::default(),
    };
    scheduler.run()
}

type Work = Pin<Box<dyn Future<Output = Done> + Send>>;

/// The outcome of a write.
enum Done {
    Bound(Key, String, Result<(), Error>),
    Reported,
}

struct Scheduler {
    pods: Changed,
    nodes: Changed,
    namespaces: Changed,
    claims: Changed,
    volumes: Changed,
    classes: Changed,
    notify: Arc<Notify>,
    context: Context,
    writer: Writer,
    board: Board,
    backlog: Backlog,
}

impl Scheduler {
    async fn run(mut self) {
        self.context.caches.synced().await;
        let mut writes: FuturesUnordered<Work> = FuturesUnordered::new();
        loop {
            self.catch_up();
            self.backlog.resume(Instant::now());
            for _ in 0..ROUND {
                if writes.len() >= WRITES {
                    break;
                }
                let Some(key) = self.backlog.next() else { break };
                writes.extend(self.attempt(&key));
            }
            let ready = self.backlog.is_busy() && writes.len() < WRITES;
            let due = self.backlog.next_due().unwrap_or_else(|| Instant::now() + Duration::from_secs(3600));
            tokio::select! {
                biased;
                Some(done) = writes.next(), if !writes.is_empty() => self.settle(done),
                () = self.notify.notified() => {}
                () = tokio::task::yield_now(), if ready => {}
                () = tokio::time::sleep_until(due), if !ready => {}
            }
        }
    }

    /// Takes in what changed.
    fn catch_up(&mut self) {
        let caches = &self.context.caches;
        let mut roomier = false;
        let mut rearranged = false;
        let mut released =
            [&self.claims, &self.volumes, &self.classes].map(|changed| !changed.take().is_empty()).contains(&true);
        for key in self.namespaces.take() {
            if let Some(namespace) = caches.namespaces.get(&key) {
                let labels = namespace.metadata.labels.clone().unwrap_or_default();
                rearranged |= self.board.set_namespace(&key.name, &labels);
            }
        }
        for key in self.nodes.take() {
            match caches.nodes.get(&key) {
                Some(node) => roomier |= self.board.set_node(&node),
                None => {
                    self.board.remove_node(&key.name);
                    rearranged = true;
                }
            }
        }
        for key in self.pods.take() {
            match caches.pods.get(&key) {
                Some(pod) => {
                    roomier |= self.board.set_pod(&pod);
                    rearranged |= node_name(&pod).is_some();
                    if waits(&pod) && self.board.is_waiting(&key) {
                        self.backlog.add(&key, priority(&pod), created(&pod));
                    } else {
                        self.backlog.remove(&key);
                    }
                }
                None => {
                    released |= true;
                    roomier |= self.board.remove_pod(&key);
                    self.backlog.remove(&key);
                }
            }
        }
        if released {
            let pods = &caches.pods;
            let concerned = |key: &Key| pods.get(key).is_some_and(|pod| claims_of(&pod).next().is_some());
            self.backlog.wake(concerned);
        }
        if roomier {
            self.backlog.wake(|_| true);
        } else if rearranged {
            let board = &self.board;
            self.backlog.wake(|key| board.minds_pods(key));
        }
    }

    /// Finds a node for a pod and returns the write that follows.
    fn attempt(&mut self, key: &Key) -> Option<Work> {
        let pod = self.context.caches.pods.get(key).filter(|pod| waits(pod))?;
        if !self.board.is_waiting(key) {
            return None;
        }
        let storage = match storage::look(&pod, &self.context.caches, self.context.env.now()) {
            Ok(storage) => Arc::new(storage),
            Err(refusal) => return self.refuse(key, pod, refusal),
        };
        self.board.set_storage(key, &storage);
        match self.board.place(key) {
            Ok(node) if storage.is_late() => self.find_volumes(key, &pod, &storage, &node),
            Ok(node) => {
                self.board.assume(key, &node);
                let (writer, key) = (self.writer.clone(), key.clone());
                Some(Box::pin(async move {
                    let result = bind(&writer, &pod, &node).await;
                    Done::Bound(key, node, result)
                }))
            }
            Err(unfit) => Some(self.make_room(key, pod, &unfit)),
        }
    }

    /// Sets a pod aside that no node can have before its claims are in order.
    fn refuse(&mut self, key: &Key, pod: Arc<Pod>, refusal: storage::Refusal) -> Option<Work> {
        let now = Instant::now();
        let (priority, created) = (priority(&pod), created(&pod));
        if let Some(quiet) = refusal.quiet {
            let time = Duration::try_from(quiet).unwrap_or_default();
            self.backlog.set_aside_for(key, priority, created, now, time);
            return None;
        }
        self.backlog.set_aside_for(key, priority, created, now, Duration::MAX);
        let unfit = Unfit::refused(self.board.size(), refusal.message);
        let context = Context { writer: self.writer.clone(), ..self.context.clone() };
        Some(Box::pin(async move {
            report(&context, &pod, &unfit.with_preemption(""), None).await;
            Done::Reported
        }))
    }

    /// Asks for the volumes that depend on the node. The pod is placed when they are bound.
    fn find_volumes(&mut self, key: &Key, pod: &Pod, storage: &Storage, node: &str) -> Option<Work> {
        self.backlog.set_aside_for(key, priority(pod), created(pod), Instant::now(), VOLUMES_RETRY);
        let node = self.board.node(node)?.clone();
        let (caches, writer, storage) = (self.context.caches.clone(), self.writer.clone(), storage.clone());
        Some(Box::pin(async move {
            if let Err(error) = storage.choose(&caches, &writer, &node).await {
                tracing::debug!(error = error.message(), "volumes not asked for");
            }
            Done::Reported
        }))
    }

    /// Drives less important pods out for one that fits nowhere, if that helps; and tells why it waits.
    fn make_room(&mut self, key: &Key, pod: Arc<Pod>, unfit: &Unfit) -> Work {
        let now = Instant::now();
        self.board.set_budgets(&self.context.caches.budgets.all());
        let (message, preemption) = match self.board.preempt(key) {
            Ok(preemption) => {
                self.backlog.set_aside_for_room(key, priority(&pod), created(&pod), now);
                (unfit.to_string(), Some(preemption))
            }
            Err(refused) => {
                self.backlog.set_aside(key, priority(&pod), created(&pod), now, false);
                (unfit.with_preemption(refused), None)
            }
        };
        let context = Context { writer: self.writer.clone(), ..self.context.clone() };
        Box::pin(async move {
            let node = preemption.as_ref().map(|preemption| preemption.node.as_str());
            report(&context, &pod, &message, node).await;
            for victim in preemption.iter().flat_map(|preemption| &preemption.victims) {
                if let Err(error) = drive_out(&context, victim, &pod, node.unwrap_or_default()).await {
                    tracing::debug!(%victim, error = error.message(), "pod not driven out");
                }
            }
            Done::Reported
        })
    }

    fn settle(&mut self, done: Done) {
        let Done::Bound(key, node, result) = done else { return };
        let pod = self.context.caches.pods.get(&key);
        match (result, pod) {
            (Ok(()), Some(pod)) => {
                let message = format!("Successfully assigned {key} to {node}");
                self.context.tell(pod.as_ref(), Type::Normal, "Scheduled", message, COMPONENT);
            }
            (Err(error), Some(pod)) if waits(&pod) => {
                tracing::debug!(%key, %node, error = error.message(), "binding failed");
                if self.board.forget(&key) {
                    self.backlog.wake(|_| true);
                }
                self.backlog.set_aside(&key, priority(&pod), created(&pod), Instant::now(), true);
            }
            (Err(_), _) => {
                self.board.forget(&key);
            }
            (Ok(()), None) => {}
        }
    }
}

/// Whether a pod is ours to place, and nothing holds it back.
fn waits(pod: &Pod) -> bool {
    let Some(spec) = &pod.spec else { return false };
    let ours = spec.scheduler_name.as_deref().unwrap_or(COMPONENT) == COMPONENT;
    let gated = spec.scheduling_gates.as_ref().is_some_and(|gates| !gates.is_empty());
    ours && !gated && node_name(pod).is_none() && pod.metadata.deletion_timestamp.is_none() && !is_terminal(pod)
}

fn priority(pod: &Pod) -> i32 {
    pod.spec.as_ref().and_then(|spec| spec.priority).unwrap_or(0)
}

fn created(pod: &Pod) -> Timestamp {
    pod.metadata.creation_timestamp.as_ref().map_or(Timestamp::MIN, |time| time.0)
}

async fn bind(writer: &Writer, pod: &Pod, node: &str) -> Result<(), Error> {
    let context = || format!("binding pod {} to {node}", Key::of(pod));
    let api = |source| Error::Api { context: context(), source: Box::new(source) };
    let metadata = ObjectMeta {
        name: pod.metadata.name.clone(),
        namespace: pod.metadata.namespace.clone(),
        uid: pod.metadata.uid.clone(),
        ..ObjectMeta::default()
    };
    let target = ObjectReference { kind: Some("Node".into()), name: Some(node.into()), ..ObjectReference::default() };
    let body = serde_json::to_vec(&Binding { metadata, target }).map_err(|_| Error::Encode(context()))?;
    let request = Request::new(Pod::url_path(&(), pod.metadata.namespace.as_deref()));
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let request = request.create_subresource("binding", name, &kube::api::PostParams::default(), body);
    let request = request.map_err(|error| api(kube::Error::BuildRequest(error)))?;
    writer.client().request::<Value>(request).await.map(|_| ()).map_err(api)
}

/// Says on the pod, and in an event, why it has no node.
async fn report(context: &Context, pod: &Pod, message: &str, nominated: Option<&str>) {
    context.tell(pod, Type::Warning, "FailedScheduling", message.to_owned(), COMPONENT);
    let held = pod_condition(pod, "PodScheduled");
    let same = |held: &PodCondition| {
        held.status == "False"
            && held.reason.as_deref() == Some("Unschedulable")
            && held.message.as_deref() == Some(message)
    };
    if held.is_some_and(same) && nominated.is_none() {
        return;
    }
    let now = seconds(context.env.now());
    let since = held.filter(|held| held.status == "False").and_then(|held| held.last_transition_time.clone());
    let condition = PodCondition {
        type_: "PodScheduled".into(),
        status: "False".into(),
        reason: Some("Unschedulable".into()),
        message: Some(message.to_owned()),
        last_transition_time: since.or(Some(now)),
        observed_generation: pod.metadata.generation,
        ..PodCondition::default()
    };
    let mut updated = pod.clone();
    let status: &mut PodStatus = updated.status.get_or_insert_default();
    let conditions = status.conditions.get_or_insert_default();
    conditions.retain(|condition| condition.type_ != "PodScheduled");
    conditions.push(condition);
    if let Some(node) = nominated {
        status.nominated_node_name = Some(node.to_owned());
    }
    if let Err(error) = context.writer.update(&context.caches.pods, pod, &updated, Part::Status).await {
        tracing::debug!(error = error.message(), "condition not written");
    }
}

/// Deletes a pod in favour of another.
async fn drive_out(context: &Context, victim: &Key, winner: &Pod, node: &str) -> Result<(), Error> {
    let cache = &context.caches.pods;
    let Some(pod) = cache.get(victim).filter(|pod| pod.metadata.deletion_timestamp.is_none()) else { return Ok(()) };
    let mut marked = pod.as_ref().clone();
    let conditions = marked.status.get_or_insert_default().conditions.get_or_insert_default();
    conditions.retain(|condition| condition.type_ != "DisruptionTarget");
    conditions.push(PodCondition {
        type_: "DisruptionTarget".into(),
        status: "True".into(),
        reason: Some("PreemptionByScheduler".into()),
        message: Some(format!("{COMPONENT}: preempting to accommodate a higher priority pod")),
        last_transition_time: Some(seconds(context.env.now())),
        observed_generation: pod.metadata.generation,
        ..PodCondition::default()
    });
    match context.writer.update(cache, pod.as_ref(), &marked, Part::Status).await {
        Err(error) if !error.is_conflict() => return Err(error),
        _ => {}
    }
    context.writer.delete(cache, pod.as_ref(), Delete::default()).await?;
    let uid = winner.metadata.uid.as_deref().unwrap_or_default();
    let message = format!("Preempted by pod {uid} on node {node}");
    context.tell(pod.as_ref(), Type::Normal, "Preempted", message, COMPONENT);
    Ok(())
}

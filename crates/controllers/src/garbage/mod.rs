//! Garbage collection by owner references, over every kind the server has.

pub mod graph;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::marker::PhantomData;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::Client;
use kube::api::{DeleteParams, GetParams, Patch, PatchParams, Preconditions, PropagationPolicy};
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::Instant;

use crate::context::Context;
use crate::discovery::{Discovered, Kind, discover};
use crate::queue::Queue;
use crate::stream::{Sink, Source};
use crate::write::Error;
use graph::{Action, FOREGROUND, Graph, Node, ORPHAN, Partial};

const COMPONENT: &str = "garbage-collector";
const WORKERS: usize = 16;
/// How often the kinds are asked for again although no definition changed.
const REDISCOVER: Duration = Duration::from_secs(300);
/// After a definition changed the server needs a moment to offer the kind.
const SETTLE: Duration = Duration::from_millis(200);
/// Nothing owns or is owned by these, and there are many.
const IGNORED: [&str; 2] = ["events", "events.events.k8s.io"];
const DEFINITIONS: &str = "customresourcedefinitions.apiextensions.k8s.io";

/// An object's identity, as a key of the queue.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Uid(String);

impl fmt::Display for Uid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[derive(Default)]
struct State {
    graph: Graph,
    kinds: BTreeMap<u32, Kind>,
    discovered: Discovered,
    /// Kinds whose first list is not in yet.
    unlisted: BTreeSet<u32>,
}

/// Shared by the watches and the workers.
#[derive(Clone)]
struct Collector {
    state: Arc<Mutex<State>>,
    queue: Queue<Uid>,
    listed: Arc<Notify>,
    redefined: Arc<Notify>,
    client: Client,
}

/// Returns the collector's work.
pub fn start(context: &Context) -> impl Future<Output = ()> + Send + use<> {
    let collector = Collector {
        state: Arc::default(),
        queue: Queue::default(),
        listed: Arc::new(Notify::new()),
        redefined: Arc::new(Notify::new()),
        client: context.writer.client().clone(),
    };
    async move {
        let everything = || collector.lock().graph.candidates().into_iter().map(Uid).collect();
        let work = async {
            collector.all_listed().await;
            collector.queue.work(COMPONENT, WORKERS, everything, |uid| collector.collect(uid)).await;
        };
        tokio::select! {
            biased;
            () = collector.follow_kinds() => {}
            () = work => {}
        }
    }
}

/// The watch of one kind.
#[derive(Clone)]
struct OneKind {
    collector: Collector,
    number: u32,
    is_definition: bool,
}

impl OneKind {
    fn put(&self, state: &mut State, item: Partial) -> BTreeSet<String> {
        let uid = item.metadata.uid.clone();
        state.graph.put(&uid, Node::new(self.number, item.metadata))
    }

    fn enqueue(&self, look: BTreeSet<String>) {
        look.into_iter().for_each(|uid| self.collector.queue.add(Uid(uid)));
        if self.is_definition {
            self.collector.redefined.notify_one();
        }
    }
}

impl Sink<Partial> for OneKind {
    fn listed(&self, items: Vec<Partial>, _at: u64) {
        let mut look = BTreeSet::new();
        {
            let state = &mut *self.collector.lock();
            let mut gone: BTreeSet<String> = state.graph.of_kind(self.number).into_iter().collect();
            for item in items {
                gone.remove(&item.metadata.uid);
                look.extend(self.put(state, item));
            }
            for uid in gone {
                look.extend(state.graph.remove(&uid));
            }
            state.unlisted.remove(&self.number);
        }
        self.collector.listed.notify_one();
        self.enqueue(look);
    }

    fn changed(&self, item: Partial, _at: u64) {
        let look = self.put(&mut self.collector.lock(), item);
        self.enqueue(look);
    }

    fn deleted(&self, item: Partial, _at: u64) {
        let look = self.collector.lock().graph.remove(&item.metadata.uid);
        self.enqueue(look);
    }

    fn passed(&self, _at: u64) {}
}

impl Collector {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn all_listed(&self) {
        loop {
            {
                let state = self.lock();
                if !state.kinds.is_empty() && state.unlisted.is_empty() {
                    return;
                }
            }
            self.listed.notified().await;
        }
    }

    /// Keeps a watch on every kind there is, as kinds come and go.
    async fn follow_kinds(&self) {
        let mut watches: JoinSet<()> = JoinSet::new();
        let mut running: BTreeMap<Kind, (u32, AbortHandle)> = BTreeMap::new();
        let mut next_number = 0;
        loop {
            let wait = match discover(&self.client).await {
                Ok(found) => {
                    self.adjust(&found, &mut watches, &mut running, &mut next_number);
                    self.lock().discovered = found;
                    REDISCOVER
                }
                Err(error) => {
                    tracing::debug!(%error, "discovery failed");
                    Duration::from_secs(1)
                }
            };
            let due = Instant::now() + wait;
            tokio::select! {
                biased;
                () = self.redefined.notified() => tokio::time::sleep(SETTLE).await,
                () = tokio::time::sleep_until(due) => {}
            }
        }
    }

    fn adjust(
        &self,
        found: &Discovered,
        watches: &mut JoinSet<()>,
        running: &mut BTreeMap<Kind, (u32, AbortHandle)>,
        next_number: &mut u32,
    ) {
        let followed = |kind: &&Kind| {
            ["list", "watch", "delete"].iter().all(|verb| kind.can(verb))
                && !IGNORED.contains(&kind.resource().as_str())
        };
        let wanted: BTreeSet<&Kind> = found.kinds.iter().filter(followed).collect();
        let new: Vec<Kind> =
            wanted.iter().filter(|kind| !running.contains_key(**kind)).map(|kind| (*kind).clone()).collect();
        for kind in new {
            let number = *next_number;
            *next_number += 1;
            let sink = OneKind { collector: self.clone(), number, is_definition: kind.resource() == DEFINITIONS };
            {
                let mut state = self.lock();
                state.unlisted.insert(number);
                state.kinds.insert(number, kind.clone());
            }
            let source = Source {
                client: self.client.clone(),
                request: kind.request(None),
                fields: None,
                metadata_only: true,
                item: PhantomData,
            };
            let watch = watches.spawn(async move { source.follow(&sink).await });
            running.insert(kind, (number, watch));
        }
        // A group that failed to answer has not gone away.
        let failed = |kind: &Kind| found.failures.iter().any(|text| text.starts_with(&kind.api_version()));
        let gone: Vec<Kind> = running.keys().filter(|kind| !wanted.contains(kind) && !failed(kind)).cloned().collect();
        for kind in gone {
            if let Some((number, watch)) = running.remove(&kind) {
                watch.abort();
                let mut state = self.lock();
                state.unlisted.remove(&number);
                state.kinds.remove(&number);
                for uid in state.graph.of_kind(number) {
                    state.graph.remove(&uid);
                }
            }
        }
        self.listed.notify_one();
    }

    /// Looks at one object and does what it needs.
    async fn collect(&self, uid: Uid) -> Result<Option<Duration>, Error> {
        let (node, kind, action) = {
            let state = self.lock();
            let Some(node) = state.graph.get(&uid.0) else { return Ok(None) };
            let Some(kind) = state.kinds.get(&node.kind) else { return Ok(None) };
            let Some(action) = state.graph.plan(&uid.0) else { return Ok(None) };
            (node.clone(), kind.clone(), action)
        };
        let object =
            Object { client: &self.client, kind: &kind, namespace: &node.namespace, name: &node.name, uid: &uid.0 };
        match action {
            Action::Delete { foreground, absent } => {
                if !self.are_absent(&absent, &node).await? {
                    return Ok(Some(Duration::from_secs(1)));
                }
                if !object.delete(foreground, &node.owners).await? {
                    return Ok(Some(Duration::from_secs(1)));
                }
            }
            Action::Disown { uids, absent } => {
                if !self.are_absent(&absent, &node).await? {
                    return Ok(Some(Duration::from_secs(1)));
                }
                object.disown(&uids).await?;
            }
            Action::Release(finalizer) => object.release(finalizer).await?,
            Action::Orphan(dependents) => {
                self.orphan(&uid.0, &dependents).await?;
                object.release(ORPHAN).await?;
            }
        }
        Ok(None)
    }

    /// Whether owners that are not in the graph are really not there. The graph may lag, or not know their kind.
    async fn are_absent(&self, owners: &[OwnerReference], dependent: &Node) -> Result<bool, Error> {
        for owner in owners {
            let kind = self.lock().discovered.find(&owner.api_version, &owner.kind).cloned();
            let Some(kind) = kind else {
                tracing::debug!(owner.kind, owner.api_version, "the owner's kind is not known");
                return Ok(false);
            };
            let object = Object {
                client: &self.client,
                kind: &kind,
                namespace: &dependent.namespace,
                name: &owner.name,
                uid: &owner.uid,
            };
            if object.read().await?.is_some() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    async fn orphan(&self, uid: &str, dependents: &[String]) -> Result<(), Error> {
        let uids = BTreeSet::from([uid.to_owned()]);
        for dependent in dependents {
            let found = {
                let state = self.lock();
                let node = state.graph.get(dependent);
                node.and_then(|node| Some((node.clone(), state.kinds.get(&node.kind)?.clone())))
            };
            let Some((node, kind)) = found else { continue };
            let object = Object {
                client: &self.client,
                kind: &kind,
                namespace: &node.namespace,
                name: &node.name,
                uid: dependent,
            };
            object.disown(&uids).await?;
        }
        Ok(())
    }
}

/// One object of any kind, addressed.
struct Object<'a> {
    client: &'a Client,
    kind: &'a Kind,
    namespace: &'a str,
    name: &'a str,
    uid: &'a str,
}

impl Object<'_> {
    fn error(&self, doing: &str, source: kube::Error) -> Error {
        let context = format!("{doing} {} {}/{}", self.kind.resource(), self.namespace, self.name);
        Error::Api { context, source: Box::new(source) }
    }

    fn request(&self) -> kube::core::Request {
        self.kind.request(Some(self.namespace))
    }

    /// The live metadata; none if the object is gone or another has its name.
    async fn read(&self) -> Result<Option<Value>, Error> {
        let request = self.request().get_metadata(self.name, &GetParams::default());
        let request = request.map_err(|error| self.error("reading", kube::Error::BuildRequest(error)))?;
        match self.client.request::<Value>(request).await {
            Ok(object) if object["metadata"]["uid"] == json!(self.uid) => Ok(Some(object["metadata"].clone())),
            Ok(_) => Ok(None),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(None),
            Err(error) => Err(self.error("reading", error)),
        }
    }

    async fn patch(&self, meta: &Value, change: Value) -> Result<(), Error> {
        let mut body = json!({ "metadata": change });
        body["metadata"]["uid"] = json!(self.uid);
        body["metadata"]["resourceVersion"] = meta["resourceVersion"].clone();
        let request = self.request().patch_metadata(self.name, &PatchParams::default(), &Patch::Merge(&body));
        let request = request.map_err(|error| self.error("updating", kube::Error::BuildRequest(error)))?;
        match self.client.request::<Value>(request).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            Err(error) => Err(self.error("updating", error)),
        }
    }

    async fn disown(&self, uids: &BTreeSet<String>) -> Result<(), Error> {
        let Some(meta) = self.read().await? else { return Ok(()) };
        let owners = meta["ownerReferences"].as_array().cloned().unwrap_or_default();
        let known = owners.len();
        let left: Vec<Value> =
            owners.into_iter().filter(|owner| !owner["uid"].as_str().is_some_and(|uid| uids.contains(uid))).collect();
        if left.len() == known {
            return Ok(());
        }
        let left = if left.is_empty() { Value::Null } else { json!(left) };
        self.patch(&meta, json!({ "ownerReferences": left })).await
    }

    async fn release(&self, finalizer: &str) -> Result<(), Error> {
        let Some(meta) = self.read().await? else { return Ok(()) };
        let held = meta["finalizers"].as_array().cloned().unwrap_or_default();
        let left: Vec<Value> = held.iter().filter(|name| name.as_str() != Some(finalizer)).cloned().collect();
        if left.len() == held.len() {
            return Ok(());
        }
        let left = if left.is_empty() { Value::Null } else { json!(left) };
        self.patch(&meta, json!({ "finalizers": left })).await
    }

    /// Deletes it, in the way its own finalizers ask for, if the live object still has only the owners it was judged by.
    /// Tells whether it did, or had no need to.
    async fn delete(&self, foreground: bool, owners: &[OwnerReference]) -> Result<bool, Error> {
        let Some(meta) = self.read().await? else { return Ok(true) };
        let live: BTreeSet<&str> = meta["ownerReferences"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|owner| owner["uid"].as_str())
            .collect();
        if live != owners.iter().map(|owner| owner.uid.as_str()).collect() {
            return Ok(false);
        }
        let has = |name: &str| meta["finalizers"].as_array().is_some_and(|list| list.iter().any(|f| f == name));
        let policy = if has(ORPHAN) {
            PropagationPolicy::Orphan
        } else if foreground || has(FOREGROUND) {
            PropagationPolicy::Foreground
        } else {
            PropagationPolicy::Background
        };
        let params = DeleteParams {
            propagation_policy: Some(policy),
            preconditions: Some(Preconditions {
                uid: Some(self.uid.to_owned()),
                resource_version: meta["resourceVersion"].as_str().map(str::to_owned),
            }),
            ..DeleteParams::default()
        };
        let request = self.request().delete(self.name, &params);
        let request = request.map_err(|error| self.error("deleting", kube::Error::BuildRequest(error)))?;
        match self.client.request::<Value>(request).await {
            Ok(_) => Ok(true),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(true),
            Err(error) => Err(self.error("deleting", error)),
        }
    }
}

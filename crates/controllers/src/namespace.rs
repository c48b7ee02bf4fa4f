//! Deleting a namespace: everything in it goes, pods first; then the namespace is released.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Namespace, NamespaceCondition, NamespaceStatus};
use kube::api::{DeleteParams, ListParams, PostParams};
use kube::core::Request;
use kube::{Client, Resource};
use serde_json::Value;

use crate::cache::Key;
use crate::context::Context;
use crate::discovery::{Discovered, Kind, discover};
use crate::garbage::graph::Partial;
use crate::objects::{name, seconds};
use crate::queue::Queue;
use crate::write::{Error, Part};

const FINALIZER: &str = "kubernetes";
const WORKERS: usize = 4;
/// How long to wait for content that takes its time.
const RETRY: Duration = Duration::from_secs(2);

/// What is still in a namespace after everything was told to go.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Remains {
    /// Groups that could not be asked.
    pub undiscovered: Vec<String>,
    /// What could not be deleted, and why.
    pub failures: Vec<String>,
    /// Objects left, by resource.
    pub objects: BTreeMap<String, usize>,
    /// Objects that a finalizer holds, by finalizer.
    pub finalizers: BTreeMap<String, usize>,
}

impl Remains {
    /// Whether the namespace is empty, as far as anybody can tell.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    fn count(&mut self, kind: &Kind, items: &[Partial]) {
        if items.is_empty() {
            return;
        }
        *self.objects.entry(format!("{}.{}", kind.plural, kind.group)).or_default() += items.len();
        for finalizer in items.iter().flat_map(|item| item.metadata.finalizers.iter().flatten()) {
            *self.finalizers.entry(finalizer.clone()).or_default() += 1;
        }
    }
}

/// The status that tells what holds up the deletion.
pub fn status(namespace: &Namespace, remains: &Remains, now: Timestamp) -> NamespaceStatus {
    let list = |counts: &BTreeMap<String, usize>, text: &str| {
        counts.iter().map(|(what, count)| format!("{what} {text} {count} resource instances")).collect::<Vec<_>>()
    };
    let objects = list(&remains.objects, "has").join(", ");
    let held: Vec<_> =
        remains.finalizers.iter().map(|(what, count)| format!("{what} in {count} resource instances")).collect();
    let told = [
        (
            "NamespaceDeletionDiscoveryFailure",
            !remains.undiscovered.is_empty(),
            (
                "DiscoveryFailed",
                format!(
                    "Discovery failed for some groups, {} failing: {}",
                    remains.undiscovered.len(),
                    remains.undiscovered.join(", ")
                ),
            ),
            ("ResourcesDiscovered", "All resources successfully discovered"),
        ),
        (
            "NamespaceDeletionGroupVersionParsingFailure",
            false,
            ("GroupVersionParsingFailed", String::new()),
            ("ParsedGroupVersions", "All legacy kube types successfully parsed"),
        ),
        (
            "NamespaceDeletionContentFailure",
            !remains.failures.is_empty(),
            (
                "ContentDeletionFailed",
                format!(
                    "Failed to delete all resource types, {} remaining: {}",
                    remains.failures.len(),
                    remains.failures.join(", ")
                ),
            ),
            ("ContentDeleted", "All content successfully deleted, may be waiting on finalization"),
        ),
        (
            "NamespaceContentRemaining",
            !remains.objects.is_empty(),
            ("SomeResourcesRemain", format!("Some resources are remaining: {objects}")),
            ("ContentRemoved", "All content successfully removed"),
        ),
        (
            "NamespaceFinalizersRemaining",
            !remains.finalizers.is_empty(),
            (
                "SomeFinalizersRemain",
                format!("Some content in the namespace has finalizers remaining: {}", held.join(", ")),
            ),
            ("ContentHasNoFinalizers", "All content-preserving finalizers finished"),
        ),
    ];
    let mut status = namespace.status.clone().unwrap_or_default();
    status.phase = Some("Terminating".into());
    for (type_, holds, yes, no) in told {
        let (value, (reason, message)) = if holds { ("True", yes) } else { ("False", (no.0, no.1.to_owned())) };
        set(&mut status, type_, value, reason, message, now);
    }
    status
}

fn set(status: &mut NamespaceStatus, type_: &str, value: &str, reason: &str, message: String, now: Timestamp) {
    let conditions = status.conditions.get_or_insert_default();
    let condition = NamespaceCondition {
        type_: type_.into(),
        status: value.into(),
        reason: Some(reason.into()),
        message: Some(message),
        last_transition_time: Some(seconds(now)),
    };
    match conditions.iter_mut().find(|held| held.type_ == type_) {
        None => conditions.push(condition),
        Some(held) => {
            let since = held.last_transition_time.clone();
            let same = held.status == condition.status;
            *held = condition;
            if same {
                held.last_transition_time = since;
            }
        }
    }
}

/// Subscribes to namespaces, and returns the controller's work.
pub fn start(context: &Context) -> impl Future<Output = ()> + Send + use<> {
    let queue = Queue::<Key>::default();
    let namespaces = context.caches.namespaces.clone();
    let added = queue.clone();
    namespaces.subscribe(move |change| {
        if change.new.as_ref().is_some_and(|namespace| namespace.metadata.deletion_timestamp.is_some()) {
            added.add(change.key());
        }
    });
    // The last pod of a namespace that goes is what it mostly waits for.
    let (all, added) = (namespaces.clone(), queue.clone());
    context.caches.pods.subscribe(move |change| {
        if change.new.is_none() {
            let key = Key::new("", change.key().namespace);
            if all.get(&key).is_some_and(|namespace| namespace.metadata.deletion_timestamp.is_some()) {
                added.add(key);
            }
        }
    });
    let context = context.clone();
    async move {
        context.caches.synced().await;
        queue.work("namespace-controller", WORKERS, || namespaces.keys(), |key| reconcile(context.clone(), key)).await;
    }
}

async fn reconcile(context: Context, key: Key) -> Result<Option<Duration>, Error> {
    let Some(namespace) = context.caches.namespaces.get(&key) else { return Ok(None) };
    if namespace.metadata.deletion_timestamp.is_none() || !is_held(&namespace) {
        return Ok(None);
    }
    let client = context.writer.client();
    let api = |source| Error::Api { context: format!("emptying namespace {key}"), source: Box::new(source) };
    let found = discover(client).await.map_err(api)?;
    let remains = empty(client, &key.name, &found).await.map_err(api)?;
    if remains.is_empty() {
        release(&context, &namespace).await?;
        return Ok(None);
    }
    let mut told = namespace.as_ref().clone();
    told.status = Some(status(&namespace, &remains, context.env.now()));
    context.writer.update(&context.caches.namespaces, namespace.as_ref(), &told, Part::Status).await?;
    Ok(Some(RETRY))
}

fn is_held(namespace: &Namespace) -> bool {
    let finalizers = namespace.spec.iter().flat_map(|spec| spec.finalizers.iter().flatten());
    finalizers.into_iter().any(|finalizer| finalizer == FINALIZER)
}

/// Tells everything to go and counts what is left. While there are pods, nothing else is touched: what they use stays.
async fn empty(client: &Client, namespace: &str, found: &Discovered) -> Result<Remains, kube::Error> {
    let mut remains = Remains { undiscovered: found.failures.clone(), ..Remains::default() };
    let inside = |kind: &&Kind| kind.namespaced && kind.can("list") && kind.can("delete");
    let (pods, others): (Vec<_>, Vec<_>) =
        found.kinds.iter().filter(inside).partition(|kind| kind.resource() == "pods");
    for kinds in [pods, others] {
        for kind in kinds {
            match clear(client, namespace, kind).await {
                Ok(left) => remains.count(kind, &left),
                Err(error) => remains.failures.push(format!("{}: {error}", kind.resource())),
            }
        }
        if !remains.objects.is_empty() {
            break;
        }
    }
    Ok(remains)
}

/// Deletes every object of one kind, and returns those that are still there.
async fn clear(client: &Client, namespace: &str, kind: &Kind) -> Result<Vec<Partial>, kube::Error> {
    let request = kind.request(Some(namespace));
    let before = list(client, &request).await?;
    if before.iter().all(|item| item.metadata.deletion_timestamp.is_some()) {
        return Ok(before);
    }
    let params = DeleteParams::background();
    if kind.can("deletecollection") {
        let delete = request.delete_collection(&params, &ListParams::default()).map_err(kube::Error::BuildRequest)?;
        client.request::<Value>(delete).await?;
    } else {
        for item in before {
            let delete = request.delete(&item.metadata.name, &params).map_err(kube::Error::BuildRequest)?;
            match client.request::<Value>(delete).await {
                Err(kube::Error::Api(status)) if status.code == 404 => {}
                other => drop(other?),
            }
        }
    }
    list(client, &request).await
}

async fn list(client: &Client, request: &Request) -> Result<Vec<Partial>, kube::Error> {
    #[derive(serde::Deserialize)]
    struct List {
        #[serde(default)]
        items: Vec<Partial>,
    }
    let request = request.list_metadata(&ListParams::default()).map_err(kube::Error::BuildRequest)?;
    Ok(client.request::<List>(request).await?.items)
}

/// Takes our finalizer off, whereupon the server removes the namespace.
async fn release(context: &Context, namespace: &Namespace) -> Result<(), Error> {
    let api = |source| Error::Api {
        context: format!("finalizing namespace {}", name(&namespace.metadata)),
        source: Box::new(source),
    };
    let Some(mut live) = context.writer.get::<Namespace>(None, name(&namespace.metadata)).await? else { return Ok(()) };
    if live.metadata.uid != namespace.metadata.uid {
        return Ok(());
    }
    if let Some(finalizers) = live.spec.as_mut().and_then(|spec| spec.finalizers.as_mut()) {
        finalizers.retain(|finalizer| finalizer != FINALIZER);
    }
    let body = serde_json::to_vec(&live).map_err(|_| Error::Encode("a namespace".into()))?;
    let request = Request::new(Namespace::url_path(&(), None));
    let request = request.replace_subresource("finalize", name(&live.metadata), &PostParams::default(), body);
    let request = request.map_err(|error| api(kube::Error::BuildRequest(error)))?;
    match context.writer.client().request::<Value>(request).await {
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        other => other.map(|_| ()).map_err(api),
    }
}

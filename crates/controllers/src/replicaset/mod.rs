//! ReplicaSets: as many pods as asked for, made from one template.

pub mod plan;
mod rank;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::Pod;

use crate::cache::{Change, Key};
use crate::context::Context;
use crate::events::Type;
use crate::labels::Matcher;
use crate::objects::{controller_of, controller_reference, is_active, labels, name};
use crate::queue::Queue;
use crate::write::{Delete, Error, Part};
use plan::{Failure, Plan};

const COMPONENT: &str = "replicaset-controller";
const WORKERS: usize = 8;
/// When to look again after acting was put off because the cache lags.
const STALE: Duration = Duration::from_millis(100);

/// Subscribes to what ReplicaSets depend on, and returns the controller's work.
pub fn start(context: &Context) -> impl Future<Output = ()> + Send + use<> {
    let queue = Queue::<Key>::default();
    let (sets, added) = (context.caches.replica_sets.clone(), queue.clone());
    context.caches.replica_sets.subscribe(move |change| added.add(change.key()));
    let pods = queue.clone();
    let all = sets.clone();
    context.caches.pods.subscribe(move |change| owners(change, &all.clone(), &pods));
    let context = context.clone();
    async move {
        context.caches.synced().await;
        queue.work(COMPONENT, WORKERS, || sets.keys(), |key| reconcile(context.clone(), key)).await;
    }
}

/// Queues the ReplicaSets that a changed pod concerns: its manager, or whoever could adopt it.
fn owners(change: &Change<Pod>, sets: &crate::cache::Cache<ReplicaSet>, queue: &Queue<Key>) {
    let mut orphan = None;
    for pod in change.both() {
        let namespace = pod.metadata.namespace.clone().unwrap_or_default();
        match controller_of(&pod.metadata) {
            Some(owner) if owner.kind == "ReplicaSet" => queue.add(Key::new(namespace, owner.name.clone())),
            Some(_) => {}
            None => orphan = Some(pod),
        }
    }
    let relabelled = change.old.as_ref().zip(change.new.as_ref()).is_none_or(|(old, new)| {
        old.metadata.labels != new.metadata.labels || old.metadata.owner_references != new.metadata.owner_references
    });
    if let Some(pod) = orphan.filter(|pod| relabelled && is_active(pod)) {
        for set in sets.namespace(pod.metadata.namespace.as_deref().unwrap_or_default()) {
            let selector = Matcher::optional(set.spec.as_ref().map(|spec| &spec.selector));
            if selector.matches(labels(&pod.metadata)) {
                queue.add(Key::of(set.as_ref()));
            }
        }
    }
}

async fn reconcile(context: Context, key: Key) -> Result<Option<Duration>, Error> {
    let Some(set) = context.caches.replica_sets.get(&key) else { return Ok(None) };
    let now = context.env.now();
    let plan = plan::plan(&set, &candidates(&context, &set), &related(&context, &set), now);
    if plan.acts_for_set() && !context.writer.confirm(&context.caches.replica_sets, set.as_ref()).await? {
        return Ok(Some(STALE));
    }
    reclaim(&context, &set, &plan).await?;
    let done = manage(&context, &set, &plan).await;
    let failure = done.as_ref().err().map(|(failure, _)| failure.clone());
    let wait = write_status(&context, &set, failure.as_ref(), now).await?;
    match done {
        Ok(()) => Ok(wait),
        Err((_, error)) => Err(error),
    }
}

/// The pods the set manages, and those nobody manages.
fn candidates(context: &Context, set: &ReplicaSet) -> Vec<Arc<Pod>> {
    let pods = &context.caches.pods;
    let uid = set.metadata.uid.as_deref().unwrap_or_default();
    let namespace = set.metadata.namespace.as_deref().unwrap_or_default();
    let mut all = pods.by_index(&format!("owner:{uid}"));
    all.extend(pods.by_index(&format!("orphan:{namespace}")));
    all
}

/// The pods of every ReplicaSet with the same manager.
fn related(context: &Context, set: &ReplicaSet) -> Vec<Arc<Pod>> {
    let manager = controller_of(&set.metadata).map(|owner| owner.uid.clone());
    let siblings = context.caches.replica_sets.namespace(set.metadata.namespace.as_deref().unwrap_or_default());
    let same = |other: &Arc<ReplicaSet>| {
        other.metadata.uid == set.metadata.uid
            || manager.is_some() && controller_of(&other.metadata).map(|owner| &owner.uid) == manager.as_ref()
    };
    let pods: BTreeMap<_, _> = siblings
        .iter()
        .filter(|other| same(other))
        .filter_map(|other| other.metadata.uid.as_ref())
        .flat_map(|uid| context.caches.pods.by_index(&format!("owner:{uid}")))
        .map(|pod| (pod.metadata.uid.clone(), pod))
        .collect();
    pods.into_values().collect()
}

async fn reclaim(context: &Context, set: &ReplicaSet, plan: &Plan) -> Result<(), Error> {
    let writer = &context.writer;
    for pod in &plan.release {
        let owners = pod.metadata.owner_references.iter().flatten();
        let rest: Vec<_> = owners.filter(|owner| Some(&owner.uid) != set.metadata.uid.as_ref()).cloned().collect();
        let mut released = pod.as_ref().clone();
        released.metadata.owner_references = (!rest.is_empty()).then_some(rest);
        ignore_gone(writer.update(&context.caches.pods, pod, &released, Part::Main).await)?;
    }
    for pod in &plan.adopt {
        let mut adopted = pod.as_ref().clone();
        adopted.metadata.owner_references.get_or_insert_default().push(controller_reference(set));
        writer.update(&context.caches.pods, pod, &adopted, Part::Main).await?;
    }
    Ok(())
}

fn ignore_gone<T>(result: Result<T, Error>) -> Result<(), Error> {
    match result {
        Err(error) if !error.is_not_found() => Err(error),
        _ => Ok(()),
    }
}

async fn manage(context: &Context, set: &ReplicaSet, plan: &Plan) -> Result<(), (Failure, Error)> {
    create_pods(context, set, plan.create).await.map_err(|error| failure("FailedCreate", error))?;
    delete_pods(context, set, &plan.delete).await.map_err(|error| failure("FailedDelete", error))
}

fn failure(reason: &'static str, error: Error) -> (Failure, Error) {
    (Failure { reason, message: error.message() }, error)
}

/// Creates pods in batches that double, so that something that fails every time fails only once.
async fn create_pods(context: &Context, set: &ReplicaSet, count: usize) -> Result<(), Error> {
    let pod = plan::pod(set);
    let (mut left, mut batch) = (count, 1);
    while left > 0 {
        let size = batch.min(left);
        let creations = (0..size).map(|_| context.writer.create(&context.caches.pods, &pod));
        let mut failed = None;
        for result in join_all(creations).await {
            match result {
                Ok(pod) => tell(
                    context,
                    set,
                    Type::Normal,
                    "SuccessfulCreate",
                    format!("Created pod: {}", name(&pod.metadata)),
                ),
                Err(error) if error.is_namespace_terminating() => return Ok(()),
                Err(error) => {
                    tell(context, set, Type::Warning, "FailedCreate", format!("Error creating: {}", error.message()));
                    failed = Some(error);
                }
            }
        }
        if let Some(error) = failed {
            reread_if_unsure(context, set, &error).await;
            return Err(error);
        }
        left -= size;
        batch *= 2;
    }
    Ok(())
}

/// After a write whose outcome nobody knows, the server's own state decides what is still missing.
async fn reread_if_unsure(context: &Context, set: &ReplicaSet, error: &Error) {
    while error.is_ambiguous() {
        let namespace = set.metadata.namespace.as_deref().unwrap_or_default();
        match context.caches.pods.refresh(context.writer.client(), namespace).await {
            Ok(()) => return,
            Err(error) => tracing::debug!(%error, "cannot read pods after a write of unknown outcome"),
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

async fn delete_pods(context: &Context, set: &ReplicaSet, pods: &[Arc<Pod>]) -> Result<(), Error> {
    let deletions = pods.iter().map(|pod| context.writer.delete(&context.caches.pods, pod.as_ref(), Delete::default()));
    let mut failed = None;
    for (pod, result) in pods.iter().zip(join_all(deletions).await) {
        match result {
            Ok(()) => {
                tell(context, set, Type::Normal, "SuccessfulDelete", format!("Deleted pod: {}", name(&pod.metadata)))
            }
            Err(error) if error.is_conflict() => {}
            Err(error) => {
                tell(context, set, Type::Warning, "FailedDelete", format!("Error deleting: {}", error.message()));
                failed = Some(error);
            }
        }
    }
    if let Some(error) = failed {
        reread_if_unsure(context, set, &error).await;
        return Err(error);
    }
    Ok(())
}

fn tell(context: &Context, set: &ReplicaSet, type_: Type, reason: &str, message: String) {
    context.tell(set, type_, reason, message, COMPONENT);
}

/// Writes the status as of `acted_on`: a size that was asked for meanwhile is not yet observed.
async fn write_status(
    context: &Context,
    acted_on: &ReplicaSet,
    failure: Option<&Failure>,
    now: Timestamp,
) -> Result<Option<Duration>, Error> {
    let Some(set) = context.caches.replica_sets.get(&Key::of(acted_on)) else { return Ok(None) };
    let (mut status, wait) = plan::status(&set, &candidates(context, &set), failure, now);
    status.observed_generation = acted_on.metadata.generation;
    if set.status.as_ref() != Some(&status) && set.metadata.uid == acted_on.metadata.uid {
        let mut updated = set.as_ref().clone();
        updated.status = Some(status);
        ignore_gone(context.writer.update(&context.caches.replica_sets, &set, &updated, Part::Status).await)?;
    }
    Ok(wait)
}

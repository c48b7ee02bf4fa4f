//! ReplicaSets and ReplicationControllers: as many pods as asked for, made from one template.
//!
//! Both say the same in different words. A ReplicationController is planned for as the ReplicaSet it would be.

mod kinds;
pub mod plan;
pub(crate) mod rank;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;

use crate::cache::Key;
use crate::children::{self, STALE, candidates, ignore_gone};
use crate::context::Context;
use crate::labels::Matcher;
use crate::queue::Queue;
use crate::write::{Error, Part};
pub use kinds::Replicated;
use plan::{Failure, Plan};

const WORKERS: usize = 8;

/// Subscribes to what objects of the kind depend on, and returns the controller's work.
pub fn start<K: Replicated>(context: &Context) -> impl Future<Output = ()> + Send + use<K> {
    let queue = Queue::<Key>::default();
    let sets = K::cache(&context.caches).clone();
    let added = queue.clone();
    sets.subscribe(move |change| added.add(change.key()));
    let (all, pods) = (sets.clone(), queue.clone());
    context.caches.pods.subscribe(move |change| {
        children::queue_owners(change, &K::kind(&()), &pods, |namespace| {
            let selector = |set: &K| Matcher::optional(set.as_set().spec.as_ref().map(|spec| &spec.selector));
            all.namespace(namespace).iter().map(|set| (Key::of(set.as_ref()), selector(set))).collect()
        });
    });
    let context = context.clone();
    async move {
        context.caches.synced().await;
        queue.work(K::COMPONENT, WORKERS, || sets.keys(), |key| reconcile::<K>(context.clone(), key)).await;
    }
}

async fn reconcile<K: Replicated>(context: Context, key: Key) -> Result<Option<Duration>, Error> {
    let cache = K::cache(&context.caches);
    let Some(set) = cache.get(&key) else { return Ok(None) };
    let now = context.env.now();
    let related = related(&context, set.as_ref());
    let plan = plan::plan(&set.as_set(), &candidates(&context, set.meta()), &related, now);
    if plan.acts_for_set() && !context.writer.confirm(cache, set.as_ref()).await? {
        return Ok(Some(STALE));
    }
    children::reclaim(&context, set.as_ref(), &plan.adopt, &plan.release, None).await?;
    let done = manage(&context, set.as_ref(), &plan).await;
    let failure = done.as_ref().err().map(|(failure, _)| failure.clone());
    let wait = write_status(&context, set.as_ref(), failure.as_ref(), now).await?;
    match done {
        Ok(()) => Ok(wait),
        Err((_, error)) => Err(error),
    }
}

/// The pods of everything with the same manager.
fn related<K: Replicated>(context: &Context, set: &K) -> Vec<Arc<Pod>> {
    let uids = set.siblings(&context.caches);
    let pods: BTreeMap<_, _> = uids
        .iter()
        .flat_map(|uid| context.caches.pods.by_index(&format!("owner:{uid}")))
        .map(|pod| (pod.metadata.uid.clone(), pod))
        .collect();
    pods.into_values().collect()
}

async fn manage<K: Replicated>(context: &Context, set: &K, plan: &Plan) -> Result<(), (Failure, Error)> {
    let template = set.as_set().spec.as_ref().and_then(|spec| spec.template.clone()).unwrap_or_default();
    let pods = vec![children::pod(&template, set); plan.create];
    let created = children::create(context, set, K::COMPONENT, &pods).await;
    created.map_err(|error| failure("FailedCreate", error))?;
    let deleted = children::delete(context, set, K::COMPONENT, &plan.delete).await;
    deleted.map_err(|error| failure("FailedDelete", error))
}

fn failure(reason: &'static str, error: Error) -> (Failure, Error) {
    (Failure { reason, message: error.message() }, error)
}

/// Writes the status as of `acted_on`: a size that was asked for meanwhile is not yet observed.
async fn write_status<K: Replicated>(
    context: &Context,
    acted_on: &K,
    failure: Option<&Failure>,
    now: Timestamp,
) -> Result<Option<Duration>, Error> {
    let cache = K::cache(&context.caches);
    let Some(set) = cache.get(&Key::of(acted_on)) else { return Ok(None) };
    let (mut status, wait) = plan::status(&set.as_set(), &candidates(context, set.meta()), failure, now);
    status.observed_generation = acted_on.meta().generation;
    let updated = set.with_status(status);
    if !set.same_status(&updated) && set.meta().uid == acted_on.meta().uid {
        ignore_gone(context.writer.update(cache, &set, &updated, Part::Status).await)?;
    }
    Ok(wait)
}

//! EndpointSlices and Endpoints: the addresses behind each Service that has a selector.

pub mod legacy;
pub mod mirror;
mod pods;
pub mod slices;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use tokio::time::Instant;

use crate::cache::{Cache, Change, Key};
use crate::context::Context;
use crate::labels::Matcher;
use crate::objects::{is_ready, is_terminal, labels};
use crate::queue::Queue;
use crate::write::{Delete, Error, Part};

const WORKERS: usize = 8;
/// When to look again after acting was put off because the cache lags.
const STALE: Duration = Duration::from_millis(100);
/// A Service of several slices is left alone for so many times as long as its endpoints took to write, and what changes
/// meanwhile is written together: each look costs all of its pods, and a thousand may become ready one by one.
const REST: u32 = 8;
const REST_MOST: Duration = Duration::from_secs(1);
/// Endpoints say all of a Service in one object, again and again, to clients that do not know slices yet: where there are
/// several slices, they are written this seldom.
const ENDPOINTS_REST: Duration = Duration::from_secs(5);
/// What took less is not worth a rest.
const REST_LEAST: Duration = Duration::from_millis(40);

/// Subscribes to what endpoints depend on, and returns the controller's work.
pub fn start(context: &Context) -> impl Future<Output = ()> + Send + use<> {
    let queue = Queue::<Key>::default();
    let services = context.caches.services.clone();
    let added = queue.clone();
    services.subscribe(move |change| added.add(change.key()));
    let added = queue.clone();
    context.caches.endpoints.subscribe(move |change| added.add(change.key()));
    let added = queue.clone();
    context.caches.endpoint_slices.subscribe(move |change| of_slice(change, &added));
    let (all, added) = (services.clone(), queue.clone());
    context.caches.pods.subscribe(move |change| of_pod(change, &all, &added));
    let context = context.clone();
    async move {
        context.caches.synced().await;
        let pace = Pace::default();
        let work = |key| paced(context.clone(), key, pace.clone());
        queue.work("endpointslice-controller", WORKERS, || services.keys(), work).await;
    }
}

fn of_slice(change: &Change<EndpointSlice>, queue: &Queue<Key>) {
    let slice = change.any();
    if let Some(service) = labels(&slice.metadata).get(slices::SERVICE_NAME) {
        queue.add(Key::new(slice.metadata.namespace.clone().unwrap_or_default(), service.clone()));
    }
}

/// Queues the Services that select the pod, or did, if anything changed that endpoints show.
fn of_pod(change: &Change<Pod>, services: &Cache<Service>, queue: &Queue<Key>) {
    if let (Some(old), Some(new)) = (&change.old, &change.new)
        && shown(old) == shown(new)
    {
        return;
    }
    for service in services.namespace(change.any().metadata.namespace.as_deref().unwrap_or_default()) {
        let Some(selector) = selector(&service) else { continue };
        if change.both().any(|pod| selector.matches(labels(&pod.metadata))) {
            queue.add(Key::of(service.as_ref()));
        }
    }
}

/// Everything about a pod that endpoints depend on.
fn shown(pod: &Pod) -> impl PartialEq + '_ {
    let status = pod.status.as_ref();
    let ips = status.map(|status| (&status.pod_ip, &status.pod_ips));
    let names = pod.spec.as_ref().map(|spec| (&spec.hostname, &spec.subdomain, &spec.node_name));
    let ends = (is_terminal(pod), is_ready(pod), pod.metadata.deletion_timestamp.is_some());
    (&pod.metadata.labels, &pod.metadata.uid, ips, names, ends)
}

/// What a Service selects; nothing if somebody else takes care of its endpoints.
fn selector(service: &Service) -> Option<Matcher> {
    let spec = service.spec.as_ref()?;
    let selector = spec.selector.as_ref().filter(|selector| !selector.is_empty())?;
    (spec.type_.as_deref() != Some("ExternalName")).then(|| Matcher::exact(selector))
}

/// Which Services rest, and from what.
#[derive(Clone, Default)]
struct Pace {
    slices: Rests,
    endpoints: Rests,
}

/// How long a Service of several slices is left alone after writing them took so long.
fn rest_after(took: Duration) -> Option<Duration> {
    Some((took * REST).min(REST_MOST)).filter(|rest| *rest >= REST_LEAST)
}

/// Until when each Service is left alone.
#[derive(Clone, Default)]
struct Rests(Arc<Mutex<BTreeMap<Key, Instant>>>);

impl Rests {
    /// How long the Service is still to be left alone.
    fn left(&self, key: &Key, now: Instant) -> Option<Duration> {
        let mut rests = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let left = rests.get(key)?.saturating_duration_since(now);
        if left.is_zero() {
            rests.remove(key);
        }
        (!left.is_zero()).then_some(left)
    }

    fn begin(&self, key: Key, rest: Duration, now: Instant) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(key, now + rest);
    }
}

/// Reconciles a Service, unless it rests.
async fn paced(context: Context, key: Key, pace: Pace) -> Result<Option<Duration>, Error> {
    let begun = Instant::now();
    if let Some(left) = pace.slices.left(&key, begun) {
        return Ok(Some(left));
    }
    let result = reconcile(&context, &key, &pace.endpoints).await;
    let now = Instant::now();
    if let Some(rest) = rest_after(now - begun)
        && is_large(&context, &key)
    {
        pace.slices.begin(key, rest, now);
    }
    result
}

/// Whether the Service has several slices.
fn is_large(context: &Context, key: &Key) -> bool {
    context.caches.endpoint_slices.by_index(&format!("service:{key}")).len() > 1
}

async fn reconcile(context: &Context, key: &Key, rests: &Rests) -> Result<Option<Duration>, Error> {
    let service = context.caches.services.get(key);
    let Some(service) = service else {
        delete_endpoints(context, key).await?;
        return Ok(None);
    };
    if service.metadata.deletion_timestamp.is_some() {
        return Ok(None);
    }
    let Some(selector) = selector(&service) else { return Ok(None) };
    let pods = context.caches.selected_pods(&key.namespace, &selector);
    let again = sync_slices(context, key, &service, &pods).await?.or_else(|| rests.left(key, Instant::now()));
    if again.is_some() {
        return Ok(again);
    }
    sync_endpoints(context, key, &service, &pods).await?;
    if is_large(context, key) {
        rests.begin(key.clone(), ENDPOINTS_REST, Instant::now());
    }
    Ok(None)
}

async fn sync_slices(
    context: &Context,
    key: &Key,
    service: &Service,
    pods: &[Arc<Pod>],
) -> Result<Option<Duration>, Error> {
    let cache = &context.caches.endpoint_slices;
    let held = cache.by_index(&format!("service:{key}"));
    let nodes = &context.caches.nodes;
    let plan = slices::plan(service, pods, &held, |name| nodes.get(&Key::new("", name)));
    if !plan.create.is_empty() && !context.writer.confirm(&context.caches.services, service).await? {
        return Ok(Some(STALE));
    }
    carry_out(context, key, &plan).await?;
    Ok(None)
}

async fn carry_out(context: &Context, key: &Key, plan: &slices::Plan) -> Result<(), Error> {
    let cache = &context.caches.endpoint_slices;
    for slice in &plan.create {
        match context.writer.create(cache, slice).await {
            Err(error) if error.is_namespace_terminating() => return Ok(()),
            Err(error) if error.is_ambiguous() => {
                cache.refresh(context.writer.client(), &key.namespace).await.ok();
                return Err(error);
            }
            other => other?,
        };
    }
    for (old, new) in &plan.update {
        context.writer.update(cache, old.as_ref(), new, Part::Main).await?;
    }
    for slice in &plan.delete {
        context.writer.delete(cache, slice.as_ref(), Delete::default()).await?;
    }
    Ok(())
}

async fn sync_endpoints(context: &Context, key: &Key, service: &Service, pods: &[Arc<Pod>]) -> Result<(), Error> {
    let cache = &context.caches.endpoints;
    let wanted = legacy::endpoints(service, pods);
    let Some(held) = cache.get(key) else {
        return match context.writer.create(cache, &wanted).await {
            Err(error) if error.is_namespace_terminating() => Ok(()),
            other => other.map(|_| ()),
        };
    };
    let mut updated = held.as_ref().clone();
    updated.subsets = wanted.subsets;
    updated.metadata.labels = wanted.metadata.labels;
    if updated != *held {
        context.writer.update(cache, held.as_ref(), &updated, Part::Main).await?;
    }
    Ok(())
}

/// The Service is gone: its Endpoints go too. Slices carry an owner reference and are collected.
async fn delete_endpoints(context: &Context, key: &Key) -> Result<(), Error> {
    let cache = &context.caches.endpoints;
    let Some(held) = cache.get(key) else { return Ok(()) };
    // Somebody may have made Endpoints by hand before the Service: only what is ours is deleted.
    if !legacy::is_managed(&held) || context.writer.get::<Service>(Some(&key.namespace), &key.name).await?.is_some() {
        return Ok(());
    }
    context.writer.delete(cache, held.as_ref(), Delete::default()).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_took_long_is_left_alone_for_a_while() {
        let (rests, key, now) = (Rests::default(), Key::new("ns", "big"), Instant::now());
        let begin = |took| rests.begin(key.clone(), rest_after(took).expect("it took long"), now);
        assert_eq!(rest_after(Duration::from_millis(2)), None, "what is small is written at once");
        begin(Duration::from_millis(50));
        assert_eq!(rests.left(&key, now), Some(Duration::from_millis(400)));
        assert_eq!(rests.left(&Key::new("ns", "other"), now), None);
        assert_eq!(rests.left(&key, now + Duration::from_millis(400)), None);
        begin(Duration::from_secs(9));
        assert_eq!(rests.left(&key, now), Some(REST_MOST));
        assert_eq!(rests.left(&key, now + REST_MOST), None);
        assert!(rests.0.lock().expect("not poisoned").is_empty(), "nothing is kept of what is over");
    }
}

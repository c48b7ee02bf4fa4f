//! PodDisruptionBudgets: how many of their pods may be evicted now. The API server keeps evictions within it.

pub mod plan;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use serde_json::Value;

use crate::cache::{Cache, Change, Key, Object};
use crate::children::ignore_gone;
use crate::context::Context;
use crate::discovery;
use crate::events::Type;
use crate::labels::Matcher;
use crate::objects::{controller_of, labels};
use crate::queue::Queue;
use crate::write::{Error, Part};
use plan::Scales;

const COMPONENT: &str = "controllermanager";
const WORKERS: usize = 4;

/// Subscribes to what budgets depend on, and returns the controller's work.
pub fn start(context: &Context) -> impl Future<Output = ()> + Send + use<> {
    let queue = Queue::<Key>::default();
    let caches = &context.caches;
    let budgets = caches.budgets.clone();
    let added = queue.clone();
    budgets.subscribe(move |change| added.add(change.key()));
    let (all, by_pod) = (budgets.clone(), queue.clone());
    caches.pods.subscribe(move |change| concerned(change, &all, &by_pod));
    on_resize(&caches.deployments, &budgets, &queue, |deployment| deployment.spec.as_ref()?.replicas);
    on_resize(&caches.stateful_sets, &budgets, &queue, |set| set.spec.as_ref()?.replicas);
    let context = context.clone();
    async move {
        context.caches.synced().await;
        queue.work(COMPONENT, WORKERS, || budgets.keys(), |key| reconcile(context.clone(), key)).await;
    }
}

/// Another size of what makes the pods means another number of pods to expect.
fn on_resize<K: Object>(
    cache: &Cache<K>,
    budgets: &Cache<PodDisruptionBudget>,
    queue: &Queue<Key>,
    size: fn(&K) -> Option<i32>,
) {
    let (budgets, queue) = (budgets.clone(), queue.clone());
    cache.subscribe(move |change| {
        let size = |held: &Option<Arc<K>>| held.as_deref().and_then(size);
        if size(&change.old) != size(&change.new) {
            let all = budgets.namespace(change.any().meta().namespace.as_deref().unwrap_or_default());
            all.iter().for_each(|budget| queue.add(Key::of(budget.as_ref())));
        }
    });
}

fn selector(budget: &PodDisruptionBudget) -> Matcher {
    Matcher::optional(budget.spec.as_ref().and_then(|spec| spec.selector.as_ref()))
}

/// Queues the budgets that count a changed pod.
fn concerned(change: &Change<Pod>, budgets: &Cache<PodDisruptionBudget>, queue: &Queue<Key>) {
    for budget in budgets.namespace(change.any().metadata.namespace.as_deref().unwrap_or_default()) {
        let selector = selector(&budget);
        if change.both().any(|pod| selector.matches(labels(&pod.metadata))) {
            queue.add(Key::of(budget.as_ref()));
        }
    }
}

async fn reconcile(context: Context, key: Key) -> Result<Option<Duration>, Error> {
    let Some(budget) = context.caches.budgets.get(&key) else { return Ok(None) };
    if budget.metadata.deletion_timestamp.is_some() {
        return Ok(None);
    }
    let selector = selector(&budget);
    let pods = context.caches.selected_pods(&key.namespace, &selector);
    let scales = if plan::needs_scales(&budget) { scales(&context, &pods).await } else { Scales::default() };
    let outcome = plan::status(&budget, &pods, &scales, context.env.now());
    if budget.status.as_ref() != Some(&outcome.status) {
        if pods.is_empty() {
            context.tell(budget.as_ref(), Type::Normal, "NoPods", "No matching pods found".into(), COMPONENT);
        }
        if let Some(why) = &outcome.failure {
            let message = format!("Failed to calculate the number of expected pods: {why}");
            context.tell(budget.as_ref(), Type::Warning, "CalculateExpectedPodCountFailed", message, COMPONENT);
        }
        let mut updated = budget.as_ref().clone();
        updated.status = Some(outcome.status);
        ignore_gone(context.writer.update(&context.caches.budgets, &budget, &updated, Part::Status).await)?;
    }
    Ok(outcome.again)
}

/// What each manager of these pods wants.
async fn scales(context: &Context, pods: &[Arc<Pod>]) -> Scales {
    let mut owners: BTreeMap<String, (String, OwnerReference)> = BTreeMap::new();
    for pod in pods {
        if let Some(owner) = controller_of(&pod.metadata) {
            owners.insert(owner.uid.clone(), (pod.metadata.namespace.clone().unwrap_or_default(), owner.clone()));
        }
    }
    let mut scales = Scales::new();
    for (uid, (namespace, owner)) in owners {
        let key = Key::new(namespace, owner.name.clone());
        let scale = match known(context, &key, &owner, &uid) {
            Some(scale) => Ok(scale),
            None => ask(context, &key, &owner).await.map(|scale| (uid.clone(), scale)),
        };
        scales.insert(uid, scale);
    }
    scales
}

/// The size that a built-in manager wants, or the manager of that one, with the uid of whoever decides.
fn known(context: &Context, key: &Key, owner: &OwnerReference, uid: &str) -> Option<(String, i32)> {
    let caches = &context.caches;
    let own = |replicas: Option<i32>| Some((uid.to_owned(), replicas.unwrap_or(1)));
    let same = |meta: &kube::api::ObjectMeta| meta.uid.as_deref() == Some(uid);
    match (owner.api_version.as_str(), owner.kind.as_str()) {
        ("apps/v1", "ReplicaSet") => {
            let set = caches.replica_sets.get(key).filter(|set| same(&set.metadata))?;
            let Some(manager) = controller_of(&set.metadata).filter(|manager| manager.kind == "Deployment") else {
                return own(set.spec.as_ref()?.replicas);
            };
            let deployment = caches.deployments.get(&Key::new(key.namespace.clone(), manager.name.clone()))?;
            Some((manager.uid.clone(), deployment.spec.as_ref()?.replicas.unwrap_or(1)))
        }
        ("apps/v1", "StatefulSet") => {
            own(caches.stateful_sets.get(key).filter(|set| same(&set.metadata))?.spec.as_ref()?.replicas)
        }
        ("v1", "ReplicationController") => {
            own(caches.replication_controllers.get(key).filter(|set| same(&set.metadata))?.spec.as_ref()?.replicas)
        }
        _ => None,
    }
}

/// Asks any other manager by its scale subresource.
async fn ask(context: &Context, key: &Key, owner: &OwnerReference) -> Result<i32, String> {
    let client = context.writer.client();
    let found = discovery::discover(client).await.map_err(|error| error.to_string())?;
    let Some(kind) = found.find(&owner.api_version, &owner.kind) else {
        return Err(format!("no kind {:?} is registered for version {:?}", owner.kind, owner.api_version));
    };
    let url = format!("{}/{}/scale", kind.request(Some(&key.namespace)).url_path, key.name);
    let request = http::Request::get(url).body(Vec::new()).map_err(|error| error.to_string())?;
    match client.request::<Value>(request).await {
        Ok(scale) => Ok(scale["spec"]["replicas"].as_i64().and_then(|n| i32::try_from(n).ok()).unwrap_or(0)),
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 405) => {
            Err(format!("{} does not implement the scale subresource", kind.resource()))
        }
        Err(error) => Err(error.to_string()),
    }
}

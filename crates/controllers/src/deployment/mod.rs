//! Deployments: rollouts from one ReplicaSet to the next.

pub mod plan;
mod rolling;
mod scale;
mod sets;
mod status;

use std::time::Duration;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::Pod;
use kube::Api;

use crate::cache::{Cache, Change, Key};
use crate::context::Context;
use crate::events::Type;
use crate::labels::Matcher;
use crate::objects::{
    annotation, controller_of, controller_reference, is_controlled_by, is_terminal, labels, name, same_template,
};
use crate::queue::Queue;
use crate::write::{Delete, Error, Part};
use plan::Plan;
use sets::{REVISION, size};

const COMPONENT: &str = "deployment-controller";
const WORKERS: usize = 8;
/// When to look again after acting was put off because the cache lags.
const STALE: Duration = Duration::from_millis(100);

/// Subscribes to what Deployments depend on, and returns the controller's work.
pub fn start(context: &Context) -> impl Future<Output = ()> + Send + use<> {
    let queue = Queue::<Key>::default();
    let deployments = context.caches.deployments.clone();
    let added = queue.clone();
    deployments.subscribe(move |change| added.add(change.key()));
    let (all, sets) = (deployments.clone(), queue.clone());
    context.caches.replica_sets.subscribe(move |change| owners(change, &all, &sets));
    let (known, pods) = (context.caches.replica_sets.clone(), queue.clone());
    context.caches.pods.subscribe(move |change| pod_ended(change, &known, &pods));
    let context = context.clone();
    async move {
        context.caches.synced().await;
        queue.work(COMPONENT, WORKERS, || deployments.keys(), |key| reconcile(context.clone(), key)).await;
    }
}

/// Queues the Deployments that a changed ReplicaSet concerns.
fn owners(change: &Change<ReplicaSet>, deployments: &Cache<Deployment>, queue: &Queue<Key>) {
    for set in change.both() {
        let namespace = set.metadata.namespace.clone().unwrap_or_default();
        match controller_of(&set.metadata) {
            Some(owner) if owner.kind == "Deployment" => queue.add(Key::new(namespace, owner.name.clone())),
            Some(_) => {}
            None => {
                for deployment in deployments.namespace(&namespace) {
                    let selector = Matcher::optional(deployment.spec.as_ref().map(|spec| &spec.selector));
                    if selector.matches(labels(&set.metadata)) {
                        queue.add(Key::of(deployment.as_ref()));
                    }
                }
            }
        }
    }
}

/// A pod that is gone or has ended may be the last that a Recreate rollout waits for.
fn pod_ended(change: &Change<Pod>, sets: &Cache<ReplicaSet>, queue: &Queue<Key>) {
    let ended = change.new.as_deref().is_none_or(is_terminal);
    let Some(owner) = controller_of(&change.any().metadata).filter(|owner| ended && owner.kind == "ReplicaSet") else {
        return;
    };
    let namespace = change.any().metadata.namespace.clone().unwrap_or_default();
    let set = sets.get(&Key::new(namespace.clone(), owner.name.clone()));
    if let Some(owner) = set.as_ref().and_then(|set| controller_of(&set.metadata)).filter(|o| o.kind == "Deployment") {
        queue.add(Key::new(namespace, owner.name.clone()));
    }
}

async fn reconcile(context: Context, key: Key) -> Result<Option<Duration>, Error> {
    let Some(deployment) = context.caches.deployments.get(&key) else { return Ok(None) };
    let sets = context.caches.replica_sets.namespace(&key.namespace);
    let owned = sets.iter().filter(|set| is_controlled_by(&set.metadata, deployment.metadata.uid.as_deref()));
    let uids = owned.filter_map(|set| set.metadata.uid.as_ref());
    let pods: Vec<_> = uids.flat_map(|uid| context.caches.pods.by_index(&format!("owner:{uid}"))).collect();
    let plan = plan::plan(&deployment, &sets, &pods, context.env.now());
    if plan.acts_on_sets() && !context.writer.confirm(&context.caches.deployments, deployment.as_ref()).await? {
        return Ok(Some(STALE));
    }
    carry_out(&context, &deployment, &plan).await?;
    Ok(plan.again)
}

async fn carry_out(context: &Context, deployment: &Deployment, plan: &Plan) -> Result<(), Error> {
    if plan.selects_all {
        let message = "This deployment is selecting all pods. A non-empty selector is required.";
        tell(context, deployment, Type::Warning, "SelectingAll", message.into());
    }
    if reclaim(context, deployment, plan).await? {
        // What changed hands brings the Deployment back into the queue; the rest of the plan is for the old state.
        return Ok(());
    }
    if let Some(set) = &plan.create {
        create(context, deployment, set).await?;
    }
    for (old, new) in &plan.update {
        context.writer.update(&context.caches.replica_sets, old.as_ref(), new, Part::Main).await?;
        tell_size(context, deployment, name(&new.metadata), size(old), size(new));
    }
    for set in &plan.delete {
        context.writer.delete(&context.caches.replica_sets, set.as_ref(), Delete::default()).await?;
    }
    match &plan.deployment {
        Some(updated) => write_status(context, deployment, updated).await,
        None => Ok(()),
    }
}

/// Tells whether anything changed hands.
async fn reclaim(context: &Context, deployment: &Deployment, plan: &Plan) -> Result<bool, Error> {
    let cache = &context.caches.replica_sets;
    for set in &plan.release {
        let mut released = set.as_ref().clone();
        let owners = released.metadata.owner_references.take().unwrap_or_default();
        let rest: Vec<_> = owners.into_iter().filter(|o| Some(&o.uid) != deployment.metadata.uid.as_ref()).collect();
        released.metadata.owner_references = (!rest.is_empty()).then_some(rest);
        context.writer.update(cache, set.as_ref(), &released, Part::Main).await?;
    }
    if plan.adopt.is_empty() {
        return Ok(!plan.release.is_empty());
    }
    for set in &plan.adopt {
        let mut adopted = set.as_ref().clone();
        adopted.metadata.owner_references.get_or_insert_default().push(controller_reference(deployment));
        context.writer.update(cache, set.as_ref(), &adopted, Part::Main).await?;
    }
    Ok(true)
}

async fn create(context: &Context, deployment: &Deployment, set: &ReplicaSet) -> Result<(), Error> {
    match context.writer.create(&context.caches.replica_sets, set).await {
        Ok(created) => {
            tell_size(context, deployment, name(&created.metadata), 0, size(&created));
            Ok(())
        }
        Err(error) if error.is_already_exists() => resolve_clash(context, deployment, set, error).await,
        Err(error) if error.is_namespace_terminating() => Err(error),
        Err(error) => {
            let message = error.message();
            let mut failed = deployment.clone();
            status::create_failed(&mut failed, name(&set.metadata), &message, context.env.now());
            // What counts is the first error; the condition is written again at the next attempt if this fails.
            let _ = context.writer.update(&context.caches.deployments, deployment, &failed, Part::Status).await;
            let message = format!("Failed to create new replica set \"{}\": {message}", name(&set.metadata));
            tell(context, deployment, Type::Warning, "ReplicaSetCreateError", message);
            Err(error)
        }
    }
}

/// A set of that name exists: ours, which the cache did not show yet, or of another template with the same hash.
async fn resolve_clash(
    context: &Context,
    deployment: &Deployment,
    set: &ReplicaSet,
    error: Error,
) -> Result<(), Error> {
    let namespace = set.metadata.namespace.as_deref().unwrap_or_default();
    let sets: Api<ReplicaSet> = Api::namespaced(context.writer.client().clone(), namespace);
    let live = sets.get_opt(name(&set.metadata)).await;
    let Some(live) = live.map_err(|source| Error::Api { context: error.to_string(), source: Box::new(source) })? else {
        return Err(error);
    };
    let template = |set: &ReplicaSet| set.spec.as_ref().and_then(|spec| spec.template.clone()).unwrap_or_default();
    let ours = is_controlled_by(&live.metadata, deployment.metadata.uid.as_deref());
    if ours && same_template(&template(&live), &template(set)) {
        context.caches.replica_sets.observe(live);
        return Err(error);
    }
    let mut bumped = deployment.clone();
    let status = bumped.status.get_or_insert_default();
    status.collision_count = Some(status.collision_count.unwrap_or(0) + 1);
    context.writer.update(&context.caches.deployments, deployment, &bumped, Part::Status).await?;
    Err(error)
}

/// The revision travels with the status, as in Kubernetes; a server that keeps metadata out of status updates gets it
/// in a second write.
async fn write_status(context: &Context, old: &Deployment, new: &Deployment) -> Result<(), Error> {
    let cache = &context.caches.deployments;
    let written = context.writer.update(cache, old, new, Part::Status).await?;
    let wanted = annotation(&new.metadata, REVISION);
    if wanted.is_some() && annotation(&written.metadata, REVISION) != wanted {
        let mut noted = written.clone();
        noted.metadata.annotations.get_or_insert_default().insert(REVISION.into(), wanted.unwrap_or_default().into());
        context.writer.update(cache, &written, &noted, Part::Main).await?;
    }
    Ok(())
}

fn tell_size(context: &Context, deployment: &Deployment, set: &str, from: i32, to: i32) {
    if from != to {
        let way = if from < to { "up" } else { "down" };
        let message = format!("Scaled {way} replica set {set} from {from} to {to}");
        tell(context, deployment, Type::Normal, "ScalingReplicaSet", message);
    }
}

fn tell(context: &Context, deployment: &Deployment, type_: Type, reason: &str, message: String) {
    context.tell(deployment, type_, reason, message, COMPONENT);
}

//! StatefulSets: pods that each keep a name, a place in the order and their storage.

mod claims;
pub mod plan;
mod pods;
pub mod status;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};

use crate::cache::Key;
use crate::children::{self, STALE, ignore_gone};
use crate::context::Context;
use crate::events::Type;
use crate::history::{self, Stored};
use crate::labels::Matcher;
use crate::objects::name;
use crate::queue::Queue;
use crate::write::{Delete, Error, Part};
use plan::{Plan, Step, View};

const COMPONENT: &str = "statefulset-controller";
const WORKERS: usize = 8;

/// Subscribes to what StatefulSets depend on, and returns the controller's work.
pub fn start(context: &Context) -> impl Future<Output = ()> + Send + use<> {
    let queue = Queue::<Key>::default();
    let sets = context.caches.stateful_sets.clone();
    let added = queue.clone();
    sets.subscribe(move |change| added.add(change.key()));
    let (all, by_pod) = (sets.clone(), queue.clone());
    context.caches.pods.subscribe(move |change| {
        children::queue_owners(change, "StatefulSet", &by_pod, |namespace| {
            let selector = |set: &StatefulSet| Matcher::optional(set.spec.as_ref().map(|spec| &spec.selector));
            all.namespace(namespace).iter().map(|set| (Key::of(set.as_ref()), selector(set))).collect()
        });
    });
    let (all, by_claim) = (sets.clone(), queue.clone());
    context.caches.claims.subscribe(move |change| {
        let claim = change.any();
        for set in all.namespace(claim.metadata.namespace.as_deref().unwrap_or_default()) {
            if claims::names(&set, "").iter().any(|(_, start)| name(&claim.metadata).starts_with(start)) {
                by_claim.add(Key::of(set.as_ref()));
            }
        }
    });
    let context = context.clone();
    async move {
        context.caches.synced().await;
        queue.work(COMPONENT, WORKERS, || sets.keys(), |key| reconcile(context.clone(), key)).await;
    }
}

/// What a plan is made from, held for as long as it takes.
struct Held {
    pods: Vec<Arc<Pod>>,
    revisions: Vec<Arc<k8s_openapi::api::apps::v1::ControllerRevision>>,
    claims: BTreeMap<String, Arc<PersistentVolumeClaim>>,
}

impl Held {
    fn new(context: &Context, set: &StatefulSet) -> Self {
        let claimed = set.spec.as_ref().is_some_and(|spec| spec.volume_claim_templates.iter().flatten().count() > 0);
        let namespace = set.metadata.namespace.as_deref().unwrap_or_default();
        let claims = if claimed { context.caches.claims.namespace(namespace) } else { Vec::new() };
        Self {
            pods: children::candidates(context, &set.metadata),
            revisions: history::candidates(context, set),
            claims: claims.into_iter().map(|claim| (name(&claim.metadata).to_owned(), claim)).collect(),
        }
    }

    fn view<'a>(&'a self, set: &'a StatefulSet, context: &Context) -> View<'a> {
        let now = context.env.now();
        View { set, pods: &self.pods, revisions: &self.revisions, claims: &self.claims, now }
    }
}

async fn reconcile(context: Context, key: Key) -> Result<Option<Duration>, Error> {
    let Some(set) = context.caches.stateful_sets.get(&key) else { return Ok(None) };
    let held = Held::new(&context, &set);
    let plan = plan::plan(&held.view(&set, &context));
    if plan.acts_for_set() && !context.writer.confirm(&context.caches.stateful_sets, set.as_ref()).await? {
        return Ok(Some(STALE));
    }
    children::reclaim(&context, set.as_ref(), &plan.adopt, &plan.release, None).await?;
    history::adopt(&context, set.as_ref(), &plan.adopt_revisions).await?;
    if let Some(latest) = &plan.revise {
        if let Stored::Clash = history::store(&context, set.as_ref(), latest).await? {
            bump_collisions(&context, &set).await?;
        }
        return Ok(Some(Duration::ZERO));
    }
    let done = carry_out(&context, &set, &plan).await;
    let wait = write_status(&context, &set).await?;
    done.map(|()| wait)
}

async fn bump_collisions(context: &Context, set: &StatefulSet) -> Result<(), Error> {
    let mut bumped = set.clone();
    bumped.status.get_or_insert_default().collision_count = Some(plan::collisions(set) + 1);
    context.writer.update(&context.caches.stateful_sets, set, &bumped, Part::Status).await.map(|_| ())
}

async fn carry_out(context: &Context, set: &StatefulSet, plan: &Plan) -> Result<(), Error> {
    for step in &plan.steps {
        if let Err(error) = take(context, set, step).await {
            if error.is_namespace_terminating() {
                return Ok(());
            }
            children::reread_if_unsure(context, &set.metadata, &error).await;
            return Err(error);
        }
    }
    history::forget(context, &plan.forget).await
}

async fn take(context: &Context, set: &StatefulSet, step: &Step) -> Result<(), Error> {
    match step {
        Step::Create { pod, claims } => {
            let made = create_claims(context, set, pod, claims).await;
            let created = match made {
                Ok(()) => context.writer.create(&context.caches.pods, pod.as_ref()).await.map(|_| ()),
                Err(error) => Err(error),
            };
            match created {
                // The cache did not show it yet, or another's pod has the name.
                Err(error) if error.is_already_exists() => meet(context, pod, error).await,
                result => tell(context, set, "create", pod, result),
            }
        }
        Step::Claims { pod, claims } => create_claims(context, set, pod, claims).await,
        Step::Delete(pod) => {
            let result = context.writer.delete(&context.caches.pods, pod.as_ref(), Delete::default()).await;
            tell(context, set, "delete", pod, result)
        }
        Step::Repair(old, new) => {
            let result = context.writer.update(&context.caches.pods, old.as_ref(), new, Part::Main).await;
            tell(context, set, "update", old, result.map(|_| ()))
        }
        Step::Own(old, new) => {
            ignore_gone(context.writer.update(&context.caches.claims, old.as_ref(), new, Part::Main).await)
        }
    }
}

/// A pod of that name exists: the cache learns of it.
async fn meet(context: &Context, pod: &Pod, error: Error) -> Result<(), Error> {
    let namespace = pod.metadata.namespace.as_deref();
    if let Some(live) = context.writer.get::<Pod>(namespace, name(&pod.metadata)).await? {
        context.caches.pods.observe(live);
    }
    Err(error)
}

async fn create_claims(
    context: &Context,
    set: &StatefulSet,
    pod: &Pod,
    claims: &[PersistentVolumeClaim],
) -> Result<(), Error> {
    for claim in claims {
        let result = context.writer.create(&context.caches.claims, claim).await;
        let about = format!("Claim {} Pod {} in StatefulSet", name(&claim.metadata), name(&pod.metadata));
        let set_name = name(&set.metadata);
        match result {
            Ok(_) => {
                let message = format!("create {about} {set_name} success");
                context.tell(set, Type::Normal, "SuccessfulCreate", message, COMPONENT);
            }
            Err(error) if error.is_already_exists() => {}
            Err(error) => {
                let message = format!("create {about} {set_name} failed error: {}", error.message());
                context.tell(set, Type::Warning, "FailedCreate", message, COMPONENT);
                return Err(error);
            }
        }
    }
    Ok(())
}

fn tell(context: &Context, set: &StatefulSet, verb: &str, pod: &Pod, result: Result<(), Error>) -> Result<(), Error> {
    let about = format!("{verb} Pod {} in StatefulSet {}", name(&pod.metadata), name(&set.metadata));
    let title = match verb {
        "create" => "Create",
        "delete" => "Delete",
        _ => "Update",
    };
    match &result {
        Ok(()) => {
            let reason = format!("Successful{title}");
            context.tell(set, Type::Normal, &reason, format!("{about} successful"), COMPONENT);
        }
        Err(error) if error.is_namespace_terminating() || error.is_conflict() => {}
        Err(error) => {
            let message = format!("{about} failed error: {}", error.message());
            context.tell(set, Type::Warning, &format!("Failed{title}"), message, COMPONENT);
        }
    }
    result
}

/// Writes the status as of `acted_on`: what was asked for meanwhile is not yet observed.
async fn write_status(context: &Context, acted_on: &StatefulSet) -> Result<Option<Duration>, Error> {
    let Some(set) = context.caches.stateful_sets.get(&Key::of(acted_on)) else { return Ok(None) };
    let held = Held::new(context, &set);
    let Some((mut status, wait)) = status::status(&held.view(&set, context)) else { return Ok(None) };
    status.observed_generation = acted_on.metadata.generation;
    if set.status.as_ref() != Some(&status) && set.metadata.uid == acted_on.metadata.uid {
        let mut updated = set.as_ref().clone();
        updated.status = Some(status);
        ignore_gone(context.writer.update(&context.caches.stateful_sets, &set, &updated, Part::Status).await)?;
    }
    Ok(wait)
}

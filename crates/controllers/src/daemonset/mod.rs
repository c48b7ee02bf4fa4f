//! DaemonSets: one pod on every node that matches.

pub mod nodes;
pub mod plan;

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet};
use k8s_openapi::api::core::v1::{Node, Pod};

use crate::cache::{Change, Key};
use crate::children::{self, STALE, ignore_gone};
use crate::context::Context;
use crate::history::{self, Stored};
use crate::labels::Matcher;
use crate::objects::labels;
use crate::queue::Queue;
use crate::write::{Error, Part};
use plan::{Plan, View};

const COMPONENT: &str = "daemonset-controller";
const WORKERS: usize = 4;
/// A daemon's pod that failed is replaced no faster than this.
const REPLACEMENT: Duration = Duration::from_secs(1);

/// Subscribes to what DaemonSets depend on, and returns the controller's work.
pub fn start(context: &Context) -> impl Future<Output = ()> + Send + use<> {
    let queue = Queue::<Key>::default();
    let sets = context.caches.daemon_sets.clone();
    let added = queue.clone();
    sets.subscribe(move |change| added.add(change.key()));
    let (all, by_pod) = (sets.clone(), queue.clone());
    context.caches.pods.subscribe(move |change| {
        children::queue_owners(change, "DaemonSet", &by_pod, |namespace| {
            let selector = |set: &DaemonSet| Matcher::optional(set.spec.as_ref().map(|spec| &spec.selector));
            all.namespace(namespace).iter().map(|set| (Key::of(set.as_ref()), selector(set))).collect()
        });
    });
    let (all, by_node) = (sets.clone(), queue.clone());
    context.caches.nodes.subscribe(move |change| {
        if places_differ(change) {
            all.keys().into_iter().for_each(|key| by_node.add(key));
        }
    });
    let context = context.clone();
    async move {
        context.caches.synced().await;
        queue.work(COMPONENT, WORKERS, || sets.keys(), |key| reconcile(context.clone(), key)).await;
    }
}

/// Whether a change of a node matters to where daemons run.
fn places_differ(change: &Change<Node>) -> bool {
    let place = |node: &Arc<Node>| {
        let taints = node.spec.as_ref().and_then(|spec| spec.taints.clone()).unwrap_or_default();
        let keys: Vec<_> = taints.into_iter().map(|taint| (taint.key, taint.value, taint.effect)).collect();
        (labels(&node.metadata).clone(), keys)
    };
    change.old.as_ref().map(place) != change.new.as_ref().map(place)
}

struct Held {
    pods: Vec<Arc<Pod>>,
    revisions: Vec<Arc<ControllerRevision>>,
    nodes: Vec<Arc<Node>>,
}

impl Held {
    fn new(context: &Context, set: &DaemonSet) -> Self {
        Self {
            pods: children::candidates(context, &set.metadata),
            revisions: history::candidates(context, set),
            nodes: context.caches.nodes.all(),
        }
    }

    fn view<'a>(&'a self, set: &'a DaemonSet, context: &Context) -> View<'a> {
        View { set, pods: &self.pods, revisions: &self.revisions, nodes: &self.nodes, now: context.env.now() }
    }
}

async fn reconcile(context: Context, key: Key) -> Result<Option<Duration>, Error> {
    let Some(set) = context.caches.daemon_sets.get(&key) else { return Ok(None) };
    let held = Held::new(&context, &set);
    let plan = plan::plan(&held.view(&set, &context));
    if plan.acts_for_set() && !context.writer.confirm(&context.caches.daemon_sets, set.as_ref()).await? {
        return Ok(Some(STALE));
    }
    children::reclaim(&context, set.as_ref(), &plan.adopt, &plan.release, None).await?;
    history::adopt(&context, set.as_ref(), &plan.adopt_revisions).await?;
    if let Some(latest) = &plan.revise {
        if let Stored::Clash = history::store(&context, set.as_ref(), latest).await? {
            let mut bumped = set.as_ref().clone();
            bumped.status.get_or_insert_default().collision_count = Some(plan::collisions(&set) + 1);
            context.writer.update(&context.caches.daemon_sets, &set, &bumped, Part::Status).await?;
        }
        return Ok(Some(Duration::ZERO));
    }
    let done = carry_out(&context, &set, &plan).await;
    let wait = write_status(&context, &set).await?;
    done.map(|again| again.or(wait))
}

async fn carry_out(context: &Context, set: &DaemonSet, plan: &Plan) -> Result<Option<Duration>, Error> {
    for (type_, reason, message, _) in &plan.ended {
        context.tell(set, *type_, reason, message.clone(), COMPONENT);
    }
    let ended: Vec<_> = plan.ended.iter().map(|(.., pod)| pod.clone()).collect();
    if !ended.is_empty() {
        // A pod that fails at once on its node must not be replaced in a hot loop.
        tokio::time::sleep(REPLACEMENT).await;
    }
    children::create(context, set, COMPONENT, &plan.create).await?;
    children::delete(context, set, COMPONENT, &ended).await?;
    children::delete(context, set, COMPONENT, &plan.delete).await?;
    history::forget(context, &plan.forget).await?;
    // An update goes on only when the pods are as they should be.
    let acted = !(plan.create.is_empty() && plan.delete.is_empty() && ended.is_empty());
    Ok(acted.then_some(STALE))
}

/// Writes the status as of `acted_on`: what was asked for meanwhile is not yet observed.
async fn write_status(context: &Context, acted_on: &DaemonSet) -> Result<Option<Duration>, Error> {
    let Some(set) = context.caches.daemon_sets.get(&Key::of(acted_on)) else { return Ok(None) };
    let held = Held::new(context, &set);
    let Some((mut status, wait)) = plan::status(&held.view(&set, context)) else { return Ok(None) };
    status.observed_generation = acted_on.metadata.generation;
    if set.status.as_ref() != Some(&status) && set.metadata.uid == acted_on.metadata.uid {
        let mut updated = set.as_ref().clone();
        updated.status = Some(status);
        ignore_gone(context.writer.update(&context.caches.daemon_sets, &set, &updated, Part::Status).await)?;
    }
    Ok(wait)
}

//! Jobs: pods that run to their end, as often as asked for; and what becomes of jobs that have ended.

pub mod indexes;
pub mod plan;
mod pods;
pub mod policy;

use std::time::Duration;

use futures::future::join_all;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use kube::api::PropagationPolicy;

use crate::cache::{Cache, Change, Key};
use crate::children::{self, STALE, candidates, ignore_gone, without_finalizer};
use crate::context::Context;
use crate::labels::Matcher;
use crate::objects::controller_of;
use crate::queue::Queue;
use crate::write::{Delete, Error, Part};
use plan::Plan;
use pods::TRACKING;

const COMPONENT: &str = "job-controller";
const WORKERS: usize = 8;

/// Subscribes to what Jobs depend on, and returns the controller's work.
pub fn start(context: &Context) -> impl Future<Output = ()> + Send + use<> {
    let queue = Queue::<Key>::default();
    let (jobs, added) = (context.caches.jobs.clone(), queue.clone());
    jobs.subscribe(move |change| added.add(change.key()));
    let (all, by_pod) = (jobs.clone(), queue.clone());
    context.caches.pods.subscribe(move |change| {
        children::queue_owners(change, "Job", &by_pod, |namespace| {
            let selector = |job: &Job| Matcher::optional(job.spec.as_ref().and_then(|spec| spec.selector.as_ref()));
            all.namespace(namespace).iter().map(|job| (Key::of(job.as_ref()), selector(job))).collect()
        });
    });
    let forgotten = Queue::<Key>::default();
    watch_forgotten(context, &forgotten);
    let context = context.clone();
    async move {
        context.caches.synced().await;
        let (keys, pods) = (jobs.clone(), context.caches.pods.clone());
        let tracked =
            move || pods.all().iter().filter(|pod| pods::is_tracked(pod)).map(|p| Key::of(p.as_ref())).collect();
        let look = queue.work(COMPONENT, WORKERS, || keys.keys(), |key| reconcile(context.clone(), key));
        let tidy = forgotten.work(COMPONENT, 2, tracked, |key| let_go(context.clone(), key));
        futures::join!(look, tidy);
    }
}

/// Pods that nobody counts any more must not wait for it.
fn watch_forgotten(context: &Context, queue: &Queue<Key>) {
    let (jobs, by_pod) = (context.caches.jobs.clone(), queue.clone());
    context.caches.pods.subscribe(move |change: &Change<Pod>| {
        if let Some(pod) = change.new.as_deref().filter(|pod| plan::is_forgotten(pod, job_of(&jobs, pod).as_deref())) {
            by_pod.add(Key::of(pod));
        }
    });
    let (pods, by_job) = (context.caches.pods.clone(), queue.clone());
    context.caches.jobs.subscribe(move |change: &Change<Job>| {
        if change.new.is_none() {
            let uid = change.any().metadata.uid.clone().unwrap_or_default();
            pods.by_index(&format!("owner:{uid}")).iter().for_each(|pod| by_job.add(Key::of(pod.as_ref())));
        }
    });
}

fn job_of(jobs: &Cache<Job>, pod: &Pod) -> Option<std::sync::Arc<Job>> {
    let owner = controller_of(&pod.metadata).filter(|owner| owner.kind == "Job")?;
    let namespace = pod.metadata.namespace.clone().unwrap_or_default();
    jobs.get(&Key::new(namespace, owner.name.clone())).filter(|job| job.metadata.uid.as_ref() == Some(&owner.uid))
}

async fn let_go(context: Context, key: Key) -> Result<Option<Duration>, Error> {
    let Some(pod) = context.caches.pods.get(&key) else { return Ok(None) };
    if !plan::is_forgotten(&pod, job_of(&context.caches.jobs, &pod).as_deref()) {
        return Ok(None);
    }
    // The cache may not know the job yet.
    if let Some(owner) = controller_of(&pod.metadata).filter(|owner| owner.kind == "Job") {
        let live = context.writer.get::<Job>(Some(&key.namespace), &owner.name).await?;
        let live = live.filter(|job| job.metadata.uid.as_ref() == Some(&owner.uid));
        if !plan::is_forgotten(&pod, live.as_ref()) {
            return Ok(None);
        }
    }
    untrack(&context, &pod).await.map(|_| None)
}

async fn reconcile(context: Context, key: Key) -> Result<Option<Duration>, Error> {
    let Some(job) = context.caches.jobs.get(&key) else { return Ok(None) };
    if let Some(wait) = expire(&context, &job).await? {
        return Ok(wait);
    }
    let first = plan::plan(&job, &candidates(&context, &job.metadata), context.env.now());
    if first.acts_for_job() && !context.writer.confirm(&context.caches.jobs, job.as_ref()).await? {
        return Ok(Some(STALE));
    }
    let done = act(&context, &job, &first).await;
    // The status tells of the pods as they now are.
    let then = plan::plan(&job, &candidates(&context, &job.metadata), context.env.now());
    write_status(&context, &job, &then).await?;
    for result in join_all(then.untrack.iter().map(|pod| untrack(&context, pod))).await {
        result?;
    }
    done.map(|()| then.again)
}

/// Deletes a job whose time after its end is over. Tells when that will be; nothing if it has not ended.
async fn expire(context: &Context, job: &Job) -> Result<Option<Option<Duration>>, Error> {
    let Some(at) = expires_at(job) else { return Ok(None) };
    let left = at.duration_since(context.env.now());
    if left > SignedDuration::ZERO {
        let tracked = candidates(context, &job.metadata).iter().any(|pod| plan::is_forgotten(pod, Some(job)));
        let wait = Duration::try_from(left).unwrap_or_default() + Duration::from_millis(1);
        return Ok((!tracked).then_some(Some(wait)));
    }
    if !context.writer.confirm(&context.caches.jobs, job).await? {
        return Ok(Some(Some(STALE)));
    }
    let how = Delete { grace_seconds: None, propagation: Some(PropagationPolicy::Foreground) };
    context.writer.delete(&context.caches.jobs, job, how).await?;
    Ok(Some(None))
}

/// When the job is to be deleted, if it has ended and says so.
pub fn expires_at(job: &Job) -> Option<Timestamp> {
    let after = job.spec.as_ref()?.ttl_seconds_after_finished?;
    if job.metadata.deletion_timestamp.is_some() {
        return None;
    }
    let end = plan::ended(job)?.last_transition_time.as_ref()?.0;
    Some(end.saturating_add(SignedDuration::from_secs(after.into())).unwrap_or(Timestamp::MAX))
}

async fn act(context: &Context, job: &Job, plan: &Plan) -> Result<(), Error> {
    children::reclaim(context, job, &plan.adopt, &plan.release, Some(TRACKING)).await?;
    let mut discarded = Vec::new();
    for result in join_all(plan.discard.iter().map(|pod| untrack(context, pod))).await {
        discarded.extend(result?.map(std::sync::Arc::new));
    }
    children::delete(context, job, COMPONENT, &discarded).await?;
    children::delete(context, job, COMPONENT, &plan.stop).await?;
    children::create(context, job, COMPONENT, &plan.create).await
}

/// Takes the finalizer off; gives the pod as it then is, if it is still there.
async fn untrack(context: &Context, pod: &Pod) -> Result<Option<Pod>, Error> {
    let mut freed = pod.clone();
    without_finalizer(&mut freed, TRACKING);
    let result = context.writer.update(&context.caches.pods, pod, &freed, Part::Main).await;
    match result {
        Err(error) if error.is_not_found() => Ok(None),
        Ok(now) => {
            // The last finalizer of a pod that was being deleted: it is gone.
            let pending = now.metadata.deletion_grace_period_seconds.unwrap_or(0) > 0;
            if now.metadata.deletion_timestamp.is_some() && now.metadata.finalizers.is_none() && !pending {
                context.caches.pods.observe_deleted(&now);
            }
            Ok(Some(now))
        }
        Err(error) => Err(error),
    }
}

async fn write_status(context: &Context, job: &Job, plan: &Plan) -> Result<(), Error> {
    if job.status.as_ref() != Some(&plan.status) {
        let mut updated = job.clone();
        updated.status = Some(plan.status.clone());
        ignore_gone(context.writer.update(&context.caches.jobs, job, &updated, Part::Status).await)?;
    }
    for note in &plan.notes {
        context.tell(job, note.type_, &note.reason, note.message.clone(), COMPONENT);
    }
    Ok(())
}

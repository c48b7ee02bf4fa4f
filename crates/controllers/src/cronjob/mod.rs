//! CronJobs: a Job whenever the schedule says so.

pub mod plan;

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::batch::v1::{CronJob, Job};
use kube::api::PropagationPolicy;

use crate::cache::Key;
use crate::children::{STALE, ignore_gone};
use crate::context::Context;
use crate::events::Type;
use crate::objects::{controller_of, is_controlled_by, name};
use crate::queue::Queue;
use crate::write::{Delete, Error, Part};
use plan::Plan;

const COMPONENT: &str = "cronjob-controller";
const WORKERS: usize = 4;

/// Subscribes to what CronJobs depend on, and returns the controller's work.
pub fn start(context: &Context) -> impl Future<Output = ()> + Send + use<> {
    let queue = Queue::<Key>::default();
    let crons = context.caches.cron_jobs.clone();
    let added = queue.clone();
    crons.subscribe(move |change| added.add(change.key()));
    let by_job = queue.clone();
    context.caches.jobs.subscribe(move |change| {
        for job in change.both() {
            if let Some(owner) = controller_of(&job.metadata).filter(|owner| owner.kind == "CronJob") {
                by_job.add(Key::new(job.metadata.namespace.clone().unwrap_or_default(), owner.name.clone()));
            }
        }
    });
    let context = context.clone();
    async move {
        context.caches.synced().await;
        queue.work(COMPONENT, WORKERS, || crons.keys(), |key| reconcile(context.clone(), key)).await;
    }
}

async fn reconcile(context: Context, key: Key) -> Result<Option<Duration>, Error> {
    let Some(cron) = context.caches.cron_jobs.get(&key) else { return Ok(None) };
    let uid = cron.metadata.uid.as_deref().unwrap_or_default();
    let jobs = context.caches.jobs.by_index(&format!("owner:{uid}"));
    let plan = plan::plan(&cron, &jobs, context.env.now());
    if plan.acts() && !context.writer.confirm(&context.caches.cron_jobs, cron.as_ref()).await? {
        return Ok(Some(STALE));
    }
    for note in &plan.notes {
        context.tell(cron.as_ref(), note.type_, &note.reason, note.message.clone(), COMPONENT);
    }
    delete(&context, &cron, &plan.replace).await?;
    let mut status = plan.status.clone();
    let created = create(&context, &cron, &plan).await;
    if let Ok(Some((job, due))) = &created {
        plan::made(&mut status, job, *due);
    }
    if cron.status.as_ref() != Some(&status) {
        let mut updated = cron.as_ref().clone();
        updated.status = Some(status);
        ignore_gone(context.writer.update(&context.caches.cron_jobs, &cron, &updated, Part::Status).await)?;
    }
    created?;
    delete(&context, &cron, &plan.clean).await?;
    Ok(plan.again)
}

async fn delete(context: &Context, cron: &CronJob, jobs: &[Arc<Job>]) -> Result<(), Error> {
    for job in jobs {
        let how = Delete { grace_seconds: None, propagation: Some(PropagationPolicy::Background) };
        let tell = |type_, reason: &str, message| context.tell(cron, type_, reason, message, COMPONENT);
        match context.writer.delete(&context.caches.jobs, job.as_ref(), how).await {
            Ok(()) => tell(Type::Normal, "SuccessfulDelete", format!("Deleted job {}", name(&job.metadata))),
            Err(error) => {
                tell(Type::Warning, "FailedDelete", format!("Deleted job: {}", error.message()));
                return Err(error);
            }
        }
    }
    Ok(())
}

/// Creates the job that is due, or finds it made already by a former life of this process.
async fn create(context: &Context, cron: &CronJob, plan: &Plan) -> Result<Option<(Job, jiff::Timestamp)>, Error> {
    let Some((job, due)) = &plan.create else { return Ok(None) };
    match context.writer.create(&context.caches.jobs, job.as_ref()).await {
        Ok(created) => {
            let message = format!("Created job {}", name(&created.metadata));
            context.tell(cron, Type::Normal, "SuccessfulCreate", message, COMPONENT);
            Ok(Some((created, *due)))
        }
        Err(error) if error.is_already_exists() => {
            let live = context.writer.get::<Job>(job.metadata.namespace.as_deref(), name(&job.metadata)).await?;
            let ours = live.filter(|live| is_controlled_by(&live.metadata, cron.metadata.uid.as_deref()));
            let listed = |job: &Job| plan.status.active.iter().flatten().any(|held| held.uid == job.metadata.uid);
            Ok(ours.filter(|job| !listed(job)).map(|job| (job, *due)))
        }
        Err(error) if error.is_namespace_terminating() => Ok(None),
        Err(error) => {
            let message = format!("Error creating job: {}", error.message());
            context.tell(cron, Type::Warning, "FailedCreate", message, COMPONENT);
            Err(error)
        }
    }
}

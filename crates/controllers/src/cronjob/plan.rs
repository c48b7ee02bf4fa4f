//! What a CronJob needs, as a pure function of it, its jobs and the time.

use std::sync::Arc;
use std::time::Duration;

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::batch::v1::{CronJob, CronJobSpec, CronJobStatus, Job};
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use mycelium_api::cron::{Schedule, time_zone};

use crate::events::Type;
use crate::job::plan::{Note, ended};
use crate::objects::{controller_reference, name, seconds};

/// The annotation with the time a job was made for.
const SCHEDULED: &str = "batch.kubernetes.io/cronjob-scheduled-timestamp";
/// More missed times than this are worth a warning.
const MISSED_MAX: i64 = 100;
/// A look at the schedule comes a little after its time, never before.
const LATE: Duration = Duration::from_millis(100);

/// What to do.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// What to tell.
    pub notes: Vec<Note>,
    /// Jobs to delete because the next one replaces them.
    pub replace: Vec<Arc<Job>>,
    /// The job to create, and the time it is for.
    pub create: Option<(Box<Job>, Timestamp)>,
    /// Finished jobs beyond what is kept.
    pub clean: Vec<Arc<Job>>,
    /// The status, without what creating the job adds.
    pub status: CronJobStatus,
    /// When to look again although nothing happens.
    pub again: Option<Duration>,
}

impl Plan {
    /// Whether anything is made or deleted because of what the object says.
    pub fn acts(&self) -> bool {
        self.create.is_some() || !self.replace.is_empty() || !self.clean.is_empty()
    }

    fn note(&mut self, type_: Type, reason: &str, message: String) {
        self.notes.push(Note { type_, reason: reason.into(), message });
    }
}

/// A reference to a job, as the list of active jobs holds it.
pub fn reference(job: &Job) -> ObjectReference {
    crate::objects::reference(job)
}

/// Makes the plan; `jobs` are those the CronJob manages.
pub fn plan(cron: &CronJob, jobs: &[Arc<Job>], now: Timestamp) -> Plan {
    let spec = cron.spec.clone().unwrap_or_default();
    let mut plan = Plan { status: cron.status.clone().unwrap_or_default(), ..Plan::default() };
    account(&mut plan, jobs);
    if cron.metadata.deletion_timestamp.is_none() {
        schedule(&mut plan, cron, &spec, jobs, now);
    }
    clean(&mut plan, &spec, jobs);
    if plan.status.active.as_ref().is_some_and(Vec::is_empty) {
        plan.status.active = None;
    }
    plan
}

/// Brings the list of active jobs in line with the jobs there are.
fn account(plan: &mut Plan, jobs: &[Arc<Job>]) {
    let mut active = plan.status.active.take().unwrap_or_default();
    for job in jobs {
        let listed = active.iter().position(|held| held.uid == job.metadata.uid);
        match (listed, ended(job)) {
            (None, None) => {
                let what = format!("Saw a job that the controller did not create or forgot: {}", name(&job.metadata));
                plan.note(Type::Warning, "UnexpectedJob", what);
            }
            (Some(at), Some(end)) => {
                active.remove(at);
                let what = format!("Saw completed job: {}, condition: {}", name(&job.metadata), end.type_);
                plan.note(Type::Normal, "SawCompletedJob", what);
                let finished = job.status.as_ref().and_then(|status| status.completion_time.clone());
                if end.type_ == "Complete" && finished > plan.status.last_successful_time {
                    plan.status.last_successful_time = finished;
                }
            }
            _ => {}
        }
    }
    active.retain(|held| {
        let there = jobs.iter().any(|job| job.metadata.uid == held.uid);
        if !there {
            let what = format!("Active job went missing: {}", held.name.as_deref().unwrap_or_default());
            plan.note(Type::Normal, "MissingJob", what);
        }
        there
    });
    plan.status.active = Some(active);
}

/// When something was and will be due.
struct Times {
    /// The last time that has come since the last job, or since the object was made.
    due: Option<Timestamp>,
    /// The time after that.
    next: Option<Timestamp>,
    /// Many times passed unheeded.
    many: bool,
}

fn times(cron: &CronJob, spec: &CronJobSpec, schedule: &Schedule, zone: &TimeZone, now: Timestamp) -> Option<Times> {
    let status = cron.status.as_ref();
    let last = status.and_then(|status| status.last_schedule_time.as_ref());
    let mut from = last.or(cron.metadata.creation_timestamp.as_ref()).map_or(now, |time| time.0);
    if let Some(deadline) = spec.starting_deadline_seconds {
        from = from.max(now.checked_sub(SignedDuration::from_secs(deadline)).unwrap_or(Timestamp::MIN));
    }
    let first = schedule.next(from, zone)?;
    if first > now {
        return Some(Times { due: None, next: Some(first), many: false });
    }
    let second = schedule.next(first, zone);
    let pace = second.map_or(i64::MAX, |second| second.duration_since(first).as_secs().max(1));
    let missed = now.duration_since(first).as_secs() / pace + 1;
    // A rough guess spares walking through all that was missed; it errs on the early side.
    let mut due = first;
    if missed > MISSED_MAX {
        let skipped = SignedDuration::from_secs(pace.saturating_mul(missed - MISSED_MAX));
        due = schedule.next(first.checked_add(skipped).ok()?, zone).filter(|at| *at <= now).unwrap_or(first);
    }
    loop {
        match schedule.next(due, zone) {
            Some(later) if later <= now => due = later,
            next => return Some(Times { due: Some(due), next, many: missed > MISSED_MAX }),
        }
    }
}

fn schedule(plan: &mut Plan, cron: &CronJob, spec: &CronJobSpec, jobs: &[Arc<Job>], now: Timestamp) {
    let zone_name = spec.time_zone.as_deref().unwrap_or("UTC");
    let Some(zone) = time_zone(zone_name) else {
        let what = format!("invalid timeZone: {zone_name:?}: unknown time zone {zone_name}");
        return plan.note(Type::Warning, "UnknownTimeZone", what);
    };
    if spec.suspend.unwrap_or(false) {
        return;
    }
    let schedule = match Schedule::parse(&spec.schedule) {
        Ok(schedule) => schedule,
        Err(error) => {
            let what = format!("unparseable schedule: {:?} : {error}", spec.schedule);
            return plan.note(Type::Warning, "UnparseableSchedule", what);
        }
    };
    let Some(times) = times(cron, spec, &schedule, &zone, now) else { return };
    plan.again = times.next.map(|next| Duration::try_from(next.duration_since(now)).unwrap_or_default() + LATE);
    let Some(due) = times.due else { return };
    if times.many {
        let what = "too many missed start times. Set or decrease .spec.startingDeadlineSeconds or check clock skew";
        plan.note(Type::Warning, "TooManyMissedTimes", what.into());
    }
    let late = now.duration_since(due);
    if spec.starting_deadline_seconds.is_some_and(|deadline| late > SignedDuration::from_secs(deadline)) {
        let when = due.strftime("%a, %d %b %Y %H:%M:%S +0000");
        plan.note(Type::Warning, "MissSchedule", format!("Missed scheduled time to start a job: {when}"));
        return;
    }
    let job = job(cron, spec, due, &zone);
    let active = plan.status.active.clone().unwrap_or_default();
    if active.iter().any(|held| held.name == job.metadata.name) {
        return;
    }
    match spec.concurrency_policy.as_deref() {
        Some("Forbid") if !active.is_empty() => {
            let what = "Not starting job because prior execution is running and concurrency policy is Forbid";
            return plan.note(Type::Normal, "JobAlreadyActive", what.into());
        }
        Some("Replace") => {
            let listed = |job: &&Arc<Job>| active.iter().any(|held| held.uid == job.metadata.uid);
            plan.replace = jobs.iter().filter(listed).cloned().collect();
            plan.status.active = Some(Vec::new());
        }
        _ => {}
    }
    plan.create = Some((Box::new(job), due));
}

/// The job for a time.
fn job(cron: &CronJob, spec: &CronJobSpec, due: Timestamp, zone: &TimeZone) -> Job {
    let template = spec.job_template.metadata.clone().unwrap_or_default();
    let mut annotations = template.annotations.unwrap_or_default();
    let local = due.to_zoned(zone.clone());
    let stamp = match local.offset().seconds() {
        0 => local.strftime("%Y-%m-%dT%H:%M:%SZ"),
        _ => local.strftime("%Y-%m-%dT%H:%M:%S%:z"),
    };
    annotations.insert(SCHEDULED.into(), stamp.to_string());
    Job {
        metadata: ObjectMeta {
            name: Some(format!("{}-{}", name(&cron.metadata), due.as_second() / 60)),
            namespace: cron.metadata.namespace.clone(),
            labels: template.labels,
            annotations: Some(annotations),
            owner_references: Some(vec![controller_reference(cron)]),
            ..ObjectMeta::default()
        },
        spec: spec.job_template.spec.clone(),
        status: None,
    }
}

/// Adds a job that was made to the status.
pub fn made(status: &mut CronJobStatus, job: &Job, due: Timestamp) {
    status.active.get_or_insert_default().push(reference(job));
    status.last_schedule_time = Some(seconds(due));
}

/// Picks the finished jobs that are more than should be kept, oldest first.
fn clean(plan: &mut Plan, spec: &CronJobSpec, jobs: &[Arc<Job>]) {
    let limits = [("Complete", spec.successful_jobs_history_limit), ("Failed", spec.failed_jobs_history_limit)];
    for (type_, limit) in limits {
        let Some(limit) = limit.and_then(|limit| usize::try_from(limit).ok()) else { continue };
        let of_type = |job: &&Arc<Job>| ended(job).is_some_and(|end| end.type_ == type_);
        let mut all: Vec<_> = jobs.iter().filter(of_type).cloned().collect();
        all.sort_by_key(|job| {
            let started = job.status.as_ref().and_then(|status| status.start_time.as_ref()).map(|time| time.0);
            (started, job.metadata.name.clone())
        });
        let surplus = all.len().saturating_sub(limit);
        plan.clean.extend(all.into_iter().take(surplus).filter(|job| job.metadata.deletion_timestamp.is_none()));
    }
}

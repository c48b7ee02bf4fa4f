//! Job and CronJob.

use mycelium_api::cron::{Schedule, time_zone};
use mycelium_api::field::{FieldError, Path};
use mycelium_api::selector::Selector;
use serde_json::Value;

use super::workload::{check_immutable, wide_cells};
use crate::check::{not_negative, one_of};
use crate::meta::{IMMUTABLE, check_selector};
use crate::pod::{defaults, validate};
use crate::table::{
    AGE_COLUMN, CONTAINERS, Column, IMAGES, NAME, SELECTOR, age, condition_true, human_duration, name, seconds_between,
    selector, since, text_or, time,
};
use crate::value::{at, each, ensure_object, fill, fill_zero, flag, has, int, is_empty, list, same, text, within};
use crate::{Errors, FieldLabels, Generation, Kind, Part, Refusal, read_path};

const NAME_LABELS: [&str; 2] = ["job-name", "batch.kubernetes.io/job-name"];
const UID_LABELS: [&str; 2] = ["controller-uid", "batch.kubernetes.io/controller-uid"];

pub static JOB: Kind = Kind {
    generation: Generation::Spec,
    defaults: |_, job| {
        ensure_object(job, &["spec"]);
        within(job, &["spec"], fill_job);
        labels_from_template(job);
    },
    on_create: select_own_pods,
    check: |job, errors| check_job(&job["spec"], true, &Path::new("spec"), errors),
    check_update: |new, old, part, errors| {
        if part != Part::Status {
            check_job(&new["spec"], true, &Path::new("spec"), errors);
            check_job_change(new, old, errors);
        }
    },
    advice: super::workload::advice,
    columns: &[
        NAME,
        Column::text("Status", "What the job is doing, in a word."),
        Column::text("Completions", "Pods that succeeded, of those needed."),
        Column::text("Duration", "How long the job takes."),
        AGE_COLUMN,
        CONTAINERS,
        IMAGES,
        SELECTOR,
    ],
    cells: |job, now| {
        let [names, images, selector] = wide_cells(job);
        let start = time(job, &["status", "startTime"]);
        let end = time(job, &["status", "completionTime"]).unwrap_or(now);
        let duration = start.map(|start| human_duration(seconds_between(start, end))).unwrap_or_default();
        vec![
            name(job),
            job_status(job).into(),
            completions(job).into(),
            duration.into(),
            age(job, now),
            names,
            images,
            selector,
        ]
    },
    labels: FieldLabels {
        paths: &["status.successful"],
        read: |job, _| Some(int(job, &["status", "succeeded"]).unwrap_or_default().to_string()),
        refusal: Refusal::Named,
    },
    ..Kind::new("batch", "Job", true)
};

pub static CRON_JOB: Kind = Kind {
    generation: Generation::Spec,
    defaults: |_, cron| {
        ensure_object(cron, &["spec", "jobTemplate", "spec"]);
        within(cron, &["spec"], |spec| {
            fill_zero(spec, "concurrencyPolicy", "Allow");
            fill(spec, "suspend", false);
            fill(spec, "successfulJobsHistoryLimit", 3);
            fill(spec, "failedJobsHistoryLimit", 1);
            within(spec, &["jobTemplate", "spec"], defaults::template);
        });
    },
    check: |cron, errors| {
        check_cron(cron, errors);
        let job_name = text(cron, &["metadata", "name"]);
        if job_name.len() > 52 {
            let path = Path::new("metadata").child("name");
            errors.push(FieldError::invalid(&path, job_name, "must be no more than 52 characters"));
        }
    },
    check_update: |new, _, part, errors| {
        if part != Part::Status {
            check_cron(new, errors);
        }
    },
    columns: &[
        NAME,
        Column::text("Schedule", "When jobs start, in cron form."),
        Column::text("Timezone", "Time zone of the schedule."),
        Column::boolean("Suspend", "Whether no more jobs start."),
        Column::integer("Active", "Jobs that run now."),
        Column::text("Last Schedule", "Time since a job started."),
        AGE_COLUMN,
        CONTAINERS,
        IMAGES,
        SELECTOR,
    ],
    cells: |cron, now| {
        let last = match time(cron, &["status", "lastScheduleTime"]) {
            Some(_) => since(cron, &["status", "lastScheduleTime"], now),
            None => "<none>".to_owned(),
        };
        let [names, images] = crate::table::containers(at(cron, &["spec", "jobTemplate", "spec", "template", "spec"]));
        vec![
            name(cron),
            text_or(cron, &["spec", "schedule"], ""),
            text_or(cron, &["spec", "timeZone"], "<none>"),
            (if flag(cron, &["spec", "suspend"]) { "True" } else { "False" }).into(),
            list(cron, &["status", "active"]).len().into(),
            last.into(),
            age(cron, now),
            names,
            images,
            selector(cron, &["spec", "jobTemplate", "spec", "selector"]),
        ]
    },
    labels: FieldLabels { paths: &[], read: read_path, refusal: Refusal::Listing },
    ..Kind::new("batch", "CronJob", true)
};

fn fill_job(spec: &mut Value) {
    if !has(spec, &["completions"]) && !has(spec, &["parallelism"]) {
        fill(spec, "completions", 1);
    }
    fill(spec, "parallelism", 1);
    let retries = if has(spec, &["backoffLimitPerIndex"]) { i64::from(i32::MAX) } else { 6 };
    fill(spec, "backoffLimit", retries);
    fill_zero(spec, "completionMode", "NonIndexed");
    fill(spec, "suspend", false);
    let replacement = if has(spec, &["podFailurePolicy"]) { "Failed" } else { "TerminatingOrFailed" };
    fill_zero(spec, "podReplacementPolicy", replacement);
    fill(spec, "manualSelector", false);
    each(spec, &["podFailurePolicy", "rules"], |rule| {
        each(rule, &["onPodConditions"], |pattern| fill_zero(pattern, "status", "True"));
    });
    defaults::template(spec);
}

/// Pods of a job carry its name and uid as labels, and the job selects them by its uid.
fn select_own_pods(job: &mut Value) {
    if flag(job, &["spec", "manualSelector"]) {
        return;
    }
    let name = text(job, &["metadata", "name"]).to_owned();
    let uid = text(job, &["metadata", "uid"]).to_owned();
    if let Some(labels) = ensure_object(job, &["spec", "template", "metadata", "labels"]) {
        for (keys, value) in [(NAME_LABELS, &name), (UID_LABELS, &uid)] {
            for key in keys {
                crate::value::fill_in(labels, key, value.as_str());
            }
        }
    }
    if let Some(labels) = ensure_object(job, &["spec", "selector", "matchLabels"]) {
        crate::value::fill_in(labels, UID_LABELS[1], uid);
    }
    labels_from_template(job);
}

/// A job without labels has those of its pods.
fn labels_from_template(job: &mut Value) {
    let from_template = at(job, &["spec", "template", "metadata", "labels"]).clone();
    if !is_empty(&from_template)
        && is_empty(at(job, &["metadata", "labels"]))
        && let Some(metadata) = ensure_object(job, &["metadata"])
    {
        metadata.insert("labels".to_owned(), from_template);
    }
}

fn completions(job: &Value) -> String {
    let done = int(job, &["status", "succeeded"]).unwrap_or_default();
    match (int(job, &["spec", "completions"]), int(job, &["spec", "parallelism"]).unwrap_or_default()) {
        (Some(wanted), _) => format!("{done}/{wanted}"),
        (None, parallel) if parallel > 1 => format!("{done}/1 of {parallel}"),
        (None, _) => format!("{done}/1"),
    }
}

fn job_status(job: &Value) -> &'static str {
    let ended = ["Complete", "Failed"].into_iter().find(|kind| condition_true(job, kind));
    if let Some(ended) = ended {
        return ended;
    }
    if has(job, &["metadata", "deletionTimestamp"]) {
        return "Terminating";
    }
    ["Suspended", "FailureTarget", "SuccessCriteriaMet"]
        .into_iter()
        .find(|kind| condition_true(job, kind))
        .unwrap_or("Running")
}

fn check_job(spec: &Value, with_selector: bool, path: &Path, errors: &mut Errors) {
    const NUMBERS: &[&str] = &[
        "parallelism",
        "completions",
        "activeDeadlineSeconds",
        "backoffLimit",
        "ttlSecondsAfterFinished",
        "backoffLimitPerIndex",
        "maxFailedIndexes",
    ];
    for key in NUMBERS {
        not_negative(errors, &path.child(key), &spec[*key]);
    }
    check_completion_mode(spec, path, errors);
    validate::template(&spec["template"], &path.child("template"), errors);
    check_job_restarts(spec, path, errors);
    if !with_selector {
        return;
    }
    let selector = &spec["selector"];
    if selector.is_null() {
        errors.push(FieldError::required(&path.child("selector"), ""));
    } else {
        check_selector(selector, &path.child("selector"), errors);
    }
    let labels = at(spec, &["template", "metadata", "labels"]);
    if Selector::from_value(selector).is_ok_and(|selector| !selector.matches_value(labels)) {
        let path = path.child("template").child("metadata").child("labels");
        errors.push(FieldError::invalid(&path, labels.clone(), "`selector` does not match template `labels`"));
    }
}

fn check_completion_mode(spec: &Value, path: &Path, errors: &mut Errors) {
    match text(spec, &["completionMode"]) {
        "Indexed" => {
            if !has(spec, &["completions"]) {
                let detail = "when completion mode is Indexed";
                errors.push(FieldError::required(&path.child("completions"), detail));
            }
            if let Some(count) = int(spec, &["parallelism"]).filter(|count| *count > 100_000) {
                let detail = "must be less than or equal to 100000 when completion mode is Indexed";
                errors.push(FieldError::invalid(&path.child("parallelism"), count, detail));
            }
        }
        "" | "NonIndexed" => {
            for key in ["backoffLimitPerIndex", "maxFailedIndexes", "successPolicy"] {
                if has(spec, &[key]) {
                    let detail = "requires indexed completion mode";
                    errors.push(FieldError::invalid(&path.child(key), spec[key].clone(), detail));
                }
            }
        }
        other => {
            let path = path.child("completionMode");
            errors.push(FieldError::not_supported(&path, other, &["Indexed", "NonIndexed"]));
        }
    }
}

fn check_job_restarts(spec: &Value, path: &Path, errors: &mut Errors) {
    let path = path.child("template").child("spec").child("restartPolicy");
    match text(spec, &["template", "spec", "restartPolicy"]) {
        "" | "Always" => errors.push(FieldError::required(&path, "valid values: \"OnFailure\", \"Never\"")),
        "OnFailure" if has(spec, &["podFailurePolicy"]) => {
            let detail = "only \"Never\" is supported when podFailurePolicy is specified";
            errors.push(FieldError::invalid(&path, "OnFailure", detail));
        }
        "OnFailure" | "Never" => {}
        other => errors.push(FieldError::not_supported(&path, other, &["OnFailure", "Never"])),
    }
}

fn check_job_change(new: &Value, old: &Value, errors: &mut Errors) {
    let fields =
        ["selector", "completionMode", "podFailurePolicy", "backoffLimitPerIndex", "managedBy", "successPolicy"];
    for field in fields {
        check_immutable(new, old, &["spec", field], errors);
    }
    let indexed = text(new, &["spec", "completionMode"]) == "Indexed";
    let elastic = indexed && same(at(new, &["spec", "completions"]), at(new, &["spec", "parallelism"]));
    if !elastic {
        check_immutable(new, old, &["spec", "completions"], errors);
    }
    // A job that has not begun may still be given other places to run.
    let suspended = flag(old, &["spec", "suspend"]) && !has(old, &["status", "startTime"]);
    let template = |job: &Value| {
        let mut template = at(job, &["spec", "template"]).clone();
        if suspended {
            for (holder, keys) in [
                ("metadata", &["annotations", "labels"][..]),
                ("spec", &["nodeSelector", "affinity", "tolerations", "schedulingGates"][..]),
            ] {
                if let Some(holder) = template.get_mut(holder).and_then(Value::as_object_mut) {
                    holder.retain(|key, _| !keys.contains(&key.as_str()));
                }
            }
        }
        template
    };
    if !same(&template(new), &template(old)) {
        let path = Path::new("spec").child("template");
        errors.push(FieldError::invalid(&path, at(new, &["spec", "template"]).clone(), IMMUTABLE));
    }
}

fn check_cron(cron: &Value, errors: &mut Errors) {
    let path = Path::new("spec");
    let spec = &cron["spec"];
    let schedule_path = path.child("schedule");
    match text(spec, &["schedule"]) {
        "" => errors.push(FieldError::required(&schedule_path, "")),
        schedule if schedule.contains("TZ") => {
            let detail = "cannot use TZ or CRON_TZ in schedule, use timeZone field instead";
            errors.push(FieldError::invalid(&schedule_path, schedule, detail));
        }
        schedule => check_schedule(schedule, &schedule_path, errors),
    }
    check_time_zone(&spec["timeZone"], &path.child("timeZone"), errors);
    for key in ["startingDeadlineSeconds", "successfulJobsHistoryLimit", "failedJobsHistoryLimit"] {
        not_negative(errors, &path.child(key), &spec[key]);
    }
    let policy = text(spec, &["concurrencyPolicy"]);
    one_of(errors, &path.child("concurrencyPolicy"), policy, &["Allow", "Forbid", "Replace"]);
    let job_path = path.child("jobTemplate").child("spec");
    check_job(&spec["jobTemplate"]["spec"], false, &job_path, errors);
}

fn check_schedule(schedule: &str, path: &Path, errors: &mut Errors) {
    if let Err(fault) = Schedule::parse(schedule) {
        errors.push(FieldError::invalid(path, schedule, fault.to_string()));
    }
}

fn check_time_zone(zone: &Value, path: &Path, errors: &mut Errors) {
    let detail = match zone.as_str() {
        None => return,
        Some("") => "timeZone must be nil or non-empty string".to_owned(),
        Some(name) if name.eq_ignore_ascii_case("local") => {
            "timeZone must be an explicit time zone as defined in https://www.iana.org/time-zones".to_owned()
        }
        Some(name) if time_zone(name).is_none() => format!("unknown time zone {name}"),
        Some(_) => return,
    };
    errors.push(FieldError::invalid(path, zone.clone(), detail));
}

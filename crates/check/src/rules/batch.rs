//! Jobs and CronJobs: schedules and restart policies.

use crate::finding::{Report, Severity};
use crate::set::Set;
use crate::value::text;
use crate::workload;

pub fn check(set: &Set, report: &mut Report) {
    for object in set.local().filter(|object| object.group == "batch") {
        if let Some(workload) = workload::of(object) {
            let field = workload.path("spec.restartPolicy");
            let policy = text(workload.spec(), "/restartPolicy");
            if matches!(policy, "" | "Always") {
                let message = match policy {
                    "" => "restartPolicy is missing: its default, Always, is not for Jobs, which end".to_owned(),
                    _ => "restartPolicy Always is not for Jobs, which end".to_owned(),
                };
                let fix = "write restartPolicy: OnFailure (start the container again) or Never (start a new pod)";
                report.object(Severity::Error, "job-restart-policy", object, field, message, fix);
            }
        }
        if object.kind == "CronJob" {
            let schedule = text(&object.value, "/spec/schedule");
            if let Some((message, fix)) = fault(schedule) {
                report.object(Severity::Error, "cron-schedule", object, "spec.schedule", message, fix);
            }
        }
    }
}

/// Name, lowest and highest value, names of values.
const FIELDS: &[(&str, u32, u32, &[&str])] = &[
    ("minute", 0, 59, &[]),
    ("hour", 0, 23, &[]),
    ("day of month", 1, 31, &[]),
    ("month", 1, 12, &["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]),
    ("day of week", 0, 6, &["sun", "mon", "tue", "wed", "thu", "fri", "sat"]),
];

/// What is wrong with a schedule, and what to do.
fn fault(schedule: &str) -> Option<(String, String)> {
    if schedule.is_empty() || schedule.starts_with('@') || schedule.contains("TZ") {
        return None;
    }
    let parts: Vec<&str> = schedule.split_whitespace().collect();
    if parts.len() != FIELDS.len() {
        let message = format!("the schedule {schedule:?} has {} fields; five are needed", parts.len());
        let fix = match parts.len() {
            6 => "leave out the seconds: minute, hour, day of month, month, day of week",
            _ => "minute, hour, day of month, month, day of week",
        };
        return Some((message, fix.to_owned()));
    }
    parts.iter().zip(FIELDS).find_map(|(part, (name, low, high, names))| {
        let wrong = part.split(',').find(|range| !is_range(range, *low, *high, names))?;
        let message = format!("{wrong:?} is no {name} in the schedule {schedule:?}");
        let fix = match (*name, wrong) {
            ("day of week", "7") => "Sunday is 0".to_owned(),
            _ => format!("write a number from {low} to {high}, a range such as {low}-{high}, or */2"),
        };
        Some((message, fix))
    })
}

/// `*`, `5`, `1-5`, `*/10`, `10-30/5`, `mon-fri`
fn is_range(text: &str, low: u32, high: u32, names: &[&str]) -> bool {
    let (range, step) = text.split_once('/').map_or((text, None), |(range, step)| (range, Some(step)));
    if step.is_some_and(|step| step.parse::<u32>().map_or(true, |step| step == 0)) {
        return false;
    }
    if matches!(range, "*" | "?") {
        return true;
    }
    let value = |text: &str| {
        let number = text.parse::<u32>().ok().filter(|number| (low..=high).contains(number));
        let named = || names.iter().position(|name| text.eq_ignore_ascii_case(name)).map(|at| at as u32 + low);
        number.or_else(named)
    };
    match range.split_once('-') {
        Some((from, to)) => matches!((value(from), value(to)), (Some(from), Some(to)) if from <= to),
        None => value(range).is_some(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedules() {
        for good in ["* * * * *", "*/5 0-6 1,15 jan-mar MON-FRI", "0 3 * * 0", "@hourly", "10-30/5 2 ? * 1"] {
            assert_eq!(fault(good), None, "{good}");
        }
        for (bad, says) in [
            ("0 3 * *", "has 4 fields"),
            ("0 0 3 * * *", "has 6 fields"),
            ("60 3 * * *", "\"60\" is no minute"),
            ("0 3 * * 7", "\"7\" is no day of week"),
            ("0 3 0 * *", "is no day of month"),
            ("*/0 3 * * *", "is no minute"),
            ("5-1 3 * * *", "is no minute"),
        ] {
            assert!(fault(bad).is_some_and(|(message, _)| message.contains(says)), "{bad}: {:?}", fault(bad));
        }
    }
}

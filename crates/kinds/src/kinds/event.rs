//! Event, in both its groups. The stored form is that of the core group.

use jiff::Timestamp;
use mycelium_api::field::{FieldError, Path};
use mycelium_api::names::is_qualified_name;
use serde_json::Value;

use crate::check::refuse;
use crate::convert::event_to_core;
use crate::meta::IMMUTABLE;
use crate::table::{Column, NAME, name, since, text_or};
use crate::value::{has, int, is_empty, same, text};
use crate::{Errors, FieldLabels, Kind, Refusal, read_path};

const COLUMNS: &[Column] = &[
    Column::text("Last Seen", "Time since the event happened last."),
    Column::text("Type", "Normal or Warning."),
    Column::text("Reason", "Why it happened, in a word."),
    Column::text("Object", "What it happened to."),
    Column::text("Subobject", "Which part of the object.").wide(),
    Column::text("Source", "Who reports it.").wide(),
    Column::text("Message", "What happened."),
    Column::text("First Seen", "Time since the event happened first.").wide(),
    Column::text("Count", "How often it happened.").wide(),
    Column { priority: 1, ..NAME },
];

const LABELS: FieldLabels = FieldLabels {
    paths: &[
        "involvedObject.kind",
        "involvedObject.namespace",
        "involvedObject.name",
        "involvedObject.uid",
        "involvedObject.apiVersion",
        "involvedObject.resourceVersion",
        "involvedObject.fieldPath",
        "reason",
        "reportingComponent",
        "source",
        "type",
    ],
    read: |event, path| match path {
        "source" => Some(first(&[text(event, &["source", "component"]), text(event, &["reportingComponent"])])),
        _ => read_path(event, path),
    },
    refusal: Refusal::Plain,
};

pub static CORE_EVENT: Kind = Kind {
    has_status: false,
    check: |event, errors| check(event, "reportingComponent", errors),
    check_update: |new, _, _, errors| check(new, "reportingComponent", errors),
    columns: COLUMNS,
    cells,
    labels: LABELS,
    ..Kind::new("", "Event", true)
};

pub static EVENT: Kind = Kind {
    has_status: false,
    check: |event, errors| {
        let event = event_to_core(event);
        check(&event, "reportingController", errors);
        check_strictly(&event, errors);
    },
    check_update: |new, old, _, errors| {
        let (new, old) = (event_to_core(new), event_to_core(old));
        check(&new, "reportingController", errors);
        check_change(&new, &old, errors);
    },
    columns: COLUMNS,
    cells: |event, now| cells(&event_to_core(event), now),
    labels: FieldLabels {
        paths: &[
            "regarding.kind",
            "regarding.namespace",
            "regarding.name",
            "regarding.uid",
            "regarding.apiVersion",
            "regarding.resourceVersion",
            "regarding.fieldPath",
            "reason",
            "reportingController",
            "type",
        ],
        read: |event, path| {
            let core =
                path.replace("regarding.", "involvedObject.").replace("reportingController", "reportingComponent");
            read_path(&event_to_core(event), &core)
        },
        refusal: Refusal::Plain,
    },
    ..Kind::new("events.k8s.io", "Event", true)
};

fn first(texts: &[&str]) -> String {
    texts.iter().find(|text| !text.is_empty()).map(|text| (*text).to_owned()).unwrap_or_default()
}

fn cells(event: &Value, now: Timestamp) -> Vec<Value> {
    let first_time = if text(event, &["firstTimestamp"]).is_empty() { "eventTime" } else { "firstTimestamp" };
    let first_seen = since(event, &[first_time], now);
    let (last_seen, count) = if has(event, &["series"]) {
        (since(event, &["series", "lastObservedTime"], now), int(event, &["series", "count"]).unwrap_or_default())
    } else {
        let last = text(event, &["lastTimestamp"]);
        let last_seen = if last.is_empty() { first_seen.clone() } else { since(event, &["lastTimestamp"], now) };
        (last_seen, int(event, &["count"]).unwrap_or_default().max(1))
    };
    let kind = text(event, &["involvedObject", "kind"]).to_lowercase();
    let target = match text(event, &["involvedObject", "name"]) {
        "" => kind,
        name => format!("{kind}/{name}"),
    };
    let component = first(&[text(event, &["source", "component"]), text(event, &["reportingComponent"])]);
    let instance = first(&[text(event, &["source", "host"]), text(event, &["reportingInstance"])]);
    let source = if instance.is_empty() { component } else { format!("{component}, {instance}") };
    vec![
        last_seen.into(),
        text_or(event, &["type"], ""),
        text_or(event, &["reason"], ""),
        target.into(),
        text_or(event, &["involvedObject", "fieldPath"], ""),
        source.into(),
        text(event, &["message"]).trim().into(),
        first_seen.into(),
        count.into(),
        name(event),
    ]
}

/// What holds for events however they are reported. `reporter` is what the request calls the reporting controller.
fn check(event: &Value, reporter: &str, errors: &mut Errors) {
    let involved = text(event, &["involvedObject", "namespace"]);
    let namespace = text(event, &["metadata", "namespace"]);
    let precise = !text(event, &["eventTime"]).is_empty();
    let fits = match (involved, precise) {
        ("", false) => matches!(namespace, "" | "default"),
        ("", true) => matches!(namespace, "default" | "kube-system"),
        (involved, false) => involved == namespace,
        (_, true) => true,
    };
    if !fits {
        let path = Path::new("involvedObject").child("namespace");
        errors.push(FieldError::invalid(&path, involved, "does not match event.namespace"));
    }
    if precise {
        check_precise(event, reporter, errors);
    }
}

/// Events with a precise time are reported in the newer way, and more must be known of them.
fn check_precise(event: &Value, reporter: &str, errors: &mut Errors) {
    let path = Path::new(reporter);
    let controller = text(event, &["reportingComponent"]);
    if controller.is_empty() {
        errors.push(FieldError::required(&path, ""));
    }
    refuse(errors, &path, controller, is_qualified_name(controller));
    for (field, limit, required) in
        [("reportingInstance", 128, true), ("action", 128, true), ("reason", 128, true), ("message", 1024, false)]
    {
        let value = text(event, &[field]);
        if required && value.is_empty() {
            errors.push(FieldError::required(&Path::new(field), ""));
        }
        if value.len() > limit {
            let detail = format!("can have at most {limit} characters");
            errors.push(FieldError::invalid(&Path::new(field), "", detail));
        }
    }
}

/// What must hold besides for events written through the newer group.
fn check_strictly(event: &Value, errors: &mut Errors) {
    check_series(event, errors);
    if text(event, &["eventTime"]).is_empty() {
        errors.push(FieldError::required(&Path::new("eventTime"), ""));
    }
    let kind = text(event, &["type"]);
    if !matches!(kind, "Normal" | "Warning") {
        errors.push(FieldError::invalid(&Path::new("type"), "", format!("has invalid value: {kind}")));
    }
    for field in ["firstTimestamp", "lastTimestamp", "count", "source"] {
        if !is_empty(&event[field]) {
            errors.push(FieldError::invalid(&Path::new(field), "", "needs to be unset"));
        }
    }
}

fn check_series(event: &Value, errors: &mut Errors) {
    if !has(event, &["series"]) {
        return;
    }
    if int(event, &["series", "count"]).unwrap_or_default() < 2 {
        errors.push(FieldError::invalid(&Path::new("series.count"), "", "should be at least 2"));
    }
    if text(event, &["series", "lastObservedTime"]).is_empty() {
        errors.push(FieldError::required(&Path::new("series.lastObservedTime"), ""));
    }
}

/// Through the newer group, only the series of an event can change.
fn check_change(new: &Value, old: &Value, errors: &mut Errors) {
    const FIXED: &[(&str, &str)] = &[
        ("involvedObject", "involvedObject"),
        ("reason", "reason"),
        ("message", "message"),
        ("source", "source"),
        ("firstTimestamp", "firstTimestamp"),
        ("lastTimestamp", "lastTimestamp"),
        ("count", "count"),
        ("type", "type"),
        ("eventTime", "eventTime"),
        ("action", "action"),
        ("related", "related"),
        ("reportingComponent", "reportingController"),
        ("reportingInstance", "reportingInstance"),
    ];
    if !same(&new["series"], &old["series"]) {
        check_series(new, errors);
    }
    for (field, shown) in FIXED {
        if !same(&new[*field], &old[*field]) {
            errors.push(FieldError::invalid(&Path::new(shown), new[*field].clone(), IMMUTABLE));
        }
    }
}

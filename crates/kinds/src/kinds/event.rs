//! Event, in both its groups. The stored form is that of the core group.

use jiff::Timestamp;
use mycelium_api::field::{FieldError, Path};
use serde_json::Value;

use crate::table::{Column, NAME, name, since, text_or};
use crate::value::{has, int, text};
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

pub static CORE_EVENT: Kind =
    Kind { has_status: false, check, columns: COLUMNS, cells, labels: LABELS, ..Kind::new("", "Event", true) };

pub static EVENT: Kind = Kind {
    has_status: false,
    check: |event, errors| check(&crate::convert::event_to_core(event), errors),
    columns: COLUMNS,
    cells: |event, now| cells(&crate::convert::event_to_core(event), now),
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
            read_path(&crate::convert::event_to_core(event), &core)
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

fn check(event: &Value, errors: &mut Errors) {
    let path = Path::new("involvedObject").child("namespace");
    let involved = text(event, &["involvedObject", "namespace"]);
    let namespace = text(event, &["metadata", "namespace"]);
    let cluster_wide = involved.is_empty() && matches!(namespace, "default" | "kube-system");
    if !cluster_wide && involved != namespace {
        errors.push(FieldError::invalid(&path, involved, "does not match event.namespace"));
    }
    // Events reported in the newer way carry a precise time, and more must be known of them.
    if text(event, &["eventTime"]).is_empty() {
        return;
    }
    let required = [("reportingComponent", "reportingController"), ("reportingInstance", "reportingInstance")];
    for (field, shown) in required {
        if text(event, &[field]).is_empty() {
            errors.push(FieldError::required(&Path::new(shown), ""));
        }
    }
    for (field, limit) in [("reportingInstance", 128), ("action", 128), ("reason", 128), ("message", 1024)] {
        if text(event, &[field]).len() > limit {
            let detail = format!("can have at most {limit} characters");
            errors.push(FieldError::invalid(&Path::new(field), "", detail));
        }
    }
    for field in ["action", "reason"] {
        if text(event, &[field]).is_empty() {
            errors.push(FieldError::required(&Path::new(field), ""));
        }
    }
    let kind = text(event, &["type"]);
    if !matches!(kind, "Normal" | "Warning") {
        errors.push(FieldError::invalid(&Path::new("type"), "", format!("has invalid value: {kind}")));
    }
}

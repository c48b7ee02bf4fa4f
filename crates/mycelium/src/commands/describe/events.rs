//! What happened to an object.

use anyhow::Result;
use jiff::Timestamp;
use serde_json::Value;

use super::age::since;
use super::writer::Writer;
use crate::client::discovery::Resource;
use crate::client::table::Table;
use crate::client::{Cluster, query, text};

/// The events about an object, oldest first.
pub(super) async fn of(cluster: &Cluster, resource: &Resource, object: &Value) -> Result<Vec<Value>> {
    // Events about objects without a namespace lie in `default`; the kubelet names nodes by name instead of uid.
    let uid = if resource.kind == "Node" { "" } else { text(object, "/metadata/uid") };
    let mut selector =
        format!("involvedObject.name={},involvedObject.kind={}", text(object, "/metadata/name"), resource.kind);
    if !uid.is_empty() {
        selector.push_str(&format!(",involvedObject.uid={uid}"));
    }
    let namespace = match text(object, "/metadata/namespace") {
        "" => "default",
        namespace => namespace,
    };
    let query = query(&[("fieldSelector", Some(selector))]);
    let list = cluster.get(&format!("/api/v1/namespaces/{namespace}/events{query}")).await?;
    let mut events = list["items"].as_array().cloned().unwrap_or_default();
    events.sort_by_key(|event| last(event).to_owned());
    Ok(events)
}

fn last(event: &Value) -> &str {
    let times =
        ["/lastTimestamp", "/series/lastObservedTime", "/eventTime", "/firstTimestamp", "/metadata/creationTimestamp"];
    times.iter().map(|at| text(event, at)).find(|time| !time.is_empty()).unwrap_or_default()
}

/// Writes them as a table.
pub(super) fn describe(out: &mut Writer, events: &[Value], now: Timestamp) {
    out.section("Events", |out| {
        if events.is_empty() {
            return;
        }
        let mut table = Table::new(["TYPE", "REASON", "AGE", "FROM", "MESSAGE"]);
        for event in events {
            let count = event["count"].as_u64().or(event.pointer("/series/count").and_then(Value::as_u64)).unwrap_or(1);
            let mut age = since(last(event), now);
            let first = text(event, "/firstTimestamp");
            if count > 1 && !first.is_empty() {
                age = format!("{age} (x{count} over {})", since(first, now));
            }
            let sources = ["/source/component", "/reportingComponent"].map(|at| text(event, at));
            let source = sources.into_iter().find(|source| !source.is_empty()).unwrap_or_default();
            table.row([text(event, "/type"), text(event, "/reason"), &age, source, text(event, "/message").trim()]);
        }
        out.table(&table);
    });
}

//! Nodes, with the pods on them.

use anyhow::Result;
use jiff::Timestamp;
use mycelium_api::quantity::Quantity;
use serde_json::Value;

use super::age::since;
use super::generic::head;
use super::pods::{conditions, list};
use super::writer::{Writer, plain};
use crate::client::table::Table;
use crate::client::{Cluster, query, text};

/// The pods on a node that have not ended.
pub(super) async fn pods_on(cluster: &Cluster, node: &Value) -> Result<Vec<Value>> {
    let selector =
        format!("spec.nodeName={},status.phase!=Succeeded,status.phase!=Failed", text(node, "/metadata/name"));
    let pods = cluster.get(&format!("/api/v1/pods{}", query(&[("fieldSelector", Some(selector))]))).await?;
    Ok(list(&pods, "/items").to_vec())
}

/// A node.
pub(super) fn describe(out: &mut Writer, node: &Value, pods: &[Value], now: Timestamp) {
    head(out, node);
    out.field("Created", text(node, "/metadata/creationTimestamp"));
    let taints = list(node, "/spec/taints").iter().map(|taint| {
        format!("{}={}:{}", text(taint, "/key"), text(taint, "/value"), text(taint, "/effect")).replace("=:", ":")
    });
    out.field("Taints", taints.collect::<Vec<_>>().join("\n"));
    out.field("Unschedulable", node.pointer("/spec/unschedulable").map_or_else(|| "false".to_owned(), plain));
    conditions(out, node);
    let addresses = list(node, "/status/addresses").iter();
    let addresses: Vec<String> = addresses.map(|a| format!("{}: {}", text(a, "/type"), text(a, "/address"))).collect();
    out.field("Addresses", addresses.join("\n"));
    out.map("Capacity", node.pointer("/status/capacity"), ": ");
    out.map("Allocatable", node.pointer("/status/allocatable"), ": ");
    out.section("System Info", |out| {
        for (name, value) in node.pointer("/status/nodeInfo").and_then(Value::as_object).into_iter().flatten() {
            out.some(name, plain(value));
        }
    });
    out.some("PodCIDR", text(node, "/spec/podCIDR"));
    on_it(out, node, pods, now);
}

fn on_it(out: &mut Writer, node: &Value, pods: &[Value], now: Timestamp) {
    out.field("Pods", format!("{} running or starting", pods.len()));
    if !pods.is_empty() {
        let mut table = Table::new(["NAMESPACE", "NAME", "CPU", "MEMORY", "AGE"]);
        for pod in pods {
            let age = since(text(pod, "/metadata/creationTimestamp"), now);
            let (cpu, memory) = (requested(pod, "cpu"), requested(pod, "memory"));
            table.row([
                text(pod, "/metadata/namespace").to_owned(),
                text(pod, "/metadata/name").to_owned(),
                format!("{cpu}m"),
                format!("{}Mi", memory / 1000 / (1 << 20)),
                age,
            ]);
        }
        out.section("Requests", |out| out.table(&table));
    }
    for (label, resource) in [("CPU Requested", "cpu"), ("Memory Requested", "memory")] {
        let total: i128 = pods.iter().map(|pod| requested(pod, resource)).sum();
        let all = node.pointer(&format!("/status/allocatable/{resource}")).and_then(Value::as_str).and_then(milli);
        let percent = all.filter(|all| *all > 0).map(|all| format!(" ({}%)", total * 100 / all)).unwrap_or_default();
        let amount = if resource == "cpu" { format!("{total}m") } else { format!("{}Mi", total / 1000 / (1 << 20)) };
        out.field(label, format!("{amount}{percent}"));
    }
}

/// Thousandths of what the pod's containers ask for.
fn requested(pod: &Value, resource: &str) -> i128 {
    let of = |container: &Value| {
        let request = container.pointer(&format!("/resources/requests/{resource}"));
        request.and_then(Value::as_str).and_then(milli).unwrap_or(0)
    };
    list(pod, "/spec/containers").iter().map(of).sum()
}

fn milli(quantity: &str) -> Option<i128> {
    quantity.parse::<Quantity>().ok().map(|quantity| quantity.milli_value())
}

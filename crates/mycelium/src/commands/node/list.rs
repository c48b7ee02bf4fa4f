//! `mycelium node list`.

use std::collections::BTreeMap;
use std::process::ExitCode;

use anyhow::Result;
use serde_json::{Value, json};

use super::{condition, is_off};
use crate::client::table::Table;
use crate::client::{Connection, out, text};

const ZONE: &str = "topology.kubernetes.io/zone";

/// Show the nodes.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  mycelium node list
  mycelium node list -o wide

STATUS is what the control plane believes, POWER what is so: a node that was stopped is Ready until it is missed.")]
pub struct Args {
    /// Output: wide, name, yaml or json
    #[arg(short, long, value_name = "FORMAT", value_parser = ["wide", "name", "yaml", "json"])]
    output: Option<String>,
    #[command(flatten)]
    connection: Connection,
}

/// Shows the nodes.
pub async fn run(args: Args) -> Result<ExitCode> {
    let cluster = args.connection.cluster().await?;
    let list = cluster.get("/api/v1/nodes").await?;
    let mut nodes = list["items"].as_array().cloned().unwrap_or_default();
    for node in nodes.iter_mut().filter_map(Value::as_object_mut) {
        node.insert("apiVersion".into(), "v1".into());
        node.insert("kind".into(), "Node".into());
        if let Some(metadata) = node.get_mut("metadata").and_then(Value::as_object_mut) {
            metadata.remove("managedFields");
        }
    }
    let document = json!({"apiVersion": "v1", "kind": "List", "metadata": {"resourceVersion": ""}, "items": nodes});
    match args.output.as_deref() {
        Some("json") => out!("{}\n", serde_json::to_string_pretty(&document)?),
        Some("yaml") => out!("{}", serde_saphyr::to_string(&document)?),
        Some("name") => {
            for node in &nodes {
                out!("node/{}\n", text(node, "/metadata/name"));
            }
        }
        format => {
            let pods = cluster.get("/api/v1/pods").await?;
            out!("{}", render(&nodes, &counts(&pods), format.is_some()));
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Pods that have not ended, by node.
fn counts(pods: &Value) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for pod in pods["items"].as_array().into_iter().flatten() {
        if !matches!(text(pod, "/status/phase"), "Succeeded" | "Failed") {
            *counts.entry(text(pod, "/spec/nodeName").to_owned()).or_default() += 1;
        }
    }
    counts
}

fn render(nodes: &[Value], pods: &BTreeMap<String, usize>, wide: bool) -> String {
    let mut headings = vec!["NAME", "STATUS", "POWER", "ZONE", "PODS"];
    if wide {
        headings.extend(["INTERNAL-IP", "POD-CIDR", "TAINTS"]);
    }
    let mut table = Table::new(headings);
    for node in nodes {
        let name = text(node, "/metadata/name");
        let zone = node["metadata"]["labels"][ZONE].as_str().unwrap_or_default();
        let mut row = vec![
            name.to_owned(),
            status(node),
            if is_off(node) { "off" } else { "on" }.to_owned(),
            zone.to_owned(),
            pods.get(name).copied().unwrap_or(0).to_string(),
        ];
        if wide {
            row.extend([address(node), text(node, "/spec/podCIDR").to_owned(), taints(node)]);
        }
        table.row(row);
    }
    table.render(true, &[])
}

fn status(node: &Value) -> String {
    let ready = if condition(node, "Ready") == "True" { "Ready" } else { "NotReady" };
    if node["spec"]["unschedulable"] == true { format!("{ready},SchedulingDisabled") } else { ready.to_owned() }
}

fn address(node: &Value) -> String {
    let addresses = node["status"]["addresses"].as_array().into_iter().flatten();
    let found = addresses.into_iter().find(|address| address["type"] == "InternalIP");
    found.map_or_else(String::new, |address| text(address, "/address").to_owned())
}

fn taints(node: &Value) -> String {
    let taints = node["spec"]["taints"].as_array().into_iter().flatten();
    let shown: Vec<String> =
        taints.map(|taint| format!("{}:{}", text(taint, "/key"), text(taint, "/effect"))).collect();
    if shown.is_empty() { "<none>".to_owned() } else { shown.join(",") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn belief_and_truth_are_shown_side_by_side() {
        let node = json!({"metadata": {"name": "a-2", "labels": {ZONE: "zone-2"},
            "annotations": {"mycelium.network/power": "off"}}, "spec": {"unschedulable": true},
            "status": {"conditions": [{"type": "Ready", "status": "True"}]}});
        let text = render(&[node], &BTreeMap::from([("a-2".to_owned(), 3)]), true);
        let words: Vec<&str> = text.lines().nth(1).unwrap().split_whitespace().collect();
        assert_eq!(words, ["a-2", "Ready,SchedulingDisabled", "off", "zone-2", "3", "<none>"]);
    }
}

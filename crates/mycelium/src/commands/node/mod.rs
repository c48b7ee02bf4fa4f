//! `mycelium node`: the nodes of an engine.

mod drain;
mod list;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, bail};
use http::Method;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::client::{Call, Cluster, Connection, block_on, say, text, unless_unread};
use crate::engine::fleet::{OFF, POWER};

const MERGE_PATCH: &str = "application/merge-patch+json";
const POLL: Duration = Duration::from_millis(100);
/// How long a node may take to say that it is ready again.
const READY_LIMIT: Duration = Duration::from_secs(60);

/// Show and switch the nodes.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(clap::Subcommand)]
enum Verb {
    /// Show the nodes.
    List(list::Args),
    /// Cut a node's power: all that runs on it is killed at once, and nobody is told.
    #[command(after_help = "\
Examples:
  mycelium node stop host-2

The control plane finds out as it would of any machine: by the node's silence (`up --node-monitor-grace-period`). Pods
then leave when their time on a lost node is over (`up --default-unreachable-toleration-seconds`). To move them first, use
`mycelium node drain`. The node stays off, also over `down` and `up`, until `mycelium node start`.

The first node is the machine itself: stopping it ends its pods, but not the API and the other nodes' network.")]
    Stop(One),
    /// Give a node power again; its pods are started anew.
    Start(One),
    /// Let no new pods be placed on a node.
    Cordon(One),
    /// Let pods be placed on a node again.
    Uncordon(One),
    /// Move all pods away from a node, as fast as their disruption budgets allow.
    Drain(drain::Args),
}

#[derive(clap::Args)]
struct One {
    /// Name of the node
    name: String,
    #[command(flatten)]
    connection: Connection,
}

/// Runs the subcommand.
pub fn run(args: Args) -> Result<ExitCode> {
    match args.verb {
        Verb::List(args) => unless_unread(block_on(list::run(args))),
        Verb::Stop(one) => block_on(stop(one)),
        Verb::Start(one) => block_on(start(one)),
        Verb::Cordon(one) => block_on(cordon(one, true)),
        Verb::Uncordon(one) => block_on(cordon(one, false)),
        Verb::Drain(args) => block_on(drain::run(args)),
    }
}

fn path(name: &str) -> String {
    format!("/api/v1/nodes/{name}")
}

/// The node of this name; an error says which there are.
async fn get(cluster: &Cluster, name: &str) -> Result<Value> {
    if let Some(node) = cluster.get_opt(&path(name)).await? {
        return Ok(node);
    }
    let all = cluster.get("/api/v1/nodes").await?;
    let names = all["items"].as_array().into_iter().flatten().map(|node| text(node, "/metadata/name"));
    bail!("there is no node {name:?}; there are: {}", names.collect::<Vec<_>>().join(", "))
}

async fn patch(cluster: &Cluster, name: &str, patch: &Value) -> Result<()> {
    let body = patch.to_string().into_bytes();
    let call = Call { method: Method::PATCH, content_type: MERGE_PATCH, body, ..Call::default() };
    cluster.call(&path(name), call).await.map(drop)
}

fn is_off(node: &Value) -> bool {
    node["metadata"]["annotations"][POWER] == OFF
}

async fn stop(one: One) -> Result<ExitCode> {
    let cluster = one.connection.cluster().await?;
    let verb = if is_off(&get(&cluster, &one.name).await?) { "is already" } else { "is" };
    patch(&cluster, &one.name, &json!({"metadata": {"annotations": {POWER: OFF}}})).await?;
    say(format_args!("node {} {verb} switched off\n", one.name));
    Ok(ExitCode::SUCCESS)
}

/// When the node last said that it lives.
async fn last_sign(cluster: &Cluster, name: &str) -> Result<String> {
    let lease =
        cluster.get_opt(&format!("/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/{name}")).await?;
    Ok(lease.as_ref().map(|lease| text(lease, "/spec/renewTime").to_owned()).unwrap_or_default())
}

async fn start(one: One) -> Result<ExitCode> {
    let cluster = one.connection.cluster().await?;
    let name = &one.name;
    if !is_off(&get(&cluster, name).await?) {
        say(format_args!("node {name} is not switched off\n"));
        return Ok(ExitCode::SUCCESS);
    }
    let before = last_sign(&cluster, name).await?;
    patch(&cluster, name, &json!({"metadata": {"annotations": {POWER: null}}})).await?;
    let end = Instant::now() + READY_LIMIT;
    // Before it was missed, its object still says that it is ready: a new sign of life is what counts.
    while last_sign(&cluster, name).await? == before || condition(&get(&cluster, name).await?, "Ready") != "True" {
        if Instant::now() > end {
            bail!("node {name} is switched on, but does not say that it is ready; look at the engine's log");
        }
        tokio::time::sleep(POLL).await;
    }
    say(format_args!("node {name} is ready\n"));
    Ok(ExitCode::SUCCESS)
}

async fn cordon(one: One, cordoned: bool) -> Result<ExitCode> {
    let cluster = one.connection.cluster().await?;
    get(&cluster, &one.name).await?;
    set_schedulable(&cluster, &one.name, !cordoned).await?;
    say(format_args!("node {} {}\n", one.name, if cordoned { "cordoned" } else { "uncordoned" }));
    Ok(ExitCode::SUCCESS)
}

async fn set_schedulable(cluster: &Cluster, name: &str, schedulable: bool) -> Result<()> {
    let value = if schedulable { Value::Null } else { json!(true) };
    patch(cluster, name, &json!({"spec": {"unschedulable": value}})).await
}

/// The status of one of a node's conditions.
fn condition<'a>(node: &'a Value, kind: &str) -> &'a str {
    let conditions = node["status"]["conditions"].as_array().into_iter().flatten();
    let found = conditions.into_iter().find(|condition| condition["type"] == kind);
    found.map_or("", |condition| text(condition, "/status"))
}

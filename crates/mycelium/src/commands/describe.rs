//! `mycelium describe`: one object for people to read, with its events.

mod age;
mod events;
mod generic;
mod nodes;
mod pods;
mod services;
mod workloads;
mod writer;

use std::process::ExitCode;

use anyhow::{Result, bail};
use serde_json::Value;

use crate::client::discovery::{Discovery, Resource};
use crate::client::{Cluster, Connection, block_on, out, query, target, unless_unread};
use writer::Writer;

/// Show an object in full, with its events.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  mycelium describe pod web-1
  mycelium describe deploy/web svc/web
  mycelium describe pods -l app=web
  mycelium describe nodes

Exit codes: 0 found, 1 not found or another error, 2 wrong usage.")]
pub struct Args {
    /// What to show: TYPE [NAME...] or TYPE/NAME...
    #[arg(required = true, value_name = "TYPE[/NAME]")]
    what: Vec<String>,
    /// Only objects with these labels
    #[arg(short = 'l', long, value_name = "SELECTOR")]
    selector: Option<String>,
    /// Objects of all namespaces
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    /// Leave out the events
    #[arg(long)]
    no_events: bool,
    #[command(flatten)]
    connection: Connection,
}

/// Shows the objects.
pub fn run(args: Args) -> Result<ExitCode> {
    unless_unread(block_on(async {
        let cluster = args.connection.cluster().await?;
        let discovery = Discovery::load(&cluster).await?;
        let mut first = true;
        for target in target::parse(&discovery, &args.what)? {
            for object in objects(&args, &cluster, &target).await? {
                if !first {
                    out!("\n\n");
                }
                first = false;
                out!("{}", describe(&args, &cluster, &target.resource, &object).await?);
            }
        }
        if first {
            eprintln!("No resources found.");
        }
        Ok(ExitCode::SUCCESS)
    }))
}

async fn objects(args: &Args, cluster: &Cluster, target: &target::Target) -> Result<Vec<Value>> {
    let mut objects = Vec::new();
    if target.names.is_empty() {
        let namespace = (!args.all_namespaces).then_some(cluster.namespace.as_str());
        let query = query(&[("labelSelector", args.selector.clone())]);
        let list = cluster.get(&format!("{}{query}", target.resource.path(namespace))).await?;
        objects.extend(list["items"].as_array().cloned().unwrap_or_default());
    } else if args.selector.is_some() {
        bail!("names and -l exclude each other");
    }
    for name in &target.names {
        objects.push(cluster.get(&target.resource.object(&cluster.namespace, name)).await?);
    }
    Ok(objects)
}

/// The sections for the kind, and the events at the end.
async fn describe(args: &Args, cluster: &Cluster, resource: &Resource, object: &Value) -> Result<String> {
    let now = crate::engine::sources::real().now();
    let mut out = Writer::default();
    match (resource.group.as_str(), resource.kind.as_str()) {
        ("", "Pod") => pods::describe(&mut out, object),
        ("", "Service") => services::describe(&mut out, object, &services::endpoints(cluster, object).await?),
        ("", "Node") => nodes::describe(&mut out, object, &nodes::pods_on(cluster, object).await?, now),
        ("apps", "Deployment") => {
            workloads::deployment(&mut out, object, &workloads::replica_sets(cluster, object).await?);
        }
        ("apps", "ReplicaSet" | "StatefulSet" | "DaemonSet") | ("", "ReplicationController") => {
            workloads::replicated(&mut out, object);
        }
        ("", "Secret") => generic::secret(&mut out, object),
        _ => generic::describe(&mut out, resource, object),
    }
    if !args.no_events {
        match events::of(cluster, resource, object).await {
            Ok(found) => events::describe(&mut out, &found, now),
            Err(error) => out.field("Events", format!("cannot be read: {error:#}")),
        }
    }
    Ok(out.finish())
}

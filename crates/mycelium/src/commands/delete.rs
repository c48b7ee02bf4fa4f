//! `mycelium delete`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use http::Method;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::client::discovery::{Discovery, Resource};
use crate::client::{Call, Cluster, Connection, block_on, failure, manifest, say, target, text};

const POLL: Duration = Duration::from_millis(200);

/// Delete objects.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  mycelium delete -f examples/platform/
  mycelium delete pod web-1 web-2
  mycelium delete deploy/web svc/web
  mycelium delete pods -l app=web --grace-period 5
  mycelium delete jobs --all --wait=false

Waits until the objects are gone, finalizers and grace periods included, unless --wait=false.
Exit codes: 0 deleted, 1 an object was missing or was not gone in time, 2 wrong usage.")]
pub struct Args {
    /// What to delete: TYPE NAME... or TYPE/NAME...
    #[arg(value_name = "TYPE[/NAME]", required_unless_present = "files", conflicts_with = "files")]
    what: Vec<String>,
    /// The objects in a file, folder, or - for standard input; may be repeated
    #[arg(short = 'f', long = "filename", value_name = "PATH")]
    files: Vec<PathBuf>,
    /// Also the folders within folders
    #[arg(short = 'R', long)]
    recursive: bool,
    /// All objects of the type in the namespace
    #[arg(long, conflicts_with = "selector")]
    all: bool,
    /// All objects with these labels
    #[arg(short = 'l', long, value_name = "SELECTOR")]
    selector: Option<String>,
    /// Wait until the objects are gone
    #[arg(long, num_args = 0..=1, default_value_t = true, default_missing_value = "true", require_equals = true, action = clap::ArgAction::Set)]
    wait: bool,
    /// How many seconds to wait at most; 0 for as long as it takes
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    timeout: u64,
    /// Seconds that containers get to stop [default: what the pod says]
    #[arg(long, value_name = "SECONDS")]
    grace_period: Option<u64>,
    /// What becomes of the objects that these own
    #[arg(long, value_name = "HOW", default_value = "background", value_parser = ["background", "foreground", "orphan"])]
    cascade: String,
    /// Have the server check everything and delete nothing
    #[arg(long)]
    dry_run: bool,
    /// Missing objects are fine
    #[arg(long)]
    ignore_not_found: bool,
    #[command(flatten)]
    connection: Connection,
}

/// One object to delete.
struct Victim {
    resource: Resource,
    namespace: String,
    name: String,
}

impl Victim {
    fn path(&self) -> String {
        self.resource.object(&self.namespace, &self.name)
    }
}

/// Deletes the objects.
pub fn run(args: Args) -> Result<ExitCode> {
    block_on(async {
        let cluster = args.connection.cluster().await?;
        let discovery = Discovery::load(&cluster).await?;
        let mut failures = Vec::new();
        let victims = match args.files.is_empty() {
            true => named(&args, &cluster, &discovery).await?,
            false => written(&args, &cluster, &discovery, &mut failures)?,
        };
        if victims.is_empty() && failures.is_empty() {
            say(format_args!("No resources found.\n"));
        }
        let mut going = Vec::new();
        for victim in victims {
            match delete(&args, &cluster, &victim).await {
                Ok(uid) => going.push((victim, uid)),
                Err(error) if args.ignore_not_found && failure::code(&error) == Some(404) => {}
                Err(error) => failures.push(format!("{error:#}")),
            }
        }
        if args.wait && !args.dry_run {
            wait(&args, &cluster, going).await?;
        }
        match failures.is_empty() {
            true => Ok(ExitCode::SUCCESS),
            false => bail!("{}", failures.join("\n  ")),
        }
    })
}

/// The objects of the manifests, in reverse: what was made last goes first.
fn written(args: &Args, cluster: &Cluster, discovery: &Discovery, failures: &mut Vec<String>) -> Result<Vec<Victim>> {
    let mut victims = Vec::new();
    for document in manifest::read(&args.files, args.recursive)? {
        let Some(resource) = discovery.of_kind(document.api_version(), document.kind()) else {
            if !args.ignore_not_found {
                let (kind, version) = (document.kind(), document.api_version());
                failures.push(format!("{}: the server has no kind {kind} in {version}", document.origin));
            }
            continue;
        };
        let own = text(&document.object, "/metadata/namespace");
        let namespace = if own.is_empty() { cluster.namespace.clone() } else { own.to_owned() };
        victims.push(Victim { resource: resource.clone(), namespace, name: document.name().to_owned() });
    }
    victims.reverse();
    Ok(victims)
}

/// The objects that the command line names or selects.
async fn named(args: &Args, cluster: &Cluster, discovery: &Discovery) -> Result<Vec<Victim>> {
    let mut victims = Vec::new();
    for target in target::parse(discovery, &args.what)? {
        let names = target.names(cluster, args.all, args.selector.as_deref()).await?;
        victims.extend(names.into_iter().map(|name| Victim {
            resource: target.resource.clone(),
            namespace: cluster.namespace.clone(),
            name,
        }));
    }
    Ok(victims)
}

/// Asks for the deletion; gives the object's uid, by which a successor of the same name is told from it.
async fn delete(args: &Args, cluster: &Cluster, victim: &Victim) -> Result<String> {
    let propagation = match args.cascade.as_str() {
        "foreground" => "Foreground",
        "orphan" => "Orphan",
        _ => "Background",
    };
    let mut options = json!({"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": propagation});
    if let Some(seconds) = args.grace_period {
        options["gracePeriodSeconds"] = seconds.into();
    }
    if args.dry_run {
        options["dryRun"] = json!(["All"]);
    }
    let uid = match args.wait && !args.dry_run {
        true => cluster.get_opt(&victim.path()).await?.map(|object| text(&object, "/metadata/uid").to_owned()),
        false => None,
    };
    let call = Call { method: Method::DELETE, body: serde_json::to_vec(&options)?, ..Call::default() };
    cluster.call(&victim.path(), call).await?;
    let note = if args.dry_run { " (server dry run)" } else { "" };
    say(format_args!("{} {:?} deleted{note}\n", victim.resource.display(), victim.name));
    Ok(uid.unwrap_or_default())
}

/// Waits until each object is gone, or another one has its name.
async fn wait(args: &Args, cluster: &Cluster, going: Vec<(Victim, String)>) -> Result<()> {
    let start = Instant::now();
    for (victim, uid) in going {
        loop {
            let object = cluster.get_opt(&victim.path()).await.context("waiting for the deletion")?;
            let Some(object) = object.filter(|object| text(object, "/metadata/uid") == uid) else { break };
            if args.timeout > 0 && start.elapsed() >= Duration::from_secs(args.timeout) {
                bail!(
                    "{}/{} is still there after {} s{}; it goes on being deleted",
                    victim.resource.display(),
                    victim.name,
                    args.timeout,
                    finalizers(&object)
                );
            }
            tokio::time::sleep(POLL).await;
        }
    }
    Ok(())
}

fn finalizers(object: &Value) -> String {
    let names = object.pointer("/metadata/finalizers").and_then(Value::as_array);
    let names: Vec<_> = names.into_iter().flatten().filter_map(Value::as_str).collect();
    if names.is_empty() { String::new() } else { format!(" (it waits for {})", names.join(", ")) }
}

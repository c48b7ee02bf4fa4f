//! `mycelium wait`.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, bail};
use serde_json::Value;
use tokio::time::Instant;

use crate::client::discovery::{Discovery, Resource};
use crate::client::{Cluster, Connection, block_on, say, target, text};

const POLL: Duration = Duration::from_millis(200);

/// Wait until objects have a condition, or are gone.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  mycelium wait deploy/web --for condition=Available
  mycelium wait pods -l app=web --for condition=Ready --timeout 120
  mycelium wait pod/web-1 --for condition=Ready=False
  mycelium wait pod/web-1 --for delete

The objects are those that are there at the beginning; with --for delete, ones that are missing are gone already.
Exit codes: 0 all of them have it, 1 not in time, or nothing to wait for, 2 wrong usage.")]
pub struct Args {
    /// What to wait for: TYPE NAME..., TYPE/NAME..., or TYPE with -l or --all
    #[arg(required = true, value_name = "TYPE[/NAME]")]
    what: Vec<String>,
    /// `condition=NAME`, `condition=NAME=STATUS`, or `delete`
    #[arg(long = "for", value_name = "WHAT", value_parser = Goal::parse)]
    goal: Goal,
    /// All objects of the type in the namespace
    #[arg(long, conflicts_with = "selector")]
    all: bool,
    /// All objects with these labels
    #[arg(short = 'l', long, value_name = "SELECTOR")]
    selector: Option<String>,
    /// How many seconds to wait at most; 0 looks once
    #[arg(long, value_name = "SECONDS", default_value = "30", value_parser = seconds)]
    timeout: Duration,
    #[command(flatten)]
    connection: Connection,
}

/// When the wait is over.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Goal {
    /// A condition has this status; compared as kubectl does, whatever the case.
    Condition { name: String, status: String },
    /// The object is gone.
    Delete,
}

impl Goal {
    fn parse(text: &str) -> Result<Self, String> {
        let condition = text.strip_prefix("condition=").map(|rest| rest.split_once('=').unwrap_or((rest, "True")));
        match condition {
            Some((name, status)) if !name.is_empty() && !status.is_empty() => {
                Ok(Self::Condition { name: name.to_owned(), status: status.to_owned() })
            }
            None if text == "delete" => Ok(Self::Delete),
            _ => Err("expected condition=NAME, condition=NAME=STATUS, or delete".to_owned()),
        }
    }

    /// Whether an object, if it is still there, is as wanted. A condition counts only if its controller has seen the
    /// object as it is now.
    fn is_met(&self, object: Option<&Value>) -> bool {
        let (Self::Condition { name, status }, Some(object)) = (self, object) else {
            return *self == Self::Delete && object.is_none();
        };
        let generation = |pointer| object.pointer(pointer).and_then(Value::as_i64);
        let stale = |seen: i64| generation("/metadata/generation").is_some_and(|now| seen < now);
        if generation("/status/observedGeneration").is_some_and(stale) {
            return false;
        }
        let conditions = object.pointer("/status/conditions").and_then(Value::as_array);
        conditions.into_iter().flatten().any(|condition| {
            text(condition, "/type").eq_ignore_ascii_case(name)
                && text(condition, "/status").eq_ignore_ascii_case(status)
        })
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    let number = text.strip_suffix('s').unwrap_or(text);
    number.parse().map(Duration::from_secs).map_err(|_| "expected a number of seconds, such as 120".to_owned())
}

/// Waits.
pub fn run(args: Args) -> Result<ExitCode> {
    block_on(async {
        let cluster = args.connection.cluster().await?;
        let discovery = Discovery::load(&cluster).await?;
        let objects = chosen(&args, &cluster, &discovery).await?;
        if objects.is_empty() && args.goal != Goal::Delete {
            bail!("nothing to wait for: no such object is there");
        }
        let start = Instant::now();
        for (resource, name) in objects {
            let path = resource.object(&cluster.namespace, &name);
            while !args.goal.is_met(cluster.get_opt(&path).await?.as_ref()) {
                if start.elapsed() >= args.timeout {
                    let waited = args.timeout.as_secs();
                    bail!(
                        "{}/{name} is not as wanted after {waited} s; `mycelium describe` shows it",
                        resource.display()
                    );
                }
                tokio::time::sleep(POLL).await;
            }
            let end = if args.goal == Goal::Delete { "is gone" } else { "condition met" };
            say(format_args!("{}/{name} {end}\n", resource.display()));
        }
        Ok(ExitCode::SUCCESS)
    })
}

/// The objects that the command line names or selects. One that is named and missing is an error, unless it is to go.
async fn chosen(args: &Args, cluster: &Cluster, discovery: &Discovery) -> Result<Vec<(Resource, String)>> {
    let mut objects = Vec::new();
    for target in target::parse(discovery, &args.what)? {
        let names = target.names(cluster, args.all, args.selector.as_deref()).await?;
        if args.goal != Goal::Delete {
            for name in &names {
                cluster.get(&target.resource.object(&cluster.namespace, name)).await?;
            }
        }
        objects.extend(names.into_iter().map(|name| (target.resource.clone(), name)));
    }
    Ok(objects)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn goals_are_read_and_met() {
        let ready = Goal::parse("condition=Ready").unwrap();
        let object = |status: &str, seen: i64| {
            let conditions = json!([{"type": "Ready", "status": status}]);
            json!({"metadata": {"generation": 2}, "status": {"observedGeneration": seen, "conditions": conditions}})
        };
        assert!(ready.is_met(Some(&object("True", 2))));
        assert!(!ready.is_met(Some(&object("False", 2))));
        assert!(!ready.is_met(Some(&object("True", 1))), "the controller has not seen the change");
        assert!(!ready.is_met(None));
        assert!(Goal::parse("condition=ready=false").unwrap().is_met(Some(&object("False", 2))));
        assert!(Goal::Delete.is_met(None) && !Goal::Delete.is_met(Some(&object("True", 2))));
        for wrong in ["", "Ready", "condition=", "condition=Ready=", "deleted"] {
            assert!(Goal::parse(wrong).is_err(), "{wrong:?}");
        }
    }
}

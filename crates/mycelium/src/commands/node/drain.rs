//! `mycelium node drain`.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, bail};
use http::Method;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::{get, set_schedulable};
use crate::client::{Call, Cluster, Connection, failure, say, text};

/// How often a pod that may not leave yet is asked again.
const ROUND: Duration = Duration::from_millis(500);
const TOO_MANY_REQUESTS: u16 = 429;

/// Move all pods away from a node.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  mycelium node drain host-2
  mycelium node drain host-2 --delete-emptydir-data --timeout 120
  mycelium node uncordon host-2

The node takes no new pods from then on. Pods are evicted, never deleted behind a PodDisruptionBudget's back: what a budget
does not let go is tried again until it does, or until --timeout. Pods of DaemonSets stay.
Exit codes: 0 all pods are gone, 1 some are not, 2 wrong usage.")]
pub struct Args {
    /// Name of the node
    name: String,
    /// Also pods that nobody will make anew
    #[arg(long)]
    force: bool,
    /// Also pods with emptyDir volumes, whose content is lost
    #[arg(long)]
    delete_emptydir_data: bool,
    /// Seconds that containers get to stop [default: what the pod says]
    #[arg(long, value_name = "SECONDS")]
    grace_period: Option<u64>,
    /// How many seconds it may take; 0 for as long as it takes
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    timeout: u64,
    #[command(flatten)]
    connection: Connection,
}

/// What is to become of a pod.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Leave,
    Stay,
    /// It would be lost, which has to be said expressly.
    Refuse(&'static str),
}

fn verdict(pod: &Value, args: (bool, bool)) -> Verdict {
    let (force, delete_data) = args;
    if pod["metadata"]["annotations"]["kubernetes.io/config.mirror"].is_string() {
        return Verdict::Stay;
    }
    if matches!(text(pod, "/status/phase"), "Succeeded" | "Failed") {
        return Verdict::Leave;
    }
    let owners = pod["metadata"]["ownerReferences"].as_array().into_iter().flatten();
    let owner = owners.into_iter().find(|owner| owner["controller"] == true);
    if owner.is_some_and(|owner| owner["kind"] == "DaemonSet") {
        return Verdict::Stay;
    }
    if owner.is_none() && !force {
        return Verdict::Refuse("nobody would make it anew (--force deletes it)");
    }
    let mut volumes = pod["spec"]["volumes"].as_array().into_iter().flatten();
    if !delete_data && volumes.any(|volume| volume["emptyDir"].is_object()) {
        return Verdict::Refuse("its emptyDir volumes would be lost (--delete-emptydir-data accepts that)");
    }
    Verdict::Leave
}

/// A pod that is to leave.
struct Leaving {
    path: String,
    name: String,
    uid: String,
    asked: bool,
    told: String,
}

impl Leaving {
    fn new(pod: &Value) -> Self {
        let (namespace, name) = (text(pod, "/metadata/namespace"), text(pod, "/metadata/name"));
        Self {
            path: format!("/api/v1/namespaces/{namespace}/pods/{name}"),
            name: format!("{namespace}/{name}"),
            uid: text(pod, "/metadata/uid").to_owned(),
            asked: !text(pod, "/metadata/deletionTimestamp").is_empty(),
            told: String::new(),
        }
    }

    async fn is_gone(&self, cluster: &Cluster) -> Result<bool> {
        let found = cluster.get_opt(&self.path).await?;
        Ok(found.is_none_or(|pod| text(&pod, "/metadata/uid") != self.uid))
    }

    /// Asks for the eviction; it may be refused for now.
    async fn evict(&mut self, cluster: &Cluster, grace: Option<u64>) -> Result<()> {
        let name = text_after_slash(&self.name);
        let mut eviction = json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name},
            "deleteOptions": {"preconditions": {"uid": self.uid}}});
        if let Some(grace) = grace {
            eviction["deleteOptions"]["gracePeriodSeconds"] = grace.into();
        }
        let call = Call { method: Method::POST, body: eviction.to_string().into_bytes(), ..Call::default() };
        match cluster.call(&format!("{}/eviction", self.path), call).await {
            Ok(_) => {
                say(format_args!("pod {} evicted\n", self.name));
                self.asked = true;
                Ok(())
            }
            Err(error) => match failure::code(&error) {
                Some(404 | 409) => Ok(()),
                Some(TOO_MANY_REQUESTS) => {
                    let why = format!("{error:#}");
                    if self.told != why {
                        say(format_args!("pod {} cannot leave yet: {why}\n", self.name));
                        self.told = why;
                    }
                    Ok(())
                }
                _ => Err(error),
            },
        }
    }
}

fn text_after_slash(name: &str) -> &str {
    name.rsplit('/').next().unwrap_or_default()
}

/// Drains the node.
pub async fn run(args: Args) -> Result<ExitCode> {
    let cluster = args.connection.cluster().await?;
    get(&cluster, &args.name).await?;
    set_schedulable(&cluster, &args.name, false).await?;
    say(format_args!("node {} cordoned\n", args.name));
    let pods = cluster.get(&format!("/api/v1/pods?fieldSelector=spec.nodeName%3D{}", args.name)).await?;
    let (mut leaving, mut refused) = (Vec::new(), Vec::new());
    for pod in pods["items"].as_array().into_iter().flatten() {
        match verdict(pod, (args.force, args.delete_emptydir_data)) {
            Verdict::Leave => leaving.push(Leaving::new(pod)),
            Verdict::Stay => {}
            Verdict::Refuse(why) => refused.push(format!("pod {}: {why}", Leaving::new(pod).name)),
        }
    }
    if !refused.is_empty() {
        bail!("node {} is cordoned, but not drained:\n  {}", args.name, refused.join("\n  "));
    }
    let begun = Instant::now();
    loop {
        let mut left = Vec::new();
        for mut pod in leaving {
            if !pod.asked {
                pod.evict(&cluster, args.grace_period).await?;
            }
            if !pod.is_gone(&cluster).await? {
                left.push(pod);
            }
        }
        if left.is_empty() {
            say(format_args!("node {} drained\n", args.name));
            return Ok(ExitCode::SUCCESS);
        }
        if args.timeout > 0 && begun.elapsed() >= Duration::from_secs(args.timeout) {
            let names: Vec<String> = left.into_iter().map(|pod| pod.name).collect();
            bail!("after {} s these pods are still on node {}: {}", args.timeout, args.name, names.join(", "));
        }
        leaving = left;
        tokio::time::sleep(ROUND).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_be_lost_is_not_evicted_unasked() {
        let owned = |kind: &str, volumes: Value| {
            json!({"metadata": {"ownerReferences": [{"kind": kind, "controller": true}]},
                "spec": {"volumes": volumes}, "status": {"phase": "Running"}})
        };
        let plain = (false, false);
        assert_eq!(verdict(&owned("ReplicaSet", json!([])), plain), Verdict::Leave);
        assert_eq!(verdict(&owned("DaemonSet", json!([])), plain), Verdict::Stay);
        let scratch = owned("ReplicaSet", json!([{"emptyDir": {}}]));
        assert!(matches!(verdict(&scratch, plain), Verdict::Refuse(why) if why.contains("--delete-emptydir-data")));
        assert_eq!(verdict(&scratch, (false, true)), Verdict::Leave);
        let bare = json!({"metadata": {}, "spec": {}, "status": {"phase": "Running"}});
        assert!(matches!(verdict(&bare, plain), Verdict::Refuse(why) if why.contains("--force")));
        assert_eq!(verdict(&bare, (true, false)), Verdict::Leave);
    }
}

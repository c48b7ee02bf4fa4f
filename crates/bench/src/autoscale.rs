//! How soon an autoscaler answers load with another pod that is ready, and whether it then keeps still.
//!
//! The load is an amount of processor time that the ready pods share, as requests to a service would be: each pod reads
//! its share from a file and is busy for that part of every second. Rounds begin at different times between two looks of the
//! autoscaler, which has been looking at an idle pod before.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::core::v1::{Event, Pod};
use kube::Client;
use kube::api::{Api, DeleteParams, ListParams, PostParams};
use serde_json::json;
use tokio::time::Instant;

use crate::engine::Engine;
use crate::pods::{busybox_root, import};
use crate::report::{Report, load};

const ROUNDS: u32 = 5;
/// The default time between two looks.
const PERIOD: Duration = Duration::from_secs(15);
const AFTER: Duration = Duration::from_secs(50);
/// Of one core: twice what one pod asks for. At 80 % of its request a pod is on target, so three are enough.
const LOAD_PERCENT: usize = 20;
/// Is busy for the part of each second that the file says, in hundredths.
const WORK: &str = "while :; do read share < /load/share; read now rest < /proc/uptime; begun=${now%.*}${now#*.}; \
    while read now rest < /proc/uptime; [ $((${now%.*}${now#*.} - begun)) -lt $share ]; do \
    i=0; while [ $i -lt 50 ]; do i=$((i + 1)); done; done; \
    sleep 0.$((100 - share > 9 ? 100 - share : 10)); done";

/// From the load's beginning to the second ready pod.
pub async fn autoscale(binary: &Path, report: &mut Report) -> Result<()> {
    let load = load();
    let root = busybox_root()?;
    let engine = Engine::start(binary, |dir| import(binary, dir, root.path()))?;
    let shared = tempfile::Builder::new().prefix("mycelium-bench-").tempdir_in("/var/lib")?;
    let client = engine.client().await?;
    let (mut reactions, mut sizes) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let seen = one(&client, shared.path(), round).await.with_context(|| format!("round {round}"))?;
        eprintln!("  round {round}: {:.1} s, sizes {:?}", seen.0.as_secs_f64(), seen.1);
        reactions.push(seen.0);
        sizes.push(seen.1);
    }
    reactions.sort();
    let list = reactions.iter().map(|reaction| format!("{:.1}", reaction.as_secs_f64())).collect::<Vec<_>>().join(", ");
    let back = sizes.iter().flat_map(|sizes| sizes.windows(2)).filter(|pair| pair[1] < pair[0]).count();
    let changes = sizes.iter().map(|sizes| sizes.len().saturating_sub(1).to_string()).collect::<Vec<_>>().join(", ");
    report.row(
        "load to a second ready pod, by the autoscaler, default sync",
        format!("{list} s; changes of size per round {changes}, back {back}"),
        "<= 20 s, no flapping",
        format!("load before {load}"),
    );
    Ok(())
}

/// One round: how long it took, and every size the autoscaler chose.
async fn one(client: &Client, shared: &Path, round: u32) -> Result<(Duration, Vec<i32>)> {
    let share = |pods: usize| {
        let percent = if pods == 0 { 0 } else { LOAD_PERCENT.div_ceil(pods) };
        std::fs::write(shared.join("next"), format!("{percent}\n"))?;
        std::fs::rename(shared.join("next"), shared.join("share"))
    };
    let name = format!("busy-{round}");
    let deployments = Api::<Deployment>::default_namespaced(client.clone());
    let scalers = Api::<HorizontalPodAutoscaler>::default_namespaced(client.clone());
    let pods = Api::<Pod>::default_namespaced(client.clone());
    share(0)?;
    deployments.create(&PostParams::default(), &serde_json::from_value(deployment(&name, shared))?).await?;
    scalers.create(&PostParams::default(), &serde_json::from_value(scaler(&name))?).await?;
    measured(&scalers, &name).await?;
    tokio::time::sleep(PERIOD * round / ROUNDS).await;

    let (begun, mut reaction, mut given, mut sizes) = (Instant::now(), None, 1, vec![1]);
    share(1)?;
    loop {
        let ready = ready(&pods, &name).await?;
        if ready != given {
            given = ready;
            share(ready)?;
        }
        if ready >= 2 {
            reaction.get_or_insert(begun.elapsed());
        }
        let size = deployments.get(&name).await?.spec.and_then(|spec| spec.replicas).unwrap_or(0);
        if sizes.last() != Some(&size) {
            sizes.push(size);
        }
        ensure!(begun.elapsed() < 3 * AFTER, "no second pod; {}", events(client).await?);
        if reaction.is_some_and(|reaction| begun.elapsed() > reaction + AFTER) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    share(0)?;
    scalers.delete(&name, &DeleteParams::default()).await?;
    deployments.delete(&name, &DeleteParams::background()).await?;
    Ok((reaction.context("never")?, sizes))
}

/// Waits until the autoscaler has looked at what the pod uses.
async fn measured(scalers: &Api<HorizontalPodAutoscaler>, name: &str) -> Result<()> {
    for _ in 0..1200 {
        let scaler = scalers.get(name).await?;
        let conditions = scaler.status.and_then(|status| status.conditions).unwrap_or_default();
        if conditions.iter().any(|held| held.type_ == "ScalingActive" && held.status == "True") {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    anyhow::bail!("the autoscaler gets no metrics")
}

async fn ready(pods: &Api<Pod>, name: &str) -> Result<usize> {
    let held = pods.list(&ListParams::default().labels(&format!("app={name}"))).await?;
    let is_ready = |pod: &Pod| {
        let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
        pod.metadata.deletion_timestamp.is_none()
            && conditions.is_some_and(|all| all.iter().any(|held| held.type_ == "Ready" && held.status == "True"))
    };
    Ok(held.items.iter().filter(|pod| is_ready(pod)).count())
}

async fn events(client: &Client) -> Result<String> {
    let events = Api::<Event>::default_namespaced(client.clone()).list(&ListParams::default()).await?;
    Ok(events.items.into_iter().filter_map(|event| event.message).collect::<Vec<_>>().join("; "))
}

fn deployment(name: &str, shared: &Path) -> serde_json::Value {
    json!({
        "metadata": {"name": name},
        "spec": {
            "selector": {"matchLabels": {"app": name}},
            "template": {
                "metadata": {"labels": {"app": name}},
                "spec": {
                    "terminationGracePeriodSeconds": 0,
                    "containers": [{
                        "name": "main", "image": "busybox:bench", "command": ["/bin/sh", "-c", WORK],
                        "resources": {"requests": {"cpu": "100m"}},
                        "volumeMounts": [{"name": "load", "mountPath": "/load"}],
                    }],
                    "volumes": [{"name": "load", "hostPath": {"path": shared}}],
                },
            },
        },
    })
}

fn scaler(name: &str) -> serde_json::Value {
    json!({
        "metadata": {"name": name},
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": name},
            "minReplicas": 1, "maxReplicas": 6,
            "metrics": [{"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 80}}}],
        },
    })
}

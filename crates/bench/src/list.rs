//! One list of ten thousand pods that nobody runs, with everything in it.

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt};
use http_body_util::BodyExt;
use hyper::Method;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::engine::{Engine, cpu};
use crate::report::{Report, load, median_ms, quantile};
use crate::wire::{Http2, Wire};

const PODS: usize = 10_000;
const ROUNDS: usize = 20;
const PATH: &str = "/api/v1/pods";

/// From the request to the last byte of the answer, one after the other.
pub async fn list(binary: &Path, report: &mut Report) -> Result<()> {
    let load = load();
    let engine = Engine::start(binary, |_| Ok(()))?;
    let client = Wire::to(&engine).await?.http2().await?;
    let create = |number| {
        let client = client.clone();
        async move { client.create("/api/v1/namespaces/default/pods", &pod(number)).await.map(drop) }
    };
    futures::stream::iter((0..PODS).map(create)).buffer_unordered(64).try_collect::<()>().await?;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let held = client.get(PATH).await?;
    let mark = b"\"schedulingGates\"";
    let listed = held.windows(mark.len()).filter(|part| part == mark).count();
    ensure!(listed == PODS && held.ends_with(b"]}\n"), "the list has {listed} pods");
    let (mut samples, mut first, before) = (Vec::new(), Vec::new(), cpu(engine.pid()));
    for _ in 0..ROUNDS {
        let begun = Instant::now();
        let (begins, length) = read(&client).await?;
        samples.push(begun.elapsed());
        first.push(begins - begun);
        ensure!(length == held.len(), "the list's length changed");
    }
    let each = (cpu(engine.pid()) - before).as_secs_f64() * 1e3 / ROUNDS as f64;
    let p99 = quantile(&mut samples, 0.99).as_secs_f64() * 1e3;
    report.row(
        "list of 10,000 pods, JSON, with its body: p50 / p99",
        format!(
            "{:.0} / {p99:.0} ms ({:.1} MB; the first byte after {:.0} ms; {each:.0} ms of the engine's processor time)",
            median_ms(&mut samples),
            held.len() as f64 / 1e6,
            median_ms(&mut first),
        ),
        "<= 150 ms",
        format!("load before {load}"),
    );
    Ok(())
}

/// When the answer began, and its length.
async fn read(client: &Http2) -> Result<(Instant, usize)> {
    let mut body = client.send(Method::GET, PATH, "application/json", Bytes::new()).await?.into_body();
    let (begins, mut length) = (Instant::now(), 0);
    while let Some(frame) = body.frame().await {
        length += frame?.into_data().map_or(0, |data| data.len());
    }
    Ok((begins, length))
}

/// A pod as a template makes it; its gate is never opened.
fn pod(number: usize) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": format!("web-7d4b9c6f5d-{number:05}"),
            "labels": {"app.kubernetes.io/name": "web", "app.kubernetes.io/part-of": "bench", "pod-template-hash": "7d4b9c6f5d"},
            "annotations": {"prometheus.io/scrape": "true", "prometheus.io/port": "9090"},
        },
        "spec": {
            "schedulingGates": [{"name": "bench.test/never"}],
            "containers": [{
                "name": "main", "image": "registry.test/web:1.4.2",
                "ports": [{"name": "http", "containerPort": 8080}, {"name": "metrics", "containerPort": 9090}],
                "env": [
                    {"name": "LOG_LEVEL", "value": "info"},
                    {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
                    {"name": "PASSWORD", "valueFrom": {"secretKeyRef": {"name": "web", "key": "password"}}},
                ],
                "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"memory": "256Mi"}},
                "readinessProbe": {"httpGet": {"path": "/ready", "port": "http"}, "periodSeconds": 5},
                "livenessProbe": {"httpGet": {"path": "/live", "port": "http"}},
                "volumeMounts": [{"name": "config", "mountPath": "/etc/web"}],
            }],
            "volumes": [{"name": "config", "configMap": {"name": "web"}}],
        },
    })
}

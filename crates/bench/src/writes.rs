//! Durable creates per second against etcd's puts, and how soon a watcher hears of a write.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use futures::StreamExt;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, PostParams, WatchEvent, WatchParams};
use tokio::time::Instant;

use crate::engine::Engine;
use crate::etcd::Etcd;
use crate::report::{Report, spread};

const CLIENTS: usize = 64;
const OBJECT_BYTES: usize = 1024;
const SPAN: Duration = Duration::from_secs(10);

/// Creates per second of the whole API server over TLS, and puts per second of etcd without TLS, same clients.
pub async fn creates(binary: &Path, report: &mut Report) -> Result<()> {
    let ours = {
        let engine = Engine::start(binary, |_| Ok(()))?;
        engine_creates(&engine).await?
    };
    let peer = match Etcd::start().await? {
        Some(etcd) => {
            let theirs = etcd_puts(&etcd).await?;
            format!("etcd {theirs:.0}/s; ratio {:.2}", ours / theirs)
        }
        None => "etcd is not installed".to_owned(),
    };
    report.row("durable creates per second, 64 clients, 1 KB", format!("{ours:.0}/s"), ">= 2x etcd", peer);
    Ok(())
}

async fn engine_creates(engine: &Engine) -> Result<f64> {
    let mut tasks = Vec::new();
    let begun = Instant::now();
    for id in 0..CLIENTS {
        // A client of its own is a connection of its own.
        let api: Api<ConfigMap> = Api::default_namespaced(engine.client().await?);
        tasks.push(tokio::spawn(async move {
            let payload = "x".repeat(OBJECT_BYTES);
            let mut done = 0_u64;
            while begun.elapsed() < SPAN {
                let object = config_map(&format!("c{id}-{done}"), &payload);
                api.create(&PostParams::default(), &object).await?;
                done += 1;
            }
            Ok::<u64, kube::Error>(done)
        }));
    }
    let mut total = 0;
    for task in tasks {
        total += task.await??;
    }
    Ok(total as f64 / begun.elapsed().as_secs_f64())
}

async fn etcd_puts(etcd: &Etcd) -> Result<f64> {
    let mut tasks = Vec::new();
    let begun = Instant::now();
    for id in 0..CLIENTS {
        let mut client = etcd.client().await?;
        tasks.push(tokio::spawn(async move {
            let payload = vec![b'x'; OBJECT_BYTES];
            let mut done = 0_u64;
            while begun.elapsed() < SPAN {
                client.put(&format!("c{id}-{done}"), &payload).await?;
                done += 1;
            }
            Ok::<u64, anyhow::Error>(done)
        }));
    }
    let mut total = 0;
    for task in tasks {
        total += task.await??;
    }
    Ok(total as f64 / begun.elapsed().as_secs_f64())
}

fn config_map(name: &str, payload: &str) -> ConfigMap {
    ConfigMap {
        metadata: kube::api::ObjectMeta { name: Some(name.to_owned()), ..Default::default() },
        data: Some([("payload".to_owned(), payload.to_owned())].into()),
        ..Default::default()
    }
}

/// From the answer to a write (it is committed then) to its watch event at another client.
pub async fn watch_latency(binary: &Path, report: &mut Report) -> Result<()> {
    let engine = Engine::start(binary, |_| Ok(()))?;
    let watcher: Api<ConfigMap> = Api::default_namespaced(engine.client().await?);
    let writer: Api<ConfigMap> = Api::default_namespaced(engine.client().await?);
    let stream = watcher.watch(&WatchParams::default().labels("!ignored"), "0").await?;
    let (sender, mut events) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        let mut stream = std::pin::pin!(stream);
        while let Some(Ok(event)) = stream.next().await {
            if let WatchEvent::Added(object) = event {
                let _ = sender.send((object.metadata.name.unwrap_or_default(), Instant::now()));
            }
        }
    });
    let mut samples = Vec::new();
    for number in 0..500 {
        let name = format!("w{number}");
        writer.create(&PostParams::default(), &config_map(&name, "x")).await?;
        let answered = Instant::now();
        while let Some((seen, at)) = events.recv().await {
            if seen == name {
                samples.push(at.saturating_duration_since(answered));
                break;
            }
        }
    }
    report.row(
        "answer to a write, to its watch event at another client",
        spread(&mut samples),
        "p50 <= 0.3 ms",
        String::new(),
    );
    Ok(())
}

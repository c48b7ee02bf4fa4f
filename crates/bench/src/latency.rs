//! How soon a watcher hears of a write.

use std::path::Path;

use anyhow::Result;
use futures::StreamExt;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, PostParams, WatchEvent, WatchParams};
use tokio::time::Instant;

use crate::engine::Engine;
use crate::report::{Report, spread};

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

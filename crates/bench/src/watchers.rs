//! Five hundred watchers of one resource while a thousand updates a second run.
//!
//! Every watcher is an HTTP/2 stream of its own and gets every update. Once they share twenty connections, as the informers
//! of a program do, and once each has a connection to itself, which is the dearest. Our side counts lines and no more: the
//! updates' revisions tell which line is which update.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hyper::Method;
use serde_json::json;
use tokio::time::Instant;

use crate::engine::{Engine, cpu};
use crate::frames::Frames;
use crate::report::{Report, load, quantile};
use crate::wire::{Http2, Wire, revision};

const WATCHERS: usize = 500;
const CONNECTIONS: [usize; 2] = [20, WATCHERS];
const PER_SECOND: usize = 1000;
const UPDATES: usize = 10_000;
/// More than the history holds, so that the memory it takes is there before.
const BEFORE: usize = 20_000;
const WRITERS: usize = 32;
const PATIENCE: Duration = Duration::from_secs(120);
const PATH: &str = "/api/v1/namespaces/default/configmaps";

/// Both layouts, each with an engine of its own.
pub async fn watchers(binary: &Path, report: &mut Report) -> Result<()> {
    for connections in CONNECTIONS {
        let load = load();
        let seen = crowd(binary, connections).await.with_context(|| format!("{connections} connections"))?;
        report.row(
            &format!("500 watchers on {connections} connections, 1,000 updates/s: answer to the last watcher's event, p50 / p99"),
            seen.latency,
            "p99 <= 20 ms",
            format!("load before {load}"),
        );
        report.row(
            &format!("the same, memory per watcher on {connections} connections: idle / at most meanwhile"),
            seen.memory,
            "<= 64 KiB",
            String::new(),
        );
    }
    Ok(())
}

struct Seen {
    latency: String,
    memory: String,
}

async fn crowd(binary: &Path, connections: usize) -> Result<Seen> {
    let engine = Engine::start(binary, |_| Ok(()))?;
    let wire = Wire::to(&engine).await?;
    let mut writers = Vec::new();
    for number in 0..WRITERS {
        let client = wire.http2().await?;
        client.create(PATH, &config_map(number, 0)).await?;
        writers.push(client);
    }
    update(&writers, BEFORE, None).await?;
    tokio::time::sleep(Duration::from_secs(3)).await;
    let before = engine.resident_mib();

    let from = revision(&writers[0].get(&format!("{PATH}?limit=1")).await?)?;
    let marks = Arc::new(Marks::new());
    let mut listeners = tokio::task::JoinSet::new();
    for _ in 0..connections {
        let frames = Frames::start(wire.connect().await?).await?;
        listeners.spawn(listen(frames, wire.authority(), WATCHERS / connections, from, marks.clone()));
    }
    until(&marks.answered, WATCHERS, &mut listeners).await.context("watches were not answered")?;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let idle = engine.resident_mib();

    let (cpu_before, begun) = ([cpu(engine.pid()), cpu(std::process::id())], Instant::now());
    let running = update(&writers, UPDATES, Some(PER_SECOND));
    let mut running = std::pin::pin!(running);
    let mut most = idle;
    let mut updates = loop {
        tokio::select! {
            updates = &mut running => break updates?,
            () = tokio::time::sleep(Duration::from_millis(200)) => most = most.max(engine.resident_mib()),
        }
    };
    let rate = UPDATES as f64 / begun.elapsed().as_secs_f64();
    until(&marks.complete, WATCHERS, &mut listeners).await.context("events are missing")?;
    let cores = |now: Duration, before: Duration| (now - before).as_secs_f64() / begun.elapsed().as_secs_f64();
    let (engine_cores, own_cores) =
        (cores(cpu(engine.pid()), cpu_before[0]), cores(cpu(std::process::id()), cpu_before[1]));
    most = most.max(engine.resident_mib());
    listeners.abort_all();

    updates.sort_by_key(|update| update.revision);
    let last = |at: usize| marks.begun + Duration::from_nanos(marks.last[at].load(Ordering::Relaxed));
    let since = |what: fn(&Update) -> Instant| -> Vec<Duration> {
        updates.iter().enumerate().map(|(at, update)| last(at).saturating_duration_since(what(update))).collect()
    };
    let (mut answered, mut sent) = (since(|update| update.answered), since(|update| update.sent));
    let ms = |samples: &mut [Duration], share| quantile(samples, share).as_secs_f64() * 1e3;
    let each = |mib: f64| (mib - before) * 1024.0 / WATCHERS as f64;
    Ok(Seen {
        latency: format!(
            "{:.1} / {:.1} ms (from sending the update {:.1} / {:.1}; {rate:.0} updates/s; the engine took {engine_cores:.2} cores, the watchers and writers {own_cores:.2})",
            ms(&mut answered, 0.5),
            ms(&mut answered, 0.99),
            ms(&mut sent, 0.5),
            ms(&mut sent, 0.99),
        ),
        memory: format!("{:.1} / {:.1} KiB ({before:.1} MiB before)", each(idle), each(most)),
    })
}

/// Waits until a counter is full, or a listener fails.
async fn until(counter: &AtomicUsize, full: usize, listeners: &mut tokio::task::JoinSet<Result<()>>) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while counter.load(Ordering::Relaxed) < full {
        ensure!(Instant::now() < deadline, "{} of {full} after {PATIENCE:?}", counter.load(Ordering::Relaxed));
        if let Some(ended) = listeners.try_join_next() {
            ended??;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(())
}

fn config_map(writer: usize, number: usize) -> serde_json::Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": format!("watched-{writer}")},
        "data": {"number": number.to_string(), "payload": "m".repeat(100)}})
}

struct Update {
    revision: u64,
    sent: Instant,
    answered: Instant,
}

/// So many updates, of each writer's own object; at a rate, whether the engine keeps up or not, or as fast as it goes.
async fn update(writers: &[Http2], count: usize, per_second: Option<usize>) -> Result<Vec<Update>> {
    let begun = Instant::now();
    let each = writers.iter().enumerate().map(|(writer, client)| async move {
        let mut done = Vec::new();
        for number in (writer..count).step_by(WRITERS) {
            if let Some(rate) = per_second {
                tokio::time::sleep_until(begun + Duration::from_secs_f64(number as f64 / rate as f64)).await;
            }
            let body = config_map(writer, number + 1).to_string();
            let sent = Instant::now();
            let answer =
                client.call(Method::PUT, &format!("{PATH}/watched-{writer}"), "application/json", body).await?;
            done.push(Update { revision: revision(&answer)?, sent, answered: Instant::now() });
        }
        Ok::<_, anyhow::Error>(done)
    });
    Ok(futures::future::try_join_all(each).await?.into_iter().flatten().collect())
}

/// When the last watcher got each event, and how far they are.
struct Marks {
    begun: Instant,
    last: Vec<AtomicU64>,
    answered: AtomicUsize,
    complete: AtomicUsize,
}

impl Marks {
    fn new() -> Self {
        let last = (0..UPDATES).map(|_| AtomicU64::new(0)).collect();
        Self { begun: Instant::now(), last, answered: AtomicUsize::new(0), complete: AtomicUsize::new(0) }
    }
}

/// Opens so many watches on one connection and notes when each line comes.
async fn listen(mut frames: Frames, authority: String, streams: usize, from: u64, marks: Arc<Marks>) -> Result<()> {
    for stream in 0..streams as u32 {
        frames.get(2 * stream + 1, &authority, &format!("{PATH}?watch=1&resourceVersion={from}")).await?;
    }
    let mut counts = vec![0; streams];
    let answered = |_| {
        marks.answered.fetch_add(1, Ordering::Relaxed);
    };
    let data = |stream: u32, data: &[u8]| {
        let count = &mut counts[stream as usize / 2];
        let lines = data.iter().filter(|byte| **byte == b'\n').count();
        let now = marks.begun.elapsed().as_nanos() as u64;
        for mark in marks.last.iter().skip(*count).take(lines) {
            mark.fetch_max(now, Ordering::Relaxed);
        }
        *count += lines;
        if lines > 0 && *count == UPDATES {
            marks.complete.fetch_add(1, Ordering::Relaxed);
        }
    };
    frames.read(answered, data).await
}

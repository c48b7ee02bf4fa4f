//! Durable commits per second with 64 concurrent writers, and the time from a commit to its watch event.
#![allow(missing_docs, clippy::disallowed_methods, reason = "a benchmark measures real time")]

use std::time::{Duration, Instant};

use bytes::Bytes;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use mycelium_store::{Expect, Op, Options, Store};

const WRITERS: u64 = 64;

fn put(key: String) -> Vec<Op> {
    vec![Op::Put { key, value: Bytes::from(vec![b'x'; 1024]), expect: Expect::Any }]
}

fn commits(c: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open_file(&dir.path().join("state"), Options::default()).unwrap();
    let mut group = c.benchmark_group("store");
    group.throughput(Throughput::Elements(1)).sample_size(10).measurement_time(Duration::from_secs(8));
    group.bench_function("durable creates of 1 KiB, 64 writers", |bencher| {
        bencher.iter_custom(|n| {
            let base = store.revision();
            let start = Instant::now();
            runtime.block_on(async {
                let mut writers = tokio::task::JoinSet::new();
                for writer in 0..WRITERS {
                    let store = store.clone();
                    let share = n / WRITERS + u64::from(writer < n % WRITERS);
                    writers.spawn(async move {
                        for i in 0..share {
                            store.commit(put(format!("/pods/{base}-{writer}-{i}"))).await.unwrap();
                        }
                    });
                }
                writers.join_all().await;
            });
            start.elapsed()
        });
    });
    group.finish();
}

fn watch_latency(c: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open_file(&dir.path().join("state"), Options::default()).unwrap();
    let mut group = c.benchmark_group("store");
    group.sample_size(10).measurement_time(Duration::from_secs(5));
    group.bench_function("commit answered to watch event received", |bencher| {
        bencher.iter_custom(|n| {
            runtime.block_on(async {
                let mut watch = store.watch("/w/", store.revision()).unwrap();
                let (sender, mut arrivals) = tokio::sync::mpsc::unbounded_channel();
                let watcher = tokio::spawn(async move {
                    while let Ok(events) = watch.next().await {
                        let now = Instant::now();
                        events.iter().for_each(|_| assert!(sender.send(now).is_ok()));
                    }
                });
                let mut total = Duration::ZERO;
                for _ in 0..n {
                    store.commit(put("/w/a".into())).await.unwrap();
                    let answered = Instant::now();
                    total += arrivals.recv().await.unwrap().saturating_duration_since(answered);
                }
                watcher.abort();
                total
            })
        });
    });
    group.finish();
}

criterion_group!(benches, commits, watch_latency);
criterion_main!(benches);

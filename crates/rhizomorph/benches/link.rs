//! What a link carries: `cargo bench -p mycelium-rhizomorph [throughput|urgent|wires]`.
//!
//! Both ends run in this process on two threads, so that each byte is encrypted, copied into the kernel, out of it and
//! decrypted on the same two cores.

#[path = "../tests/common/mod.rs"]
mod common;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use common::network::{CLOCK, Received, Wire, Wires, clock_us};
use common::{Ends, link, pattern};
use mycelium_rhizomorph::{Balancing, Link, Options, Priority};
use tokio::time::Instant;

const MIB: usize = 1 << 20;

fn main() {
    let wanted: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    let run = |name: &str| wanted.is_empty() || wanted.iter().any(|word| word == name);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.expect("a runtime");
    if run("throughput") {
        for count in [1, 4] {
            for _ in 0..3 {
                runtime.block_on(throughput(count));
            }
        }
    }
    if run("urgent") {
        runtime.block_on(urgent());
    }
    if run("wires") {
        wires();
    }
}

async fn throughput(count: usize) {
    const MESSAGES: usize = 96;
    let ends = link(count, Options::default()).await;
    let message = pattern(1, 16 * MIB);
    let near = ends.near.clone();
    let (begun, cpu) = (Instant::now(), cpu_seconds());
    let sending = tokio::spawn(async move {
        for _ in 0..MESSAGES {
            near.send(0, Priority::Bulk, vec![message.clone()]).await.expect("the link lives");
        }
    });
    for _ in 0..MESSAGES {
        assert_eq!(ends.far.recv().await.expect("the link lives").payload.len(), 16 * MIB);
    }
    sending.await.expect("the sender");
    let gigabytes = (MESSAGES * 16 * MIB) as f64 / 1e9;
    let connections = ends.near.stats().connections;
    let chunks: u64 = connections.iter().map(|c| c.sent_chunks).sum();
    let resent: u64 = connections.iter().map(|c| c.resent_chunks).sum();
    println!(
        "loopback, {count} connections: {:.2} GB/s; {:.2} GB per CPU second of both ends; {resent} of {chunks} chunks sent twice",
        gigabytes / begun.elapsed().as_secs_f64(),
        gigabytes / (cpu_seconds() - cpu),
    );
}

/// User and system time of this process: what a byte costs, also on a machine that has other things to do.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("proc is mounted");
    let fields = stat.rsplit(") ").next().expect("a command name").split(' ');
    fields.skip(11).take(2).map(|ticks| ticks.parse::<f64>().expect("ticks")).sum::<f64>() / 100.0
}

/// How long a 100-byte urgent message takes, one way, while bulk data fills the link.
async fn urgent() {
    for balancing in [Balancing::AdaptiveBandwidth, Balancing::LatencyOptimized] {
        let Ends { near, far, listener: _listener } = link(4, Options { balancing, ..Options::default() }).await;
        let bulk = tokio::spawn(flood(near.clone(), 16 * MIB));
        let clocks = tokio::spawn(tick(near.clone(), 500));
        let mut latencies = Vec::new();
        while latencies.len() < 500 {
            let message = far.recv().await.expect("the link lives");
            if message.channel == CLOCK {
                let sent = u64::from_le_bytes(message.payload[..8].try_into().expect("a clock"));
                latencies.push(clock_us().saturating_sub(sent));
            }
        }
        bulk.abort();
        clocks.abort();
        latencies.sort_unstable();
        println!("loopback under bulk load, {balancing:?}: urgent one way {}", quantiles(&latencies));
    }
}

fn quantiles(sorted: &[u64]) -> String {
    let at = |part: f64| sorted[((sorted.len() - 1) as f64 * part) as usize] as f64 / 1000.0;
    format!("p50 {:.2} ms, p99 {:.2} ms, max {:.2} ms ({} messages)", at(0.5), at(0.99), at(1.0), sorted.len())
}

async fn flood(link: Link, length: usize) {
    let message = pattern(2, length);
    while link.send(0, Priority::Bulk, vec![message.clone()]).await.is_ok() {}
}

async fn tick(link: Link, count: usize) {
    for _ in 0..count {
        tokio::time::sleep(Duration::from_millis(5)).await;
        let clock = Bytes::copy_from_slice(&clock_us().to_le_bytes());
        if link.send(CLOCK, Priority::Urgent, vec![clock]).await.is_err() {
            return;
        }
    }
}

/// The same rate limit on every wire; one wire, then four.
fn wires() {
    const MEGABITS: u32 = 400;
    let mut rates = Vec::new();
    for count in [1, 4] {
        let wires = Wires::new(count, Wire::Rate(MEGABITS));
        let rate = std::sync::Mutex::new(0.0);
        wires.run(Options::default(), |link: Link, received: Arc<Received>| async {
            let (link, received) = (link, received);
            let flood = tokio::spawn(flood(link.clone(), 4 * MIB));
            let clocks = tokio::spawn(tick(link.clone(), 1000));
            tokio::time::sleep(Duration::from_secs(1)).await;
            *rate.lock().expect("no panic") = received.rate(Duration::from_secs(4)).await;
            println!(
                "{count} wires of {MEGABITS} Mbit/s, full: urgent one way {}",
                quantiles(&received.latencies_us())
            );
            flood.abort();
            clocks.abort();
            link.close();
        });
        rates.push(rate.into_inner().expect("no panic"));
    }
    println!(
        "wires of {MEGABITS} Mbit/s: one {:.1} MB/s, four {:.1} MB/s, ratio {:.2}",
        rates[0] / 1e6,
        rates[1] / 1e6,
        rates[1] / rates[0]
    );
}

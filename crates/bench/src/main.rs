//! Measures the figures of `SPEC.md` on this machine, beside their peers, in one run, and prints ratios.
//!
//! | file | measures |
//! |---|---|
//! | `engine.rs` | start-up, size, and starts the engine for the others |
//! | `idle.rs` | resident memory and CPU of an engine without work; with 100 CRDs; with 8 nodes |
//! | `creates.rs` | durable creates per second, against etcd |
//! | `latency.rs` | write to watch event |
//! | `list.rs` | a list of 10,000 pods |
//! | `watchers.rs` | 500 watchers while 1,000 updates a second run |
//! | `fleet.rs` | 10,000 pods on 1,000 fake nodes through the whole control plane |
//! | `pods.rs` | pod create to Running, against podman and containerd; 1 to 100 pods |
//! | `autoscale.rs` | load to another ready pod |
//! | `ingress.rs` | the ingress proxy, against nginx before the same upstream |
//! | `vm/` | virtual machines: pauses, slow-down, failover, migration, traffic, memory |
//! | `wire.rs`, `frames.rs` | clients that cost little |
//! | `report.rs` | the table |

mod autoscale;
mod creates;
mod engine;
mod etcd;
mod fleet;
mod frames;
mod idle;
mod ingress;
mod latency;
mod list;
mod pods;
mod report;
mod vm;
mod watchers;
mod wire;

use std::path::PathBuf;

use anyhow::Result;
use clap::Parser;

use report::{Report, load};

/// Measure the figures of SPEC.md.
#[derive(Parser)]
struct Args {
    /// Folder of the release binaries.
    #[arg(long)]
    bin: PathBuf,
    /// Only the measurement of this name, or those whose name contains it.
    #[arg(long, default_value = "")]
    only: String,
}

fn main() -> Result<()> {
    if let Some(outcome) = vm::client() {
        return outcome;
    }
    let args = Args::parse();
    // Made once per process; a second choice would be the same.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let mut report = Report::default();
    let binary = args.bin.join("mycelium");
    let binary = &binary;
    let mut parts: Vec<(&str, Part<'_>)> = vec![
        ("start", Box::new(|report| engine::start_up(binary, report))),
        ("idle", Box::new(|report| idle::idle(binary, report))),
        ("idle-definitions", Box::new(|report| runtime.block_on(idle::definitions(binary, report)))),
        ("idle-nodes", Box::new(|report| runtime.block_on(idle::nodes(binary, report)))),
        ("writes", Box::new(|report| runtime.block_on(creates::creates(binary, report)))),
        ("watch", Box::new(|report| runtime.block_on(latency::watch_latency(binary, report)))),
        ("list", Box::new(|report| runtime.block_on(list::list(binary, report)))),
        ("watchers", Box::new(|report| runtime.block_on(watchers::watchers(binary, report)))),
        ("fleet", Box::new(|report| runtime.block_on(fleet::fleet(binary, report)))),
        ("pods", Box::new(|report| runtime.block_on(pods::one_by_one(binary, report)))),
        ("hundred", Box::new(|report| runtime.block_on(pods::hundred(binary, report)))),
        ("autoscale", Box::new(|report| runtime.block_on(autoscale::autoscale(binary, report)))),
        ("size", Box::new(|report| engine::size(binary, report))),
        ("ingress", Box::new(|report| runtime.block_on(ingress::ingress(binary, report)))),
    ];
    for (name, part) in vm::PARTS {
        parts.push((name, Box::new(move |report| part(binary, report))));
    }
    if parts.iter().any(|(name, _)| *name == args.only) {
        parts.retain(|(name, _)| *name == args.only);
    }
    // One part that fails does not take the others with it.
    let mut failed = false;
    for (name, part) in parts.iter().filter(|(name, _)| name.contains(&args.only)) {
        eprintln!("{name}, load average {}", load());
        if let Err(error) = part(&mut report) {
            failed = true;
            let text = format!("{error:#}");
            eprintln!("{text}");
            // A row of the table is one line.
            report.row(name, format!("**failed**: {}", text.lines().next().unwrap_or_default()), "", String::new());
        }
    }
    report.print();
    anyhow::ensure!(!failed, "not everything could be measured");
    Ok(())
}

/// A measurement.
type Part<'a> = Box<dyn Fn(&mut Report) -> Result<()> + 'a>;

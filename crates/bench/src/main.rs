//! Measures the figures of `SPEC.md` on this machine, beside their peers, in one run, and prints ratios.
//!
//! | file | measures |
//! |---|---|
//! | `engine.rs` | start-up, resident memory, idle CPU, and starts the engine for the others |
//! | `creates.rs` | durable creates per second, against etcd |
//! | `latency.rs` | write to watch event |
//! | `pods.rs` | pod create to Running, against podman and containerd; 1 to 100 pods |
//! | `ingress.rs` | the ingress proxy, against nginx before the same upstream |
//! | `vm/` | virtual machines: pauses, slow-down, failover, migration, traffic, memory |
//! | `report.rs` | the table |

mod creates;
mod engine;
mod etcd;
mod ingress;
mod latency;
mod pods;
mod report;
mod vm;

use std::path::PathBuf;

use anyhow::Result;
use clap::Parser;

use report::Report;

/// Measure the figures of SPEC.md.
#[derive(Parser)]
struct Args {
    /// Folder of the release binaries.
    #[arg(long)]
    bin: PathBuf,
    /// Only the measurements whose name contains this.
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
    let wants = |name: &str| name.contains(&args.only);
    if wants("start") {
        engine::start_up(&binary, &mut report)?;
    }
    if wants("idle") {
        engine::idle(&binary, &mut report)?;
    }
    if wants("writes") {
        runtime.block_on(creates::creates(&binary, &mut report))?;
    }
    if wants("watch") {
        runtime.block_on(latency::watch_latency(&binary, &mut report))?;
    }
    if wants("pods") {
        runtime.block_on(pods::one_by_one(&binary, &mut report))?;
    }
    if wants("hundred") {
        runtime.block_on(pods::hundred(&binary, &mut report))?;
    }
    if wants("size") {
        engine::size(&binary, &mut report)?;
    }
    if wants("ingress") {
        runtime.block_on(ingress::ingress(&binary, &mut report))?;
    }
    vm::all(&binary, wants, &mut report);
    report.print();
    Ok(())
}

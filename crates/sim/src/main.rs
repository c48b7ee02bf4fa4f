//! `mycelium-sim`: runs seeds, and names those that fail.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use clap::Parser;
use mycelium_sim::Report;

/// Simulates the control plane with injected faults, one run for each seed.
#[derive(Parser)]
struct Args {
    /// Number of runs.
    #[arg(long, default_value_t = 300)]
    seeds: u64,
    /// Seed of the first run; the others follow.
    #[arg(long, default_value_t = 1)]
    from_seed: u64,
    /// Runs at a time; 0: one for each processor.
    #[arg(long, default_value_t = 0)]
    jobs: u64,
    /// Runs every seed twice and compares.
    #[arg(long)]
    twice: bool,
    /// Prints every event.
    #[arg(long, short)]
    verbose: bool,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    if args.verbose {
        let filter = tracing_subscriber::EnvFilter::new("warn,mycelium=debug,mycelium_sim=debug");
        tracing_subscriber::fmt().with_env_filter(filter).without_time().init();
    }
    let jobs = match args.jobs {
        0 => std::thread::available_parallelism().map_or(1, |n| n.get() as u64),
        jobs => jobs,
    };
    let next = AtomicU64::new(args.from_seed);
    let failed = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..jobs.min(args.seeds) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= args.from_seed + args.seeds {
                        break;
                    }
                    if !passes(seed, args.twice) {
                        failed.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(seed);
                    }
                }
            });
        }
    });
    let failed = failed.into_inner()?;
    anyhow::ensure!(failed.is_empty(), "{} of {} seeds fail: {failed:?}", failed.len(), args.seeds);
    println!("{} seeds pass", args.seeds);
    Ok(())
}

fn passes(seed: u64, twice: bool) -> bool {
    let report = mycelium_sim::run(seed);
    let again = twice.then(|| mycelium_sim::run(seed));
    print(&report);
    match again {
        Some(again) if again.trace != report.trace => {
            println!("seed {seed}: the second run differs: {:016x}", again.trace);
            false
        }
        _ => report.failure.is_none(),
    }
}

fn print(report: &Report) {
    let Report { seed, trace, elapsed, lives, revision, .. } = report;
    let seconds = elapsed.as_secs();
    let verdict = if report.failure.is_some() { "FAILS" } else { "ok" };
    println!("seed {seed}: {verdict}, {seconds} s, {lives} lives, revision {revision}, trace {trace:016x}");
    if let Some((violation, recent)) = &report.failure {
        println!("{}\n\nseed {seed}: {violation}\n{:?}\n", recent.join("\n"), report.plan);
        println!("repeat it with: cargo run -p mycelium-sim -- --seeds 1 --from-seed {seed}");
    }
}

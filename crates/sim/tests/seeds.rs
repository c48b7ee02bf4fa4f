//! Runs seeds: `MYCELIUM_SIM_SEEDS` many, 200 by default, and repeats some to see that nothing but the seed matters.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

#[test]
fn seeds_pass_and_repeat() {
    let count: u64 = std::env::var("MYCELIUM_SIM_SEEDS").ok().and_then(|n| n.parse().ok()).unwrap_or(200);
    let next = AtomicU64::new(0);
    let failures = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, |n| n.get()) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= count {
                        break;
                    }
                    let report = mycelium_sim::run(seed);
                    if let Some((violation, recent)) = report.failure {
                        failures.lock().unwrap().push(format!("{}\nseed {seed}: {violation}", recent.join("\n")));
                    } else if seed % 20 == 1 && mycelium_sim::run(seed).trace != report.trace {
                        failures.lock().unwrap().push(format!("seed {seed}: two runs differ"));
                    }
                }
            });
        }
    });
    let failures = failures.into_inner().unwrap();
    let text = failures.join("\n\n");
    assert!(
        failures.is_empty(),
        "{text}\n{} seeds fail; repeat one with\n  cargo run -p mycelium-sim -- --seeds 1 --from-seed SEED",
        failures.len()
    );
}

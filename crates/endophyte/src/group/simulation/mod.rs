//! Whole members on virtual time. A run is decided by its seed: the group, the faults, each delay, each clock.
//!
//! A fake guest counts packets; what is in a packet depends on chance, as real guests depend on time, so that two
//! histories never agree by accident. Outside stands an oracle ([`oracle`]) that sees each packet.
//!
//! `MYCELIUM_SIM_SEEDS=100000 MYCELIUM_SIM_FROM=1 cargo test --release -p mycelium-endophyte simulation`

mod host;
mod oracle;
mod world;

use std::panic::AssertUnwindSafe;

use super::mutation::Fault;
use world::{World, YEAR_US};

/// A small generator (splitmix64).
#[derive(Clone, Debug)]
pub(super) struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// At least `low`, less than `high`.
    pub fn range(&mut self, low: u64, high: u64) -> u64 {
        low + self.next() % (high - low)
    }

    pub fn chance(&mut self, percent: u64) -> bool {
        self.range(0, 100) < percent
    }
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
}

/// Runs a seed; what went wrong, if anything.
fn run(seed: u64, fault: Option<Fault>) -> Result<World, String> {
    let mut world = World::new(seed, fault);
    let ran = std::panic::catch_unwind(AssertUnwindSafe(|| {
        world.run();
        world
    }));
    ran.map_err(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string)).unwrap_or_default()
    })
}

#[test]
fn simulation_of_seeds() {
    let (from, seeds) = (number("MYCELIUM_SIM_FROM", 1), number("MYCELIUM_SIM_SEEDS", 600));
    let worker = |offset: u64| {
        let (mut packets, mut promotions, mut stuck, mut gentle) = (0, 0, 0, 0);
        for seed in (from + offset..from + seeds).step_by(2) {
            let world = run(seed, None).unwrap_or_else(|fault| panic!("seed {seed}: {fault}"));
            packets += world.oracle.packets;
            promotions += world.oracle.promotions;
            stuck += u64::from(world.stuck);
            gentle += u64::from(world.gentle);
        }
        [packets, promotions, stuck, gentle]
    };
    let sums = std::thread::scope(|scope| {
        let threads = [0, 1].map(|offset| scope.spawn(move || worker(offset)));
        threads.map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    });
    let sum = |at: usize| sums[0][at] + sums[1][at];
    println!("{seeds} seeds: {} packets outside, {} promotions, {} with one fault at a time", sum(0), sum(1), sum(3));
    println!("{} lost the VM to faults that leave nobody who may go on", sum(2));
    assert!(sum(1) > seeds / 4 && sum(2) < seeds / 2, "the faults are too mild or too harsh to mean anything");
}

#[test]
fn simulation_takes_over_in_time_on_a_quiet_machine() {
    let mut times = Vec::new();
    for seed in 0..20 {
        let mut world = World::quiet(seed);
        world.until(|world| world.protected(), YEAR_US);
        world.pass(300_000 + seed * 777);
        let crashed = world.crash_primary();
        world.until(|world| world.oracle.promotions == 1, YEAR_US);
        times.push(world.now_us - crashed);
    }
    times.sort_unstable();
    println!("from the crash to the start of the guest, us: {} {} {}", times[0], times[10], times[19]);
    assert!(times[19] <= 110_000, "{times:?}");
}

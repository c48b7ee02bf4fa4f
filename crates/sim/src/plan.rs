//! Which faults a seed brings. Drawn before anything else, and printed when a run fails.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use mycelium_store::simulated::Outcome;

use crate::random::Random;

/// The faults of a run.
#[derive(Clone, Debug)]
pub struct Plan {
    /// None at all: then the strictest invariants hold.
    pub calm: bool,
    /// How often the process is killed.
    pub crashes: u64,
    /// Operations of the disk fail now and then.
    pub disk_fails: bool,
    /// The disk takes its time now and then.
    pub disk_slow: bool,
    /// Watches end at any moment.
    pub watches_lost: bool,
    /// Watches deliver late.
    pub watches_delayed: bool,
    /// Watches fall silent for good.
    pub watches_stall: bool,
    /// Nodes vanish for a while.
    pub nodes_lost: bool,
    /// Events the store keeps.
    pub history: usize,
    /// Number of nodes.
    pub nodes: u64,
    /// What the user does.
    pub actions: u64,
    /// How long the chaos lasts.
    pub chaos: Duration,
}

impl Plan {
    /// The plan of a seed.
    pub fn new(seed: u64, random: &Random) -> Self {
        let calm = seed.is_multiple_of(4);
        let fault = |per_mille| !calm && random.chance(per_mille);
        Self {
            calm,
            crashes: if fault(700) { 1 + random.below(4) } else { 0 },
            disk_fails: fault(400),
            disk_slow: fault(400),
            watches_lost: fault(600),
            watches_delayed: fault(600),
            watches_stall: fault(100),
            nodes_lost: fault(400),
            history: if fault(300) { 300 } else { 16_384 },
            nodes: 1 + random.below(3),
            actions: 6 + random.below(14),
            chaos: Duration::from_secs(40 + random.below(120)),
        }
    }

    /// For how long a controller may act on what is no longer so.
    pub fn staleness(&self) -> Duration {
        match self {
            Self { watches_stall: true, .. } => Duration::from_secs(330),
            Self { calm: true, .. } => Duration::from_secs(2),
            _ => Duration::from_secs(30),
        }
    }
}

/// The faults as switches that the parts of the simulation look at.
#[derive(Clone, Debug)]
pub struct Faults {
    plan: Arc<Plan>,
    on: Arc<AtomicBool>,
    /// Disk operations until the process is killed; 0: not by the disk.
    operations_left: Arc<AtomicU64>,
    random: Random,
}

impl Faults {
    /// Faults that are off.
    pub fn new(plan: &Plan, random: Random) -> Self {
        let (plan, on) = (Arc::new(plan.clone()), Arc::default());
        Self { plan, on, operations_left: Arc::default(), random }
    }

    /// Switches them on or off.
    pub fn set(&self, on: bool) {
        self.on.store(on, Ordering::Relaxed);
        self.operations_left.store(0, Ordering::Relaxed);
    }

    /// Kills the process at the `n`th disk operation from now.
    pub fn crash_after(&self, n: u64) {
        self.operations_left.store(n, Ordering::Relaxed);
    }

    fn active(&self, wanted: bool) -> bool {
        wanted && self.on.load(Ordering::Relaxed)
    }

    /// What happens to the next disk operation.
    pub fn disk(&self) -> Outcome {
        let left = self.operations_left.load(Ordering::Relaxed);
        if left > 0 {
            self.operations_left.store(left - 1, Ordering::Relaxed);
            if left == 1 {
                return Outcome::Crash;
            }
        }
        if !self.active(self.plan.disk_fails) || !self.random.chance(4) {
            return Outcome::Proceed;
        }
        let full = self.random.chance(300);
        Outcome::Fail(if full { std::io::ErrorKind::StorageFull } else { std::io::ErrorKind::Other })
    }

    /// How long the disk takes for the next batch.
    pub fn disk_pause(&self) -> Duration {
        if self.active(self.plan.disk_slow) && self.random.chance(100) {
            self.random.millis(20, 3000)
        } else {
            self.random.millis(0, 3)
        }
    }

    /// How long a request is on its way. Never nothing: that would fix the order of things.
    pub fn request_delay(&self) -> Duration {
        Duration::from_micros(20 + self.random.below(1500))
    }

    /// How long a watch delivers nothing before its next piece.
    pub fn watch_pause(&self) -> Duration {
        if self.active(self.plan.watches_delayed) && self.random.chance(30) {
            self.random.millis(10, 3000)
        } else {
            Duration::from_micros(self.random.below(800))
        }
    }

    /// After which time a watch that begins now breaks off, and whether it just falls silent instead.
    pub fn watch_end(&self) -> Option<(Duration, bool)> {
        if self.active(self.plan.watches_stall) && self.random.chance(50) {
            return Some((self.random.millis(0, 20_000), true));
        }
        (self.active(self.plan.watches_lost) && self.random.chance(700)).then(|| (self.random.millis(0, 40_000), false))
    }

    /// How long a node stays away, if it vanishes now. Asked once in a while by each node.
    pub fn node_loss(&self) -> Option<Duration> {
        (self.active(self.plan.nodes_lost) && self.random.chance(100)).then(|| self.random.millis(5_000, 90_000))
    }
}

//! The periods of a group.

use super::detector::Bounds;

/// Members are told of the time that often.
const HEARTBEAT_US_MIN: u64 = 5_000;

/// The periods, in microseconds of the local clock.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// Between heartbeats. Default 10 ms.
    pub heartbeat_us: u64,
    /// How long a majority's answers to a heartbeat keep the output open, from when it was sent. Default 50 ms.
    pub lease_us: u64,
    /// How long a voter that heard the primary votes for nobody else. Longer than the lease by more than clocks can
    /// differ in rate. Default 60 ms.
    pub promise_us: u64,
    /// The shortest silence that is suspicious. Default 60 ms.
    pub suspect_min_us: u64,
    /// A silence that always is. Default 1 s.
    pub suspect_max_us: u64,
    /// How long an operator's command may take. Default 2 s.
    pub command_us: u64,
    /// How long the target of a migration may take to be elected. Default 300 ms.
    pub hand_over_us: u64,
    /// How long a guest runs on that no majority hears. Default 3 s.
    pub isolated_us: u64,
}

impl Timing {
    /// The periods for a time between heartbeats, in the proportions of the defaults; what people or disks need stays as
    /// long as it is. All members of a group must have the same. Heartbeats come every 5 ms at most, as often as ticks.
    pub fn with_heartbeat(milliseconds: u64) -> Self {
        let heartbeat_us = (milliseconds * 1000).max(HEARTBEAT_US_MIN);
        let usual = Self::default();
        let longer = |usual: u64, heartbeats: u64| usual.max(heartbeats * heartbeat_us);
        Self {
            heartbeat_us,
            lease_us: 5 * heartbeat_us,
            promise_us: 6 * heartbeat_us,
            suspect_min_us: 6 * heartbeat_us,
            suspect_max_us: longer(usual.suspect_max_us, 20),
            command_us: longer(usual.command_us, 40),
            hand_over_us: longer(usual.hand_over_us, 30),
            isolated_us: longer(usual.isolated_us, 60),
        }
    }

    /// What is suspicious of a silence.
    pub(super) fn bounds(&self) -> Bounds {
        Bounds { min_us: self.suspect_min_us, max_us: self.suspect_max_us }
    }
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            heartbeat_us: 10_000,
            lease_us: 50_000,
            promise_us: 60_000,
            suspect_min_us: 60_000,
            suspect_max_us: 1_000_000,
            command_us: 2_000_000,
            hand_over_us: 300_000,
            isolated_us: 3_000_000,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn periods_follow_the_heartbeat_and_a_promise_outlives_its_lease() {
        let usual = Timing::default();
        assert_eq!(format!("{:?}", Timing::with_heartbeat(10)), format!("{usual:?}"));
        assert_eq!(Timing::with_heartbeat(1).heartbeat_us, 5_000);
        for milliseconds in [1, 5, 10, 37, 100, 1000, 10_000] {
            let timing = Timing::with_heartbeat(milliseconds);
            // Clocks that are 9 % fast and slow.
            assert!(timing.lease_us * 109 < timing.promise_us * 91, "{timing:?}");
            assert!(timing.lease_us >= 5 * timing.heartbeat_us && timing.suspect_min_us >= timing.promise_us);
            assert!(
                timing.suspect_max_us >= 2 * timing.suspect_min_us && timing.isolated_us > 2 * timing.suspect_max_us
            );
        }
    }
}

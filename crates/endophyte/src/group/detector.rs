//! An adaptive failure detector for one peer: from the intervals between its signs of life it derives how long a
//! silence is still ordinary. It suspects; nothing that must be true depends on it.

/// Bounds of a suspicion.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// No silence shorter than this is suspicious.
    pub min_us: u64,
    /// Every silence longer than this is.
    pub max_us: u64,
}

/// After this many signs the memory of the longest gap has halved.
const GAP_HALVES_AFTER_SIGNS: u64 = 700;

/// The detector.
#[derive(Clone, Debug)]
pub struct Detector {
    bounds: Bounds,
    /// Its last sign.
    last_us: u64,
    /// When it last moved, if that was later.
    moved_us: u64,
    mean_us: u64,
    deviation_us: u64,
    gap_us: u64,
}

impl Detector {
    /// A detector that has just heard its peer, and expects to hear it every `interval_us`.
    pub fn new(bounds: Bounds, interval_us: u64, now_us: u64) -> Self {
        Self { bounds, last_us: now_us, moved_us: 0, mean_us: interval_us, deviation_us: interval_us / 4, gap_us: 0 }
    }

    /// A sign of life.
    pub fn heard(&mut self, now_us: u64) {
        let interval = now_us.saturating_sub(self.last_us);
        self.last_us = self.last_us.max(now_us);
        if interval >= self.bounds.max_us {
            // It was gone, not slow.
            return;
        }
        let off = interval.abs_diff(self.mean_us);
        self.deviation_us = (self.deviation_us * 15 + off) / 16;
        self.mean_us = (self.mean_us * 15 + interval) / 16;
        self.gap_us -= self.gap_us / (GAP_HALVES_AFTER_SIGNS * 13 / 9);
        self.gap_us = self.gap_us.max(interval);
    }

    /// What it sends or takes besides moves: it lives, although its next sign may be stuck behind that.
    pub fn moves(&mut self, now_us: u64) {
        self.moved_us = self.moved_us.max(now_us);
    }

    /// Time in which we did not run ourselves, and cannot have heard it.
    pub fn excuse(&mut self, us: u64) {
        self.last_us += us;
        self.moved_us += us;
    }

    /// Its connection broke: that is enough.
    pub fn broken(&mut self, now_us: u64) {
        self.last_us = self.last_us.min(now_us.saturating_sub(self.bounds.max_us));
        self.moved_us = 0;
    }

    /// The silence that is suspicious.
    pub fn limit_us(&self) -> u64 {
        let usual = (self.mean_us + 6 * self.deviation_us).max(self.gap_us * 3 / 2);
        usual.clamp(self.bounds.min_us, self.bounds.max_us)
    }

    /// How long it has been silent.
    pub fn silent_us(&self, now_us: u64) -> u64 {
        now_us.saturating_sub(self.last_us.max(self.moved_us))
    }

    /// Whether it should have been heard by now.
    pub fn suspects(&self, now_us: u64) -> bool {
        self.silent_us(now_us) >= self.limit_us()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds = Bounds { min_us: 60_000, max_us: 1_000_000 };

    #[test]
    fn quiet_peers_are_suspected_soon_and_hiccups_are_learnt_and_forgotten() {
        let mut now = 0;
        let mut detector = Detector::new(BOUNDS, 10_000, now);
        for _ in 0..100 {
            now += 10_000;
            detector.heard(now);
        }
        assert!(!detector.suspects(now + 59_999) && detector.suspects(now + 60_000));
        // A busy host: a hiccup of 55 ms each second. The limit grows, so that one of 80 ms passes.
        for _ in 0..20 {
            for _ in 0..95 {
                now += 10_000;
                assert!(!detector.suspects(now));
                detector.heard(now);
            }
            now += 55_000;
            assert!(!detector.suspects(now));
            detector.heard(now);
        }
        assert!(!detector.suspects(now + 80_000) && detector.suspects(now + 150_000));
        for _ in 0..3000 {
            now += 10_000;
            detector.heard(now);
        }
        assert!(detector.suspects(now + 61_000), "{detector:?}");
        let mut moving = detector.clone();
        moving.moves(now + 61_000);
        assert!(!moving.suspects(now + 120_000) && moving.suspects(now + 121_000), "{moving:?}");
        detector.excuse(500_000);
        assert!(!detector.suspects(now + 500_000));
        detector.broken(now + 1);
        assert!(detector.suspects(now + 1));
        // A long absence teaches nothing.
        detector.heard(now + 3_600_000_000);
        assert!(detector.limit_us() < 100_000);
    }
}

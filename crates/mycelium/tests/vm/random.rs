//! Moments and places that nobody knows beforehand.

/// A number from the environment.
pub fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

/// Random numbers from a seed that is printed, so that a run can be repeated as far as timing allows.
pub struct Random(u64);

impl From<u64> for Random {
    fn from(seed: u64) -> Self {
        Self(seed)
    }
}

impl Random {
    /// From `MYCELIUM_CHAOS_SEED`, or a new one.
    pub fn new() -> Self {
        use std::hash::{BuildHasher, Hasher};
        let fresh = std::hash::RandomState::new().build_hasher().finish() % 1_000_000;
        let seed = setting("MYCELIUM_CHAOS_SEED", fresh);
        println!("MYCELIUM_CHAOS_SEED={seed}");
        Self(seed)
    }

    /// The next number (splitmix64).
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `limit`.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}

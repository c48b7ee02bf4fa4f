//! The outside world as a value: wall clock and randomness.
//!
//! Everything that needs the time of day or a random number takes an [`Env`]. Production builds one with
//! the real sources at the edge (the binary); the simulation builds one from a seed and a virtual clock.
//! Monotonic delays use the async runtime's clock, which the simulation pauses.

use std::sync::Arc;

use jiff::Timestamp;

/// Wall clock and randomness. Cheap to clone.
#[derive(Clone)]
pub struct Env {
    now: Arc<dyn Fn() -> Timestamp + Send + Sync>,
    random: Arc<dyn Fn() -> u64 + Send + Sync>,
}

/// Alphabet of generated name suffixes: no vowels and no look-alikes, as Kubernetes' `rand.SafeEncodeString`.
const SUFFIX_ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";

impl Env {
    /// An environment from a clock and a source of uniformly distributed 64-bit numbers.
    pub fn new(
        now: impl Fn() -> Timestamp + Send + Sync + 'static,
        random: impl Fn() -> u64 + Send + Sync + 'static,
    ) -> Self {
        Self { now: Arc::new(now), random: Arc::new(random) }
    }

    /// The current wall-clock time.
    pub fn now(&self) -> Timestamp {
        (self.now)()
    }

    /// The current time in whole seconds, as `metav1.Time` prints it: `2026-11-21T02:24:38Z`.
    pub fn now_rfc3339(&self) -> String {
        rfc3339_seconds(self.now())
    }

    /// A uniformly distributed number.
    pub fn random(&self) -> u64 {
        (self.random)()
    }

    /// A random version 4 UUID in its usual form (RFC 9562, section 5.4).
    pub fn uuid(&self) -> String {
        let high = (self.random() & !0xf000) | 0x4000;
        let low = (self.random() & !(0b11 << 62)) | (0b10 << 62);
        format!(
            "{:08x}-{:04x}-{:04x}-{:04x}-{:012x}",
            high >> 32,
            (high >> 16) & 0xffff,
            high & 0xffff,
            low >> 48,
            low & 0xffff_ffff_ffff
        )
    }

    /// `len` characters for a generated name, as in `nginx-7c5ddbdf54-x2v9q`.
    pub fn name_suffix(&self, len: usize) -> String {
        (0..len).map(|_| SUFFIX_ALPHABET[(self.random() % SUFFIX_ALPHABET.len() as u64) as usize] as char).collect()
    }
}

/// Formats a time as `metav1.Time` does: RFC 3339, UTC, whole seconds.
pub fn rfc3339_seconds(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

impl std::fmt::Debug for Env {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Env")
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    fn counting() -> Env {
        let next = AtomicU64::new(1);
        Env::new(
            || Timestamp::UNIX_EPOCH,
            move || next.fetch_add(1, Ordering::Relaxed).wrapping_mul(0x9E37_79B9_7F4A_7C15),
        )
    }

    #[test]
    fn uuids_carry_version_and_variant() {
        let uuid = counting().uuid();
        assert_eq!(uuid.len(), 36);
        assert_eq!(&uuid[14..15], "4");
        assert!("89ab".contains(&uuid[19..20]));
    }

    #[test]
    fn times_have_whole_seconds() {
        assert_eq!(counting().now_rfc3339(), "1970-01-01T00:00:00Z");
    }
}

//! The replication buffer: one number in the document, divided once, so that the sum can never exceed it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;

/// How a buffer is divided. Each part bounds itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Shares {
    /// Copies of pages, from which differences are taken: a quarter.
    pub page_copies: u64,
    /// The guest's held output: a quarter, 64 MiB at most.
    pub egress: u64,
    /// Epochs between capture and the last acknowledgement: the rest.
    pub epochs: u64,
}

/// More of the guest's output is never held: it is bounded by the guest's card long before.
const EGRESS_MAX: u64 = 64 << 20;

impl Shares {
    /// Divides `bytes`.
    pub fn of(bytes: u64) -> Self {
        let quarter = bytes / 4;
        let egress = quarter.min(EGRESS_MAX);
        Self { page_copies: quarter, egress, epochs: bytes - quarter - egress }
    }
}

/// How much of the buffer is in use.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Level {
    /// What there is.
    pub shares: Shares,
    /// Bytes of epochs under way.
    pub epochs: u64,
    /// Bytes of held output.
    pub egress: u64,
    /// Bytes of page copies.
    pub page_copies: u64,
    /// How full it is, 1 is full: of epochs and output, whichever is fuller. Page copies are of use, not a backlog.
    pub fill: f64,
}

/// The account of a buffer, shared by all who use it.
#[derive(Debug)]
pub struct Buffer {
    shares: Shares,
    epochs: AtomicU64,
    egress: AtomicU64,
    page_copies: AtomicU64,
}

impl Buffer {
    /// A buffer divided like this, empty.
    pub fn new(shares: Shares) -> Arc<Self> {
        let zero = || AtomicU64::new(0);
        Arc::new(Self { shares, epochs: zero(), egress: zero(), page_copies: zero() })
    }

    /// How it is divided.
    pub fn shares(&self) -> Shares {
        self.shares
    }

    /// Takes room for an epoch, or nothing when there is not enough: the guest must wait then.
    pub fn reserve(self: &Arc<Self>, bytes: u64) -> Option<Reservation> {
        let fits = |used: u64| used.checked_add(bytes).filter(|sum| *sum <= self.shares.epochs);
        self.epochs.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).ok()?;
        Some(Reservation { buffer: Arc::clone(self), bytes })
    }

    /// The card holds this much output.
    pub fn set_egress(&self, bytes: u64) {
        self.egress.store(bytes, Ordering::Relaxed);
    }

    /// The encoder holds this many bytes of page copies.
    pub fn set_page_copies(&self, bytes: u64) {
        self.page_copies.store(bytes, Ordering::Relaxed);
    }

    /// How full it is.
    pub fn fill(&self) -> f64 {
        self.level().fill
    }

    /// Everything about it.
    pub fn level(&self) -> Level {
        let of = |used: u64, share: u64| used as f64 / share.max(1) as f64;
        let (epochs, egress) = (self.epochs.load(Ordering::Relaxed), self.egress.load(Ordering::Relaxed));
        let fill = of(epochs, self.shares.epochs).max(of(egress, self.shares.egress));
        Level { shares: self.shares, epochs, egress, page_copies: self.page_copies.load(Ordering::Relaxed), fill }
    }
}

/// Room in the buffer, given back when dropped.
#[derive(Debug)]
pub struct Reservation {
    buffer: Arc<Buffer>,
    bytes: u64,
}

impl Reservation {
    /// Bytes reserved.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Gives back all but `bytes`, for instance once an epoch is encoded and its raw copy gone.
    pub fn shrink_to(&mut self, bytes: u64) {
        let surplus = self.bytes.saturating_sub(bytes);
        self.bytes -= surplus;
        self.buffer.epochs.fetch_sub(surplus, Ordering::Relaxed);
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.shrink_to(0);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn shares_add_up_and_reservations_stay_within_them(
            bytes in (8_u64 << 20)..(1 << 40),
            steps in prop::collection::vec((0_u8..3, 0.0..0.6), 1..80),
        ) {
            let buffer = Buffer::new(Shares::of(bytes));
            let shares = buffer.shares();
            prop_assert_eq!(shares.page_copies + shares.egress + shares.epochs, bytes);
            let mut held: Vec<Reservation> = Vec::new();
            for (what, share) in steps {
                let amount = (shares.epochs as f64 * share) as u64;
                match what {
                    0 if !held.is_empty() => drop(held.remove(0)),
                    1 if !held.is_empty() => held[0].shrink_to(amount),
                    _ => {
                        let before: u64 = held.iter().map(Reservation::bytes).sum();
                        let taken = buffer.reserve(amount);
                        prop_assert_eq!(taken.is_some(), before + amount <= shares.epochs);
                        held.extend(taken);
                    }
                }
                let sum: u64 = held.iter().map(Reservation::bytes).sum();
                prop_assert_eq!(buffer.level().epochs, sum);
                prop_assert!(buffer.fill() <= 1.0);
            }
            held.clear();
            prop_assert_eq!(buffer.fill(), 0.0);
        }
    }
}

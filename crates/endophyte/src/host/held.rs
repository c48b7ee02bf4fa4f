//! What replication holds in memory: each piece is weighed once, however many queues share it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The sum of all weights that are alive. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Held(Arc<AtomicU64>);

impl Held {
    /// Counts so many bytes for as long as the weight or a clone of it lives.
    pub fn weigh(&self, bytes: u64) -> Weight {
        self.0.fetch_add(bytes, Ordering::Relaxed);
        Weight(Arc::new(Counted { held: self.clone(), bytes }))
    }

    /// Bytes held now.
    pub fn bytes(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Stands for bytes in memory; goes with them.
#[derive(Debug, Clone)]
pub struct Weight(Arc<Counted>);

impl Weight {
    /// The bytes.
    pub fn bytes(&self) -> u64 {
        self.0.bytes
    }
}

#[derive(Debug)]
struct Counted {
    held: Held,
    bytes: u64,
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.held.0.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shared_counts_once_and_until_the_last_goes() {
        let held = Held::default();
        let frame = held.weigh(100);
        let queues: Vec<Weight> = vec![frame.clone(), frame.clone()];
        let own = held.weigh(7);
        assert_eq!((held.bytes(), queues[0].bytes()), (107, 100));
        drop(frame);
        drop(own);
        assert_eq!(held.bytes(), 100);
        drop(queues);
        assert_eq!(held.bytes(), 0);
    }
}

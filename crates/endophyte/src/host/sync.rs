//! Bringing a backup's memory in sync while the guest runs.
//!
//! The backup tells the hashes of its pages. From one checkpoint on it gets every epoch like the others, and before
//! each of them some pages of its own: those that the guest has not written since, whose content differs from what the
//! backup has. A page that is written after it was copied comes again, with its epoch; so when every page was either
//! copied or part of an epoch, the backup's memory is what the guest's was at the last one.

use bytes::Bytes;

use super::stream::Outbox;
use crate::codec::{PAGE, page_hash};
use crate::machine::GuestMemory;

/// Pages that are looked at before one checkpoint.
const LOOKED_AT_MAX: usize = 32 * 1024;
/// Bytes that are sent before one checkpoint, and that may wait for the link before more are copied.
const SENT_MAX: u64 = 8 << 20;
const WAITING_MAX: u64 = 4 << 20;

/// One backup that is being brought in sync.
#[derive(Debug)]
pub(super) struct MemorySync {
    /// Tells this copy from others.
    pub id: u64,
    seed: u64,
    hashes: Bytes,
    /// A bit for each page that neither was copied nor came with an epoch since.
    remaining: Vec<u64>,
    left: u64,
    pages: u64,
    cursor: usize,
    begun: bool,
    parts: u64,
    outbox: Option<Outbox>,
    /// Bytes: sent in one step, waiting before the next.
    limits: (u64, u64),
}

/// What one checkpoint does for one copy.
#[derive(Debug, Default)]
pub(super) struct SyncStep {
    /// The copy.
    pub id: u64,
    /// It begins: nothing that was sent before counts.
    pub begins: bool,
    /// Pages that go before the epoch, ascending.
    pub indices: Vec<u64>,
    /// Their content.
    pub bytes: Vec<u8>,
    /// The number of this part.
    pub part: u64,
    /// With this epoch the backup's memory is whole.
    pub complete: bool,
    /// How much is done, 0 to 1.
    pub progress: f64,
}

impl MemorySync {
    /// A copy to a backup that has pages with these hashes.
    ///
    /// # Errors
    /// A sentence, when there is not one hash for each page.
    pub fn new(id: u64, seed: u64, hashes: Bytes, pages: u64) -> Result<Self, String> {
        if hashes.len() as u64 != pages * 16 {
            return Err(format!("the backup sent {} bytes of hashes for {pages} pages of 16 bytes each", hashes.len()));
        }
        let words = pages.div_ceil(64);
        let mut remaining = vec![u64::MAX; words as usize];
        if let Some(last) = remaining.last_mut().filter(|_| !pages.is_multiple_of(64)) {
            *last = (1 << (pages % 64)) - 1;
        }
        let (outbox, limits) = (None, (SENT_MAX, WAITING_MAX));
        Ok(Self { id, seed, hashes, remaining, left: pages, pages, cursor: 0, begun: false, parts: 0, outbox, limits })
    }

    /// Copies no faster than the link to the backup carries, and no more at a time than half of `room` bytes: the copy
    /// shall not fill the buffer that the guest's epochs need.
    pub fn paced_by(mut self, outbox: Outbox, room: u64) -> Self {
        self.outbox = Some(outbox);
        self.limits = (SENT_MAX.min(room / 4), WAITING_MAX.min(room / 4));
        self
    }

    /// Copies the next pages out of the running guest. To be called before the guest is stopped for a checkpoint.
    pub fn copy(&mut self, memory: &GuestMemory) -> SyncStep {
        let mut step = SyncStep { id: self.id, begins: !self.begun, part: self.parts, ..SyncStep::default() };
        if !self.begun {
            // The first checkpoint only draws the line from which on writes are known.
            self.begun = true;
            return step;
        }
        let (sent_max, waiting_max) = self.limits;
        if self.outbox.as_ref().is_some_and(|outbox| outbox.waiting() > waiting_max) {
            return step;
        }
        let mut page = [0; PAGE];
        for _ in 0..LOOKED_AT_MAX.min(self.pages as usize) {
            if step.bytes.len() as u64 >= sent_max || self.left == 0 {
                break;
            }
            let index = self.cursor;
            self.cursor = (self.cursor + 1) % self.pages as usize;
            if self.remaining[index / 64] >> (index % 64) & 1 == 0 {
                continue;
            }
            self.cover(index as u64);
            memory.copy_page(index as u64, &mut page);
            let theirs = &self.hashes[index * 16..][..16];
            if theirs != page_hash(&page, self.seed).to_le_bytes() {
                step.indices.push(index as u64);
                step.bytes.extend_from_slice(&page);
            }
        }
        self.order(&mut step);
        self.parts += 1;
        step
    }

    /// The cursor wraps around: pages after the wrap come first.
    fn order(&self, step: &mut SyncStep) {
        if let Some(wrap) = step.indices.windows(2).position(|pair| pair[0] > pair[1]) {
            step.indices.rotate_left(wrap + 1);
            step.bytes.rotate_left((wrap + 1) * PAGE);
        }
    }

    /// Takes note of what the checkpoint holds.
    pub fn captured(&mut self, written: impl Iterator<Item = u64>, step: &mut SyncStep) {
        for index in written {
            self.cover(index);
        }
        step.complete = self.left == 0;
        step.progress = 1.0 - self.left as f64 / self.pages.max(1) as f64;
    }

    fn cover(&mut self, index: u64) {
        let (word, bit) = ((index / 64) as usize, index % 64);
        if let Some(word) = self.remaining.get_mut(word)
            && *word >> bit & 1 == 1
        {
            *word &= !(1 << bit);
            self.left -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::host::replica::page_hashes;

    fn memory(dir: &tempfile::TempDir, name: &str, pages: u64) -> GuestMemory {
        GuestMemory::create(&dir.path().join(name), pages * PAGE as u64).expect("memory")
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn the_backup_ends_with_what_the_guest_had_at_the_last_checkpoint(
            pages in 1_u64..200,
            theirs in prop::collection::vec((0_u64..200, 0_u8..4), 0..60),
            epochs in prop::collection::vec(prop::collection::vec((0_u64..200, 0_u8..4), 0..40), 1..12),
        ) {
            let dir = tempfile::tempdir().expect("folder");
            let (guest, backup) = (memory(&dir, "guest", pages), memory(&dir, "backup", pages));
            for (page, byte) in theirs {
                backup.write_page(page % pages, &[byte; PAGE]);
            }
            let mut sync = MemorySync::new(1, 7, page_hashes(&backup, 7), pages).expect("hashes fit");
            let mut complete = false;
            for writes in epochs.iter().chain(std::iter::repeat_n(&Vec::new(), 3)) {
                // Half of the writes happen before the live copy, half after it.
                let written = |some: &[(u64, u8)]| for (page, byte) in some { guest.write_page(page % pages, &[*byte; PAGE]) };
                let (early, late) = writes.split_at(writes.len() / 2);
                written(early);
                let mut step = sync.copy(&guest);
                written(late);
                sync.captured(writes.iter().map(|(page, _)| page % pages), &mut step);
                prop_assert!(step.indices.is_sorted());
                for (index, bytes) in step.indices.iter().zip(step.bytes.as_chunks::<PAGE>().0) {
                    backup.write_page(*index, bytes);
                }
                let mut page = [0; PAGE];
                for (index, _) in writes {
                    guest.copy_page(index % pages, &mut page);
                    backup.write_page(index % pages, &page);
                }
                complete |= step.complete;
                if complete {
                    prop_assert_eq!(page_hashes(&guest, 3), page_hashes(&backup, 3));
                }
            }
            prop_assert!(complete);
        }
    }
}

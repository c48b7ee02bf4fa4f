//! Base copy and catch-up: bringing a replica to the content of a disk whose guest goes on writing.
//!
//! Neither side does any network I/O: [`Source`] and [`Target`] take messages and yield messages, and whoever owns the
//! connection moves them, in order, one way and the other. A connection that breaks costs nothing that was copied:
//! both sides begin anew, and what is equal by then is found by its hash.
//!
//! ```text
//!  target                                    source
//!    │ Hello: what I have ───────────────────▶ │  which blocks may differ at all?
//!    │ ◀──────────────── Plan: compare these   │
//!    │ Hashes of 64 KiB blocks ──────────────▶ │  a few batches ahead of Compared
//!    │ ◀───────── Data, Zero, Copy, Compared   │  what differs; content that the target has elsewhere is only named
//!    │ ◀──────────────────────────── Mark(e)   │  epoch e was sealed here
//!    │ ◀────────────────────────────── Finish  │  everything was compared
//!    │ Taken: these copies failed ───────────▶ │
//!    │ ◀─────────────── Data ..., Finish       │
//!    │ Taken: none ──────────────────────────▶ │
//!    │ ◀───────────────────────────── Done(E)  │
//! ```
//!
//! # Why the result is exact
//!
//! The disk must be recorded before the source is made, say in epoch S. The target gets every epoch from S on, by
//! whatever way epochs travel, and applies epoch e when it has both the epoch and `Mark(e)`, in order. So whatever the
//! source read *before* it sealed e is on the target *before* e is applied there; what it read later contains e
//! already, and applying e over it is mended by the later epoch that made the difference. `Done(E)` names the
//! epoch in progress after the last read: no content that was sent is newer than E. When the target has applied E, each
//! byte was either never written since S, and was copied, or its last write up to E was applied last. Nothing
//! has to converge: one pass is enough, however fast the guest writes.

mod codec;
mod source;
mod target;

use std::ops::Range;

use bytes::Bytes;

pub use source::Source;
pub use target::Target;

use super::meta::Lineage;
use super::{BLOCK, Position};

/// Blocks per batch of hashes.
const BATCH: u64 = 256;
/// Batches that the target is ahead of the source.
const AHEAD: u64 = 4;
/// Largest content of one message in blocks that are named one by one.
const LIST_MAX: usize = 1 << 16;

/// A BLAKE3 hash of a block.
pub type Hash = [u8; 32];

/// A range of blocks.
pub type Blocks = Range<u64>;

/// A run of equal statements about consecutive blocks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HashRun {
    /// So many blocks are all zero.
    Zero(u64),
    /// One block has this hash.
    Hash(Hash),
}

/// What travels between the two.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// Target: what it has.
    Hello {
        /// The size of its image.
        size: u64,
        /// Its history.
        lineage: Lineage,
        /// Its place there, if it knows.
        position: Option<Position>,
        /// Blocks that may differ from what every host had.
        marked: Vec<Blocks>,
    },
    /// Source: what is to be done.
    Plan {
        /// The size of the disk.
        size: u64,
        /// Its history.
        lineage: Lineage,
        /// Outside of the compared blocks both sides have the content of this position.
        base: Position,
        /// The epoch in progress: the target gets all epochs from this one on.
        epoch: Position,
        /// Which blocks to compare.
        compare: Vec<Blocks>,
    },
    /// Target: the hashes of consecutive blocks.
    Hashes {
        /// The first block.
        first: u64,
        /// What follows.
        runs: Vec<HashRun>,
    },
    /// Source: so many blocks are compared in all.
    Compared(u64),
    /// Source: a block's content.
    Data {
        /// Which one.
        block: u64,
        /// Its bytes.
        data: Bytes,
    },
    /// Source: these blocks are zero.
    Zero(Blocks),
    /// Source: a block has the content that the target has, or had, elsewhere.
    Copy {
        /// Which one.
        block: u64,
        /// Where the content is.
        from: u64,
        /// What it must be.
        hash: Hash,
    },
    /// Source: this epoch was sealed here.
    Mark(u64),
    /// Source: everything was compared and sent.
    Finish,
    /// Target: everything was taken but these blocks.
    Taken(Vec<u64>),
    /// Source: the target is whole when it has applied this epoch.
    Done(Position),
}

/// How far a synchronisation is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Both have compared their histories: it is known which blocks may differ.
    pub planned: bool,
    /// Bytes of the disk to be compared; 0 before the plan.
    pub total: u64,
    /// Bytes compared.
    pub compared: u64,
    /// Bytes of the former that are no holes here, when the plan was made: the rest costs next to nothing.
    pub content: u64,
    /// Bytes of content that were looked at.
    pub looked: u64,
    /// Bytes that differed.
    pub different: u64,
    /// Bytes of content that were sent; the rest of what differed was zero, or there elsewhere.
    pub sent: u64,
}

/// The bytes of a block on a disk of `size` bytes.
fn bytes_of(block: u64, size: u64) -> Range<u64> {
    let start = block * BLOCK;
    start..(start + BLOCK).min(size)
}

/// The number of blocks in ranges.
fn count(ranges: &[Blocks]) -> u64 {
    ranges.iter().map(|range| range.end.saturating_sub(range.start)).sum()
}

/// The union of ranges, sorted and disjoint, within `limit`.
fn union(ranges: impl IntoIterator<Item = Blocks>, limit: u64) -> Vec<Blocks> {
    let mut ranges: Vec<Blocks> = ranges.into_iter().map(|range| range.start..range.end.min(limit)).collect();
    ranges.retain(|range| range.start < range.end);
    ranges.sort_by_key(|range| range.start);
    let mut merged: Vec<Blocks> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match merged.last_mut() {
            Some(last) if last.end >= range.start => last.end = last.end.max(range.end),
            _ => merged.push(range),
        }
    }
    merged
}

fn is_zero(data: &[u8]) -> bool {
    // Compared in words by the compiler; the first chunk decides for almost every block that is not.
    data.chunks(64).all(|chunk| chunk.iter().fold(0, |any, byte| any | byte) == 0)
}

//! What an epoch looks like on its way to a backup, and how few bytes it takes.
//!
//! [`PageEncoder`] turns dirty pages into a *page section*, [`EpochFrame`] binds that section, the disk's writes, the
//! device state and the learned network addresses to one (virtual machine, term, epoch) under one checksum, and
//! [`PageDecoder`] applies a section to memory, but only after all of it was found sound. The devices' state goes the same
//! way, as memory of its own ([`DeviceEncoder`]); the disk's writes are packed if that pays ([`Packer`]).
//!
//! # What a page costs
//!
//! | page | bytes |
//! |---|---|
//! | rewritten with what it held | none: it is left out |
//! | zero | under a byte in a run, three alone |
//! | little changed since it was last sent, and still in the cache (or zero before) | its changed bytes, 2 to 4 per run of them, 6 per page |
//! | otherwise | 4096, or what lz4 or zstd make of it where a sample says that it pays on this link |
//!
//! A page counts as unchanged by a seeded 128-bit hash. A delta carries 32 bits of the hash of what it applies to:
//! memory that has drifted apart is noticed before a byte of it is written.
//!
//! # Who holds what
//!
//! An encoder speaks to all backups at once, and remembers what it said. A backup that joins gets a full copy from an
//! encoder of its own ([`FrameKind::Base`]), which stands for one epoch; from the next one on it follows the common
//! stream. A host that takes over starts with [`PageEncoder::assume`] for backups that hold the same epoch, and with a
//! full copy for others. After a section that was lost, [`PageEncoder::forget`].
//!
//! # Page section, version 1 (integers little-endian, `v` for LEB128)
//!
//! ```text
//! section = seed:u64 shard shard                  pages are split over two shards, each encoded by its own thread:
//! shard   = length:u64 batch*                     page = (local / 64) * 128 + shard * 64 + local % 64
//! batch   = runs:v run* deltas raws               local numbers only grow within a shard: no page comes twice
//! run     = gap:v ((count - 1) * 4 + kind):v      gap from the end of the run before; kind 0 zero, 1 raw, 2 delta
//! deltas  = length:v [method:u8 stored:v bytes]   absent when the length is 0
//! raws    = [method:u8 stored:v bytes]            absent without raw pages; unpacked it is 4096 for each
//! delta   = base:u32 length:v (skip:v count:v byte*)*   `base`: the low bits of the hash of the page before
//! method  = 0 as it is, 1 lz4 block, 2 zstd frame
//! ```

mod blob;
mod cache;
mod compress;
mod decode;
mod delta;
mod devices;
mod encode;
mod frame;
#[cfg(test)]
mod tests;
mod wire;

pub use blob::{Packer, unpack};
pub use compress::Compression;
pub use decode::{DecodedPages, PageDecoder, PageError};
pub use devices::{DeviceDecoder, DeviceEncoder};
pub use encode::{EncodeStats, EncodedPages, EncoderConfig, PageEncoder};
pub use frame::{EpochFrame, EpochId, Expected, FrameError, FrameKind, Header, Parts, seal};

use crate::machine::GuestMemory;

/// Bytes of a page.
pub const PAGE: usize = 4096;

const ZERO: [u8; PAGE] = [0; PAGE];
const SHARDS: usize = 2;
/// Neighbouring pages that share a shard.
const SHARD_RUN: u64 = 64;

/// Dirty pages, in ascending order: the number and the content of each.
pub trait PageList<'a>: ExactSizeIterator<Item = (u64, &'a [u8; PAGE])> + Clone + Send {}

impl<'a, T: ExactSizeIterator<Item = (u64, &'a [u8; PAGE])> + Clone + Send> PageList<'a> for T {}

/// Memory that pages are applied to.
pub trait PageSink {
    /// How many pages it has.
    fn pages(&self) -> u64;
    /// Reads page `index`.
    fn read_page(&self, index: u64, into: &mut [u8; PAGE]);
    /// Writes page `index`.
    fn write_page(&mut self, index: u64, from: &[u8; PAGE]);
    /// Makes page `index` zero.
    fn zero_page(&mut self, index: u64) {
        self.write_page(index, &ZERO);
    }
}

/// Clones share one memory: `pages.apply(&mut memory.clone())`.
impl PageSink for GuestMemory {
    fn pages(&self) -> u64 {
        GuestMemory::pages(self)
    }

    fn read_page(&self, index: u64, into: &mut [u8; PAGE]) {
        self.copy_page(index, into);
    }

    fn write_page(&mut self, index: u64, from: &[u8; PAGE]) {
        GuestMemory::write_page(self, index, from);
    }
}

/// The shard of a page, and its number there.
fn to_local(page: u64) -> (usize, u64) {
    let shard = (page / SHARD_RUN) % SHARDS as u64;
    (shard as usize, page / (SHARD_RUN * SHARDS as u64) * SHARD_RUN + page % SHARD_RUN)
}

/// The page with this number in this shard.
fn to_page(shard: usize, local: u64) -> u64 {
    local / SHARD_RUN * (SHARD_RUN * SHARDS as u64) + shard as u64 * SHARD_RUN + local % SHARD_RUN
}

/// How many local numbers a shard needs so that every page below `pages` has one.
fn locals(pages: u64) -> u64 {
    pages.div_ceil(SHARD_RUN * SHARDS as u64) * SHARD_RUN
}

/// The hash by which pages are compared; the seed keeps a guest from making two that differ look alike.
pub fn page_hash(page: &[u8], seed: u64) -> u128 {
    xxhash_rust::xxh3::xxh3_128_with_seed(page, seed)
}

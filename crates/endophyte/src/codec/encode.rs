//! Dirty pages to bytes.

use bytes::Bytes;

use super::cache::Cache;
use super::compress::{Compression, Compressor};
use super::wire::put_varint;
use super::{PAGE, PageList, SHARDS, ZERO, delta, locals, page_hash, to_local};
use crate::clock::{Clock, thread_time};

/// Raw pages of one batch.
pub(super) const RAWS_MAX: usize = 64;
/// Bytes of deltas of one batch.
pub(super) const DELTAS_MAX: usize = 256 << 10;
/// A batch is closed when its deltas reach this; the last one may add a little.
const DELTAS_FULL: usize = DELTAS_MAX - 2 * PAGE;
const RUNS_FULL: u64 = 4096;
/// Runs of one batch.
pub(super) const RUNS_MAX: usize = 2 * RUNS_FULL as usize;
/// Fewer pages are not worth a second thread.
const PARALLEL_MIN: usize = 512;

pub(super) const KIND_ZERO: u64 = 0;
pub(super) const KIND_RAW: u64 = 1;
pub(super) const KIND_DELTA: u64 = 2;

/// What an encoder is made for.
#[derive(Clone, Copy, Debug)]
pub struct EncoderConfig {
    /// Pages of the guest's memory.
    pub pages: u64,
    /// Bytes for copies of pages as they were last sent. They count towards the replication buffer.
    pub cache_bytes: usize,
    /// Seed of the page hashes. A guest that cannot know it cannot make pages that count as unchanged and are not.
    pub seed: u64,
    /// How to pack what is left.
    pub compression: Compression,
    /// Two encode large sets in half the time, one leaves the other processor to the guest.
    pub threads: usize,
    /// Measures what packing costs: processor time, since a preemption in a sample of microseconds says nothing.
    pub clock: Clock,
}

impl EncoderConfig {
    /// For a guest of this many pages.
    pub fn new(pages: u64, cache_bytes: usize, seed: u64) -> Self {
        Self { pages, cache_bytes, seed, compression: Compression::Auto, threads: 2, clock: thread_time }
    }
}

/// What became of the pages of one call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EncodeStats {
    /// Pages given.
    pub pages: u64,
    /// Left out: they hold what they held.
    pub unchanged: u64,
    /// Zero.
    pub zero: u64,
    /// As differences.
    pub delta: u64,
    /// Whole.
    pub raw: u64,
    /// Bytes of the section.
    pub bytes: u64,
}

impl EncodeStats {
    fn add(&mut self, other: &Self) {
        self.pages += other.pages;
        self.unchanged += other.unchanged;
        self.zero += other.zero;
        self.delta += other.delta;
        self.raw += other.raw;
        self.bytes += other.bytes;
    }
}

/// A page section, in pieces that follow each other.
#[derive(Clone, Debug, Default)]
pub struct EncodedPages {
    /// The pieces.
    pub chunks: Vec<Bytes>,
    /// What they hold.
    pub stats: EncodeStats,
}

/// Turns dirty pages into page sections. It remembers what it sent: sections must be applied in the order in which
/// they were made, all of them, to memory that took part from the start or holds a full copy as of the section before.
pub struct PageEncoder {
    config: EncoderConfig,
    shards: [Shard; SHARDS],
}

impl PageEncoder {
    /// An encoder that has sent nothing yet.
    pub fn new(config: EncoderConfig) -> Self {
        let shard = || Shard::new(&config);
        Self { shards: [shard(), shard()], config }
    }

    /// Bytes held for page copies.
    pub fn cache_bytes(&self) -> usize {
        self.shards.iter().map(|shard| shard.cache.bytes()).sum()
    }

    /// Changes the room for page copies, for instance when the buffer is needed for epochs under way.
    pub fn set_cache_bytes(&mut self, bytes: usize) {
        self.config.cache_bytes = bytes;
        for shard in &mut self.shards {
            shard.cache.resize(bytes / PAGE / SHARDS);
        }
    }

    /// Forgets what was sent: the next section applies to any memory. To be called when a section was not delivered.
    pub fn forget(&mut self) {
        for shard in &mut self.shards {
            shard.hashes.fill(0);
            shard.cache.clear();
        }
    }

    /// Takes it that the receivers hold these pages already, for instance because they followed the primary that this
    /// host has taken over from: they count as unchanged until they change.
    pub fn assume<'a>(&mut self, pages: impl PageList<'a>) {
        for (index, page) in pages {
            let (shard, local) = to_local(index);
            let shard = &mut self.shards[shard];
            if let Some(hash) = shard.hashes.get_mut(local as usize) {
                *hash = if page == &ZERO { IS_ZERO } else { page_hash(page, shard.seed) };
                shard.cache.remove(local);
            }
        }
    }

    /// Encodes `pages` for links that carry `link_bytes_per_s`.
    ///
    /// Pages beyond the configured memory are ignored.
    pub fn encode<'a>(&mut self, pages: impl PageList<'a>, link_bytes_per_s: u64) -> EncodedPages {
        debug_assert!(pages.clone().map(|(index, _)| index).is_sorted());
        for shard in &mut self.shards {
            shard.begin(link_bytes_per_s);
        }
        let [first, second] = &mut self.shards;
        if self.config.threads > 1 && pages.len() >= PARALLEL_MIN {
            std::thread::scope(|scope| {
                let theirs = pages.clone();
                let other = scope.spawn(|| second.encode(1, theirs));
                first.encode(0, pages);
                if let Err(panic) = other.join() {
                    std::panic::resume_unwind(panic);
                }
            });
        } else {
            first.encode(0, pages.clone());
            second.encode(1, pages);
        }
        self.collect()
    }

    fn collect(&mut self) -> EncodedPages {
        let mut encoded = EncodedPages::default();
        encoded.chunks.push(Bytes::copy_from_slice(&self.config.seed.to_le_bytes()));
        for shard in &mut self.shards {
            let bytes = Bytes::from(std::mem::take(&mut shard.out));
            encoded.chunks.push(Bytes::copy_from_slice(&(bytes.len() as u64).to_le_bytes()));
            encoded.chunks.push(bytes);
            encoded.stats.add(&shard.stats);
        }
        encoded.stats.bytes = encoded.chunks.iter().map(|chunk| chunk.len() as u64).sum();
        encoded
    }
}

/// What one thread encodes: half of the pages, and all that is remembered of them.
struct Shard {
    seed: u64,
    /// Hash of each page as last sent, by local number; 0 unknown, 1 zero.
    hashes: Vec<u128>,
    zero_hash: u128,
    cache: Cache,
    batch: Batch,
    packers: [Compressor; 2],
    out: Vec<u8>,
    stats: EncodeStats,
}

const UNKNOWN: u128 = 0;
const IS_ZERO: u128 = 1;

impl Shard {
    fn new(config: &EncoderConfig) -> Self {
        let locals = locals(config.pages);
        let packer = || Compressor::new(config.compression, config.clock);
        Self {
            seed: config.seed,
            hashes: vec![UNKNOWN; locals as usize],
            zero_hash: page_hash(&ZERO, config.seed),
            cache: Cache::new(locals, config.cache_bytes / PAGE / SHARDS),
            batch: Batch::default(),
            packers: [packer(), packer()],
            out: Vec::new(),
            stats: EncodeStats::default(),
        }
    }

    fn begin(&mut self, link_bytes_per_s: u64) {
        self.stats = EncodeStats::default();
        self.batch.next = 0;
        for packer in &mut self.packers {
            packer.begin(link_bytes_per_s);
        }
    }

    fn encode<'a>(&mut self, own: usize, pages: impl PageList<'a>) {
        for (index, page) in pages {
            let (shard, local) = to_local(index);
            if shard == own && (local as usize) < self.hashes.len() {
                self.page(local, page);
                if self.batch.is_full() {
                    self.flush();
                }
            }
        }
        self.flush();
    }

    fn page(&mut self, local: u64, page: &[u8; PAGE]) {
        self.stats.pages += 1;
        let before = self.hashes[local as usize];
        if page == &ZERO {
            if before == IS_ZERO {
                self.stats.unchanged += 1;
                return;
            }
            self.hashes[local as usize] = IS_ZERO;
            self.cache.remove(local);
            self.stats.zero += 1;
            return self.batch.record(local, KIND_ZERO);
        }
        let hash = page_hash(page, self.seed);
        if hash == before {
            self.stats.unchanged += 1;
            return;
        }
        self.hashes[local as usize] = hash;
        let (base, base_hash) = match before {
            IS_ZERO => (Some(&ZERO), self.zero_hash),
            known => (self.cache.get(local), known),
        };
        let paid = base.is_some_and(|base| self.batch.delta(base, base_hash as u32, page));
        if paid {
            self.stats.delta += 1;
            self.batch.record(local, KIND_DELTA);
        } else {
            self.stats.raw += 1;
            self.batch.raws.extend_from_slice(page);
            self.batch.record(local, KIND_RAW);
        }
        self.cache.put(local, page, paid && before != IS_ZERO);
    }

    fn flush(&mut self) {
        let batch = &mut self.batch;
        batch.end_run();
        if batch.run_count == 0 {
            return;
        }
        put_varint(&mut self.out, batch.run_count);
        self.out.extend_from_slice(&batch.runs);
        put_varint(&mut self.out, batch.deltas.len() as u64);
        for (packer, bytes) in self.packers.iter_mut().zip([&batch.deltas, &batch.raws]) {
            if !bytes.is_empty() {
                packer.pack(bytes, &mut self.out);
            }
        }
        batch.clear();
    }
}

/// Pages that are packed together.
#[derive(Default)]
struct Batch {
    /// First local number after the last run, over all batches of the section.
    next: u64,
    run: Option<Run>,
    run_count: u64,
    runs: Vec<u8>,
    deltas: Vec<u8>,
    raws: Vec<u8>,
    /// Where a delta is built before its length is known.
    scratch: Vec<u8>,
}

#[derive(Clone, Copy)]
struct Run {
    first: u64,
    count: u64,
    kind: u64,
}

impl Batch {
    fn is_full(&self) -> bool {
        self.raws.len() >= RAWS_MAX * PAGE || self.deltas.len() >= DELTAS_FULL || self.run_count >= RUNS_FULL
    }

    /// Appends the difference, unless it is too long.
    fn delta(&mut self, base: &[u8; PAGE], base_hash: u32, page: &[u8; PAGE]) -> bool {
        self.scratch.clear();
        if !delta::encode(base, page, &mut self.scratch) {
            return false;
        }
        self.deltas.extend_from_slice(&base_hash.to_le_bytes());
        put_varint(&mut self.deltas, self.scratch.len() as u64);
        self.deltas.extend_from_slice(&self.scratch);
        true
    }

    fn record(&mut self, local: u64, kind: u64) {
        match &mut self.run {
            Some(run) if run.kind == kind && run.first + run.count == local => run.count += 1,
            _ => {
                self.end_run();
                self.run = Some(Run { first: local, count: 1, kind });
            }
        }
    }

    fn end_run(&mut self) {
        if let Some(run) = self.run.take() {
            put_varint(&mut self.runs, run.first - self.next);
            put_varint(&mut self.runs, (run.count - 1) * 4 + run.kind);
            self.next = run.first + run.count;
            self.run_count += 1;
        }
    }

    fn clear(&mut self) {
        self.run_count = 0;
        self.runs.clear();
        self.deltas.clear();
        self.raws.clear();
    }
}

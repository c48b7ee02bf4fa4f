//! Bytes to pages: first everything is read and checked, then it is applied.

use std::borrow::Cow;

use super::compress::Packed;
use super::encode::{DELTAS_MAX, KIND_DELTA, KIND_RAW, KIND_ZERO, RAWS_MAX, RUNS_MAX};
use super::wire::Reader;
use super::{PAGE, PageSink, SHARDS, delta, locals, page_hash, to_page};

/// Why a page section was refused. Nothing of it was applied.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PageError {
    /// The section is not what an encoder writes.
    #[error("the page section is malformed at byte {offset}: {what}")]
    Malformed {
        /// Where in the section.
        offset: usize,
        /// What is wrong there.
        what: &'static str,
    },
    /// A page outside of the guest's memory.
    #[error("the page section holds page {page}, but the guest has {pages} pages")]
    Outside {
        /// The page.
        page: u64,
        /// Pages of the guest.
        pages: u64,
    },
    /// More than the receiver is ready to hold.
    #[error("the page section unpacks to more than the {max} bytes that may be held for one epoch")]
    TooLarge {
        /// The bound.
        max: usize,
    },
    /// The memory at hand is not the one the difference was taken from.
    #[error(
        "page {page} is not what its difference was taken from (hash {found:08x}, expected {expected:08x}): this memory needs a full copy"
    )]
    Base {
        /// The page.
        page: u64,
        /// Hash of what is there.
        found: u32,
        /// Hash of what the sender had sent before.
        expected: u32,
    },
}

/// Reads page sections for a guest.
#[derive(Clone, Copy, Debug)]
pub struct PageDecoder {
    pages: u64,
    unpacked_max: usize,
}

impl PageDecoder {
    /// For a guest of `pages` pages, holding at most `unpacked_max` bytes of unpacked content at a time.
    pub fn new(pages: u64, unpacked_max: usize) -> Self {
        Self { pages, unpacked_max }
    }

    /// Reads and checks a whole section.
    pub fn decode<'a>(&self, section: &'a [u8]) -> Result<DecodedPages<'a>, PageError> {
        let mut reader = Reader::new(section);
        let seed = reader.array().map(u64::from_le_bytes).ok_or(malformed(&reader, "no seed"))?;
        let mut decoded = DecodedPages { seed, batches: Vec::new(), pages: self.pages };
        let mut left = self.unpacked_max;
        for shard in 0..SHARDS {
            let length = reader.array().map(u64::from_le_bytes).ok_or(malformed(&reader, "no shard length"))?;
            let start = reader.offset();
            let bytes = usize::try_from(length).ok().and_then(|length| reader.take(length));
            let bytes = bytes.ok_or(malformed(&reader, "a shard is cut short"))?;
            self.shard(shard, start, bytes, &mut left, &mut decoded.batches)?;
        }
        if reader.is_empty() { Ok(decoded) } else { Err(malformed(&reader, "bytes after the end")) }
    }

    fn shard<'a>(
        &self,
        shard: usize,
        start: usize,
        bytes: &'a [u8],
        left: &mut usize,
        batches: &mut Vec<Batch<'a>>,
    ) -> Result<(), PageError> {
        let mut reader = Reader::new(bytes);
        let mut next = 0;
        while !reader.is_empty() {
            let batch = self.batch(shard, &mut reader, &mut next, left).map_err(|error| match error {
                PageError::Malformed { offset, what } => PageError::Malformed { offset: start + offset, what },
                other => other,
            })?;
            batches.push(batch);
        }
        Ok(())
    }

    fn batch<'a>(
        &self,
        shard: usize,
        reader: &mut Reader<'a>,
        next: &mut u64,
        left: &mut usize,
    ) -> Result<Batch<'a>, PageError> {
        let runs = self.runs(shard, reader, next)?;
        let count = |kind| runs.iter().filter(|run| run.kind == kind).map(|run| run.count as usize).sum::<usize>();
        let (delta_count, raw_count) = (count(KIND_DELTA), count(KIND_RAW));
        if raw_count > RAWS_MAX {
            return Err(malformed(reader, "too many raw pages in a batch"));
        }
        let length = reader.length(DELTAS_MAX).ok_or(malformed(reader, "length of deltas"))?;
        let deltas = self.content(reader, length, left)?;
        check_deltas(&deltas, delta_count).map_err(|what| malformed(reader, what))?;
        let raws = self.content(reader, raw_count * PAGE, left)?;
        Ok(Batch { shard, runs, deltas, raws })
    }

    fn runs(&self, shard: usize, reader: &mut Reader<'_>, next: &mut u64) -> Result<Vec<Run>, PageError> {
        let count = reader.length(2 * RUNS_MAX).filter(|count| *count > 0);
        let count = count.ok_or(malformed(reader, "number of runs"))?;
        let mut runs = Vec::with_capacity(count.min(1024));
        for _ in 0..count {
            let gap = reader.varint().ok_or(malformed(reader, "gap of a run"))?;
            let word = reader.varint().ok_or(malformed(reader, "length of a run"))?;
            let (kind, count) = (word & 3, word / 4 + 1);
            if ![KIND_ZERO, KIND_RAW, KIND_DELTA].contains(&kind) {
                return Err(malformed(reader, "kind of a run"));
            }
            let first = next.saturating_add(gap);
            let end = first.saturating_add(count);
            let last = if end > locals(self.pages) { u64::MAX } else { to_page(shard, end - 1) };
            if last >= self.pages {
                let page = if first < locals(self.pages) { to_page(shard, first) } else { first };
                return Err(PageError::Outside { page: page.max(self.pages), pages: self.pages });
            }
            *next = end;
            runs.push(Run { first, count, kind });
        }
        Ok(runs)
    }

    /// Content of known length, in place or unpacked; nothing when that is 0.
    fn content<'a>(
        &self,
        reader: &mut Reader<'a>,
        length: usize,
        left: &mut usize,
    ) -> Result<Cow<'a, [u8]>, PageError> {
        if length == 0 {
            return Ok(Cow::Borrowed(&[]));
        }
        let packed = Packed::read(reader).ok_or(malformed(reader, "packed content"))?;
        if let Some(plain) = packed.plain() {
            return if plain.len() == length {
                Ok(Cow::Borrowed(plain))
            } else {
                Err(malformed(reader, "content length"))
            };
        }
        *left = left.checked_sub(length).ok_or(PageError::TooLarge { max: self.unpacked_max })?;
        packed.unpack(length).map(Cow::Owned).ok_or(malformed(reader, "content cannot be unpacked"))
    }
}

fn malformed(reader: &Reader<'_>, what: &'static str) -> PageError {
    PageError::Malformed { offset: reader.offset(), what }
}

fn check_deltas(deltas: &[u8], count: usize) -> Result<(), &'static str> {
    let mut reader = Reader::new(deltas);
    for _ in 0..count {
        let (_, delta) = next_delta(&mut reader).ok_or("a delta is cut short")?;
        if !delta::is_sound(delta) {
            return Err("a delta reaches beyond its page");
        }
    }
    if reader.is_empty() { Ok(()) } else { Err("bytes after the last delta") }
}

/// The base's hash and the delta itself.
fn next_delta<'a>(reader: &mut Reader<'a>) -> Option<(u32, &'a [u8])> {
    let base = u32::from_le_bytes(reader.array()?);
    let length = reader.length(PAGE)?;
    Some((base, reader.take(length)?))
}

#[derive(Clone, Copy, Debug)]
struct Run {
    first: u64,
    count: u64,
    kind: u64,
}

#[derive(Debug)]
struct Batch<'a> {
    shard: usize,
    runs: Vec<Run>,
    deltas: Cow<'a, [u8]>,
    raws: Cow<'a, [u8]>,
}

impl Batch<'_> {
    fn pages(&self) -> impl Iterator<Item = (u64, u64)> {
        self.runs
            .iter()
            .flat_map(|run| (run.first..run.first + run.count).map(|local| (to_page(self.shard, local), run.kind)))
    }
}

/// A section that was read and found sound.
#[derive(Debug)]
pub struct DecodedPages<'a> {
    seed: u64,
    batches: Vec<Batch<'a>>,
    pages: u64,
}

impl DecodedPages<'_> {
    /// The pages it changes, in no particular order.
    pub fn indices(&self) -> impl Iterator<Item = u64> {
        self.batches.iter().flat_map(|batch| batch.pages().map(|(page, _)| page))
    }

    /// Bytes of page content beyond the section itself that are held until this is dropped.
    pub fn unpacked_bytes(&self) -> usize {
        let owned = |content: &Cow<'_, [u8]>| if let Cow::Owned(bytes) = content { bytes.len() } else { 0 };
        self.batches.iter().map(|batch| owned(&batch.deltas) + owned(&batch.raws)).sum()
    }

    /// Checks that `sink` holds what the differences were taken from.
    pub fn check(&self, sink: &impl PageSink) -> Result<(), PageError> {
        if sink.pages() < self.pages {
            return Err(PageError::Outside { page: self.pages - 1, pages: sink.pages() });
        }
        let mut content = [0; PAGE];
        for batch in &self.batches {
            let mut deltas = Reader::new(&batch.deltas);
            for (page, _) in batch.pages().filter(|(_, kind)| *kind == KIND_DELTA) {
                let Some((expected, _)) = next_delta(&mut deltas) else { break };
                sink.read_page(page, &mut content);
                let found = page_hash(&content, self.seed) as u32;
                if found != expected {
                    return Err(PageError::Base { page, found, expected });
                }
            }
        }
        Ok(())
    }

    /// Checks `sink`, then writes every page to it.
    pub fn apply(&self, sink: &mut impl PageSink) -> Result<(), PageError> {
        self.check(sink)?;
        let mut content = [0; PAGE];
        for batch in &self.batches {
            let mut deltas = Reader::new(&batch.deltas);
            let mut raws = batch.raws.as_chunks::<PAGE>().0.iter();
            for (page, kind) in batch.pages() {
                match kind {
                    KIND_ZERO => sink.zero_page(page),
                    KIND_RAW => raws.next().into_iter().for_each(|raw| sink.write_page(page, raw)),
                    _ => {
                        let Some((_, delta)) = next_delta(&mut deltas) else { break };
                        sink.read_page(page, &mut content);
                        delta::apply(delta, &mut content);
                        sink.write_page(page, &content);
                    }
                }
            }
        }
        Ok(())
    }
}

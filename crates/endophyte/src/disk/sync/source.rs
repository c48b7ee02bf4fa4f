//! The side that has the disk.

use std::collections::{HashMap, VecDeque};
use std::iter;

use super::{BATCH, Blocks, Hash, HashRun, Message, Progress, bytes_of, count, is_zero, union};
use crate::disk::error::{DiskError, IoContext, Result};
use crate::disk::meta::Lineage;
use crate::disk::{BLOCK, Disk, Position};

/// How many contents the source remembers the target to have.
const SEEN_MAX: usize = 1 << 15;

/// Messages that are prepared at once.
const GATHER: usize = 16;

/// Sends what differs from a recorded disk to one target.
pub struct Source {
    disk: Disk,
    outgoing: VecDeque<Message>,
    stage: Stage,
    /// Batches of hashes that are not compared yet.
    batches: VecDeque<Batch>,
    /// Blocks whose content must be sent as it is.
    resend: VecDeque<u64>,
    /// Where the target has which content.
    seen: Seen,
    total: u64,
    compared: u64,
    last_sealed: Option<u64>,
    progress: Progress,
    buffer: Vec<u8>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Greeting,
    Comparing,
    Finishing,
    /// The last epoch that the target needs.
    Done(u64),
}

struct Batch {
    next: u64,
    runs: VecDeque<HashRun>,
}

impl Source {
    /// Begins; the disk must be recorded ([`Disk::protect`]).
    pub fn new(disk: &Disk) -> Result<Self> {
        if disk.epoch_in_progress().is_none() {
            return Err(DiskError::Protocol("the disk is not recorded"));
        }
        Ok(Self {
            disk: disk.clone(),
            outgoing: VecDeque::new(),
            stage: Stage::Greeting,
            batches: VecDeque::new(),
            resend: VecDeque::new(),
            seen: Seen::default(),
            total: 0,
            compared: 0,
            last_sealed: None,
            progress: Progress::default(),
            buffer: vec![0; BLOCK as usize],
        })
    }

    /// Takes a message of the target.
    pub fn receive(&mut self, message: Message) -> Result<()> {
        match (self.stage, message) {
            (Stage::Greeting, Message::Hello { size, lineage, position, marked }) => {
                self.plan(size, lineage, position, marked)
            }
            (Stage::Comparing, Message::Hashes { first, runs }) => {
                // The target is ahead by a bounded number of batches.
                if self.batches.len() as u64 > super::AHEAD {
                    return Err(DiskError::Protocol("more hashes than agreed"));
                }
                let mut block = first;
                for run in &runs {
                    match run {
                        HashRun::Hash(hash) => self.seen.put(*hash, block),
                        HashRun::Zero(len) => block = block.saturating_add(len.saturating_sub(1)),
                    }
                    block = block.saturating_add(1);
                }
                self.batches.push_back(Batch { next: first, runs: runs.into() });
                Ok(())
            }
            (Stage::Finishing, Message::Taken(missing)) if missing.is_empty() => {
                let position = self.recorded()?;
                self.stage = Stage::Done(position.epoch);
                self.outgoing.push_back(Message::Done(position));
                Ok(())
            }
            (Stage::Finishing, Message::Taken(missing)) => {
                if missing.iter().any(|block| *block >= self.disk.size().div_ceil(BLOCK)) {
                    return Err(DiskError::Protocol("no such block"));
                }
                self.resend.extend(missing);
                self.stage = Stage::Comparing;
                Ok(())
            }
            _ => Err(DiskError::Protocol("an unexpected message from the target")),
        }
    }

    /// To be told of each epoch, right after its seal.
    pub fn sealed(&mut self, epoch: u64) {
        self.last_sealed = Some(epoch);
        let needed = match self.stage {
            Stage::Greeting => false,
            Stage::Done(end) => epoch <= end,
            Stage::Comparing | Stage::Finishing => true,
        };
        if needed {
            self.outgoing.push_back(Message::Mark(epoch));
        }
    }

    /// The next message for the target; `None` until something is received or sealed. Reads the disk. To be called
    /// when the connection can take more, and sent in the order of the calls.
    pub fn poll(&mut self) -> Result<Option<Message>> {
        loop {
            if let Some(message) = self.outgoing.pop_front() {
                return Ok(Some(message));
            }
            if self.stage != Stage::Comparing {
                return Ok(None);
            }
            if let Some(block) = self.resend.pop_front() {
                self.send_content(block)?;
            } else if let Some(batch) = self.batches.pop_front() {
                self.compare(batch)?;
            } else if self.compared == self.total {
                self.stage = Stage::Finishing;
                self.outgoing.push_back(Message::Finish);
            } else {
                return Ok(None);
            }
        }
    }

    /// How far it is.
    pub fn progress(&self) -> Progress {
        let (total, compared) = (self.total * BLOCK, self.compared * BLOCK);
        let content = self.progress.content;
        let looked = match self.stage {
            Stage::Finishing | Stage::Done(_) => content,
            // What is a hole here, or became content later, may be looked at too.
            _ => self.progress.looked.min(content),
        };
        Progress { planned: self.stage != Stage::Greeting, total, compared, looked, ..self.progress }
    }

    /// Whether everything was sent that the target needs beside epochs; until then it must be told of seals.
    pub fn is_done(&self) -> bool {
        matches!(self.stage, Stage::Done(end) if self.last_sealed >= Some(end)) && self.outgoing.is_empty()
    }

    fn recorded(&self) -> Result<Position> {
        self.disk.epoch_in_progress().ok_or(DiskError::Protocol("the disk is not recorded any more"))
    }

    /// Decides which blocks can differ: the marked ones of both, if both descend from the source's base.
    fn plan(&mut self, size: u64, lineage: Lineage, position: Option<Position>, marked: Vec<Blocks>) -> Result<()> {
        let epoch = self.recorded()?;
        let (ours, map) = self.disk.differences();
        let all = self.disk.size().div_ceil(BLOCK);
        let before = Position { term: epoch.term, epoch: epoch.epoch.saturating_sub(1) };
        let (base, mine) = map.unwrap_or((before, iter::once(0..all).collect()));
        let related = lineage == ours && size == self.disk.size() && position.is_some_and(|at| at >= base);
        let compare = if related { union(mine.into_iter().chain(marked), all) } else { union(iter::once(0..all), all) };
        self.total = count(&compare);
        self.progress.content = self.content(&compare)?;
        self.stage = Stage::Comparing;
        let size = self.disk.size();
        self.outgoing.push_back(Message::Plan { size, lineage: ours, base, epoch, compare });
        Ok(())
    }

    /// How much of these blocks is no hole.
    fn content(&self, ranges: &[Blocks]) -> Result<u64> {
        let mut bytes = 0;
        for range in ranges {
            let (mut at, end) = (range.start * BLOCK, (range.end * BLOCK).min(self.disk.size()));
            while at < end
                && let Some((from, to)) = self.disk.file().next_data(at).on("inspect", self.disk.path())?
            {
                bytes += to.min(end).saturating_sub(from.max(at));
                at = to;
            }
        }
        Ok(bytes)
    }

    /// Compares some blocks of a batch, and puts the rest back.
    fn compare(&mut self, mut batch: Batch) -> Result<()> {
        let size = self.disk.size();
        let limit = size.div_ceil(BLOCK);
        let mut steps = 0;
        while let Some(run) = batch.runs.pop_front() {
            let before = batch.next;
            if before >= limit {
                return Err(DiskError::Protocol("hashes beyond the disk's end"));
            }
            match run {
                HashRun::Hash(hash) => {
                    batch.next += 1;
                    self.compare_block(before, &hash)?;
                }
                HashRun::Zero(len) => {
                    let end = before.checked_add(len).filter(|end| *end <= limit && len > 0);
                    let end = end.ok_or(DiskError::Protocol("hashes beyond the disk's end"))?;
                    batch.next = self.send_data_of(before..end)?;
                    if batch.next < end {
                        batch.runs.push_front(HashRun::Zero(end - batch.next));
                    }
                }
            }
            self.compared += batch.next - before;
            steps += 1;
            if (steps >= BATCH || self.outgoing.len() >= GATHER) && !batch.runs.is_empty() {
                self.batches.push_front(batch);
                return Ok(());
            }
        }
        if self.compared > self.total {
            return Err(DiskError::Protocol("more hashes than were asked for"));
        }
        self.outgoing.push_back(Message::Compared(self.compared));
        Ok(())
    }

    /// The target has zeroes in `blocks`: sends the first block that has something else here. Yields how far it came.
    fn send_data_of(&mut self, blocks: Blocks) -> Result<u64> {
        let mut block = blocks.start;
        let path = self.disk.path().to_owned();
        while block < blocks.end {
            let Some((start, end)) = self.disk.file().next_data(block * BLOCK).on("inspect", &path)? else {
                return Ok(blocks.end);
            };
            block = block.max(start / BLOCK);
            while block < blocks.end && block * BLOCK < end {
                self.progress.looked += BLOCK;
                let data = self.load(block)?;
                if !is_zero(data) {
                    let hash = *blake3::hash(data).as_bytes();
                    self.send(block, hash)?;
                    return Ok(block + 1);
                }
                block += 1;
            }
        }
        Ok(blocks.end)
    }

    fn compare_block(&mut self, block: u64, theirs: &Hash) -> Result<()> {
        self.progress.looked += BLOCK;
        let data = self.load(block)?;
        if is_zero(data) {
            self.seen.forget(theirs, block);
            self.progress.different += BLOCK;
            match self.outgoing.back_mut() {
                Some(Message::Zero(range)) if range.end == block => range.end += 1,
                _ => self.outgoing.push_back(Message::Zero(block..block + 1)),
            }
            return Ok(());
        }
        let ours = *blake3::hash(data).as_bytes();
        if ours == *theirs {
            return Ok(());
        }
        self.seen.forget(theirs, block);
        self.send(block, ours)
    }

    /// Sends the block in the buffer, or names where the target has it.
    fn send(&mut self, block: u64, hash: Hash) -> Result<()> {
        self.progress.different += BLOCK;
        match self.seen.get(&hash) {
            Some(from) if from != block => self.outgoing.push_back(Message::Copy { block, from, hash }),
            _ => {
                self.send_content(block)?;
            }
        }
        self.seen.put(hash, block);
        Ok(())
    }

    fn send_content(&mut self, block: u64) -> Result<()> {
        let data = bytes::Bytes::copy_from_slice(self.load(block)?);
        self.progress.sent += data.len() as u64;
        self.outgoing.push_back(Message::Data { block, data });
        Ok(())
    }

    fn load(&mut self, block: u64) -> Result<&[u8]> {
        let range = bytes_of(block, self.disk.size());
        let buffer = &mut self.buffer[..(range.end - range.start) as usize];
        self.disk.file().read(buffer, range.start).on("read", self.disk.path())?;
        Ok(buffer)
    }
}

/// Where which content is: the latest ones, bounded.
#[derive(Default)]
struct Seen {
    blocks: HashMap<[u8; 16], u64>,
    order: VecDeque<[u8; 16]>,
}

impl Seen {
    fn put(&mut self, hash: Hash, block: u64) {
        let key = short(&hash);
        if self.blocks.insert(key, block).is_none() {
            self.order.push_back(key);
        }
        if self.order.len() > SEEN_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.blocks.remove(&oldest);
        }
    }

    /// The block gets another content.
    fn forget(&mut self, hash: &Hash, block: u64) {
        if self.get(hash) == Some(block) {
            self.blocks.remove(&short(hash));
        }
    }

    fn get(&self, hash: &Hash) -> Option<u64> {
        self.blocks.get(&short(hash)).copied()
    }
}

/// The target checks the whole hash before it copies.
fn short(hash: &Hash) -> [u8; 16] {
    let mut key = [0; 16];
    key.copy_from_slice(&hash[..16]);
    key
}

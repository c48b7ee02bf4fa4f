//! The side that becomes a replica.

use std::collections::{BTreeMap, VecDeque};

use super::{AHEAD, BATCH, Blocks, HashRun, LIST_MAX, Message, Progress, bytes_of, count, is_zero};
use crate::disk::error::{DiskError, IoContext, Result};
use crate::disk::replica::{Base, Committed};
use crate::disk::{BLOCK, DiskEpoch, Position, Replica};

/// Epochs that wait for their mark take at most so much memory.
const HELD_MAX: u64 = 256 << 20;

/// Brings a replica (`R` leads to it) up to a source's disk.
pub struct Target<R> {
    replica: R,
    stage: Stage,
    compare: VecDeque<Blocks>,
    total: u64,
    /// Blocks whose hashes were sent, and those that the source has compared.
    hashed: u64,
    compared: u64,
    batches: VecDeque<u64>,
    missing: Vec<u64>,
    taken: Option<Message>,
    term: u64,
    /// The next epoch to be applied, those that came, and the last one marked.
    next_epoch: u64,
    waiting: BTreeMap<u64, DiskEpoch>,
    waiting_bytes: u64,
    marked: u64,
    end: Option<Position>,
    progress: Progress,
    buffer: Vec<u8>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Greeting,
    Planned,
    Building,
    Whole,
}

impl<R: std::ops::Deref<Target = Replica>> Target<R> {
    /// Begins. The replica keeps what it has until the source's plan arrives.
    pub fn new(replica: R) -> Self {
        Self {
            replica,
            stage: Stage::Greeting,
            compare: VecDeque::new(),
            total: 0,
            hashed: 0,
            compared: 0,
            batches: VecDeque::new(),
            missing: Vec::new(),
            taken: None,
            term: 0,
            next_epoch: 0,
            waiting: BTreeMap::new(),
            waiting_bytes: 0,
            marked: 0,
            end: None,
            progress: Progress::default(),
            buffer: vec![0; BLOCK as usize],
        }
    }

    /// Takes a message of the source.
    pub fn receive(&mut self, message: Message) -> Result<()> {
        match (self.stage, message) {
            (Stage::Planned, Message::Plan { size, lineage, base, epoch, compare }) => {
                let limit = size.div_ceil(BLOCK);
                if compare.last().is_some_and(|range| range.end > limit) {
                    return Err(DiskError::Protocol("a plan beyond the disk's end"));
                }
                self.total = count(&compare);
                (self.term, self.next_epoch, self.marked) = (epoch.term, epoch.epoch, epoch.epoch.saturating_sub(1));
                self.replica.begin_base(&Base { lineage, size, base, compare: compare.clone(), epoch: epoch.epoch })?;
                self.compare = compare.into();
                self.stage = Stage::Building;
                self.waiting.retain(|number, _| *number >= epoch.epoch);
                Ok(())
            }
            (Stage::Building, message) => self.build(message),
            // Seals that the source told before it knew that the target is whole.
            (Stage::Whole, Message::Mark(_)) => Ok(()),
            _ => Err(DiskError::Protocol("an unexpected message from the source")),
        }
    }

    /// Takes an epoch: any from the one on that was in progress when the source was made, in order.
    pub fn epoch(&mut self, term: u64, epoch: DiskEpoch) -> Result<()> {
        match self.stage {
            Stage::Whole => return self.replica.commit(term, &epoch).map(|_| ()),
            Stage::Building if term != self.term => return Err(DiskError::Protocol("the term has changed")),
            Stage::Building if epoch.epoch < self.next_epoch => return Ok(()),
            _ => {}
        }
        if self.waiting.contains_key(&epoch.epoch) {
            return Ok(());
        }
        self.waiting_bytes += epoch.data_bytes();
        if self.waiting_bytes > HELD_MAX {
            return Err(DiskError::Protocol("epochs wait for marks that do not come"));
        }
        self.waiting.insert(epoch.epoch, epoch);
        self.apply_marked()
    }

    /// The next message for the source; `None` until something is received. Reads the image.
    pub fn poll(&mut self) -> Result<Option<Message>> {
        match self.stage {
            Stage::Greeting => {
                self.stage = Stage::Planned;
                let (lineage, position, marked) = self.replica.known();
                Ok(Some(Message::Hello { size: self.replica.size(), lineage, position, marked }))
            }
            Stage::Building if self.taken.is_some() => Ok(self.taken.take()),
            Stage::Building if (self.batches.len() as u64) < AHEAD => self.hashes(),
            _ => Ok(None),
        }
    }

    /// How far it is.
    pub fn progress(&self) -> Progress {
        Progress { total: self.total * BLOCK, compared: self.compared * BLOCK, ..self.progress }
    }

    /// The epoch at which the replica became whole; later ones may be committed to it directly.
    pub fn finished(&self) -> Option<Position> {
        self.end.filter(|_| self.stage == Stage::Whole)
    }

    fn build(&mut self, message: Message) -> Result<()> {
        let (image, size) = (self.replica.image(), self.replica.size());
        let limit = size.div_ceil(BLOCK);
        let path = self.replica.path();
        match message {
            Message::Compared(compared) => {
                self.compared = compared;
                while self.batches.front().is_some_and(|end| *end <= compared) {
                    self.batches.pop_front();
                }
            }
            Message::Data { block, data } if block < limit => {
                let range = bytes_of(block, size);
                if range.end - range.start != data.len() as u64 {
                    return Err(DiskError::Protocol("a block of the wrong length"));
                }
                image.write(&data, range.start).on("write", &path)?;
                self.progress.different += data.len() as u64;
                self.progress.sent += data.len() as u64;
            }
            Message::Zero(range) if range.end <= limit => {
                let bytes = range.start * BLOCK..(range.end * BLOCK).min(size);
                image.zero(bytes.start, bytes.end - bytes.start, false).on("write", &path)?;
                self.progress.different += bytes.end - bytes.start;
            }
            Message::Copy { block, from, hash } if block < limit && from < limit => self.copy(block, from, hash)?,
            Message::Mark(epoch) => {
                if epoch >= self.next_epoch && epoch != self.marked + 1 {
                    return Err(DiskError::Protocol("a mark is missing"));
                }
                self.marked = self.marked.max(epoch);
                self.apply_marked()?;
            }
            Message::Finish => self.taken = Some(Message::Taken(std::mem::take(&mut self.missing))),
            Message::Done(position) if position.term == self.term => {
                self.end = Some(position);
                self.apply_marked()?;
            }
            _ => return Err(DiskError::Protocol("an unexpected message from the source")),
        }
        Ok(())
    }

    fn copy(&mut self, block: u64, from: u64, hash: super::Hash) -> Result<()> {
        let (image, size, path) = (self.replica.image(), self.replica.size(), self.replica.path());
        let (source, target) = (bytes_of(from, size), bytes_of(block, size));
        let buffer = &mut self.buffer[..(source.end - source.start) as usize];
        image.read(buffer, source.start).on("read", &path)?;
        if target.end - target.start != buffer.len() as u64 || *blake3::hash(buffer).as_bytes() != hash {
            self.missing.push(block);
            if self.missing.len() > LIST_MAX {
                return Err(DiskError::Protocol("too many copies failed"));
            }
            return Ok(());
        }
        self.progress.different += buffer.len() as u64;
        image.write(buffer, target.start).on("write", &path)
    }

    /// Applies what is both here and marked, in order, and ends when the last needed epoch is in.
    fn apply_marked(&mut self) -> Result<()> {
        if self.stage != Stage::Building {
            return Ok(());
        }
        while self.next_epoch <= self.marked
            && let Some(epoch) = self.waiting.remove(&self.next_epoch)
        {
            self.waiting_bytes -= epoch.data_bytes();
            self.replica.build(&epoch)?;
            self.next_epoch += 1;
            if self.end.is_some_and(|end| end.epoch < self.next_epoch) {
                break;
            }
        }
        let Some(end) = self.end.filter(|end| end.epoch < self.next_epoch) else { return Ok(()) };
        if end.epoch + 1 != self.next_epoch {
            return Err(DiskError::Protocol("the end is before what was applied"));
        }
        self.replica.finish_base(end)?;
        self.stage = Stage::Whole;
        for (_, epoch) in std::mem::take(&mut self.waiting) {
            let (Committed::New | Committed::Repeated) = self.replica.commit(self.term, &epoch)?;
        }
        Ok(())
    }

    /// Hashes the next blocks; zeroes cost nothing, holes are not even read.
    fn hashes(&mut self) -> Result<Option<Message>> {
        let Some(range) = self.compare.pop_front() else { return Ok(None) };
        let (mut block, mut runs, mut hashed) = (range.start, Vec::new(), 0);
        let path = self.replica.path();
        while block < range.end && hashed < BATCH {
            let hole = match self.replica.image().next_data(block * BLOCK).on("inspect", &path)? {
                Some((start, _)) => (start / BLOCK).clamp(block, range.end),
                None => range.end,
            };
            if hole > block {
                push_zeroes(&mut runs, hole - block);
                block = hole;
                continue;
            }
            let bytes = bytes_of(block, self.replica.size());
            let buffer = &mut self.buffer[..(bytes.end - bytes.start) as usize];
            self.replica.image().read(buffer, bytes.start).on("read", &path)?;
            if is_zero(buffer) {
                push_zeroes(&mut runs, 1);
            } else {
                runs.push(HashRun::Hash(*blake3::hash(buffer).as_bytes()));
            }
            hashed += 1;
            block += 1;
        }
        if block < range.end {
            self.compare.push_front(block..range.end);
        }
        self.hashed += block - range.start;
        self.batches.push_back(self.hashed);
        Ok(Some(Message::Hashes { first: range.start, runs }))
    }
}

fn push_zeroes(runs: &mut Vec<HashRun>, more: u64) {
    match runs.last_mut() {
        Some(HashRun::Zero(len)) => *len += more,
        _ => runs.push(HashRun::Zero(more)),
    }
}

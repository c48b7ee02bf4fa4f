//! Which blocks may differ from what every host has: a bitmap on disk that is written before the blocks are.
//!
//! ```text
//! header (base position, boot, checksum) | one bit per 64 MiB region | one bit per 64 KiB block
//! ```
//! The claim that always holds: outside of the marked blocks, the image equals the content at the *base position*,
//! which every host has had. So two hosts of one history need to compare the union of their marked blocks only.
//!
//! A block's bit goes to the page cache before the block does, which survives the death of this process. For a loss of
//! power the bit of the block's *region* is synced before the first write to the region; that is rare, since
//! regions are cleared only after they were left alone for long. After another boot whole regions count as marked.

use std::path::{Path, PathBuf};

use super::error::{IoContext, Result};
use super::{BLOCK, Position, Storage};

const MAGIC: &[u8; 8] = b"MYCMAP01";
const HEADER: u64 = 4096;
const HEADER_LEN: usize = 8 + 8 + 8 + 16;
const REGION_BLOCKS: u64 = 1024;
/// A region stays marked for so many epochs after its last write.
const REGION_IDLE: u64 = 2048;
/// The epoch of a marked block about which nothing is known.
const NEVER: u32 = u32::MAX;

/// Names one boot of the host.
pub type Boot = [u8; 16];

/// The running kernel's boot.
pub fn this_boot() -> Boot {
    let mut boot = Boot::default();
    let text = std::fs::read("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let digits = text.iter().filter_map(|byte| char::from(*byte).to_digit(16));
    for (at, digit) in digits.take(32).enumerate() {
        boot[at / 2] = boot[at / 2] << 4 | digit as u8;
    }
    boot
}

/// The map.
pub struct DirtyMap {
    storage: Box<dyn Storage>,
    path: PathBuf,
    boot: Boot,
    base: Position,
    /// The epoch of each block's last write, counted from `origin`; 0 is clean.
    last: Vec<u32>,
    origin: u64,
    fine: Vec<u8>,
    regions: Vec<u8>,
    region_last: Vec<u64>,
    /// A write of bits failed: the file may lack some that are set here.
    lacking: bool,
}

impl DirtyMap {
    /// Reads the map of a disk of `size` bytes. `None` if there is none, or not for this size: everything may differ.
    pub fn load(
        storage: Box<dyn Storage>,
        path: &Path,
        size: u64,
        boot: Boot,
    ) -> Result<Result<Self, Box<dyn Storage>>> {
        let mut header = [0; HEADER_LEN + 4];
        let mut map = Self::blank(storage, path, size, boot);
        if map.storage.size().on("inspect", path)? != map.file_len() {
            return Ok(Err(map.storage));
        }
        map.storage.read(&mut header, 0).on("read", path)?;
        let Some((base, written_at)) = decode_header(&header) else { return Ok(Err(map.storage)) };
        map.base = base;
        map.origin = base.epoch;
        map.storage.read(&mut map.regions, HEADER).on("read", path)?;
        let fine_at = map.fine_at();
        map.storage.read(&mut map.fine, fine_at).on("read", path)?;
        for block in 0..map.last.len() as u64 {
            if get(&map.fine, block) || (written_at != boot && get(&map.regions, block / REGION_BLOCKS)) {
                map.last[block as usize] = NEVER;
                set(&mut map.fine, block);
            }
        }
        map.write_fine()?;
        map.write_header()?;
        map.storage.sync().on("sync", path)?;
        Ok(Ok(map))
    }

    /// A new map, durably: nothing differs from the content at `base`.
    pub fn create(storage: Box<dyn Storage>, path: &Path, size: u64, boot: Boot, base: Position) -> Result<Self> {
        let mut map = Self::blank(storage, path, size, boot);
        map.base = base;
        map.origin = base.epoch;
        map.storage.resize(0).on("empty", path)?;
        map.storage.resize(map.file_len()).on("grow", path)?;
        map.write_header()?;
        map.storage.sync().on("sync", path)?;
        Ok(map)
    }

    fn blank(storage: Box<dyn Storage>, path: &Path, size: u64, boot: Boot) -> Self {
        let blocks = size.div_ceil(BLOCK);
        let regions = blocks.div_ceil(REGION_BLOCKS);
        Self {
            storage,
            path: path.to_owned(),
            boot,
            base: Position::default(),
            last: vec![0; blocks as usize],
            origin: 0,
            fine: vec![0; blocks.div_ceil(8) as usize],
            regions: vec![0; regions.div_ceil(8) as usize],
            region_last: vec![0; regions as usize],
            lacking: false,
        }
    }

    /// Gives the file back.
    pub fn into_storage(self) -> Box<dyn Storage> {
        self.storage
    }

    /// The position that the unmarked blocks are of.
    pub fn base(&self) -> Position {
        self.base
    }

    /// The marked blocks, as ranges.
    pub fn marked(&self) -> Vec<std::ops::Range<u64>> {
        let mut ranges: Vec<std::ops::Range<u64>> = Vec::new();
        for (block, _) in self.last.iter().enumerate().filter(|(_, last)| **last != 0) {
            let block = block as u64;
            match ranges.last_mut() {
                Some(range) if range.end == block => range.end += 1,
                _ => ranges.push(block..block + 1),
            }
        }
        ranges
    }

    /// Marks blocks as written in `epoch`, or in one that is not known yet (`u64::MAX`); to be called before they are.
    pub fn mark(&mut self, blocks: std::ops::Range<u64>, epoch: u64) -> Result<()> {
        let code = if epoch == u64::MAX { NEVER } else { self.code(epoch) };
        let mut first_new = None;
        let mut last_new = 0;
        for block in blocks {
            let last = &mut self.last[block as usize];
            if *last == 0 {
                first_new.get_or_insert(block);
                last_new = block;
                set(&mut self.fine, block);
            }
            *last = if *last == NEVER { NEVER } else { code.max(*last) };
            self.region_last[(block / REGION_BLOCKS) as usize] = epoch;
        }
        let bytes = match first_new {
            _ if self.lacking => 0..self.fine.len(),
            Some(first) => (first / 8) as usize..(last_new / 8) as usize + 1,
            None => return Ok(()),
        };
        let regions = first_new.unwrap_or(0) / REGION_BLOCKS..last_new / REGION_BLOCKS + 1;
        let lacked = std::mem::replace(&mut self.lacking, true);
        self.mark_regions(regions, lacked)?;
        self.storage.write(&self.fine[bytes.clone()], self.fine_at() + bytes.start as u64).on("write", &self.path)?;
        self.lacking = false;
        Ok(())
    }

    fn mark_regions(&mut self, regions: std::ops::Range<u64>, lacked: bool) -> Result<()> {
        if !lacked && regions.clone().all(|region| get(&self.regions, region)) {
            return Ok(());
        }
        regions.for_each(|region| set(&mut self.regions, region));
        self.storage.write(&self.regions, HEADER).on("write", &self.path)?;
        self.storage.sync().on("sync", &self.path)
    }

    /// Takes a new base without clearing anything: valid if the content at `base` and at the old one differ in marked
    /// blocks only.
    pub fn rebase(&mut self, base: Position) -> Result<()> {
        self.last.iter_mut().filter(|last| **last != 0).for_each(|last| *last = NEVER);
        (self.base, self.origin) = (base, base.epoch);
        self.write_header()?;
        self.storage.sync().on("sync", &self.path)
    }

    /// Says that no marked block was written after `epoch`. Until then those that a file or another host named are
    /// never cleared.
    pub fn age(&mut self, epoch: u64) {
        let code = self.code(epoch);
        self.last.iter_mut().filter(|last| **last == NEVER).for_each(|last| *last = code);
        self.region_last.iter_mut().for_each(|last| *last = epoch.min(*last));
    }

    /// Every host has what `position` says: clears the blocks that were not written since.
    pub fn settle(&mut self, position: Position) -> Result<()> {
        if position <= self.base {
            return Ok(());
        }
        self.base = position;
        self.write_header()?;
        let settled = self.code(position.epoch);
        for (block, last) in self.last.iter_mut().enumerate().filter(|(_, last)| **last != 0) {
            if *last <= settled {
                *last = 0;
                self.fine[block / 8] &= !(1 << (block % 8));
            }
        }
        self.clear_regions(position.epoch)?;
        self.write_fine()
    }

    /// Clears the regions that were left alone for long. What is durable of the base must be no older than what is
    /// durable of the regions.
    fn clear_regions(&mut self, settled: u64) -> Result<()> {
        let blocks = self.last.chunks(REGION_BLOCKS as usize);
        let clean: Vec<u64> = (0..)
            .zip(blocks.zip(&self.region_last))
            .filter(|(region, (blocks, last))| {
                get(&self.regions, *region)
                    && last.saturating_add(REGION_IDLE) < settled
                    && blocks.iter().all(|last| *last == 0)
            })
            .map(|(region, _)| region)
            .collect();
        if clean.is_empty() {
            return Ok(());
        }
        self.storage.sync().on("sync", &self.path)?;
        clean.into_iter().for_each(|region| self.regions[(region / 8) as usize] &= !(1 << (region % 8)));
        self.storage.write(&self.regions, HEADER).on("write", &self.path)
    }

    fn code(&self, epoch: u64) -> u32 {
        u32::try_from(epoch.saturating_sub(self.origin)).unwrap_or(NEVER).clamp(1, NEVER - 1)
    }

    fn fine_at(&self) -> u64 {
        HEADER + (self.regions.len() as u64).next_multiple_of(4096)
    }

    fn file_len(&self) -> u64 {
        self.fine_at() + self.fine.len() as u64
    }

    fn write_fine(&self) -> Result<()> {
        self.storage.write(&self.fine, self.fine_at()).on("write", &self.path)
    }

    fn write_header(&self) -> Result<()> {
        let mut header = Vec::with_capacity(HEADER_LEN + 4);
        header.extend(MAGIC);
        header.extend(self.base.term.to_le_bytes());
        header.extend(self.base.epoch.to_le_bytes());
        header.extend(self.boot);
        header.extend(crc32fast::hash(&header).to_le_bytes());
        self.storage.write(&header, 0).on("write", &self.path)
    }
}

fn decode_header(bytes: &[u8; HEADER_LEN + 4]) -> Option<(Position, Boot)> {
    let (body, checksum) = bytes.split_at(HEADER_LEN);
    if &body[..8] != MAGIC || crc32fast::hash(body).to_le_bytes() != checksum {
        return None;
    }
    let number = |at: usize| body[at..at + 8].iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte));
    let mut boot = Boot::default();
    boot.copy_from_slice(&body[24..]);
    Some((Position { term: number(8), epoch: number(16) }, boot))
}

fn get(bits: &[u8], at: u64) -> bool {
    bits[(at / 8) as usize] >> (at % 8) & 1 != 0
}

fn set(bits: &mut [u8], at: u64) {
    bits[(at / 8) as usize] |= 1 << (at % 8);
}

//! What a disk's folder is: one small record, replaced atomically by writing to the older of two checksummed slots.

use std::path::{Path, PathBuf};

use super::error::{IoContext, Result};
use super::{Position, Storage};

const MAGIC: &[u8; 8] = b"MYCDISK1";
const SLOT: u64 = 4096;
const LEN: usize = 8 + 8 + 16 + 1 + 1 + 8 + 8 + 8;

/// The random name of a disk's history: replicas of it carry the same.
pub type Lineage = [u8; 16];

/// What the image is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The disk of a VM that runs here, or ran here when the host died.
    Primary,
    /// A replica that holds whole epochs.
    Replica,
    /// A replica in the making: no whole epoch yet.
    Building,
}

/// The record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Meta {
    /// The disk's history.
    pub lineage: Lineage,
    /// What the image is.
    pub role: Role,
    /// Whether `disk.map` says which blocks may differ from the other hosts'.
    pub tracked: bool,
    /// The last epoch that is wholly in the image. A primary's is the one at which it was promoted.
    pub position: Position,
    /// The disk's size in bytes.
    pub size: u64,
}

/// The file that holds it.
pub struct MetaFile {
    storage: Box<dyn Storage>,
    path: PathBuf,
    sequence: u64,
}

impl MetaFile {
    /// Reads the record, if there is one.
    pub fn load(storage: Box<dyn Storage>, path: &Path) -> Result<(Self, Option<Meta>)> {
        let size = storage.size().on("inspect", path)?;
        let mut best: Option<(u64, Meta)> = None;
        for slot in 0..2 {
            let mut bytes = [0; LEN + 4];
            if (slot + 1) * SLOT <= size {
                storage.read(&mut bytes, slot * SLOT).on("read", path)?;
            }
            if let Some(found) = decode(&bytes)
                && best.as_ref().is_none_or(|best| best.0 < found.0)
            {
                best = Some(found);
            }
        }
        let sequence = best.as_ref().map_or(0, |best| best.0);
        Ok((Self { storage, path: path.to_owned(), sequence }, best.map(|best| best.1)))
    }

    /// Replaces the record, durably.
    pub fn store(&mut self, meta: &Meta) -> Result<()> {
        let sequence = self.sequence + 1;
        let mut slot = vec![0; SLOT as usize];
        encode(sequence, meta, &mut slot);
        self.storage.write(&slot, sequence % 2 * SLOT).on("write", &self.path)?;
        self.storage.sync().on("sync", &self.path)?;
        self.sequence = sequence;
        if self.storage.size().on("inspect", &self.path)? < 2 * SLOT {
            self.storage.resize(2 * SLOT).on("grow", &self.path)?;
        }
        Ok(())
    }
}

fn encode(sequence: u64, meta: &Meta, slot: &mut [u8]) {
    let mut bytes = Vec::with_capacity(LEN + 4);
    bytes.extend(MAGIC);
    bytes.extend(sequence.to_le_bytes());
    bytes.extend(meta.lineage);
    bytes.push(match meta.role {
        Role::Primary => 1,
        Role::Replica => 2,
        Role::Building => 3,
    });
    bytes.push(meta.tracked.into());
    for number in [meta.position.term, meta.position.epoch, meta.size] {
        bytes.extend(number.to_le_bytes());
    }
    bytes.extend(crc32fast::hash(&bytes).to_le_bytes());
    slot[..bytes.len()].copy_from_slice(&bytes);
}

fn decode(bytes: &[u8; LEN + 4]) -> Option<(u64, Meta)> {
    let (body, checksum) = bytes.split_at(LEN);
    if &body[..8] != MAGIC || crc32fast::hash(body).to_le_bytes() != checksum {
        return None;
    }
    let number = |at: usize| body[at..at + 8].iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte));
    let role = match body[32] {
        1 => Role::Primary,
        2 => Role::Replica,
        3 => Role::Building,
        _ => return None,
    };
    let mut lineage = Lineage::default();
    lineage.copy_from_slice(&body[16..32]);
    let position = Position { term: number(34), epoch: number(42) };
    Some((number(8), Meta { lineage, role, tracked: body[33] != 0, position, size: number(50) }))
}

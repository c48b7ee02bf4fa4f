//! A replica's journal: whole epochs, in two files that take turns.
//!
//! ```text
//! frame: u32 magic | u64 length of the body | u64 term | u32 crc32 of the head | body: an encoded DiskEpoch
//! ```
//! A frame is valid if both checksums fit. The frames of a file are read up to the first that is not; what follows in
//! the history is found by term and epoch, so that old frames which were not yet overwritten do no harm.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::{Buf, Bytes};

use super::error::{IoContext, Result};
use super::{DiskEpoch, Position, Storage};

const MAGIC: u32 = u32::from_le_bytes(*b"MJF1");
/// Parts of a frame are written together up to about this length.
const GATHERED: usize = 256 << 10;
const HEAD: usize = 4 + 8 + 8 + 4;

/// The two files.
pub struct Journal {
    files: [Arc<dyn Storage>; 2],
    paths: [PathBuf; 2],
    lens: [u64; 2],
    active: usize,
    /// The active file may hold a frame that was taken back.
    uncut: bool,
}

/// An epoch as the journal holds it.
#[derive(Clone, Debug)]
pub struct Frame {
    /// When it belongs.
    pub position: Position,
    /// What it writes.
    pub epoch: Arc<DiskEpoch>,
}

impl Journal {
    pub fn new(files: [Arc<dyn Storage>; 2], paths: [PathBuf; 2]) -> Self {
        Self { files, paths, lens: [0, 0], active: 0, uncut: false }
    }

    /// Every valid frame, in order of position.
    pub fn read(&self) -> Result<Vec<Frame>> {
        let mut frames = Vec::new();
        for (file, path) in self.files.iter().zip(&self.paths) {
            let mut content = vec![0; file.size().on("inspect", path)? as usize];
            file.read(&mut content, 0).on("read", path)?;
            let mut content = Bytes::from(content);
            while let Some(frame) = next_frame(&mut content) {
                frames.push(frame);
            }
        }
        frames.sort_by_key(|frame| (frame.position.epoch, frame.position.term));
        Ok(frames)
    }

    /// Appends a frame wholly, or leaves the journal as it was.
    pub fn append(&mut self, term: u64, epoch: &DiskEpoch) -> Result<()> {
        let body = epoch.encode();
        let len: usize = body.iter().map(Bytes::len).sum();
        let mut frame = Vec::with_capacity((HEAD + len).min(2 * GATHERED));
        frame.extend(MAGIC.to_le_bytes());
        frame.extend((len as u64).to_le_bytes());
        frame.extend(term.to_le_bytes());
        frame.extend(crc32fast::hash(&frame).to_le_bytes());
        let (file, path) = (Arc::clone(&self.files[self.active]), self.paths[self.active].clone());
        let at = self.lens[self.active];
        if self.uncut {
            file.resize(at).on("cut", &path)?;
            self.uncut = false;
        }
        let mut end = at;
        let mut write = |frame: &mut Vec<u8>| -> io::Result<()> {
            file.write(frame, end)?;
            end += frame.len() as u64;
            frame.clear();
            Ok(())
        };
        let write_all = || -> io::Result<()> {
            for part in body {
                frame.extend_from_slice(&part);
                if frame.len() >= GATHERED {
                    write(&mut frame)?;
                }
            }
            write(&mut frame)
        };
        write_all().on("append to", &path).inspect_err(|_| self.cut(at))?;
        self.lens[self.active] = end;
        Ok(())
    }

    /// Takes back what was appended after `len`, and was not acknowledged.
    pub fn cut(&mut self, len: u64) {
        self.lens[self.active] = len;
        // If this fails, a reader may find the epoch, but only whole, and nothing is appended until it succeeds.
        self.uncut = self.files[self.active].resize(len).is_err();
    }

    /// The bytes in the file that is appended to.
    pub fn active_len(&self) -> u64 {
        self.lens[self.active]
    }

    /// If the active file is longer than `len`, appends go to the other from now on. Yields the number of the one
    /// before, to be emptied.
    pub fn rotate(&mut self, len: u64) -> Option<usize> {
        let before = self.active;
        if self.uncut || self.lens[before] <= len {
            return None;
        }
        self.active = 1 - before;
        Some(before)
    }

    /// Empties a file.
    pub fn empty(&mut self, which: usize) -> Result<()> {
        self.files[which].resize(0).on("empty", &self.paths[which])?;
        self.lens[which] = 0;
        Ok(())
    }

    /// Empties both, durably.
    pub fn reset(&mut self) -> Result<()> {
        for which in [0, 1] {
            self.empty(which)?;
            self.files[which].sync().on("sync", &self.paths[which])?;
        }
        Ok(())
    }

    /// What syncs the journal: the older file first, so that no epoch is durable before those that precede it.
    pub fn syncer(&self) -> impl FnOnce() -> Result<()> + use<> {
        let order = [1 - self.active, self.active];
        let files = order.map(|which| (Arc::clone(&self.files[which]), self.paths[which].clone(), self.lens[which]));
        move || {
            let filled = files.iter().filter(|(_, _, len)| *len > 0);
            filled.into_iter().try_for_each(|(file, path, _)| file.sync().on("sync", path))
        }
    }
}

fn next_frame(content: &mut Bytes) -> Option<Frame> {
    let mut head = content.get(..HEAD)?;
    let checksum = crc32fast::hash(&head[..HEAD - 4]);
    let (magic, len, term) = (head.get_u32_le(), head.get_u64_le(), head.get_u64_le());
    if magic != MAGIC || head.get_u32_le() != checksum || len > (content.len() - HEAD) as u64 {
        return None;
    }
    content.advance(HEAD);
    let epoch = DiskEpoch::decode(content.split_to(len as usize)).ok()?;
    Some(Frame { position: Position { term, epoch: epoch.epoch }, epoch: Arc::new(epoch) })
}

//! Files as the disk sees them: positioned reads and writes, holes, and a sync. A trait, so that tests can put a disk
//! underneath that forgets what was not synced.

use std::fs::File;
use std::io::{self, IoSliceMut};
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{FallocateFlags, FlockOperation, SeekFrom, fallocate, flock, seek};
use rustix::io::{Errno, ReadWriteFlags, preadv2};

use super::error::{DiskError, IoContext, Result};

/// A file with random access. All offsets and lengths lie within it, unless said otherwise.
pub trait Storage: Send + Sync {
    /// Fills `buffer` from `offset`; what lies beyond the end reads as an error.
    fn read(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;
    /// Writes all of `data` at `offset`, growing the file where needed.
    fn write(&self, data: &[u8], offset: u64) -> io::Result<()>;
    /// Makes the range read as zeroes; `keep` asks that its blocks stay allocated.
    fn zero(&self, offset: u64, len: u64, keep: bool) -> io::Result<()>;
    /// Returns after everything written before is on the medium.
    fn sync(&self) -> io::Result<()>;
    /// The size in bytes.
    fn size(&self) -> io::Result<u64>;
    /// Grows with a hole, or cuts off.
    fn resize(&self, size: u64) -> io::Result<()>;
    /// The first range at or after `from` that may hold something other than zeroes.
    fn next_data(&self, from: u64) -> io::Result<Option<(u64, u64)>>;
    /// Fills `buffer` if that needs no wait for the medium; `false` if it would.
    fn read_now(&self, buffer: &mut [u8], offset: u64) -> bool {
        self.read(buffer, offset).is_ok()
    }
}

/// A real file.
#[derive(Debug)]
pub struct DiskFile(File);

impl DiskFile {
    /// Opens the file, creating an empty one if there is none, and keeps every other process from it.
    pub fn open_locked(path: &Path) -> Result<Self> {
        let file = File::options().read(true).write(true).create(true).truncate(false).open(path).on("open", path)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Self(file)),
            Err(Errno::WOULDBLOCK) => Err(DiskError::InUse { path: path.to_owned() }),
            Err(error) => Err(error).on("lock", path),
        }
    }
}

impl Storage for DiskFile {
    fn read(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.0.read_exact_at(buffer, offset)
    }

    fn write(&self, data: &[u8], offset: u64) -> io::Result<()> {
        self.0.write_all_at(data, offset)
    }

    fn zero(&self, offset: u64, len: u64, keep: bool) -> io::Result<()> {
        if len == 0 {
            return Ok(());
        }
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        let flags = if keep { FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE } else { punch };
        match fallocate(&self.0, flags, offset, len) {
            Err(Errno::OPNOTSUPP | Errno::NOSYS) if keep => self.zero(offset, len, false),
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => write_zeroes(self, offset, len),
            outcome => Ok(outcome?),
        }
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn size(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn resize(&self, size: u64) -> io::Result<()> {
        self.0.set_len(size)
    }

    fn next_data(&self, from: u64) -> io::Result<Option<(u64, u64)>> {
        let start = match seek(&self.0, SeekFrom::Data(from)) {
            Ok(start) => start,
            Err(Errno::NXIO) => return Ok(None),
            Err(Errno::INVAL | Errno::OPNOTSUPP) => {
                let size = self.size()?;
                return Ok((from < size).then_some((from, size)));
            }
            Err(error) => return Err(error.into()),
        };
        Ok(Some((start, seek(&self.0, SeekFrom::Hole(start))?)))
    }

    fn read_now(&self, buffer: &mut [u8], offset: u64) -> bool {
        let wanted = buffer.len();
        preadv2(&self.0, &mut [IoSliceMut::new(buffer)], offset, ReadWriteFlags::NOWAIT) == Ok(wanted)
    }
}

/// Zeroes by writing them, where the file system knows no holes.
fn write_zeroes(file: &DiskFile, offset: u64, len: u64) -> io::Result<()> {
    static ZEROES: [u8; 64 * 1024] = [0; 64 * 1024];
    let mut at = offset;
    while at < offset + len {
        let now = (offset + len - at).min(ZEROES.len() as u64);
        file.write(&ZEROES[..now as usize], at)?;
        at += now;
    }
    Ok(())
}

//! What lies between redb and the bytes: keeps the lock while redb is reopened, remembers failed syncs, and can hold
//! writes back in memory while a file of unknown condition is examined.

use std::collections::BTreeMap;
use std::io;
use std::ops::Bound;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use redb::{BackendError, StorageBackend};

const BLOCK: u64 = 4096;
/// Bytes written at a time when all are written anew.
const CHUNK: usize = 1 << 20;

/// A backend that outlives the databases opened on it.
#[derive(Debug)]
pub struct Medium {
    inner: Box<dyn StorageBackend>,
    locked: AtomicBool,
    sync_failed: AtomicBool,
    /// Present while writes are held back.
    overlay: Mutex<Option<Overlay>>,
}

impl Medium {
    /// Wraps a backend.
    pub fn new(inner: impl StorageBackend) -> Arc<Self> {
        Arc::new(Self {
            inner: Box::new(inner),
            locked: AtomicBool::new(false),
            sync_failed: AtomicBool::new(false),
            overlay: Mutex::new(None),
        })
    }

    /// Takes the exclusive lock; `false` when another holds it. It is kept until the medium is dropped.
    pub fn lock(&self) -> io::Result<bool> {
        if self.locked.load(Ordering::Acquire) {
            return Ok(true);
        }
        let locked = match self.inner.try_lock_range(Bound::Unbounded, Bound::Unbounded) {
            Ok(locked) => locked,
            Err(BackendError::Unsupported) => true,
            Err(other) => return Err(other.into()),
        };
        self.locked.store(locked, Ordering::Release);
        Ok(locked)
    }

    /// The backend itself.
    pub fn raw(&self) -> &dyn StorageBackend {
        &*self.inner
    }

    /// A backend for redb on this medium.
    pub fn handle(self: &Arc<Self>) -> Handle {
        Handle(self.clone())
    }

    /// From now on writes stay in memory.
    pub fn hold_back_writes(&self) -> io::Result<()> {
        let len = self.inner.len()?;
        *self.overlay() = Some(Overlay { blocks: BTreeMap::new(), len, backed: len });
        Ok(())
    }

    /// Forgets the writes held back, and lets new ones through.
    pub fn drop_held_writes(&self) {
        *self.overlay() = None;
    }

    /// After a failed sync the kernel may show bytes that never reached the disk, and will not write them again by
    /// itself: writes everything anew and syncs. Stopping halfway does no harm, as only bytes that are missing change.
    pub fn make_durable(&self) -> io::Result<()> {
        if !self.sync_failed.load(Ordering::Acquire) {
            return Ok(());
        }
        let len = self.inner.len()?;
        let mut chunk = vec![0; CHUNK];
        for start in (0..len).step_by(CHUNK) {
            let part = &mut chunk[..(len - start).min(CHUNK as u64) as usize];
            self.inner.read(start, part)?;
            self.inner.write(start, part)?;
        }
        self.inner.sync_data()?;
        self.sync_failed.store(false, Ordering::Release);
        Ok(())
    }

    fn overlay(&self) -> MutexGuard<'_, Option<Overlay>> {
        self.overlay.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Medium {
    fn drop(&mut self) {
        let _ = self.inner.close();
    }
}

/// Blocks that differ from the backend.
#[derive(Debug)]
struct Overlay {
    blocks: BTreeMap<u64, Box<[u8]>>,
    len: u64,
    /// Up to here the backend's bytes count.
    backed: u64,
}

impl Overlay {
    fn block(&self, inner: &dyn StorageBackend, index: u64) -> io::Result<Box<[u8]>> {
        if let Some(block) = self.blocks.get(&index) {
            return Ok(block.clone());
        }
        let mut block = vec![0; BLOCK as usize].into_boxed_slice();
        let start = index * BLOCK;
        let backed = self.backed.saturating_sub(start).min(BLOCK) as usize;
        if backed > 0 {
            inner.read(start, &mut block[..backed])?;
        }
        Ok(block)
    }

    fn read(&self, inner: &dyn StorageBackend, offset: u64, out: &mut [u8]) -> io::Result<()> {
        if offset + out.len() as u64 > self.len {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut done = 0;
        while done < out.len() {
            let (index, within) = ((offset + done as u64) / BLOCK, ((offset + done as u64) % BLOCK) as usize);
            let n = (BLOCK as usize - within).min(out.len() - done);
            out[done..done + n].copy_from_slice(&self.block(inner, index)?[within..within + n]);
            done += n;
        }
        Ok(())
    }

    fn write(&mut self, inner: &dyn StorageBackend, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut done = 0;
        while done < data.len() {
            let (index, within) = ((offset + done as u64) / BLOCK, ((offset + done as u64) % BLOCK) as usize);
            let n = (BLOCK as usize - within).min(data.len() - done);
            let mut block = self.block(inner, index)?;
            block[within..within + n].copy_from_slice(&data[done..done + n]);
            self.blocks.insert(index, block);
            done += n;
        }
        self.len = self.len.max(offset + data.len() as u64);
        Ok(())
    }

    fn set_len(&mut self, len: u64) {
        if len < self.len {
            self.backed = self.backed.min(len);
            self.blocks.retain(|index, _| index * BLOCK < len);
        }
        self.len = len;
    }
}

/// One database's use of a [`Medium`].
#[derive(Debug)]
pub struct Handle(Arc<Medium>);

impl StorageBackend for Handle {
    fn len(&self) -> io::Result<u64> {
        match &*self.0.overlay() {
            Some(overlay) => Ok(overlay.len),
            None => self.0.inner.len(),
        }
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        match &*self.0.overlay() {
            Some(overlay) => overlay.read(&*self.0.inner, offset, out),
            None => self.0.inner.read(offset, out),
        }
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        match &mut *self.0.overlay() {
            Some(overlay) => {
                overlay.set_len(len);
                Ok(())
            }
            None => self.0.inner.set_len(len),
        }
    }

    fn sync_data(&self) -> io::Result<()> {
        if self.0.overlay().is_some() {
            return Ok(());
        }
        let result = self.0.inner.sync_data();
        if result.is_err() {
            self.0.sync_failed.store(true, Ordering::Release);
        }
        result
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        match &mut *self.0.overlay() {
            Some(overlay) => overlay.write(&*self.0.inner, offset, data),
            None => self.0.inner.write(offset, data),
        }
    }

    /// The lock belongs to the medium: another process must not slip in while we reopen.
    fn close(&self) -> io::Result<()> {
        Ok(())
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        match (start, end) {
            (Bound::Unbounded, Bound::Unbounded) => self.0.lock().map_err(BackendError::from),
            _ => Err(BackendError::Unsupported),
        }
    }

    fn unlock_range(&self, _start: Bound<u64>, _end: Bound<u64>) -> Result<(), BackendError> {
        Ok(())
    }
}

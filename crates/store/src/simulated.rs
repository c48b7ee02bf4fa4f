//! A disk in memory for tests and simulations: it loses what was not synced, tears writes, fails and fills up.
//!
//! What it does is decided by a hook that sees each operation before it happens, and by a seed, so that a run can be
//! repeated. After a crash the old [`Backend`]s fail, and [`SimulatedDisk::backend`] returns one that sees what is left.

use std::io;
use std::ops::Bound;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use redb::{BackendError, StorageBackend};

/// The unit that is written whole or not at all.
const SECTOR: usize = 512;

/// An operation about to happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Bytes are written.
    Write,
    /// Writes are made durable.
    Sync,
    /// The length changes.
    Resize,
}

/// What happens to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It succeeds.
    Proceed,
    /// It fails. A failed write leaves some of the sectors; a failed sync loses some of the writes for good.
    Fail(io::ErrorKind),
    /// The machine stops: this and all later operations fail until the disk is opened again.
    Crash,
}

type Hook = Box<dyn FnMut(Operation) -> Outcome + Send>;

/// A disk in memory. Cheap to clone; clones are the same disk.
#[derive(Clone)]
pub struct SimulatedDisk(Arc<Mutex<Inner>>);

struct Inner {
    /// What a reader sees.
    current: Vec<u8>,
    /// What is certain to survive a crash.
    durable: Vec<u8>,
    /// What happened since the last sync.
    pending: Vec<Change>,
    /// Length that cannot be exceeded.
    capacity: u64,
    random: u64,
    /// Grows with each crash.
    generation: u64,
    crashed: bool,
    open: bool,
    hook: Option<Hook>,
    operations: u64,
}

enum Change {
    Write(usize, Vec<u8>),
    Resize(usize),
}

impl Change {
    fn apply(&self, image: &mut Vec<u8>) {
        match self {
            Self::Resize(len) => image.resize(*len, 0),
            Self::Write(offset, data) => {
                if image.len() < offset + data.len() {
                    image.resize(offset + data.len(), 0);
                }
                image[*offset..offset + data.len()].copy_from_slice(data);
            }
        }
    }
}

impl SimulatedDisk {
    /// An empty disk whose choices follow from `seed`.
    pub fn new(seed: u64) -> Self {
        Self::from_image(Vec::new(), seed)
    }

    /// A disk with this content.
    pub fn from_image(image: Vec<u8>, seed: u64) -> Self {
        Self(Arc::new(Mutex::new(Inner {
            current: image.clone(),
            durable: image,
            pending: Vec::new(),
            capacity: u64::MAX,
            random: seed,
            generation: 0,
            crashed: false,
            open: false,
            hook: None,
            operations: 0,
        })))
    }

    /// What a reader sees.
    pub fn image(&self) -> Vec<u8> {
        self.lock().current.clone()
    }

    /// Number of operations so far.
    pub fn operations(&self) -> u64 {
        self.lock().operations
    }

    /// Whether a hook's [`Outcome::Crash`] has come to pass since the disk was last opened.
    pub fn crashed(&self) -> bool {
        self.lock().crashed
    }

    /// Limits the length; `u64::MAX` lifts the limit.
    pub fn set_capacity(&self, capacity: u64) {
        self.lock().capacity = capacity;
    }

    /// Sets or removes what decides over the coming operations.
    pub fn set_hook(&self, hook: Option<Hook>) {
        self.lock().hook = hook;
    }

    /// Stops the machine now: of the writes that were not synced, some survive, some do not, some are torn.
    pub fn crash(&self) {
        self.lock().crash();
    }

    /// Opens the disk, after a crash as it was left.
    pub fn backend(&self) -> Backend {
        let mut inner = self.lock();
        inner.crashed = false;
        Backend { disk: self.clone(), generation: inner.generation }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for SimulatedDisk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SimulatedDisk")
    }
}

impl Inner {
    fn next_random(&mut self) -> u64 {
        // SplitMix64.
        self.random = self.random.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Decides for each pending change whether it is on the disk, and forgets them.
    fn settle_some(&mut self) {
        for change in std::mem::take(&mut self.pending) {
            match (self.next_random() % 4, change) {
                (0, _) => {}
                (1, Change::Write(offset, mut data)) => {
                    self.tear(&mut data);
                    Change::Write(offset, data).apply(&mut self.durable);
                }
                (_, change) => change.apply(&mut self.durable),
            }
        }
    }

    /// Keeps some of the sectors of a write that begins at a sector.
    fn tear(&mut self, data: &mut Vec<u8>) {
        let sectors = data.len().div_ceil(SECTOR) as u64;
        data.truncate((self.next_random() % (sectors + 1)) as usize * SECTOR);
    }

    fn crash(&mut self) {
        self.settle_some();
        self.current = self.durable.clone();
        self.generation += 1;
        self.crashed = true;
        self.open = false;
    }

    fn decide(&mut self, operation: Operation) -> Outcome {
        self.operations += 1;
        self.hook.as_mut().map_or(Outcome::Proceed, |hook| hook(operation))
    }

    fn perform(&mut self, operation: Operation, change: Option<Change>) -> io::Result<()> {
        match self.decide(operation) {
            Outcome::Proceed => {}
            Outcome::Crash => {
                self.crash();
                return Err(stopped());
            }
            Outcome::Fail(kind) => {
                match change {
                    None => self.settle_some(),
                    Some(Change::Write(offset, mut data)) => {
                        self.tear(&mut data);
                        self.change(Change::Write(offset, data));
                    }
                    Some(Change::Resize(_)) => {}
                }
                return Err(kind.into());
            }
        }
        match change {
            Some(change) => self.change(change),
            None => {
                for change in std::mem::take(&mut self.pending) {
                    change.apply(&mut self.durable);
                }
            }
        }
        Ok(())
    }

    fn change(&mut self, change: Change) {
        change.apply(&mut self.current);
        self.pending.push(change);
    }
}

fn stopped() -> io::Error {
    io::Error::other("the machine has stopped")
}

/// One opening of a [`SimulatedDisk`].
#[derive(Debug)]
pub struct Backend {
    disk: SimulatedDisk,
    generation: u64,
}

impl Backend {
    fn inner(&self) -> io::Result<MutexGuard<'_, Inner>> {
        let inner = self.disk.lock();
        if inner.generation == self.generation { Ok(inner) } else { Err(stopped()) }
    }
}

impl StorageBackend for Backend {
    fn len(&self) -> io::Result<u64> {
        Ok(self.inner()?.current.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let inner = self.inner()?;
        let start = offset as usize;
        let bytes = inner.current.get(start..start + out.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(bytes);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut inner = self.inner()?;
        if len > inner.capacity && len > inner.current.len() as u64 {
            return Err(io::ErrorKind::StorageFull.into());
        }
        inner.perform(Operation::Resize, Some(Change::Resize(len as usize)))
    }

    fn sync_data(&self) -> io::Result<()> {
        self.inner()?.perform(Operation::Sync, None)
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.inner()?.perform(Operation::Write, Some(Change::Write(offset as usize, data.to_vec())))
    }

    fn close(&self) -> io::Result<()> {
        if let Ok(mut inner) = self.inner() {
            inner.open = false;
        }
        Ok(())
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        if (start, end) != (Bound::Unbounded, Bound::Unbounded) {
            return Err(BackendError::Unsupported);
        }
        let free = !std::mem::replace(&mut self.inner()?.open, true);
        Ok(free)
    }
}

//! The disk of a VM that runs here.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use super::dirty::{DirtyMap, this_boot};
use super::error::{DiskError, IoContext, Result};
use super::log::WriteLog;
use super::meta::{Lineage, Meta, MetaFile, Role};
use super::nbd::BlockServer;
use super::{BLOCK, DiskEpoch, DiskFile, Payload, Position, Storage, Write, blocks, image, names};

/// A writer that found the log full goes on after so long even if nobody sealed it: QEMU may be draining for a reason
/// that the checkpoint loop does not know of, and would never end.
const FULL_WAIT_MAX: Duration = Duration::from_secs(2);
/// The map of differences is cleared at most every so many epochs.
const SETTLE_STEP: u64 = 16;

/// How a disk is recorded for replication.
pub struct Protection {
    /// The primary's term.
    pub term: u64,
    /// The number of the epoch in progress: the first that [`Disk::seal`] yields.
    pub epoch: u64,
    /// The bound of the log of one epoch in bytes. A writer that would exceed it waits.
    pub log_max: u64,
    /// Called when the log of an epoch is half full, once per epoch, and whenever a writer begins to wait: the epoch
    /// should end early. Must neither block nor use the disk.
    pub on_pressure: Option<Box<dyn Fn() + Send + Sync>>,
    /// The image is synced in the background after a seal, no oftener than this.
    pub sync_every: Duration,
}

impl Protection {
    /// The usual bounds: 64 MiB of log, a sync every 200 ms.
    pub fn new(term: u64, epoch: u64) -> Self {
        Self { term, epoch, log_max: 64 << 20, on_pressure: None, sync_every: Duration::from_millis(200) }
    }
}

impl fmt::Debug for Protection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Protection(term {}, epoch {}, {} bytes)", self.term, self.epoch, self.log_max)
    }
}

/// What the disk is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskStats {
    /// Bytes in the log of the epoch in progress.
    pub log_bytes: u64,
    /// Its bound; 0 when the disk is not recorded.
    pub log_max: u64,
    /// How often a writer waited for room in the log.
    pub log_waits: u64,
    /// How often one waited in vain and went on.
    pub log_overruns: u64,
    /// The last sealed epoch whose writes are on this host's medium.
    pub synced_epoch: u64,
    /// Bytes the guest wrote since the disk was opened.
    pub written: u64,
    /// In so many writes, zeroed ranges included.
    pub writes: u64,
    /// Requests for what was written to be durable, QEMU's own included.
    pub flushes: u64,
}

/// A base position, and the blocks outside of which the image has the content there.
pub(super) type Differences = (Position, Vec<std::ops::Range<u64>>);

/// The disk of a VM: cheap to clone, all clones are the same disk.
#[derive(Clone)]
pub struct Disk {
    shared: Arc<Shared>,
    syncer: Arc<Syncer>,
}

/// The thread that syncs the image after seals; it ends with the last clone of the disk.
struct Syncer {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Syncer {
    /// Ends the thread, if there is one; the recording that it belongs to must be over, or ends here.
    fn stop(&self) {
        self.shared.state().generation += 1;
        self.shared.changed.notify_all();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            let _ = thread.join();
        }
    }
}

impl Drop for Syncer {
    fn drop(&mut self) {
        self.stop();
    }
}

pub(super) struct Shared {
    file: Box<dyn Storage>,
    path: PathBuf,
    map_path: PathBuf,
    size: u64,
    state: Mutex<State>,
    /// Signalled when the log has room again, and when the syncer has something to do.
    changed: Condvar,
}

struct State {
    recording: Option<Recording>,
    map: Option<DirtyMap>,
    /// Where a map goes when the disk is protected for the first time.
    unmapped: Option<Box<dyn Storage>>,
    meta_file: MetaFile,
    meta: Meta,
    stats: DiskStats,
    /// Counts the recordings, so that a syncer knows when its own is over.
    generation: u64,
}

struct Recording {
    protection: Protection,
    epoch: u64,
    log: WriteLog,
    draining: bool,
    warned: bool,
    settled: u64,
}

impl Recording {
    /// Whether a write of `len` bytes does not fit the log.
    fn full(&self, len: u64) -> bool {
        !self.draining && !self.log.is_empty() && self.log.bytes() + len > self.protection.log_max
    }
}

impl Disk {
    /// Opens the disk in the VM's folder. If there is none, it becomes a copy of `image` (raw or qcow2), or blank.
    /// A `size` larger than it is makes it grow; a smaller one is refused.
    pub fn open(dir: &Path, image: Option<&Path>, size: Option<u64>) -> Result<Self> {
        let path = dir.join(names::IMAGE);
        fs::create_dir_all(dir).on("create", dir)?;
        let meta_path = dir.join(names::META);
        let (meta_file, meta) = MetaFile::load(Box::new(DiskFile::open_locked(&meta_path)?), &meta_path)?;
        if meta.as_ref().is_some_and(|meta| meta.role != Role::Primary) {
            return Err(DiskError::Role { dir: dir.to_owned(), reason: "holds a replica: promote it, or remove it" });
        }
        if !path.exists() {
            create(dir, &path, image, size)?;
        }
        let file = DiskFile::open_locked(&path)?;
        let size = grow(&file, &path, size)?;
        let meta = meta.unwrap_or_else(|| Meta {
            lineage: new_lineage(),
            role: Role::Primary,
            tracked: false,
            position: Position::default(),
            size,
        });
        let map_path = dir.join(names::MAP);
        let map = match DirtyMap::load(Box::new(DiskFile::open_locked(&map_path)?), &map_path, size, this_boot())? {
            Ok(map) if meta.tracked => Ok(map),
            Ok(map) => Err(Some(map.into_storage())),
            Err(storage) => Err(Some(storage)),
        };
        // A disk that has grown has no map: its replicas need a full comparison.
        let tracked = map.is_ok();
        Self::assemble(dir, Box::new(file), meta_file, Meta { size, tracked, ..meta }, map)
    }

    /// Puts the parts of a disk together; `map` is the map of differences, or the file for one.
    pub(super) fn assemble(
        dir: &Path,
        file: Box<dyn Storage>,
        mut meta_file: MetaFile,
        meta: Meta,
        map: Result<DirtyMap, Option<Box<dyn Storage>>>,
    ) -> Result<Self> {
        meta_file.store(&meta)?;
        let (map, unmapped) = match map {
            Ok(map) => (Some(map), None),
            Err(storage) => (None, storage),
        };
        let path = dir.join(names::IMAGE);
        let size = meta.size;
        let stats = DiskStats::default();
        let state = State { recording: None, map, unmapped, meta_file, meta, stats, generation: 0 };
        let shared = Shared {
            file,
            path,
            map_path: dir.join(names::MAP),
            size,
            state: Mutex::new(state),
            changed: Condvar::new(),
        };
        let shared = Arc::new(shared);
        let syncer = Syncer { shared: Arc::clone(&shared), thread: Mutex::new(None) };
        Ok(Self { shared, syncer: Arc::new(syncer) })
    }

    /// The size in bytes.
    pub fn size(&self) -> u64 {
        self.shared.size
    }

    /// Serves the disk over NBD on a new unix socket, until the server is dropped.
    pub fn serve(&self, socket: &Path) -> Result<BlockServer> {
        BlockServer::start(self.clone(), socket)
    }

    /// Starts to record writes for replication. From here on [`Disk::seal`] ends epochs, and a flush costs nothing:
    /// what makes it durable is that nobody learns of it before its epoch is held by backups (`docs/vm-disk.md`).
    pub fn protect(&self, protection: Protection) -> Result<()> {
        self.syncer.stop();
        let mut state = self.state();
        let position = Position { term: protection.term, epoch: protection.epoch.saturating_sub(1) };
        if let Some(storage) = state.unmapped.take() {
            let path = &self.shared.map_path;
            state.map = Some(DirtyMap::create(storage, path, self.shared.size, this_boot(), position)?);
            state.meta.tracked = true;
            // What another host may know of this disk was not written down here: to it this is another history.
            state.meta.lineage = new_lineage();
        }
        if let Some(map) = &mut state.map {
            map.age(protection.epoch);
        }
        state.meta.position = position;
        let meta = state.meta.clone();
        state.meta_file.store(&meta)?;
        state.stats.log_max = protection.log_max;
        state.generation += 1;
        let (generation, every) = (state.generation, protection.sync_every);
        let settled = protection.epoch;
        let epoch = protection.epoch;
        let log = WriteLog::default();
        state.recording = Some(Recording { protection, epoch, log, draining: false, warned: false, settled });
        drop(state);
        let shared = Arc::clone(&self.shared);
        let sync = move || shared.sync_after_seals(generation, every);
        let thread = Builder::new().name("disk-sync".into()).spawn(sync).on("start a thread for", &self.shared.path)?;
        *self.syncer.thread.lock().unwrap_or_else(PoisonError::into_inner) = Some(thread);
        Ok(())
    }

    /// Stops recording: from here on a flush is a real one. What was flushed while recording is made durable now.
    pub fn unprotect(&self) -> Result<()> {
        let mut state = self.state();
        state.recording = None;
        state.stats.log_max = 0;
        state.stats.log_bytes = 0;
        drop(state);
        self.syncer.stop();
        self.shared.file.sync().on("sync", &self.shared.path)
    }

    /// Whether writes are recorded.
    pub fn is_protected(&self) -> bool {
        self.state().recording.is_some()
    }

    /// To be called before QEMU is told to stop: from here to the seal no writer waits for room in the log, as QEMU
    /// would wait for the writer, and the seal for QEMU. What this adds is bounded by what QEMU has in flight.
    pub fn begin_stop(&self) {
        if let Some(recording) = &mut self.state().recording {
            recording.draining = true;
        }
        self.shared.changed.notify_all();
    }

    /// Ends the epoch in progress and yields its writes; the next one begins. To be called while the guest is stopped.
    pub fn seal(&self, epoch: u64) -> Result<DiskEpoch> {
        let mut state = self.state();
        let Some(recording) = &mut state.recording else {
            return Err(DiskError::Protocol("the disk is not recorded"));
        };
        if recording.epoch != epoch {
            let have = Position { term: recording.protection.term, epoch: recording.epoch };
            return Err(DiskError::Gap { have, got: Position { epoch, ..have } });
        }
        let writes = recording.log.take();
        recording.epoch += 1;
        (recording.draining, recording.warned) = (false, false);
        state.stats.log_bytes = 0;
        drop(state);
        self.shared.changed.notify_all();
        Ok(DiskEpoch { epoch, writes })
    }

    /// The epoch in progress, if writes are recorded.
    pub fn epoch_in_progress(&self) -> Option<Position> {
        let state = self.state();
        state.recording.as_ref().map(|recording| Position { term: recording.protection.term, epoch: recording.epoch })
    }

    /// Tells that every host of the group, those that are away included, holds `position`. Clears the map of
    /// differences, lazily; call it as often as you like, but not in the pause.
    pub fn settled(&self, position: Position) -> Result<()> {
        let mut state = self.state();
        if let Some(recording) = &mut state.recording {
            if position.epoch < recording.settled + SETTLE_STEP {
                return Ok(());
            }
            recording.settled = position.epoch;
        }
        state.map.as_mut().map_or(Ok(()), |map| map.settle(position))
    }

    /// What the disk is doing.
    pub fn stats(&self) -> DiskStats {
        self.state().stats
    }

    /// Reads from the disk.
    pub fn read(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.shared.file.read(buffer, offset)
    }

    /// Reads if that needs no wait for the medium; `false` if it would.
    pub fn read_now(&self, buffer: &mut [u8], offset: u64) -> bool {
        self.shared.file.read_now(buffer, offset)
    }

    /// Writes to the disk. It is in the page cache, and recorded, when this returns.
    pub fn write(&self, data: &[u8], offset: u64) -> io::Result<()> {
        self.change(offset, data.len() as u64, |file| file.write(data, offset), |log| log.write(offset, data))
    }

    /// Makes a range zero; `keep` asks that its blocks stay allocated.
    pub fn zero(&self, offset: u64, len: u64, keep: bool) -> io::Result<()> {
        self.change(offset, len, |file| file.zero(offset, len, keep), |log| log.zero(offset, len))
    }

    /// Makes what was written durable: really, or, while recording, by what [`Disk::protect`] says.
    pub fn flush(&self) -> io::Result<()> {
        if self.is_protected() { Ok(()) } else { self.shared.file.sync() }
    }

    /// Counts a flush; whether it costs nothing.
    pub(super) fn flush_asked(&self) -> bool {
        let mut state = self.state();
        state.stats.flushes += 1;
        state.recording.is_some()
    }

    /// Whether a write of `len` bytes would have to wait for room in the log.
    pub(super) fn may_wait(&self, len: u64) -> bool {
        self.state().recording.as_ref().is_some_and(|recording| recording.full(len))
    }

    /// The disk's history, where its image is compared, and the blocks that may differ from other hosts'.
    pub(super) fn differences(&self) -> (Lineage, Option<Differences>) {
        let state = self.state();
        (state.meta.lineage, state.map.as_ref().map(|map| (map.base(), map.marked())))
    }

    pub(super) fn path(&self) -> &Path {
        &self.shared.path
    }

    pub(super) fn file(&self) -> &dyn Storage {
        &*self.shared.file
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state()
    }

    /// One write: room in the log, the map, the file, the log, in this order and as one step.
    fn change(
        &self,
        offset: u64,
        len: u64,
        write: impl FnOnce(&dyn Storage) -> io::Result<()>,
        record: impl FnOnce(&mut WriteLog),
    ) -> io::Result<()> {
        if len == 0 {
            return Ok(());
        }
        let file = &*self.shared.file;
        let mut state = self.shared.room_for(len, self.state());
        let state = &mut *state;
        state.stats.written += len;
        state.stats.writes += 1;
        if let Some(map) = &mut state.map {
            let epoch = state.recording.as_ref().map_or(u64::MAX, |recording| recording.epoch);
            map.mark(blocks(offset, len), epoch).map_err(io::Error::other)?;
        }
        let outcome = write(file);
        let Some(recording) = &mut state.recording else { return outcome };
        match &outcome {
            Ok(()) => record(&mut recording.log),
            // The guest learns of the error, and may find any mixture there. The replicas get the same mixture.
            Err(_) => record_as_is(file, &mut recording.log, offset, len)?,
        }
        state.stats.log_bytes = recording.log.bytes();
        if !recording.warned && recording.log.bytes() > recording.protection.log_max / 2 {
            recording.warned = true;
            recording.protection.on_pressure.iter().for_each(|tell| tell());
        }
        outcome
    }
}

impl fmt::Debug for Disk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Disk({}, {} bytes)", self.shared.path.display(), self.shared.size)
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until `len` more bytes fit the log.
    fn room_for<'a>(&self, len: u64, mut state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        let full = |state: &mut State| state.recording.as_ref().is_some_and(|recording| recording.full(len));
        if !full(&mut state) {
            return state;
        }
        state.stats.log_waits += 1;
        if let Some(recording) = &state.recording {
            recording.protection.on_pressure.iter().for_each(|tell| tell());
        }
        let waited = self.changed.wait_timeout_while(state, FULL_WAIT_MAX, full);
        let (mut state, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
        state.stats.log_overruns += u64::from(timeout.timed_out());
        state
    }

    /// Syncs the image after seals, in the background, so that an epoch reaches the medium without costing the pause.
    fn sync_after_seals(&self, generation: u64, every: Duration) {
        let mut synced = None;
        let mut state = self.state();
        while state.generation == generation {
            let sealed = state.recording.as_ref().map(|recording| recording.epoch.saturating_sub(1));
            if sealed != synced {
                drop(state);
                if let Err(error) = self.file.sync() {
                    tracing::error!(path = %self.path.display(), %error, "the disk cannot be synced");
                }
                synced = sealed;
                state = self.state();
                state.stats.synced_epoch = sealed.unwrap_or_default();
            }
            let same = |state: &mut State| state.generation == generation;
            state = self.changed.wait_timeout_while(state, every, same).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// Records what a failed write left behind.
fn record_as_is(file: &dyn Storage, log: &mut WriteLog, offset: u64, len: u64) -> io::Result<()> {
    let mut buffer = vec![0; len.min(BLOCK) as usize];
    let mut at = offset;
    while at < offset + len {
        let now = (offset + len - at).min(BLOCK) as usize;
        file.read(&mut buffer[..now], at)?;
        log.write(at, &buffer[..now]);
        at += now as u64;
    }
    Ok(())
}

/// Applies the writes of an epoch to an image.
pub(super) fn apply(file: &dyn Storage, writes: &[Write]) -> io::Result<()> {
    writes.iter().try_for_each(|write| match &write.payload {
        Payload::Data(data) => file.write(data, write.offset),
        Payload::Zero(len) => file.zero(write.offset, *len, false),
    })
}

fn create(dir: &Path, path: &Path, from: Option<&Path>, size: Option<u64>) -> Result<()> {
    match (from, size) {
        (Some(from), size) => {
            image::import(from, path)?;
            let have = fs::metadata(path).on("inspect", path)?.len();
            if let Some(wanted) = size.filter(|wanted| *wanted < have) {
                fs::remove_file(path).on("remove", path)?;
                return Err(DiskError::TooSmall { what: from.to_owned(), have, wanted });
            }
            Ok(())
        }
        (None, Some(size)) => {
            DiskFile::open_locked(path)?.resize(size.next_multiple_of(512)).on("grow", path)?;
            image::sync_folder(path)
        }
        (None, None) => Err(DiskError::NoSize { dir: dir.to_owned() }),
    }
}

/// Makes the disk as large as wanted, and yields its size.
fn grow(file: &DiskFile, path: &Path, wanted: Option<u64>) -> Result<u64> {
    let have = file.size().on("inspect", path)?;
    let Some(wanted) = wanted else { return Ok(have) };
    if wanted < have && wanted.next_multiple_of(512) < have {
        return Err(DiskError::TooSmall { what: path.to_owned(), have, wanted });
    }
    let wanted = wanted.next_multiple_of(512);
    if wanted > have {
        file.resize(wanted).on("grow", path)?;
    }
    Ok(wanted)
}

fn new_lineage() -> Lineage {
    let mut lineage = Lineage::default();
    // Fails only for a kernel older than any that runs QEMU here; then the disk's history has no name of its own.
    let _ = rustix::rand::getrandom(&mut lineage, rustix::rand::GetRandomFlags::empty());
    lineage
}

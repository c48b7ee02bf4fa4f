//! A copy of the disk on another host, which advances by whole epochs.
//!
//! ```text
//!             begin_base                    finish_base                  commit (epoch + 1)
//!   nothing ─────────────▶ Role::Building ─────────────▶ Role::Replica ─────────────────────▶ Role::Replica
//!      a crashed primary ─────▶ ▲   │ ▲                        │  │
//!                               │   └─┘ base writes, epochs    │  └── into_disk ──▶ Role::Primary
//!                               └──────── begin_base ──────────┘
//! ```
//! [`Replica::commit`] appends the epoch to the journal and returns: from then on the epoch survives the death of this
//! process, and with [`ReplicaOptions::durable`] the loss of power. [`Replica::maintain`], called by a thread of its
//! own, syncs the journal, applies what is synced to the image and, when a journal file has grown, syncs the image,
//! moves the mark and empties the file. The image thus never holds a part of an epoch that the journal could lose.

use std::collections::VecDeque;
use std::fmt;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::dirty::{Boot, DirtyMap, this_boot};
use super::error::{DiskError, IoContext, Result};
use super::journal::{Frame, Journal};
use super::meta::{Lineage, Meta, MetaFile, Role};
use super::primary::apply;
use super::{Disk, DiskEpoch, DiskFile, Position, Storage, blocks, names};

/// How a replica keeps its epochs.
#[derive(Clone, Copy, Debug)]
pub struct ReplicaOptions {
    /// Sync the journal before an epoch is acknowledged: it then survives the loss of power on all hosts at once, at
    /// the price of a sync per epoch.
    pub durable: bool,
    /// A journal file of this length is emptied.
    pub journal_max: u64,
    /// Epochs in memory that are not applied yet; beyond it [`Replica::commit`] applies them itself.
    pub pending_max: u64,
}

impl Default for ReplicaOptions {
    fn default() -> Self {
        Self { durable: false, journal_max: 32 << 20, pending_max: 8 << 20 }
    }
}

/// The files of a replica, open.
pub struct ReplicaFiles {
    /// The disk's content.
    pub image: Box<dyn Storage>,
    /// What it is.
    pub meta: Box<dyn Storage>,
    /// The map of differences.
    pub map: Box<dyn Storage>,
    /// The journal.
    pub journals: [Box<dyn Storage>; 2],
}

/// What [`Replica::commit`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Committed {
    /// The epoch is held now.
    New,
    /// It was held before.
    Repeated,
}

/// How a base copy begins; the content of [`super::sync`]'s plan.
#[derive(Clone, Debug)]
pub(super) struct Base {
    pub lineage: Lineage,
    pub size: u64,
    /// The source's base position, and the blocks outside of which both sides equal the content there.
    pub base: Position,
    pub compare: Vec<Range<u64>>,
    /// The epoch in progress at the source.
    pub epoch: u64,
}

/// The backup's copy of a disk.
pub struct Replica {
    dir: PathBuf,
    image: Box<dyn Storage>,
    image_path: PathBuf,
    boot: Boot,
    options: ReplicaOptions,
    state: Mutex<State>,
    /// Held while the image is written.
    maintenance: Mutex<()>,
}

struct State {
    meta: Meta,
    meta_file: MetaFile,
    map: Result<DirtyMap, Option<Box<dyn Storage>>>,
    journal: Journal,
    /// The last epoch in the journal.
    held: Option<Position>,
    /// Epochs that are in the journal and not yet in the image.
    pending: VecDeque<Frame>,
    pending_bytes: u64,
}

impl Replica {
    /// Opens the replica in the VM's folder, or begins a blank one of `size` bytes, and completes what a crash left.
    /// What is left of a primary may be opened too; it needs a catch-up before it holds epochs.
    pub fn open(dir: &Path, size: Option<u64>, options: ReplicaOptions) -> Result<Self> {
        std::fs::create_dir_all(dir).on("create", dir)?;
        let open = |name: &str| DiskFile::open_locked(&dir.join(name)).map(|file| Box::new(file) as Box<dyn Storage>);
        let files = ReplicaFiles {
            meta: open(names::META)?,
            image: open(names::IMAGE)?,
            map: open(names::MAP)?,
            journals: [open(names::JOURNALS[0])?, open(names::JOURNALS[1])?],
        };
        Self::open_files(dir, files, size, options, this_boot())
    }

    /// As [`Replica::open`], with files of any kind.
    pub fn open_files(
        dir: &Path,
        files: ReplicaFiles,
        size: Option<u64>,
        options: ReplicaOptions,
        boot: Boot,
    ) -> Result<Self> {
        let (meta_file, meta) = MetaFile::load(files.meta, &dir.join(names::META))?;
        let image_path = dir.join(names::IMAGE);
        let size = match (&meta, size) {
            (Some(meta), _) => meta.size,
            (None, Some(size)) => size,
            (None, None) => return Err(DiskError::NoSize { dir: dir.to_owned() }),
        };
        let blank =
            Meta { lineage: [0; 16], role: Role::Building, tracked: false, position: Position::default(), size };
        let meta = meta.unwrap_or(blank);
        if files.image.size().on("inspect", &image_path)? < size {
            files.image.resize(size).on("grow", &image_path)?;
        }
        let map_path = dir.join(names::MAP);
        let map = match DirtyMap::load(files.map, &map_path, size, boot)? {
            Ok(map) if meta.tracked => Ok(map),
            Ok(map) => Err(Some(map.into_storage())),
            Err(storage) => Err(Some(storage)),
        };
        let journal = Journal::new(files.journals.map(Arc::from), names::JOURNALS.map(|name| dir.join(name)));
        let mut state = State { meta, meta_file, map, journal, held: None, pending: VecDeque::new(), pending_bytes: 0 };
        state.recover(&*files.image, &image_path)?;
        let dir = dir.to_owned();
        let (state, maintenance) = (Mutex::new(state), Mutex::new(()));
        Ok(Self { dir, image: files.image, image_path, boot, options, state, maintenance })
    }

    /// The size in bytes.
    pub fn size(&self) -> u64 {
        self.state().meta.size
    }

    /// The last whole epoch held; `None` before the base copy has finished.
    pub fn position(&self) -> Option<Position> {
        self.state().held
    }

    /// Takes an epoch. It is held when this returns; nothing of it is if this fails.
    pub fn commit(&self, term: u64, epoch: &DiskEpoch) -> Result<Committed> {
        if self.state().pending_bytes > self.options.pending_max {
            self.maintain()?;
        }
        let mut guard = self.state();
        let state = &mut *guard;
        let have = state.held.ok_or(DiskError::Incomplete)?;
        let got = Position { term, epoch: epoch.epoch };
        match follows(have, got)? {
            Committed::Repeated => return Ok(Committed::Repeated),
            Committed::New => {}
        }
        state.prepare(epoch)?;
        let before = state.journal.active_len();
        state.journal.append(term, epoch)?;
        if self.options.durable {
            state.journal.syncer()().inspect_err(|_| state.journal.cut(before))?;
        }
        state.pending_bytes += epoch.data_bytes() + 64;
        state.pending.push_back(Frame { position: got, epoch: Arc::new(epoch.clone()) });
        state.held = Some(got);
        Ok(Committed::New)
    }

    /// Brings the image up to the journal. To be called in the background, a few times a second; may wait for the medium.
    pub fn maintain(&self) -> Result<()> {
        let _working = self.maintenance.lock().unwrap_or_else(PoisonError::into_inner);
        let mut state = self.state();
        let emptied = state.journal.rotate(self.options.journal_max);
        self.work_off(state)?;
        let Some(emptied) = emptied else { return Ok(()) };
        self.image.sync().on("sync", &self.image_path)?;
        let mut state = self.state();
        let meta = state.meta.clone();
        state.meta_file.store(&meta)?;
        state.journal.empty(emptied)
    }

    /// Syncs the journal and applies what was pending then.
    fn work_off(&self, state: MutexGuard<'_, State>) -> Result<()> {
        let frames: Vec<Frame> = state.pending.iter().cloned().collect();
        if frames.is_empty() {
            return Ok(());
        }
        let sync = state.journal.syncer();
        drop(state);
        sync()?;
        for frame in &frames {
            apply(&*self.image, &frame.epoch.writes).on("apply an epoch to", &self.image_path)?;
            let mut state = self.state();
            state.pending.pop_front();
            state.pending_bytes -= frame.epoch.data_bytes() + 64;
            // In memory only: the mark on the medium follows when the image is synced.
            state.meta.position = frame.position;
        }
        Ok(())
    }

    /// Tells that every host of the group, those that are away included, holds `position`.
    pub fn settled(&self, position: Position) -> Result<()> {
        let mut state = self.state();
        match (state.held, &mut state.map) {
            (Some(held), Ok(map)) if position <= held => map.settle(position),
            _ => Ok(()),
        }
    }

    /// Becomes the disk of a VM that runs here, at the last whole epoch. The image is synced by the first of
    /// [`Disk::protect`]'s background syncs; if it stays unprotected, call [`Disk::flush`] once.
    pub fn into_disk(self) -> Result<Disk> {
        if self.position().is_none() {
            return Err(DiskError::Incomplete);
        }
        {
            let _working = self.maintenance.lock().unwrap_or_else(PoisonError::into_inner);
            self.work_off(self.state())?;
        }
        let state = self.state.into_inner().unwrap_or_else(PoisonError::into_inner);
        let position = state.held.unwrap_or_default();
        let meta = Meta { role: Role::Primary, position, ..state.meta };
        Disk::assemble(&self.dir, self.image, state.meta_file, meta, state.map)
    }

    /// The history and the marked blocks, for a catch-up: what this image is known to be, if anything.
    pub(super) fn known(&self) -> (Lineage, Option<Position>, Vec<Range<u64>>) {
        let state = self.state();
        let Ok(map) = &state.map else { return (state.meta.lineage, None, Vec::new()) };
        let position = match state.meta.role {
            Role::Replica => state.held,
            Role::Building => Some(map.base()),
            // It ran ahead of whatever was committed in its term.
            Role::Primary => Some(Position { term: state.meta.position.term, epoch: u64::MAX }),
        };
        (state.meta.lineage, position, map.marked())
    }

    /// Begins a base copy or a catch-up: from here to its end no whole epoch is held.
    pub(super) fn begin_base(&self, base: &Base) -> Result<()> {
        let _working = self.maintenance.lock().unwrap_or_else(PoisonError::into_inner);
        self.work_off(self.state())?;
        let mut state = self.state();
        let state = &mut *state;
        let same = state.meta.lineage == base.lineage && state.meta.size == base.size;
        state.held = None;
        // Until the map is right, everything counts as different.
        let (lineage, size) = (base.lineage, base.size);
        state.meta = Meta { lineage, size, role: Role::Building, tracked: false, position: base.base };
        state.meta_file.store(&state.meta)?;
        state.journal.reset()?;
        if self.image.size().on("inspect", &self.image_path)? != size {
            self.image.resize(size).on("resize", &self.image_path)?;
        }
        let map = std::mem::replace(&mut state.map, Err(None));
        let path = self.dir.join(names::MAP);
        let mut map = match map {
            Ok(map) if same => map,
            Ok(map) => DirtyMap::create(map.into_storage(), &path, size, self.boot, base.base)?,
            Err(Some(storage)) => DirtyMap::create(storage, &path, size, self.boot, base.base)?,
            Err(None) => return Err(DiskError::Protocol("an earlier failure lost the map: open the replica anew")),
        };
        for range in &base.compare {
            map.mark(range.clone(), base.epoch)?;
        }
        map.rebase(base.base)?;
        map.age(base.epoch);
        state.map = Ok(map);
        state.meta.tracked = true;
        state.meta_file.store(&state.meta)
    }

    #[cfg(test)]
    pub(super) fn base(&self) -> Option<Position> {
        self.state().map.as_ref().ok().map(DirtyMap::base)
    }

    pub(super) fn path(&self) -> PathBuf {
        self.image_path.clone()
    }

    /// The image, for base writes, while no whole epoch is held.
    pub(super) fn image(&self) -> &dyn Storage {
        &*self.image
    }

    /// Applies an epoch to an image in the making.
    pub(super) fn build(&self, epoch: &DiskEpoch) -> Result<()> {
        self.state().prepare(epoch)?;
        apply(&*self.image, &epoch.writes).on("apply an epoch to", &self.image_path)
    }

    /// Ends a base copy: the image is whole at `position`.
    pub(super) fn finish_base(&self, position: Position) -> Result<()> {
        self.image.sync().on("sync", &self.image_path)?;
        let mut state = self.state();
        let state = &mut *state;
        state.meta.role = Role::Replica;
        state.meta.position = position;
        state.meta_file.store(&state.meta)?;
        state.held = Some(position);
        Ok(())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Replica {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Replica({}, {:?})", self.dir.display(), self.position())
    }
}

impl State {
    /// Completes what a crash left: the journal's epochs go to the image, in order and as far as they are whole.
    fn recover(&mut self, image: &dyn Storage, image_path: &Path) -> Result<()> {
        if self.meta.role != Role::Replica {
            return Ok(());
        }
        let mut have = self.meta.position;
        for frame in self.journal.read()? {
            if frame.position.epoch == have.epoch + 1 && frame.position.term >= have.term {
                apply(image, &frame.epoch.writes).on("apply an epoch to", image_path)?;
                have = frame.position;
            }
        }
        image.sync().on("sync", image_path)?;
        self.meta.position = have;
        self.meta_file.store(&self.meta)?;
        self.journal.reset()?;
        if let Ok(map) = &mut self.map {
            map.age(have.epoch);
        }
        self.held = Some(have);
        Ok(())
    }

    /// Checks that the writes lie within the disk, and marks their blocks.
    fn prepare(&mut self, epoch: &DiskEpoch) -> Result<()> {
        let size = self.meta.size;
        for write in &epoch.writes {
            if write.offset.checked_add(write.payload.len()).is_none_or(|end| end > size) {
                return Err(DiskError::OutOfRange { offset: write.offset, len: write.payload.len(), size });
            }
        }
        let Ok(map) = &mut self.map else { return Ok(()) };
        epoch.writes.iter().try_for_each(|write| map.mark(blocks(write.offset, write.payload.len()), epoch.epoch))
    }
}

/// Whether `got` is the next epoch, or one that is held already.
fn follows(have: Position, got: Position) -> Result<Committed> {
    if got.term == have.term && got.epoch <= have.epoch {
        Ok(Committed::Repeated)
    } else if got.term < have.term || got.epoch <= have.epoch {
        Err(DiskError::Stale { have, got })
    } else if got.epoch == have.epoch + 1 {
        Ok(Committed::New)
    } else {
        Err(DiskError::Gap { have, got })
    }
}

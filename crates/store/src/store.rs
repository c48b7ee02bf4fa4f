//! The handle that everyone holds.

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use redb::StorageBackend;
use tokio::sync::{mpsc, oneshot};

use crate::disk::{self, Disk, Medium};
use crate::seal::Seals;
use crate::state::State;
use crate::types::{CommitError, Committed, Compacted, Entry, Op, OpenError, Page, Revision};
use crate::watch::{Limits, Registry, Watch};
use crate::writer::{Request, WriterLoop};

/// Requests that may wait for the writer before callers have to wait in turn.
const QUEUE: usize = 4096;

/// Who carries out the commits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Writer {
    /// An operating system thread of its own: the async runtime never waits for the disk.
    Thread,
    /// A task on the current tokio runtime that blocks it while it writes: deterministic, for simulations.
    Task,
}

/// Returns how long the disk takes for the next batch. See [`Options::pause`].
pub type Pause = Arc<dyn Fn() -> Duration + Send + Sync>;

/// How a store works.
#[derive(Clone)]
pub struct Options {
    /// Who carries out the commits.
    pub writer: Writer,
    /// Events kept for watches and reads in the past.
    pub history: usize,
    /// Memory, in bytes, that those events may keep alive.
    pub history_bytes: usize,
    /// A simulated delay before each batch. Only for [`Writer::Task`].
    pub pause: Option<Pause>,
    /// Values that are sealed on the disk.
    pub seals: Seals,
}

impl Default for Options {
    fn default() -> Self {
        Self { writer: Writer::Thread, history: 16_384, history_bytes: 16 << 20, pause: None, seals: Seals::default() }
    }
}

impl Options {
    /// A watcher may lag by twice the history before it is cut off.
    pub(crate) fn watch_limits(&self) -> Limits {
        Limits { events: 2 * self.history.max(64), bytes: 2 * self.history_bytes.max(1 << 20) }
    }
}

/// What readers, watchers and the writer share.
#[derive(Debug, Default)]
pub struct Shared {
    state: RwLock<State>,
    watchers: Mutex<Registry>,
}

impl Shared {
    pub fn new(state: State) -> Arc<Self> {
        Arc::new(Self { state: RwLock::new(state), watchers: Mutex::default() })
    }

    /// The state, for reading. Lock order: state, watchers, a watcher's queue.
    pub fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The state, for the writer.
    pub fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// The watchers.
    pub fn watchers(&self) -> MutexGuard<'_, Registry> {
        self.watchers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A revisioned key-value store. Cheap to clone; closed when the last clone is gone.
#[derive(Clone)]
pub struct Store {
    shared: Arc<Shared>,
    writer: Arc<WriterHandle>,
    seals: Seals,
}

impl Store {
    /// Opens the store at `path`, or creates an empty one there. Fails if it is open elsewhere.
    ///
    /// # Panics
    /// With [`Writer::Task`], if called outside a tokio runtime.
    pub fn open_file(path: &Path, options: Options) -> Result<Self, OpenError> {
        let (disk, state) = disk::open_path(path, options.seals.clone())?;
        Self::start(disk, state, options, path)
    }

    /// Opens the store on a backend, or makes one there if it is empty.
    ///
    /// # Panics
    /// With [`Writer::Task`], if called outside a tokio runtime.
    pub fn open(backend: impl StorageBackend, options: Options) -> Result<Self, OpenError> {
        let path = Path::new("(backend)");
        let (disk, state) = disk::open(Medium::new(backend), path, options.seals.clone())?;
        Self::start(disk, state, options, path)
    }

    fn start(disk: Disk, state: State, options: Options, path: &Path) -> Result<Self, OpenError> {
        let shared = Shared::new(state);
        let (sender, receiver) = mpsc::channel(QUEUE);
        let (kind, seals) = (options.writer, options.seals.clone());
        let writer = WriterLoop::new(shared.clone(), disk, options);
        let thread = match kind {
            Writer::Thread => {
                let thread = std::thread::Builder::new().name("store".into());
                let spawned = thread.spawn(move || writer.run_blocking(receiver));
                Some(spawned.map_err(|e| OpenError::Io { path: path.to_owned(), message: e.to_string() })?)
            }
            Writer::Task => {
                tokio::spawn(writer.run(receiver));
                None
            }
        };
        Ok(Self { shared, writer: Arc::new(WriterHandle { sender: Some(sender), thread }), seals })
    }

    /// Carries out a transaction: all operations or none, at one revision, on disk when this returns.
    ///
    /// A transaction is carried out even if the returned future is dropped once it has been queued.
    pub async fn commit(&self, ops: Vec<Op>) -> Result<Committed, CommitError> {
        self.send(|reply| Request::Commit { ops, reply }).await
    }

    /// Forgets the history up to and including `revision`: older reads and watches get [`Compacted`].
    ///
    /// The store does this by itself when the history outgrows [`Options::history`].
    pub async fn compact(&self, revision: Revision) -> Result<(), CommitError> {
        self.send(|reply| Request::Compact { revision, reply }).await
    }

    async fn send<T>(
        &self,
        request: impl FnOnce(oneshot::Sender<Result<T, CommitError>>) -> Request,
    ) -> Result<T, CommitError> {
        let (reply, answer) = oneshot::channel();
        let sender = self.writer.sender.as_ref().ok_or(CommitError::Closed)?;
        sender.send(request(reply)).await.map_err(|_| CommitError::Closed)?;
        answer.await.unwrap_or(Err(CommitError::Closed))
    }

    /// The current entry of a key.
    pub fn get(&self, key: &str) -> Option<Entry> {
        self.shared.read().get(key).cloned()
    }

    /// The revision of the last transaction.
    pub fn revision(&self) -> Revision {
        self.shared.read().revision()
    }

    /// The oldest revision that can be read at or watched from.
    pub fn compacted(&self) -> Revision {
        self.shared.read().compacted()
    }

    /// The entries whose key starts with `prefix` and sorts after `after`, by key: at most `limit` (0: all), as they
    /// were at revision `at` (`None`, or one that is not reached yet: now).
    pub fn range(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
        at: Option<Revision>,
    ) -> Result<Page, Compacted> {
        self.shared.read().range(prefix, after, limit, at)
    }

    /// Number of keys that start with `prefix`.
    pub fn count(&self, prefix: &str) -> usize {
        self.shared.read().count(prefix)
    }

    /// A copy of the store as it is now, a whole store of its own without history, in a nameless file of `folder`; with
    /// its revision. Writes go on meanwhile. The file is locked until what is returned is closed.
    pub fn copy(&self, folder: &Path) -> Result<(std::fs::File, Revision), OpenError> {
        let state = self.shared.read().without_history();
        let revision = state.revision();
        Ok((disk::unnamed(folder, state, self.seals.clone())?, revision))
    }

    /// Watches the keys that start with `prefix`: every event with a revision greater than `from`.
    pub fn watch(&self, prefix: &str, from: Revision) -> Result<Watch, Compacted> {
        let state = self.shared.read();
        let backlog = state.events_after(from)?.filter(|event| event.entry.key.starts_with(prefix)).cloned().collect();
        let queue = self.shared.watchers().add(prefix, from, backlog);
        drop(state);
        Ok(Watch::new(self.shared.clone(), queue, from))
    }
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("revision", &self.revision()).finish_non_exhaustive()
    }
}

/// Closes the queue and waits for the thread, so that the file is free once the last handle is gone.
struct WriterHandle {
    sender: Option<mpsc::Sender<Request>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Drop for WriterHandle {
    fn drop(&mut self) {
        self.sender = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the store's writer has panicked");
        }
    }
}

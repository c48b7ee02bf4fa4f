//! The vocabulary of the store: entries, operations, events, errors.

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;

/// A point in the store's history. The first transaction has revision 1; 0 is the empty store.
pub type Revision = u64;

/// A key with its value. Cheap to clone: key and value are shared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The key.
    pub key: Arc<str>,
    /// The value.
    pub value: Bytes,
    /// The revision at which the key came to be.
    pub create_revision: Revision,
    /// The revision of its last change.
    pub mod_revision: Revision,
}

/// What a transaction requires of a key before it changes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    /// Nothing.
    Any,
    /// That the key does not exist.
    Absent,
    /// That the key exists and was last changed at this revision.
    Revision(Revision),
}

impl Expect {
    /// Whether `current` is as required.
    pub(crate) fn holds(self, current: Option<&Entry>) -> bool {
        match self {
            Self::Any => true,
            Self::Absent => current.is_none(),
            Self::Revision(revision) => current.is_some_and(|entry| entry.mod_revision == revision),
        }
    }
}

/// One step of a transaction. A transaction may change a key only once.
#[derive(Clone, Debug)]
pub enum Op {
    /// Creates or replaces a key.
    Put {
        /// The key; not empty.
        key: String,
        /// Its new value.
        value: Bytes,
        /// What must hold before.
        expect: Expect,
    },
    /// Deletes a key. Deleting an absent key under [`Expect::Any`] changes nothing.
    Delete {
        /// The key.
        key: String,
        /// What must hold before.
        expect: Expect,
    },
    /// Changes nothing, but fails the transaction when the requirement does not hold.
    Check {
        /// The key.
        key: String,
        /// What must hold.
        expect: Expect,
    },
}

impl Op {
    /// The key of the operation and what it requires.
    pub(crate) fn target(&self) -> (&str, Expect) {
        match self {
            Self::Put { key, expect, .. } | Self::Delete { key, expect } | Self::Check { key, expect } => {
                (key, *expect)
            }
        }
    }
}

/// The outcome of a transaction.
#[derive(Clone, Debug)]
pub struct Committed {
    /// Its revision; the store's current one when it changed nothing.
    pub revision: Revision,
    /// For each operation, in order: the entry put; the entry deleted (with the deletion's revision), if there was
    /// one; the entry checked, if there is one.
    pub entries: Vec<Option<Entry>>,
}

/// What happened to a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// It was created or replaced.
    Put,
    /// It was deleted.
    Delete,
}

/// One change of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// What happened.
    pub kind: EventKind,
    /// The entry after the change. For a deletion: the last value, with the deletion's revision as `mod_revision`.
    pub entry: Entry,
    /// The entry before the change.
    pub prev: Option<Entry>,
    /// When it happened.
    pub revision: Revision,
}

impl Event {
    /// Roughly the memory the event keeps alive.
    pub(crate) fn cost(&self) -> usize {
        192 + self.entry.key.len() + self.entry.value.len()
    }
}

/// A part of a range.
#[derive(Clone, Debug)]
pub struct Page {
    /// The entries, ordered by key.
    pub entries: Vec<Entry>,
    /// The revision at which they were read.
    pub revision: Revision,
    /// How many entries of the range follow.
    pub remaining: usize,
}

/// The requested revision is no longer in the history.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("revision {requested} has been compacted; the oldest available is {compacted}")]
pub struct Compacted {
    /// What was asked for.
    pub requested: Revision,
    /// The oldest revision that can be asked for.
    pub compacted: Revision,
}

/// Why a transaction was not carried out.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CommitError {
    /// A requirement did not hold.
    #[error("key {key} is not as the transaction requires")]
    Conflict {
        /// The key of the operation.
        key: String,
        /// What the key holds.
        current: Option<Entry>,
    },
    /// The operations make no valid transaction.
    #[error("invalid transaction: {0}")]
    Invalid(String),
    /// The disk is full. Nothing was changed; reads go on, and writes work again once there is space.
    #[error("the disk that holds the store is full: free some space, then repeat the write")]
    Full,
    /// The disk failed. The write is not visible; should the process die before the store has repaired its file, the
    /// write may be found after the restart.
    #[error("the disk that holds the store failed: {0}")]
    Io(String),
    /// The store has been closed.
    #[error("the store is closed")]
    Closed,
}

/// Why a watch ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WatchError {
    /// The watcher was too slow and lost events: start again from a new read.
    #[error("the watcher fell too far behind")]
    Lagged,
    /// The store has been closed.
    #[error("the store is closed")]
    Closed,
}

/// Why a store could not be opened. The file has not been changed.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// It cannot be read or written.
    #[error("cannot open the store {}: {message}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        message: String,
    },
    /// Another process, or another part of this one, has it open.
    #[error("the store {} is in use by another process: stop it first, or choose another data directory", .0.display())]
    Locked(PathBuf),
    /// The file has no content.
    #[error(
        "the store {} is an empty file, which this program never leaves behind: restore it from a backup, or delete \
         it to start with an empty store", .0.display()
    )]
    Empty(PathBuf),
    /// The file is something else.
    #[error(
        "{} is not a store of this program ({detail}): choose another data directory, or move the file away",
        path.display()
    )]
    Foreign {
        /// The file.
        path: PathBuf,
        /// What was seen.
        detail: String,
    },
    /// The end of the file is missing.
    #[error(
        "the store {} is cut off ({detail}), as an interrupted copy leaves it: restore it from a backup, or move it \
         away to start with an empty store", path.display()
    )]
    Truncated {
        /// The file.
        path: PathBuf,
        /// What was seen.
        detail: String,
    },
    /// The file has another format.
    #[error(
        "the store {} has format version {found}, this program reads version {supported}: use the program version \
         that wrote it", path.display()
    )]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u32,
        /// Ours.
        supported: u32,
    },
    /// The content contradicts its checksums.
    #[error(
        "the store {} is damaged ({detail}); it was left as it is: check the disk, then restore the file from a \
         backup, or move it away to start with an empty store", path.display()
    )]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What was seen.
        detail: String,
    },
}

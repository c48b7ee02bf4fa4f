//! A revisioned key-value store in one file: transactions, reads at a revision, watch, compaction.
//!
//! Bytes in, bytes out: nothing here knows what the values mean.
//!
//! ```text
//!  commit() ──► queue ──► writer ──► one redb transaction, one fsync ──► memory ──► answers
//!                (gathers while a sync runs)                               │
//!  get/range ◄── current state (BTreeMap) + bounded history ◄──────────────┤
//!  Watch     ◄── a bounded queue for each watcher ◄────────────────────────┘
//! ```
//!
//! What callers may rely on:
//!
//! * **An acknowledged write is on disk.** [`Store::commit`] returns after the sync that covers it, and reads and
//!   watches never show a write before that.
//! * **Revisions grow by one** with each transaction that changes something; all its changes share the revision.
//! * **A watch has no gaps.** It delivers every event after its start, ordered by `(revision, key)`, or ends with
//!   [`WatchError::Lagged`].
//! * **Memory is the truth, the file its durable copy.** When a write to the file fails, the transactions of that
//!   batch fail, reads go on, and the next batch first brings the file back to the last acknowledged state.
//! * **Both are bounded.** History is limited in events and bytes; what leaves it is deleted from the file too.
//!
//! The bytes on disk are described in `docs/store-format.md`.

mod disk;
mod record;
mod seal;
pub mod simulated;
mod state;
mod store;
mod types;
mod watch;
mod writer;

#[doc(hidden)]
pub use record::{Kind as RecordKind, Record, decode as decode_record, encode as encode_record};
pub use seal::{Seal, Seals};
pub use store::{Options, Pause, Store, Writer};
pub use types::{
    CommitError, Committed, Compacted, Entry, Event, EventKind, Expect, Op, OpenError, Page, Revision, WatchError,
};
pub use watch::Watch;

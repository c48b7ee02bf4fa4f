//! The durable copy: two redb tables, written by one writer.
//!
//! `log` holds one record for each change that is current or in the history (see [`crate::record`]); `meta` holds the
//! counters that must match it. Superseded records are deleted as they leave the history.

mod file;
mod medium;
mod open;

use std::sync::Arc;

use redb::{Builder, Database, ReadableDatabase, TableDefinition};

pub use file::{open_path, unnamed};
pub use medium::Medium;
pub use open::open;

use crate::record::{self, Kind, Record};
use crate::seal::Seals;
use crate::state::State;
use crate::types::{Entry, Event, EventKind, Revision};

const LOG: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("log");
const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");
const META_KEY: &str = "store";
const META_MAGIC: [u8; 4] = *b"MYCS";
const META_LEN: usize = 44;

/// The format that this program writes.
pub const FORMAT: u32 = 1;

/// redb's own page cache. Reads are served from our memory, so it only has to hold what a transaction touches.
const CACHE_BYTES: usize = 4 << 20;

/// Why the file was not written.
#[derive(Debug)]
pub enum DiskError {
    /// No space.
    Full,
    /// Anything else.
    Io(String),
}

/// The counters that go with the records.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Meta {
    /// Revision of the last transaction.
    pub revision: Revision,
    /// The history begins after it.
    pub compacted: Revision,
    /// Number of records.
    pub records: u64,
    /// Sum of [`record::digest`] over all records.
    pub digest: u64,
}

impl Meta {
    fn encode(&self) -> [u8; META_LEN] {
        let mut out = [0; META_LEN];
        out[..4].copy_from_slice(&META_MAGIC);
        out[4..8].copy_from_slice(&FORMAT.to_le_bytes());
        let numbers = [self.revision, self.compacted, self.records, self.digest];
        for (slot, number) in out[8..40].chunks_exact_mut(8).zip(numbers) {
            slot.copy_from_slice(&number.to_le_bytes());
        }
        let sum = crc32fast::hash(&out[..40]);
        out[40..].copy_from_slice(&sum.to_le_bytes());
        out
    }

    fn add(&mut self, bytes: &[u8]) {
        self.records += 1;
        self.digest = self.digest.wrapping_add(record::digest(bytes));
    }

    fn remove(&mut self, bytes: &[u8]) {
        self.records = self.records.wrapping_sub(1);
        self.digest = self.digest.wrapping_sub(record::digest(bytes));
    }
}

/// What one write brings to disk: new events, and a new start of the history.
pub struct Batch<'a> {
    /// New events in order.
    pub events: &'a [Arc<Event>],
    /// Revision after them.
    pub revision: Revision,
    /// Events that leave the history, oldest first.
    pub expired: &'a [Arc<Event>],
    /// Start of the history after that.
    pub compacted: Revision,
}

/// The open file.
pub struct Disk {
    medium: Arc<Medium>,
    /// Absent after a failure, until it has been repaired.
    database: Option<Database>,
    meta: Meta,
    seals: Seals,
}

impl Disk {
    /// Makes a batch durable. On an error nothing of it counts: the next call first restores the file to the last
    /// successful batch, whose content is `state`.
    pub fn write(&mut self, state: &State, batch: &Batch<'_>) -> Result<(), DiskError> {
        self.repair(state)?;
        match self.try_write(batch) {
            Ok(meta) => {
                self.meta = meta;
                Ok(())
            }
            Err(error) => {
                // redb refuses to go on after an I/O error, and so do we: what reached the disk is unknown.
                self.database = None;
                tracing::warn!(%error, "a write to the store failed");
                Err(classify(error))
            }
        }
    }

    fn try_write(&self, batch: &Batch<'_>) -> Result<Meta, redb::Error> {
        let Some(database) = &self.database else { return Err(redb::Error::DatabaseClosed) };
        let mut meta = Meta { revision: batch.revision, compacted: batch.compacted, ..self.meta };
        let transaction = database.begin_write()?;
        {
            let mut log = transaction.open_table(LOG)?;
            for event in batch.events {
                let (key, value) = encode_event(event, &self.seals);
                log.insert(&*key, &*value)?;
                meta.add(&value);
            }
            for key in batch.expired.iter().flat_map(|event| superseded_by(event)) {
                if let Some(old) = log.remove(&*key)? {
                    meta.remove(old.value());
                }
            }
            transaction.open_table(META)?.insert(META_KEY, &meta.encode()[..])?;
        }
        transaction.commit()?;
        Ok(meta)
    }

    /// After a failure: opens the file again and makes sure that it holds exactly `state`.
    fn repair(&mut self, state: &State) -> Result<(), DiskError> {
        if self.database.is_some() {
            return Ok(());
        }
        // Before redb looks: it must not take for durable what only the kernel's cache holds.
        self.medium.make_durable().map_err(|e| classify(redb::Error::Io(e)))?;
        let database = builder().create_with_backend(self.medium.handle()).map_err(|e| classify(e.into()))?;
        let found = read_meta(&database).map_err(classify)?;
        if found != Some(self.meta) {
            // The failed batch is on the disk after all, or half of a repair is.
            self.meta = rewrite(&database, state, &self.seals).map_err(classify)?;
        }
        self.database = Some(database);
        tracing::info!(revision = state.revision(), "the store is writable again");
        Ok(())
    }
}

fn builder() -> Builder {
    let mut builder = Database::builder();
    builder.set_cache_size(CACHE_BYTES);
    builder
}

/// Replaces the content of the file by `state` in one transaction.
fn rewrite(database: &Database, state: &State, seals: &Seals) -> Result<Meta, redb::Error> {
    let mut meta = Meta { revision: state.revision(), compacted: state.compacted(), ..Meta::default() };
    let transaction = database.begin_write()?;
    transaction.delete_table(LOG)?;
    transaction.delete_table(META)?;
    {
        let mut log = transaction.open_table(LOG)?;
        let older = |entry: &&Entry| entry.mod_revision <= state.compacted();
        let replaced = state.history().filter_map(|event| event.prev.as_ref());
        for entry in state.entries().chain(replaced).filter(older) {
            let (key, value) = encode_put(entry, seals);
            log.insert(&*key, &*value)?;
            meta.add(&value);
        }
        for event in state.history() {
            let (key, value) = encode_event(event, seals);
            log.insert(&*key, &*value)?;
            meta.add(&value);
        }
        transaction.open_table(META)?.insert(META_KEY, &meta.encode()[..])?;
    }
    transaction.commit()?;
    Ok(meta)
}

fn read_meta(database: &Database) -> Result<Option<Meta>, redb::Error> {
    let transaction = database.begin_read()?;
    let table = match transaction.open_table(META) {
        Err(redb::TableError::TableDoesNotExist(_)) => return Ok(None),
        other => other?,
    };
    Ok(table.get(META_KEY)?.and_then(|bytes| open::decode_meta(bytes.value()).ok()))
}

fn encode_event(event: &Event, seals: &Seals) -> (Vec<u8>, Vec<u8>) {
    match event.kind {
        EventKind::Put => encode_put(&event.entry, seals),
        EventKind::Delete => record::encode(&Record {
            revision: event.revision,
            key: &event.entry.key,
            kind: Kind::Delete,
            create_revision: event.entry.create_revision,
            value: &[],
        }),
    }
}

fn encode_put(entry: &Entry, seals: &Seals) -> (Vec<u8>, Vec<u8>) {
    let sealed = seals.seal(&entry.key, &entry.value);
    record::encode(&Record {
        revision: entry.mod_revision,
        key: &entry.key,
        kind: Kind::Put,
        create_revision: entry.create_revision,
        value: sealed.as_deref().unwrap_or(&entry.value),
    })
}

/// The records that nobody can ask for once `event` has left the history: the version it replaced and, if it is a
/// deletion, itself.
fn superseded_by(event: &Event) -> impl Iterator<Item = Vec<u8>> {
    let prev = event.prev.as_ref().map(|prev| record::table_key(prev.mod_revision, &prev.key));
    let own = (event.kind == EventKind::Delete).then(|| record::table_key(event.revision, &event.entry.key));
    prev.into_iter().chain(own)
}

fn classify(error: redb::Error) -> DiskError {
    use std::io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
    match error {
        redb::Error::Io(io) if matches!(io.kind(), StorageFull | QuotaExceeded | FileTooLarge) => DiskError::Full,
        other => DiskError::Io(other.to_string()),
    }
}

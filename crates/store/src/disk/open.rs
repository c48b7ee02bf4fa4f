//! Opening: tells a good file from a damaged, cut-off, foreign or empty one, without changing it.
//!
//! The file is first opened with all writes held back in memory, checked page by page (redb's checksums) and record by
//! record (ours), and read into memory. Only a file that passes is opened for writing.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use redb::{Database, DatabaseError, ReadableDatabase, ReadableTable, StorageError, TableError};

use super::{Disk, FORMAT, LOG, META, META_KEY, META_LEN, META_MAGIC, Medium, Meta, builder};
use crate::record::{self, Kind};
use crate::seal::Seals;
use crate::state::State;
use crate::types::{Entry, Event, EventKind, OpenError};

/// redb's first bytes.
const REDB_MAGIC: [u8; 9] = *b"redb\x1A\x0A\xA9\x0D\x0A";
/// Its header with both commit slots.
const REDB_HEADER: u64 = 320;

/// Opens the store on a medium, or makes one if the medium is empty.
pub fn open(medium: Arc<Medium>, path: &Path, seals: Seals) -> Result<(Disk, State), OpenError> {
    lock(&medium, path)?;
    let len = medium.raw().len().map_err(|error| failed(path, &error))?;
    if len == 0 { fresh(medium, path, State::default(), seals) } else { existing(medium, path, seals) }
}

/// Takes the lock.
pub fn lock(medium: &Medium, path: &Path) -> Result<(), OpenError> {
    match medium.lock() {
        Ok(true) => Ok(()),
        Ok(false) => Err(OpenError::Locked(path.to_owned())),
        Err(error) => Err(failed(path, &error)),
    }
}

/// Makes a store with this content on an empty medium.
pub fn fresh(medium: Arc<Medium>, path: &Path, state: State, seals: Seals) -> Result<(Disk, State), OpenError> {
    let make = || -> Result<(Database, Meta), redb::Error> {
        let database = builder().create_with_backend(medium.handle())?;
        let meta = super::rewrite(&database, &state, &seals)?;
        Ok((database, meta))
    };
    let (database, meta) = make().map_err(|error| failed(path, &error))?;
    Ok((Disk { medium, database: Some(database), meta, seals }, state))
}

/// Opens a store that should be there.
pub fn existing(medium: Arc<Medium>, path: &Path, seals: Seals) -> Result<(Disk, State), OpenError> {
    lock(&medium, path)?;
    check_header(&medium, path)?;
    medium.hold_back_writes().map_err(|error| failed(path, &error))?;
    // redb trusts its file's structure once the checksums match; should a page still confuse it, that is damage too.
    let examined = catch_unwind(AssertUnwindSafe(|| examine(&medium, &seals)))
        .unwrap_or_else(|_| Err(Fault::Corrupt("its structure is inconsistent".into())));
    medium.drop_held_writes();
    let (meta, state) = examined.map_err(|fault| fault.at(path))?;
    let database = builder().create_with_backend(medium.handle()).map_err(|error| Fault::from(error).at(path))?;
    if !matches!(super::read_meta(&database), Ok(Some(found)) if found == meta) {
        return Err(Fault::Corrupt("two reads of the file differ".into()).at(path));
    }
    Ok((Disk { medium, database: Some(database), meta, seals }, state))
}

fn failed(path: &Path, error: &dyn std::error::Error) -> OpenError {
    OpenError::Io { path: path.to_owned(), message: error.to_string() }
}

/// What can be seen from the first page and the length.
fn check_header(medium: &Medium, path: &Path) -> Result<(), OpenError> {
    let read = || -> std::io::Result<(u64, Vec<u8>)> {
        let len = medium.raw().len()?;
        let mut head = vec![0; len.min(REDB_HEADER) as usize];
        medium.raw().read(0, &mut head)?;
        Ok((len, head))
    };
    let (len, head) = read().map_err(|error| failed(path, &error))?;
    if len == 0 {
        return Err(OpenError::Empty(path.to_owned()));
    }
    if head.iter().all(|byte| *byte == 0) {
        return Err(Fault::Corrupt("it begins with zeros only".into()).at(path));
    }
    if !head.starts_with(&REDB_MAGIC[..head.len().min(REDB_MAGIC.len())]) {
        return Err(Fault::Foreign("it begins with other bytes".into()).at(path));
    }
    let expected = expected_len(&head).unwrap_or(REDB_HEADER);
    if len < expected {
        let detail = format!("{len} of at least {expected} bytes");
        return Err(OpenError::Truncated { path: path.to_owned(), detail });
    }
    Ok(())
}

/// The length that the header states, if it does: page size and counts are at bytes 12 to 32.
fn expected_len(head: &[u8]) -> Option<u64> {
    let number = |at: usize| head.get(at..at + 4).map(|b| u64::from(u32::from_le_bytes([b[0], b[1], b[2], b[3]])));
    let (page, header, max, full, partial) = (number(12)?, number(16)?, number(20)?, number(24)?, number(28)?);
    let trailing = if partial > 0 { header + partial } else { 0 };
    // A damaged header may hold any numbers.
    (header + max).checked_mul(full)?.checked_add(1 + trailing)?.checked_mul(page).filter(|len| *len < 1 << 48)
}

/// What was found wrong, before the path is known.
enum Fault {
    Corrupt(String),
    Foreign(String),
    Version(u32),
    Locked,
    Io(String),
}

impl Fault {
    fn at(self, path: &Path) -> OpenError {
        let path = path.to_owned();
        match self {
            Self::Corrupt(detail) => OpenError::Corrupt { path, detail },
            Self::Foreign(detail) => OpenError::Foreign { path, detail },
            Self::Version(found) => OpenError::Version { path, found, supported: FORMAT },
            Self::Locked => OpenError::Locked(path),
            Self::Io(message) => OpenError::Io { path, message },
        }
    }
}

impl From<StorageError> for Fault {
    fn from(error: StorageError) -> Self {
        match error {
            StorageError::Corrupted(detail) => Self::Corrupt(detail),
            StorageError::Io(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
                Self::Corrupt("it refers to bytes beyond its end".into())
            }
            other => Self::Io(other.to_string()),
        }
    }
}

impl From<DatabaseError> for Fault {
    fn from(error: DatabaseError) -> Self {
        match error {
            DatabaseError::Storage(error) => error.into(),
            DatabaseError::DatabaseAlreadyOpen => Self::Locked,
            DatabaseError::UpgradeRequired(version) => Self::Foreign(format!("a redb file of version {version}")),
            other => Self::Io(other.to_string()),
        }
    }
}

impl From<TableError> for Fault {
    fn from(error: TableError) -> Self {
        match error {
            TableError::Storage(error) => error.into(),
            other => Self::Foreign(format!("a redb file with other tables: {other}")),
        }
    }
}

/// Checks everything and reads it.
fn examine(medium: &Arc<Medium>, seals: &Seals) -> Result<(Meta, State), Fault> {
    let repaired = Arc::new(AtomicBool::new(false));
    let noted = repaired.clone();
    let mut builder = builder();
    builder.set_repair_callback(move |_| noted.store(true, Ordering::Relaxed));
    let mut database = builder.create_with_backend(medium.handle())?;
    // After a crash redb has just verified every page; after a clean shutdown it has not looked.
    if !repaired.load(Ordering::Relaxed) && !database.check_integrity()? {
        return Err(Fault::Corrupt("pages fail their checksums".into()));
    }
    load(&database, seals)
}

/// Decodes the counters.
pub fn decode_meta(bytes: &[u8]) -> Result<Meta, String> {
    if bytes.len() != META_LEN || bytes[..4] != META_MAGIC {
        return Err("its counters are unreadable".into());
    }
    let number = |at: usize| bytes[at..at + 8].iter().rev().fold(0, |sum, byte| sum << 8 | u64::from(*byte));
    if u64::from(crc32fast::hash(&bytes[..40])) != number(36) >> 32 {
        return Err("its counters fail their checksum".into());
    }
    Ok(Meta { revision: number(8), compacted: number(16), records: number(24), digest: number(32) })
}

/// The format version, which must be known before anything else is believed.
fn check_version(bytes: &[u8]) -> Result<(), Fault> {
    match bytes.get(..8) {
        Some([m @ .., a, b, c, d]) if *m == META_MAGIC => {
            let version = u32::from_le_bytes([*a, *b, *c, *d]);
            if version == FORMAT { Ok(()) } else { Err(Fault::Version(version)) }
        }
        _ => Err(Fault::Foreign("a redb file of another program".into())),
    }
}

fn load(database: &Database, seals: &Seals) -> Result<(Meta, State), Fault> {
    let transaction = database.begin_read().map_err(|error| match error {
        redb::TransactionError::Storage(error) => error.into(),
        other => Fault::Io(other.to_string()),
    })?;
    let table = match transaction.open_table(META) {
        Err(TableError::TableDoesNotExist(_)) => return Err(Fault::Foreign("a redb file of another program".into())),
        other => other?,
    };
    let stored = table.get(META_KEY)?.ok_or_else(|| Fault::Corrupt("its counters are missing".into()))?;
    check_version(stored.value())?;
    let meta = decode_meta(stored.value()).map_err(Fault::Corrupt)?;
    let mut found = Meta { records: 0, digest: 0, ..meta };
    let mut loader = Loader { state: State::new(meta.compacted), deleted: BTreeMap::new() };
    for item in transaction.open_table(LOG)?.iter()? {
        let (key, value) = item?;
        found.add(value.value());
        let record = record::decode(key.value(), value.value()).map_err(Fault::Corrupt)?;
        let opened = seals.open(record.key, record.value).map_err(Fault::Corrupt)?;
        let value = opened.as_deref().unwrap_or(record.value);
        loader.add(record::Record { value, ..record }, &meta)?;
    }
    if found != meta {
        let detail = format!("{} records where {} were written, or another one", found.records, meta.records);
        return Err(Fault::Corrupt(detail));
    }
    loader.state.finish_load(meta.revision);
    Ok((meta, loader.state))
}

/// Rebuilds the state from records in order.
struct Loader {
    state: State,
    /// Keys whose strings can be used again.
    deleted: BTreeMap<Arc<str>, ()>,
}

impl Loader {
    fn add(&mut self, record: record::Record<'_>, meta: &Meta) -> Result<(), Fault> {
        if record.revision > meta.revision {
            return Err(Fault::Corrupt(format!("a record has the future revision {}", record.revision)));
        }
        let prev = self.state.get(record.key).cloned();
        let mut entry = Entry {
            key: self.shared_key(record.key, prev.as_ref()),
            value: Bytes::copy_from_slice(record.value),
            create_revision: record.create_revision,
            mod_revision: record.revision,
        };
        if record.revision <= meta.compacted {
            self.state.load(entry);
            return Ok(());
        }
        let kind = match record.kind {
            Kind::Put => EventKind::Put,
            Kind::Delete => {
                self.deleted.insert(entry.key.clone(), ());
                entry.value = prev.as_ref().map(|prev| prev.value.clone()).unwrap_or_default();
                EventKind::Delete
            }
        };
        self.state.apply(Arc::new(Event { kind, entry, prev, revision: record.revision }));
        Ok(())
    }

    fn shared_key(&self, key: &str, prev: Option<&Entry>) -> Arc<str> {
        match (prev, self.deleted.get_key_value(key)) {
            (Some(prev), _) => prev.key.clone(),
            (None, Some((known, ()))) => known.clone(),
            (None, None) => key.into(),
        }
    }
}

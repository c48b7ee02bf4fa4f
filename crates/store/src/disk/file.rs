//! The store as a file: creation that cannot be seen half done, and growth that reserves its space.

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Bound;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use redb::backends::FileBackend;
use redb::{BackendError, StorageBackend};

use super::medium::Medium;
use super::{Disk, open};
use crate::seal::Seals;
use crate::state::State;
use crate::types::OpenError;

/// Opens the store at `path`, or creates it.
///
/// A new store is made under another name, synced, and then renamed: at `path` there is never a half-made one.
pub fn open_path(path: &Path, seals: Seals) -> Result<(Disk, State), OpenError> {
    match file(path, false) {
        Ok(medium) => open::existing(medium, path, seals),
        Err(error) if error.kind() == io::ErrorKind::NotFound => create(path, seals),
        Err(error) => Err(failed(path, &error)),
    }
}

fn create(path: &Path, seals: Seals) -> Result<(Disk, State), OpenError> {
    let io = |error: io::Error| failed(path, &error);
    let draft = draft_path(path);
    let medium = file(&draft, true).map_err(io)?;
    open::lock(&medium, path)?;
    if path.exists() {
        // Another process was faster, and has already gone on.
        return Err(OpenError::Locked(path.to_owned()));
    }
    medium.raw().set_len(0).map_err(io)?;
    let opened = open::fresh(medium, path, State::default(), seals)?;
    std::fs::rename(&draft, path).map_err(io)?;
    sync_folder(path).map_err(io)?;
    Ok(opened)
}

/// A store with this content in a file of `folder` that has no name: it is gone when it is closed.
pub fn unnamed(folder: &Path, state: State, seals: Seals) -> Result<File, OpenError> {
    use rustix::fs::{Mode, OFlags};
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    let io = |error: io::Error| failed(folder, &error);
    let file = File::from(rustix::fs::open(folder, flags, Mode::RUSR | Mode::WUSR).map_err(|error| io(error.into()))?);
    let medium = medium(file.try_clone().map_err(io)?).map_err(io)?;
    drop(open::fresh(medium, folder, state, seals)?);
    Ok(file)
}

fn failed(path: &Path, error: &io::Error) -> OpenError {
    OpenError::Io { path: path.to_owned(), message: error.to_string() }
}

fn draft_path(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    name.into()
}

fn sync_folder(path: &Path) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder)?.sync_all()
}

fn file(path: &Path, create: bool) -> io::Result<Arc<Medium>> {
    // The store holds secrets: nobody else may read it.
    let file = OpenOptions::new().read(true).write(true).create(create).truncate(false).mode(0o600).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"));
    }
    medium(file)
}

fn medium(file: File) -> io::Result<Arc<Medium>> {
    let for_growth = file.try_clone()?;
    let backend = FileBackend::new(file).map_err(|error| io::Error::other(error.to_string()))?;
    Ok(Medium::new(Growing { backend, file: for_growth }))
}

/// redb's file backend, except that growth reserves disk blocks: a full disk shows before anything is written.
#[derive(Debug)]
struct Growing {
    backend: FileBackend,
    file: File,
}

impl StorageBackend for Growing {
    fn len(&self) -> io::Result<u64> {
        self.backend.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.backend.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let old = self.backend.len()?;
        if len > old {
            use rustix::fs::{FallocateFlags, fallocate};
            match fallocate(&self.file, FallocateFlags::empty(), old, len - old) {
                // Not every file system can reserve space.
                Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => {}
                other => return Ok(other?),
            }
        }
        self.backend.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.backend.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.backend.write(offset, data)
    }

    fn close(&self) -> io::Result<()> {
        self.backend.close()
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.backend.try_lock_range(start, end)
    }
}

//! Locks between processes (and between threads: each taking opens the file anew).
//!
//! Order: content before index. Both are released when the guard is dropped, or the process dies.

use std::fs::{File, TryLockError};
use std::path::Path;

use crate::error::{Context, Result};

/// A held lock.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: File,
}

fn open(path: &Path) -> Result<File> {
    File::options().create(true).truncate(false).read(true).write(true).open(path).at("open", path)
}

/// Waits until nobody else holds the lock.
pub(crate) fn exclusive(path: &Path) -> Result<Lock> {
    let file = open(path)?;
    file.lock().at("lock", path)?;
    Ok(Lock { _file: file })
}

/// Waits until nobody holds the lock exclusively.
pub(crate) fn shared(path: &Path) -> Result<Lock> {
    let file = open(path)?;
    file.lock_shared().at("lock", path)?;
    Ok(Lock { _file: file })
}

/// Takes the lock if nobody holds it.
pub(crate) fn try_exclusive(path: &Path) -> Result<Option<Lock>> {
    let file = open(path)?;
    match file.try_lock() {
        Ok(()) => Ok(Some(Lock { _file: file })),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(error).at("lock", path),
    }
}

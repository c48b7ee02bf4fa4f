//! Blobs from a registry to a file, resumed where a broken connection (or a killed process) left off.
//!
//! ```text
//! ingest/<hex>.part   being downloaded, by whoever holds its lock
//! ingest/<hex>.blob   complete and verified; removed once it is unpacked
//! ```

use std::fs::{self, File, TryLockError};
use std::io::{self, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::StreamExt;
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncReadExt, AsyncSeekExt, AsyncWriteExt};

use crate::config::Descriptor;
use crate::digest::Digest;
use crate::error::{Context, Error};
use crate::pull::{PullError, PullErrorKind};
use crate::registry::Registry;

/// How often a download is tried again without a single byte gained in between.
const ATTEMPTS: u32 = 5;
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LOCK_POLL: Duration = Duration::from_millis(50);

/// One blob on its way to this machine.
pub(crate) struct Download<'a> {
    pub registry: &'a Registry,
    pub descriptor: &'a Descriptor,
    pub ingest: &'a Path,
    /// Told the bytes that are here.
    pub report: &'a (dyn Fn(u64) + Send + Sync),
}

impl Download<'_> {
    /// Gives the file with the complete and verified blob, and its path.
    pub(crate) async fn run(&self) -> Result<(File, PathBuf), PullError> {
        let hex = self.descriptor.digest.hex();
        let (complete, part) = (self.ingest.join(format!("{hex}.blob")), self.ingest.join(format!("{hex}.part")));
        loop {
            if let Ok(file) = File::open(&complete) {
                (self.report)(self.descriptor.size);
                return Ok((file, complete));
            }
            let Some(file) = lock(&part).await.map_err(|error| self.store_error(error))? else { continue };
            self.fill(file).await.inspect_err(|error| {
                if error.kind == PullErrorKind::Corrupt {
                    let _ = fs::remove_file(&part);
                }
            })?;
            fs::rename(&part, &complete).at("move", &part).map_err(|error| self.store_error(error))?;
        }
    }

    /// Downloads what is missing, again and again as long as it gets further.
    async fn fill(&self, file: File) -> Result<(), PullError> {
        let mut file = tokio::fs::File::from_std(file);
        let mut state = Received::of(&mut file).await.map_err(|error| self.io_error(error))?;
        let resumed = state.bytes > 0;
        let mut failures = 0;
        while state.bytes < self.descriptor.size || self.descriptor.size == 0 {
            let before = state.bytes;
            match self.attempt(&mut file, &mut state).await {
                Ok(()) => break,
                Err(error) if error.kind != PullErrorKind::Unreachable => return Err(error),
                Err(error) => {
                    failures = if state.bytes > before { 1 } else { failures + 1 };
                    if failures >= ATTEMPTS {
                        return Err(error);
                    }
                    tracing::debug!(digest = %self.descriptor.digest, bytes = state.bytes, %error, "download interrupted");
                    tokio::time::sleep(FIRST_PAUSE * 2u32.pow(failures - 1)).await;
                }
            }
        }
        file.flush().await.map_err(|error| self.io_error(error))?;
        let found = Digest::finish(state.hasher.clone());
        if found == self.descriptor.digest {
            return Ok(());
        }
        if !resumed {
            return Err(self.registry.corrupt("layer", &self.descriptor.digest, &found));
        }
        // What an earlier process left may be at fault: once more from the start.
        file.set_len(0).await.map_err(|error| self.io_error(error))?;
        Box::pin(self.fill(file.into_std().await)).await
    }

    /// One connection: appends what comes.
    async fn attempt(&self, file: &mut tokio::fs::File, state: &mut Received) -> Result<(), PullError> {
        let (mut stream, kept) = self.registry.blob(self.descriptor, state.bytes).await?;
        if !kept {
            file.set_len(0).await.map_err(|error| self.io_error(error))?;
            *state = Received::default();
        }
        file.seek(SeekFrom::Start(state.bytes)).await.map_err(|error| self.io_error(error))?;
        while let Some(chunk) = stream.stream.next().await {
            // The library's own check of the digest also arrives as an error of the stream's end; ours follows it.
            let chunk = match chunk {
                Ok(chunk) => chunk,
                Err(_) if state.bytes == self.descriptor.size => return Ok(()),
                Err(error) => return Err(self.registry.interrupted(&error)),
            };
            if state.bytes + chunk.len() as u64 > self.descriptor.size && self.descriptor.size > 0 {
                let found = Digest::finish(state.hasher.clone());
                return Err(self.registry.corrupt("layer that is too long", &self.descriptor.digest, &found));
            }
            file.write_all(&chunk).await.map_err(|error| self.io_error(error))?;
            state.hasher.update(&chunk);
            state.bytes += chunk.len() as u64;
            (self.report)(state.bytes);
        }
        if state.bytes < self.descriptor.size {
            let error = io::Error::new(io::ErrorKind::UnexpectedEof, "the answer ended early");
            return Err(self.registry.interrupted(&error));
        }
        Ok(())
    }

    fn io_error(&self, source: io::Error) -> PullError {
        self.store_error(Error::Io { action: "write", path: self.ingest.to_path_buf(), source })
    }

    fn store_error(&self, error: Error) -> PullError {
        PullError::of_store(&error)
    }
}

/// How much of the blob is here.
#[derive(Default)]
struct Received {
    bytes: u64,
    hasher: Sha256,
}

impl Received {
    /// Reads what an earlier attempt left.
    async fn of(file: &mut tokio::fs::File) -> io::Result<Self> {
        let mut received = Self::default();
        let mut buffer = vec![0; 256 << 10];
        file.seek(SeekFrom::Start(0)).await?;
        loop {
            match file.read(&mut buffer).await? {
                0 => return Ok(received),
                read => {
                    received.hasher.update(&buffer[..read]);
                    received.bytes += read as u64;
                }
            }
        }
    }
}

/// Opens and locks the file of a download, waiting for whoever is at it. None if it was completed meanwhile.
async fn lock(path: &Path) -> Result<Option<File>, Error> {
    let file = File::options().create(true).truncate(false).read(true).write(true).open(path).at("write", path)?;
    loop {
        match file.try_lock() {
            Ok(()) => break,
            Err(TryLockError::WouldBlock) => tokio::time::sleep(LOCK_POLL).await,
            Err(TryLockError::Error(error)) => return Err(error).at("lock", path),
        }
    }
    let ours = file.metadata().at("read", path)?.ino();
    let same = fs::metadata(path).is_ok_and(|there| there.ino() == ours);
    Ok(same.then_some(file))
}

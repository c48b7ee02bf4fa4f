//! Where a virtual machine's files lie on a host.
//!
//! ```text
//! <data-dir>/vm/group.pem            who belongs to the group (secret)
//! <data-dir>/vm/images/<type>.qcow2  images that osConfig.type names
//! <data-dir>/vm/<name>/vm.json       the document as it is in force
//!                     /member.json   this host's part in the replication group: term, vote, last whole epoch
//!                     /disk/         the disk, its journal and its record of unreplicated blocks
//!                     /control.sock  what `mycelium vm status|migrate|...` talk to
//!                     /run/          sockets of the QEMU that runs or waits here, among them the serial console
//!                     /lock          held by the process that has the machine on this host
//! ```
//!
//! Guest memory lies in `/dev/shm`, since it must be memory, under a name of the process that made it; it is unlinked
//! as soon as QEMU has opened it.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::HostError;

/// The folder of all virtual machines of a host.
#[derive(Debug, Clone)]
pub struct VmRoot(PathBuf);

impl VmRoot {
    /// The folder under a data directory.
    pub fn of(data_dir: &Path) -> Self {
        Self(data_dir.join("vm"))
    }

    /// The folder itself.
    pub fn folder(&self) -> &Path {
        &self.0
    }

    /// The file that says who belongs to the group.
    pub fn group_file(&self) -> PathBuf {
        self.0.join("group.pem")
    }

    /// Makes the folder, for its owner alone.
    pub fn make(&self) -> io::Result<&Path> {
        private_folder(&self.0)?;
        Ok(&self.0)
    }

    /// One machine's files.
    pub fn vm(&self, name: &str) -> VmPaths {
        VmPaths(self.0.join(name))
    }

    /// The names of the machines that have files here, sorted.
    pub fn names(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        let entries = match fs::read_dir(&self.0) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(names),
            Err(error) => return Err(error),
        };
        for entry in entries {
            let entry = entry?;
            if entry.path().join("vm.json").exists()
                && let Ok(name) = entry.file_name().into_string()
            {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }
}

/// The files of one machine on this host.
#[derive(Debug, Clone)]
pub struct VmPaths(PathBuf);

impl VmPaths {
    /// The folder itself.
    pub fn folder(&self) -> &Path {
        &self.0
    }

    /// The document in force.
    pub fn document(&self) -> PathBuf {
        self.0.join("vm.json")
    }

    /// This host's durable part in the group.
    pub fn member(&self) -> PathBuf {
        self.0.join("member.json")
    }

    /// The disk's folder.
    pub fn disk(&self) -> PathBuf {
        self.0.join("disk")
    }

    /// The socket that commands talk to.
    pub fn control(&self) -> PathBuf {
        self.0.join("control.sock")
    }

    /// The sockets and messages of the QEMU of this host.
    pub fn run_dir(&self) -> PathBuf {
        self.0.join("run")
    }

    /// The guest's serial console.
    pub fn console(&self) -> PathBuf {
        self.run_dir().join("console.sock")
    }

    /// The seed image for cloud-init.
    pub fn seed(&self) -> PathBuf {
        self.0.join("seed.img")
    }

    /// A file under the machine's folder.
    pub fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Makes the folder and takes the machine's lock on this host; it is released when the file is dropped.
    ///
    /// # Errors
    /// [`HostError::Busy`] when another process has the machine.
    pub fn lock(&self) -> Result<File, HostError> {
        let at = |source| HostError::File { path: self.0.clone(), source };
        private_folder(&self.0).map_err(at)?;
        let lock = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(self.0.join("lock"));
        let lock = lock.map_err(at)?;
        match lock.try_lock() {
            Ok(()) => Ok(lock),
            Err(fs::TryLockError::WouldBlock) => Err(HostError::Busy { folder: self.0.clone() }),
            Err(fs::TryLockError::Error(source)) => Err(at(source)),
        }
    }
}

/// Writes a file so that after a crash it has either the old or the new content.
pub fn write_whole(path: &Path, content: &[u8]) -> io::Result<()> {
    let new = path.with_extension("new");
    let mut file = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&new)?;
    io::Write::write_all(&mut file, content)?;
    file.sync_data()?;
    fs::rename(&new, path)?;
    match path.parent() {
        Some(folder) => File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}

fn private_folder(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

//! The data directory: its lock, its id, the record of the engine that runs on it.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

const LOCK: &str = "engine.lock";
const RECORD: &str = "engine.json";
const NODES: &str = "node-count";

/// What a running engine says of itself in `engine.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// Process id.
    pub pid: u32,
    /// Where the API listens.
    pub api: SocketAddr,
    /// Name of the node.
    pub node: String,
    /// Start time, RFC 3339.
    pub started: String,
    /// Version of the binary.
    pub version: String,
}

/// The exclusive hold on a data directory, given up when dropped.
pub struct Lock {
    _file: File,
}

/// A data directory.
#[derive(Clone, Debug)]
pub struct Instance {
    dir: PathBuf,
}

impl Instance {
    /// The data directory `dir`, which need not exist.
    pub fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned() }
    }

    /// Six hex digits that are part of every name this engine makes on the machine (FNV-1a of the path).
    pub fn id(&self) -> String {
        let hash = self
            .dir
            .as_os_str()
            .as_encoded_bytes()
            .iter()
            .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3));
        format!("{:06x}", (hash ^ (hash >> 24) ^ (hash >> 48)) & 0x00ff_ffff)
    }

    /// A file or folder in the data directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// The data directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Creates the data directory and takes its lock; an error tells who holds it.
    pub fn lock(&self) -> Result<Lock> {
        let shown = self.dir.display();
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o711)
            .create(&self.dir)
            .with_context(|| format!("the data directory {shown} cannot be created; choose another with --data-dir"))?;
        match self.try_lock()? {
            Some(lock) => Ok(lock),
            None => {
                let who = self.record().map(|record| format!(" (pid {})", record.pid)).unwrap_or_default();
                bail!(
                    "another engine{who} is running on {shown}. Stop it with `mycelium down --data-dir {shown}`, \
                     or start this one with another --data-dir, --listen, --pod-cidr and --service-cidr"
                )
            }
        }
    }

    /// The lock if nobody holds it.
    pub fn try_lock(&self) -> Result<Option<Lock>> {
        let path = self.path(LOCK);
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&path)
            .with_context(|| format!("{} cannot be opened; is this run as root?", path.display()))?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Lock { _file: file })),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
            Err(error) => Err(error).with_context(|| format!("{} cannot be locked", path.display())),
        }
    }

    /// Whether an engine holds the lock now. A directory without a lock file has none.
    pub fn is_running(&self) -> Result<bool> {
        Ok(self.path(LOCK).exists() && self.try_lock()?.is_none())
    }

    /// Waits until the engine has let go, at most `limit`.
    pub fn wait_stopped(&self, limit: std::time::Duration) -> Result<bool> {
        let step = std::time::Duration::from_millis(5);
        for _ in 0..(limit.as_millis() / step.as_millis()) {
            if !self.is_running()? {
                return Ok(true);
            }
            std::thread::sleep(step);
        }
        Ok(!self.is_running()?)
    }

    /// The record of the engine that runs, or ran last.
    pub fn record(&self) -> Option<Record> {
        let mut text = String::new();
        File::open(self.path(RECORD)).ok()?.read_to_string(&mut text).ok()?;
        serde_json::from_str(&text).ok()
    }

    /// A client of the engine that runs, with its administrator's rights.
    pub async fn client(&self) -> Result<kube::Client> {
        let path = self.path("admin.kubeconfig");
        let kubeconfig =
            kube::config::Kubeconfig::read_from(&path).with_context(|| format!("{} cannot be read", path.display()))?;
        let options = kube::config::KubeConfigOptions::default();
        let config = kube::Config::from_custom_kubeconfig(kubeconfig, &options).await?;
        Ok(kube::Client::try_from(config)?)
    }

    /// Writes the record, all at once.
    pub fn write_record(&self, record: &Record) -> Result<()> {
        let temporary = self.path(".engine.json");
        let mut file = File::create(&temporary).with_context(|| format!("{}", temporary.display()))?;
        file.write_all(&serde_json::to_vec_pretty(record)?)?;
        std::fs::rename(&temporary, self.path(RECORD)).context("engine.json cannot be written")
    }

    /// How many nodes the engine had last, if that was ever noted.
    pub fn node_count(&self) -> Option<u32> {
        std::fs::read_to_string(self.path(NODES)).ok()?.trim().parse().ok()
    }

    /// Notes how many nodes the engine has from now on.
    pub fn note_node_count(&self, count: u32) -> Result<()> {
        let temporary = self.path(".node-count");
        std::fs::write(&temporary, format!("{count}\n")).with_context(|| format!("{}", temporary.display()))?;
        std::fs::rename(&temporary, self.path(NODES)).context("the number of nodes cannot be noted")
    }

    /// Removes the record.
    pub fn remove_record(&self) {
        // Already gone is as good.
        let _ = std::fs::remove_file(self.path(RECORD));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_engine_is_told_who_is_first() {
        let dir = tempfile::tempdir().unwrap();
        let instance = Instance::new(dir.path());
        assert!(!instance.is_running().unwrap());
        let lock = instance.lock().unwrap();
        let record = Record {
            pid: 4711,
            api: "127.0.0.1:6443".parse().unwrap(),
            node: "n".into(),
            started: String::new(),
            version: String::new(),
        };
        instance.write_record(&record).unwrap();
        let error = instance.lock().err().unwrap().to_string();
        assert!(error.contains("another engine (pid 4711)") && error.contains("mycelium down --data-dir"), "{error}");
        drop(lock);
        assert!(instance.wait_stopped(std::time::Duration::from_millis(50)).unwrap());
    }

    #[test]
    fn ids_differ_by_directory() {
        let (a, b) = (Instance::new(Path::new("/a")).id(), Instance::new(Path::new("/b")).id());
        assert_ne!(a, b);
        assert_eq!(a.len(), 6);
    }
}

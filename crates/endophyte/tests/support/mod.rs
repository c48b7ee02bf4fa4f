//! Small guests for tests on a real QEMU: a script in, a machine out.
//!
//! ```ignore
//! #[path = "../support/mod.rs"]
//! mod support;
//! let guest = support::Guest::new("counter", "n=0; while :; do n=$((n+1)); echo \"n $n\"; done");
//! let machine = Machine::start(&guest.config("a"), Start::Running)?;
//! guest.console("a").wait_for("n 3");
//! ```
//! A guest is Debian's cloud kernel (`scripts/setup.sh vm` puts it into the cache) with busybox and an init script.

#![allow(dead_code, reason = "each test uses a part of it")]

mod cpio;
pub mod huge_pages;

use std::path::{Path, PathBuf};
use std::time::Duration;

use mycelium_endophyte::clock::monotonic;
use mycelium_endophyte::machine::{Accel, Boot, MachineConfig};
use tempfile::TempDir;

/// How long a guest may take for what a test waits for; translated guests on a loaded machine are slow.
const PATIENCE: Duration = Duration::from_secs(300);

/// What every init script starts with: file systems, a PATH, the virtio drivers, a tmpfs on /tmp.
const PRELUDE: &str = r"#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev; mount -t tmpfs tmp /tmp
for m in virtio_ring virtio virtio_pci_modern_dev virtio_pci_legacy_dev virtio_pci virtio_blk failover net_failover virtio_net; do
  insmod /modules/$m.ko
done
echo up
";

/// The least RAM in which these guests work.
pub const MEMORY: u64 = 128 << 20;

/// A guest's kernel and initial RAM disk, and a folder for all that belongs to it; gone when dropped.
pub struct Guest {
    folder: TempDir,
    name: String,
}

impl Guest {
    /// A guest that runs `script` (busybox's shell) as its init.
    pub fn new(name: &str, script: &str) -> Guest {
        Guest::with_files(name, script, &[])
    }

    /// A guest that also has `files`: path within it, bytes; all are executable.
    pub fn with_files(name: &str, script: &str, files: &[(&str, &[u8])]) -> Guest {
        let folder = tempfile::Builder::new().prefix("guest-").tempdir().unwrap();
        std::fs::write(folder.path().join("initrd"), initramfs(script, files)).unwrap();
        Guest { folder, name: name.to_owned() }
    }

    /// Its folder.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The configuration of one QEMU (`instance` tells several apart) for this guest: 128 MiB, one processor, no disk, no network.
    pub fn config(&self, instance: &str) -> MachineConfig {
        let folder = self.folder.path().join(instance);
        let mut config = MachineConfig::new(format!("{}-{instance}", self.name), MEMORY, &folder);
        config.accel = Accel::Auto;
        config.boot = Boot::Kernel {
            kernel: kernel_folder().join("vmlinuz"),
            initrd: Some(self.folder.path().join("initrd")),
            cmdline: "console=ttyS0 quiet panic=-1 mitigations=off no_timer_check".to_owned(),
        };
        config.console_log = Some(folder.join("console.log"));
        config
    }

    /// What that QEMU's guest has said.
    pub fn console(&self, instance: &str) -> Console {
        Console { path: self.folder.path().join(instance).join("console.log") }
    }
}

/// What a guest has said on its serial console.
pub struct Console {
    path: PathBuf,
}

impl Console {
    /// All of it.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.path).unwrap_or_default()).replace('\r', "")
    }

    /// How many bytes it is so far.
    pub fn length(&self) -> usize {
        std::fs::metadata(&self.path).map_or(0, |metadata| usize::try_from(metadata.len()).unwrap())
    }

    /// The first `length` bytes.
    pub fn first(&self, length: usize) -> String {
        let mut bytes = std::fs::read(&self.path).unwrap_or_default();
        bytes.truncate(length);
        String::from_utf8_lossy(&bytes).replace('\r', "")
    }

    /// Waits until `what` was said.
    pub fn wait_for(&self, what: &str) {
        self.wait_until(&format!("{what:?}"), |text| text.contains(what));
    }

    /// Waits until `holds` of the whole text.
    pub fn wait_until(&self, what: &str, holds: impl Fn(&str) -> bool) {
        let deadline = monotonic() + PATIENCE;
        while !holds(&self.text()) {
            assert!(monotonic() < deadline, "the guest never said {what}; it said:\n{}", self.text());
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// Fails where guests cannot run for want of tools, and says which command brings them.
pub fn require_tools() {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let qemu = std::env::split_paths(&path).any(|folder| folder.join("qemu-system-x86_64").exists());
    let missing = [
        ("qemu-system-x86_64", qemu),
        ("the guests' kernel", kernel_folder().join("vmlinuz").exists()),
        ("busybox-static", busybox().exists()),
    ];
    for (what, there) in missing {
        assert!(there, "{what} is missing: run scripts/setup.sh test");
    }
}

/// Where `scripts/setup.sh vm` leaves the kernel.
pub fn kernel_folder() -> PathBuf {
    let home = || PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".cache");
    std::env::var_os("XDG_CACHE_HOME").map_or_else(home, PathBuf::from).join("mycelium/guest-kernel")
}

fn busybox() -> PathBuf {
    ["/bin/busybox", "/usr/bin/busybox"].map(PathBuf::from).into_iter().find(|path| path.exists()).unwrap_or_default()
}

/// An initial RAM disk with busybox, the virtio drivers, `files`, and an init that runs `script`.
pub fn initramfs(script: &str, files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut archive = cpio::Archive::default();
    for folder in ["bin", "dev", "proc", "sys", "tmp", "mnt", "modules"] {
        archive.folder(folder);
    }
    archive.file("init", format!("{PRELUDE}{script}\n").as_bytes());
    archive.file("bin/busybox", &std::fs::read(busybox()).unwrap());
    for module in std::fs::read_dir(kernel_folder().join("modules")).unwrap() {
        let module = module.unwrap();
        let name = module.file_name().into_string().unwrap();
        archive.file(&format!("modules/{name}"), &std::fs::read(module.path()).unwrap());
    }
    for (path, bytes) in files {
        archive.file(path, bytes);
    }
    archive.finish()
}

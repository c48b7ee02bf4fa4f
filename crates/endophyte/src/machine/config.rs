//! What a machine is made of, and the command line that says so to QEMU. Pure data: the same configuration gives the same
//! arguments on every host, because a checkpoint only fits a machine that is built alike.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::error::{MachineError, Result};
use super::memory::GuestMemory;

/// What a virtual machine is made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineConfig {
    /// Its name, shown in the process list.
    pub name: String,
    /// Virtual processors.
    pub cpus: u32,
    /// RAM in bytes, a multiple of 1 MiB.
    pub memory_bytes: u64,
    /// A name in the file system that is to hold the RAM (a tmpfs; `/dev/shm/...`). The file is unlinked at once.
    pub ram_path: PathBuf,
    /// A folder for sockets and messages of this one QEMU.
    pub run_dir: PathBuf,
    /// The disk: unix socket of an NBD server.
    pub disk: Option<PathBuf>,
    /// A read-only second disk (a cloud-init seed).
    pub seed: Option<PathBuf>,
    /// The network card.
    pub nic: Option<Nic>,
    /// What is booted.
    pub boot: Boot,
    /// What runs the guest's instructions.
    pub accel: Accel,
    /// Each virtual processor gets a processor of its own.
    pub cpu_pinning: bool,
    /// RAM in huge pages, where the host has some.
    pub huge_pages: bool,
    /// Everything that the guest says on its serial console is also appended to this file.
    pub console_log: Option<PathBuf>,
}

/// A network card.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nic {
    /// Its hardware address, such as `52:54:00:12:34:56`.
    pub mac: String,
    /// The unix socket to which frames go, each after its length as four bytes, big-endian.
    pub socket: PathBuf,
}

/// What is booted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Boot {
    /// The disk's boot loader.
    Disk,
    /// A kernel from outside.
    Kernel {
        /// The kernel image.
        kernel: PathBuf,
        /// The initial RAM disk.
        initrd: Option<PathBuf>,
        /// The kernel's command line.
        cmdline: String,
    },
}

/// What runs the guest's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Accel {
    /// KVM where it works, else translation.
    #[default]
    Auto,
    /// The processor itself.
    Kvm,
    /// Translation to host instructions.
    Tcg,
}

/// What only a start knows.
#[derive(Debug, Clone, Copy)]
pub(super) struct Launch<'a> {
    /// The inherited descriptor of the control socket.
    pub qmp: i32,
    /// The path under which the RAM is opened.
    pub memory: &'a Path,
    /// Whether that is of huge pages.
    pub huge: bool,
    /// Whether KVM runs it.
    pub kvm: bool,
    /// Whether it waits for a checkpoint.
    pub incoming: bool,
}

const MIB: u64 = 1 << 20;

impl MachineConfig {
    /// A machine with one processor that boots the disk.
    pub fn new(name: impl Into<String>, memory_bytes: u64, run_dir: impl Into<PathBuf>) -> MachineConfig {
        let name = name.into();
        MachineConfig {
            cpus: 1,
            memory_bytes,
            ram_path: PathBuf::from(format!("/dev/shm/mycelium-{name}-{}.ram", std::process::id())),
            run_dir: run_dir.into(),
            disk: None,
            seed: None,
            nic: None,
            boot: Boot::Disk,
            accel: Accel::Auto,
            cpu_pinning: false,
            huge_pages: false,
            console_log: None,
            name,
        }
    }

    /// The unix socket of the serial console.
    pub fn console(&self) -> PathBuf {
        self.run_dir.join("console.sock")
    }

    /// Where QEMU's own messages go.
    pub fn messages(&self) -> PathBuf {
        self.run_dir.join("qemu.log")
    }

    /// New, empty memory for this machine: in huge pages where they are wished for and this host has enough, else in ordinary ones.
    pub fn memory(&self) -> Result<GuestMemory> {
        self.validate()?;
        if self.huge_pages {
            match GuestMemory::huge(&self.name, self.memory_bytes) {
                Ok(memory) => return Ok(memory),
                Err(error) => {
                    let error: &dyn std::error::Error = &error;
                    let cause = error.source().map(ToString::to_string).unwrap_or_default();
                    tracing::warn!(machine = self.name, "hugePages: {error}: {cause}; ordinary pages are used");
                }
            }
        }
        GuestMemory::create(&self.ram_path, self.memory_bytes)
    }

    /// Checks what can be checked without a host.
    pub fn validate(&self) -> Result<()> {
        let wrong = |field, reason: &str| Err(MachineError::Config { field, reason: reason.to_owned() });
        if self.cpus == 0 || self.cpus > 255 {
            return wrong("cpus", "must be from 1 to 255");
        }
        if self.memory_bytes < 32 * MIB || !self.memory_bytes.is_multiple_of(MIB) {
            return wrong("memory", "must be a multiple of 1 MiB, and at least 32 MiB");
        }
        if self.boot == Boot::Disk && self.disk.is_none() {
            return wrong("boot", "there is no disk to boot from");
        }
        if self.name.is_empty() || !self.name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b)) {
            return wrong("name", "letters, digits, '-', '_' and '.' only");
        }
        let mac_ok = |mac: &str| {
            mac.split(':').count() == 6 && mac.split(':').all(|b| b.len() == 2 && u8::from_str_radix(b, 16).is_ok())
        };
        if self.nic.as_ref().is_some_and(|nic| !mac_ok(&nic.mac)) {
            return wrong("nic.mac", "not a hardware address");
        }
        let paths = [Some(self.console()), self.disk.clone(), self.nic.as_ref().map(|nic| nic.socket.clone())];
        // The kernel's limit for the name of a unix socket.
        if paths.iter().flatten().any(|path| path.as_os_str().len() > 107) {
            return wrong("run_dir", "too long a path for a unix socket (at most 107 bytes)");
        }
        Ok(())
    }

    /// QEMU's arguments.
    pub(super) fn arguments(&self, launch: Launch<'_>) -> Vec<OsString> {
        let mut arguments = Arguments::default();
        arguments.base(self, launch);
        arguments.boot(&self.boot);
        arguments.disks(self);
        arguments.nic(self.nic.as_ref());
        arguments.console(self);
        if launch.incoming {
            arguments.add("-S", "");
            arguments.add("-incoming", "defer");
        }
        arguments.list
    }
}

#[derive(Default)]
struct Arguments {
    list: Vec<OsString>,
}

impl Arguments {
    fn add(&mut self, option: &str, value: impl Into<OsString>) {
        self.list.push(option.into());
        let value = value.into();
        if !value.is_empty() {
            self.list.push(value);
        }
    }

    /// The board. No device that is not needed: each is part of every checkpoint. The board's version is the oldest supported
    /// QEMU's, so that hosts with different ones understand each other's checkpoints.
    fn base(&mut self, config: &MachineConfig, launch: Launch<'_>) {
        self.add("-name", format!("{},debug-threads=on", config.name));
        self.add("-nodefaults", "");
        self.add("-no-user-config", "");
        self.add("-display", "none");
        self.add(
            "-machine",
            "pc-q35-7.2,memory-backend=ram,sata=off,smbus=off,usb=off,vmport=off,dump-guest-core=off,suppress-vmdesc=on",
        );
        // A checkpoint is devices only and carries no description of the board in front.
        self.add("-global", "migration.send-configuration=off");
        if launch.kvm {
            self.add("-accel", "kvm");
            self.add("-cpu", "host");
        } else {
            self.add("-accel", "tcg,thread=multi");
        }
        self.add("-smp", config.cpus.to_string());
        self.add("-m", format!("{}M", config.memory_bytes / MIB));
        self.add(
            "-object",
            joined(
                &format!(
                    // A huge page that QEMU has not touched would never count as written, even when a copy has filled it.
                    "memory-backend-file,id=ram,share=on,{}size={}M,mem-path=",
                    if launch.huge { "prealloc=on," } else { "" },
                    config.memory_bytes / MIB
                ),
                launch.memory,
            ),
        );
        self.add("-chardev", format!("socket,id=qmp,fd={}", launch.qmp));
        self.add("-mon", "chardev=qmp,mode=control");
    }

    fn boot(&mut self, boot: &Boot) {
        if let Boot::Kernel { kernel, initrd, cmdline } = boot {
            self.add("-kernel", kernel.as_os_str());
            if let Some(initrd) = initrd {
                self.add("-initrd", initrd.as_os_str());
            }
            if !cmdline.is_empty() {
                self.add("-append", cmdline.as_str());
            }
        }
    }

    /// A failing disk stops the guest rather than being reported to it: its file system must not learn of our troubles.
    fn disks(&mut self, config: &MachineConfig) {
        if let Some(socket) = &config.disk {
            self.add(
                "-blockdev",
                joined("driver=nbd,node-name=disk,reconnect-delay=10,server.type=unix,server.path=", socket),
            );
            let first = if config.boot == Boot::Disk { ",bootindex=0" } else { "" };
            self.add("-device", format!("virtio-blk-pci,id=disk,drive=disk,werror=stop,rerror=stop{first}"));
        }
        if let Some(seed) = &config.seed {
            self.add("-blockdev", joined("driver=file,node-name=seed,read-only=on,filename=", seed));
            self.add("-device", "virtio-blk-pci,id=seed,drive=seed");
        }
    }

    fn nic(&mut self, nic: Option<&Nic>) {
        if let Some(nic) = nic {
            self.add("-netdev", joined("stream,id=net,server=off,addr.type=unix,addr.path=", &nic.socket));
            self.add("-device", format!("virtio-net-pci,id=net,netdev=net,mac={},romfile=", nic.mac));
        }
    }

    fn console(&mut self, config: &MachineConfig) {
        let mut chardev = joined("socket,id=console,server=on,wait=off,path=", &config.console());
        if let Some(log) = &config.console_log {
            chardev.push(",logappend=on,logfile=");
            chardev.push(escaped(log));
        }
        self.add("-chardev", chardev);
        self.add("-serial", "chardev:console");
    }
}

fn joined(prefix: &str, path: &Path) -> OsString {
    let mut argument = OsString::from(prefix);
    argument.push(escaped(path));
    argument
}

/// A path within a comma-separated argument: QEMU takes two commas for one.
fn escaped(path: &Path) -> OsString {
    use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
    let mut bytes = Vec::new();
    for &byte in path.as_os_str().as_bytes() {
        bytes.push(byte);
        if byte == b',' {
            bytes.push(b',');
        }
    }
    OsString::from_vec(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full() -> MachineConfig {
        MachineConfig {
            cpus: 2,
            disk: Some("/run/vm/disk,1.sock".into()),
            seed: Some("/run/vm/seed.iso".into()),
            nic: Some(Nic { mac: "52:54:00:12:34:56".to_owned(), socket: "/run/vm/nic.sock".into() }),
            console_log: Some("/run/vm/console.log".into()),
            ..MachineConfig::new("legacy", 512 * MIB, "/run/vm")
        }
    }

    fn words(config: &MachineConfig, launch: Launch<'_>) -> String {
        let mut words = String::new();
        for argument in config.arguments(launch) {
            let argument = argument.to_string_lossy().into_owned();
            words.push_str(if argument.starts_with('-') { "\n" } else { " " });
            words.push_str(&argument);
        }
        words.trim_start().to_owned() + "\n"
    }

    #[test]
    fn the_arguments_are_these() {
        let launch = Launch { qmp: 5, memory: Path::new("/proc/1/fd/4"), huge: false, kvm: true, incoming: true };
        assert_eq!(words(&full(), launch), include_str!("testdata/arguments.txt"));
    }

    #[test]
    fn what_cannot_be_built_is_named() {
        let field = |config: MachineConfig| match config.validate() {
            Err(MachineError::Config { field, .. }) => field,
            other => panic!("{other:?}"),
        };
        full().validate().unwrap();
        assert_eq!(field(MachineConfig { cpus: 0, ..full() }), "cpus");
        assert_eq!(field(MachineConfig { memory_bytes: 64 * MIB + 1, ..full() }), "memory");
        assert_eq!(field(MachineConfig { disk: None, ..full() }), "boot");
        assert_eq!(field(MachineConfig { run_dir: "x".repeat(100).into(), ..full() }), "run_dir");
        let nic = Some(Nic { mac: "52:54:00:12:34".to_owned(), socket: "/n".into() });
        assert_eq!(field(MachineConfig { nic, ..full() }), "nic.mac");
    }
}

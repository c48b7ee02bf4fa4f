//! From what a machine is made of to its parts on this host: memory, QEMU, disk, network card.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use mycelium_api::endophyte::{Alone as DocumentAlone, BackupStrategy, EndophyteVM, OutputCommit};
use tokio::sync::mpsc;

use super::agent::Event;
use super::book::Setup;
use super::held::Held;
use super::primary::{self, Primary};
use super::replica::{Parts as ReplicaParts, Replica};
use super::status::Status;
use super::timeline::Timeline;
use super::{HostError, Place};
use crate::disk::{BlockServer, Disk, Replica as DiskReplica, ReplicaOptions};
use crate::egress::{Limits, Mode, Nic, NicConfig, Port};
use crate::group::{Alone, OutputMode, Policy, Position, Rules, Timing};
use crate::machine::{Boot, Checkpointer, Machine, MachineConfig, Nic as MachineNic, Start as MachineStart};
use crate::throttle::Shares;

/// The kernel that a machine boots, in its folder.
pub const KERNEL: &str = "kernel";
/// The initial RAM disk.
pub const INITRD: &str = "initrd";
/// The seed for cloud-init.
pub const SEED: &str = "seed.img";

/// What a card may hold however small the buffer is.
const CARD_LEAST: usize = 1 << 20;
/// What becomes of the frames of a guest that begins to run: until the group says otherwise, nothing leaves.
const AT_FIRST: Mode = Mode::OutputCommit;

/// A machine as it is to be on this host.
pub(super) struct Assembly {
    place: Place,
    document: EndophyteVM,
    setup: Setup,
    held: Held,
}

/// What is known of a machine.
pub(super) struct Learned {
    pub assembly: Assembly,
    /// Files that are not here yet.
    pub missing: BTreeSet<String>,
}

/// A copy that waits, and the card it will have.
pub(super) struct Standby {
    pub parts: ReplicaParts,
    pub card: Arc<Nic>,
}

/// Tells the content of a file from others.
pub fn digest(content: &[u8]) -> String {
    format!("{:032x}", xxhash_rust::xxh3::xxh3_128(content))
}

/// What the group agrees on, by the document.
pub fn rules(document: &EndophyteVM) -> Rules {
    let ram = &document.spec.distributed_ram;
    Rules {
        policy: match ram.output_commit {
            OutputCommit::Any => Policy::Any,
            OutputCommit::Majority => Policy::Majority,
            OutputCommit::All => Policy::All,
        },
        alone: match document.spec.failure_detection.alone {
            DocumentAlone::GoOn => Alone::GoOn,
            DocumentAlone::Hold => Alone::Hold,
        },
        output: if ram.emergency_pause_enabled { OutputMode::Commit } else { OutputMode::BestEffort },
    }
}

/// The group's periods, by the document.
pub fn timing(setup: &Setup) -> Timing {
    let document = EndophyteVM::from_value(&setup.document);
    document.map_or_else(
        |_| Timing::default(),
        |document| Timing::with_heartbeat(document.spec.failure_detection.heartbeat_milliseconds),
    )
}

/// Takes note of a machine: what of it is here, and what is missing.
pub fn learn(place: &Place, setup: &Setup, held: &Held) -> Result<Learned, HostError> {
    let document = EndophyteVM::from_value(&setup.document).map_err(HostError::Document)?;
    let missing = setup.files.iter().filter(|(name, wanted)| {
        let content = std::fs::read(place.paths.file(name)).unwrap_or_default();
        digest(&content) != **wanted
    });
    let missing = missing.map(|(name, _)| name.clone()).collect();
    let text = serde_json::to_vec(setup).map_err(|error| HostError::Refused(error.to_string()))?;
    let path = place.paths.document();
    super::paths::write_whole(&path, &text).map_err(|source| HostError::File { path, source })?;
    let assembly = Assembly { place: place.clone(), document, setup: setup.clone(), held: held.clone() };
    Ok(Learned { assembly, missing })
}

impl Assembly {
    fn run_dir(&self) -> PathBuf {
        self.place.paths.run_dir()
    }

    fn disk_socket(&self) -> PathBuf {
        self.run_dir().join("disk.sock")
    }

    fn config(&self) -> MachineConfig {
        let spec = &self.document.spec;
        let file = |name: &str| self.setup.files.contains_key(name).then(|| self.place.paths.file(name));
        let boot = match file(KERNEL) {
            Some(kernel) => Boot::Kernel {
                kernel,
                initrd: file(INITRD),
                cmdline: spec.vm_spec.os_config.command_line.clone().unwrap_or_default(),
            },
            None => Boot::Disk,
        };
        MachineConfig {
            cpus: spec.vm_spec.cpu_cores,
            disk: self.setup.disk_bytes.map(|_| self.disk_socket()),
            seed: file(SEED),
            nic: Some(MachineNic { mac: self.document.mac().to_string(), socket: self.run_dir().join("nic.sock") }),
            boot,
            cpu_pinning: spec.performance_config.cpu_pinning,
            huge_pages: spec.performance_config.huge_pages,
            console_log: Some(self.place.paths.file("console.log")),
            ram_path: PathBuf::from(format!(
                "/dev/shm/mycelium-{}-{:016x}.ram",
                self.place.vm,
                self.place.clock.random()
            )),
            ..MachineConfig::new(self.place.vm.clone(), self.document.memory_bytes(), self.run_dir())
        }
    }

    fn make_run_dir(&self) -> Result<(), HostError> {
        let path = self.run_dir();
        std::fs::create_dir_all(&path).map_err(|source| HostError::File { path, source })
    }

    /// The network card, switched off.
    fn card(&self) -> Result<Arc<Nic>, HostError> {
        let port = Port::open(&self.document.spec.vm_spec.network_config.attachment)?;
        let socket = self.run_dir().join("nic.sock");
        let share = usize::try_from(Shares::of(self.document.buffer_bytes()).egress).unwrap_or(usize::MAX);
        let limits = Limits { bytes: share.max(CARD_LEAST), ..Limits::default() };
        let config = NicConfig { mode: Mode::Standby, limits, ..NicConfig::new(socket, port, self.document.mac()) };
        Ok(Arc::new(Nic::start(config)?))
    }

    /// A disk and the server that QEMU talks to.
    fn serve(&self, disk: Disk) -> Result<(Disk, BlockServer), HostError> {
        let server = disk.serve(&self.disk_socket())?;
        Ok((disk, server))
    }

    fn settings(&self, term: u64, epoch: u64) -> primary::Settings {
        primary::Settings {
            vm: self.place.vm.clone(),
            term,
            epoch,
            ram: self.document.spec.distributed_ram.clone(),
            shares: Shares::of(self.document.buffer_bytes()),
            seed: self.place.clock.random(),
            held: self.held.clone(),
        }
    }

    /// The hosts that the document lists, and how many of them are to be backups.
    pub fn backups(&self) -> &BackupStrategy {
        &self.document.spec.backup_strategy
    }

    /// How much replication may hold in memory.
    pub fn buffer_bytes(&self) -> u64 {
        self.document.buffer_bytes()
    }

    /// Writes what the document says into a status.
    pub fn describe(&self, status: &mut Status) {
        status.guest.cpus = self.document.spec.vm_spec.cpu_cores;
        status.guest.memory_bytes = self.document.memory_bytes();
        status.buffer.limit_bytes = self.document.buffer_bytes();
    }
}

/// Prepares a copy: empty memory, a QEMU that waits, a disk that is to be filled.
pub fn stand_by(assembly: &Assembly) -> Result<Standby, HostError> {
    assembly.make_run_dir()?;
    let config = assembly.config();
    let disk = match assembly.setup.disk_bytes {
        Some(size) => {
            Some(Arc::new(DiskReplica::open(&assembly.place.paths.disk(), Some(size), ReplicaOptions::default())?))
        }
        None => None,
    };
    let blank = blank_disk(assembly)?;
    let card = assembly.card()?;
    let memory = config.memory()?;
    let machine = Machine::start_with(&config, MachineStart::Paused, &memory)?;
    let checkpointer = Checkpointer::standing_by(machine)?;
    let parts = ReplicaParts { vm: assembly.place.vm.clone(), memory, checkpointer, disk, blank };
    Ok(Standby { parts, card })
}

/// What a waiting QEMU is connected to: it looks at its disk's size, and reads nothing that matters.
fn blank_disk(assembly: &Assembly) -> Result<Option<BlockServer>, HostError> {
    let Some(size) = assembly.setup.disk_bytes else { return Ok(None) };
    let folder = assembly.run_dir().join("blank");
    let _ = std::fs::remove_dir_all(&folder);
    let disk = Disk::open(&folder, None, Some(size))?;
    Ok(Some(disk.serve(&assembly.disk_socket())?))
}

/// Goes on from a copy, in a new term.
pub async fn promote(
    assembly: &Arc<Assembly>,
    replica: Replica,
    card: Arc<Nic>,
    term: u64,
    from: Position,
    events: mpsc::UnboundedSender<Event>,
) -> Result<Primary, HostError> {
    let mut timeline = Timeline::start();
    let taken = replica.take(from).await?;
    timeline.lap("copy");
    let assembly = Arc::clone(assembly);
    let go_on = move || {
        let ReplicaParts { checkpointer, disk, blank, .. } = taken.parts;
        drop(blank);
        // The thread that filled it has ended, so nobody else has it.
        let replica = disk.map(|disk| Arc::into_inner(disk).ok_or(HostError::ReplicaGone)).transpose()?;
        let disk = replica.map(|replica| assembly.serve(replica.into_disk()?)).transpose()?;
        timeline.lap("disk");
        card.restore(taken.learned);
        card.set_mode(AT_FIRST);
        timeline.lap("card");
        let (nic, devices, recent) = (Arc::clone(&card), Some(taken.devices), taken.recent);
        let parts = primary::Parts { checkpointer, disk, nic, devices, recent };
        let primary = Primary::start(parts, assembly.settings(term, from.epoch + 1), events, timeline)?;
        card.announce();
        Ok(primary)
    };
    tokio::task::spawn_blocking(go_on).await.map_err(|_| HostError::GuestGone)?
}

/// Boots the machine from its disk or kernel.
pub fn boot(assembly: &Assembly, term: u64, events: mpsc::UnboundedSender<Event>) -> Result<Primary, HostError> {
    assembly.make_run_dir()?;
    let config = assembly.config();
    let open = |size| assembly.serve(Disk::open(&assembly.place.paths.disk(), None, Some(size))?);
    let disk = assembly.setup.disk_bytes.map(open).transpose()?;
    let card = assembly.card()?;
    card.set_mode(AT_FIRST);
    let mut machine = Machine::start(&config, MachineStart::Running)?;
    machine.stop()?;
    let mut checkpointer = Checkpointer::new(machine)?;
    // Nobody has a copy: what was written until now reaches backups as part of their first one.
    checkpointer.forget_written()?;
    let parts = primary::Parts { checkpointer, disk, nic: card, devices: None, recent: Default::default() };
    Primary::start(parts, assembly.settings(term, 1), events, Timeline::start())
}

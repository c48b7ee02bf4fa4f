//! The process on a host: it runs machines, stands by for them, or votes about them.
//!
//! ```text
//!   control.sock ──┐                                   ┌── primary: checkpoints, encoder ── QEMU, disk, card
//!   links ─────────┤ agent (one per machine) ── Member ┤
//!   clock ─────────┘   events in, outputs out          └── replica: copy of memory, disk, devices; QEMU, waiting
//! ```
//!
//! | module | holds |
//! |---|---|
//! | [`agent`] | one machine on this host: joins the group's protocol with everything below |
//! | [`assembly`] | from the document to memory, QEMU, disk and card |
//! | [`book`] | who is where, and what the machine is made of, as hosts tell each other |
//! | [`control`] | the socket that commands talk to |
//! | [`disk_sync`], [`sync`] | bringing a backup's disk and memory in sync |
//! | [`held`] | how much replication holds in memory |
//! | [`history`], [`status`], [`metrics`] | what is told about it |
//! | [`links`], [`stream`] | the way to other hosts |
//! | [`paths`] | where files lie |
//! | [`primary`], [`checkpoints`], [`encoder`] | the host that runs the guest, and its threads |
//! | [`replica`] | the thread of a host that holds a copy |
//! | [`selection`] | which of the hosts listed become backups |
//! | [`timeline`] | where the time of a move went |

mod agent;
mod assembly;
pub mod book;
mod checkpoints;
pub mod control;
mod disk_sync;
mod encoder;
mod held;
mod history;
mod links;
mod metrics;
mod paths;
mod primary;
mod process;
mod replica;
mod selection;
pub mod status;
pub mod stream;
mod sync;
mod timeline;

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};

use mycelium_api::env::Env;
use mycelium_api::field::FieldError;
use mycelium_rhizomorph::{Group, Identity, LinkConfig};

pub use agent::Outcome;
pub use paths::{VmPaths, VmRoot};
pub use process::{HostOptions, run_machine, stand_by};

use crate::group::Position;

/// What an agent knows of where it is.
#[derive(Clone)]
pub(crate) struct Place {
    /// The machine's name.
    pub vm: String,
    /// This host's name.
    pub me: String,
    /// The machine's files.
    pub paths: VmPaths,
    /// This process's certificate.
    pub identity: Identity,
    /// How links are made.
    pub link_template: LinkConfig,
    /// Where this host listens.
    pub listen: Vec<SocketAddr>,
    /// Tells this process from others of the same host.
    pub incarnation: u64,
    /// It only votes.
    pub witness: bool,
    /// The wall clock.
    pub clock: Env,
}

/// What stands in the way of a host's part.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// A file.
    #[error("{path}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another process has the machine.
    #[error("another process on this host has the machine in {folder}; `mycelium vm status` shows it")]
    Busy {
        /// The machine's folder.
        folder: PathBuf,
    },
    /// Nobody answers at the control socket.
    #[error("nobody answers at {socket}")]
    NotRunning {
        /// The socket.
        socket: PathBuf,
    },
    /// The process said no.
    #[error("{0}")]
    Refused(String),
    /// The document is wrong.
    #[error("the machine's document is refused:\n{}", .0.iter().map(|error| format!("  {error}")).collect::<Vec<_>>().join("\n"))]
    Document(Vec<FieldError>),
    /// There is no group file.
    #[error(
        "{path} is missing: make it on one host with `mycelium vm init`, and copy it to the same place on the others"
    )]
    NoGroup {
        /// Where it should be.
        path: PathBuf,
    },
    /// There is one already.
    #[error("{path} exists already; to begin a new group, remove it first, on every host")]
    GroupExists {
        /// The file.
        path: PathBuf,
    },
    /// Neither an image nor a kernel.
    #[error(
        "the machine has nothing to boot: name an image (--disk FILE, or spec.vmSpec.storageConfig.image) or a kernel (--kernel FILE)"
    )]
    NothingToBoot,
    /// It is not known what the machine is made of.
    #[error("it is not known yet what the machine is made of")]
    NoMachine,
    /// A thread.
    #[error("a thread cannot be started")]
    Thread(#[source] io::Error),
    /// The guest's processors cannot be slowed or freed.
    #[error("the guest's processor time cannot be set")]
    Throttle(#[source] io::Error),
    /// QEMU ended.
    #[error("QEMU ended unexpectedly; its last words are in run/qemu.log of the machine's folder")]
    GuestGone,
    /// The copy ended.
    #[error("the copy of the machine is gone")]
    ReplicaGone,
    /// The copy is at another epoch than the group thinks.
    #[error("the copy is at epoch {held}, not at {wanted}")]
    ReplicaAt {
        /// Where it is.
        held: Position,
        /// Where it should be.
        wanted: Position,
    },
    /// QEMU.
    #[error(transparent)]
    Machine(#[from] crate::machine::MachineError),
    /// The machine was moved to another host.
    #[error(
        "{vm} was moved from this host to {primary}: `mycelium vm backup` here and `mycelium vm migrate {vm} --to` there \
         bring it back; what {} holds of it is for that", .folder.display()
    )]
    Moved {
        /// The machine.
        vm: String,
        /// Where it went.
        primary: String,
        /// What is left of it here.
        folder: PathBuf,
    },
    /// The disk.
    #[error(transparent)]
    Disk(#[from] crate::disk::DiskError),
    /// The network card.
    #[error(transparent)]
    Nic(#[from] crate::egress::NicError),
    /// The way to other hosts.
    #[error(transparent)]
    Link(#[from] mycelium_rhizomorph::Error),
    /// An image or a kernel.
    #[error(transparent)]
    Image(#[from] crate::spec::ImageError),
}

/// Makes the file that says which hosts belong together.
///
/// # Errors
/// [`HostError::GroupExists`], or that it cannot be written.
pub fn init_group(root: &VmRoot) -> Result<PathBuf, HostError> {
    let path = root.group_file();
    let at = |source| HostError::File { path: path.clone(), source };
    root.make().map_err(at)?;
    if path.exists() {
        return Err(HostError::GroupExists { path });
    }
    let group = Group::create()?;
    paths::write_whole(&path, group.to_pem().as_bytes()).map_err(at)?;
    Ok(path)
}

/// This process's certificate, by the group file.
fn identity(path: &Path, name: &str) -> Result<Identity, HostError> {
    let path = path.to_owned();
    let pem = match std::fs::read_to_string(&path) {
        Ok(pem) => pem,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(HostError::NoGroup { path }),
        Err(source) => return Err(HostError::File { path, source }),
    };
    Ok(Identity::from_group_pem(&pem, name)?)
}

/// The addresses of a host as given on a command line: `10.0.0.2:7400`, or a name with a port.
///
/// # Errors
/// A sentence with what was found and what is expected.
pub fn addresses(text: &str) -> Result<Vec<SocketAddr>, String> {
    let mut all = Vec::new();
    for one in text.split(',') {
        let found = one.to_socket_addrs().map_err(|error| {
            format!("{one:?} is no address of a host ({error}): expected ADDRESS:PORT, for instance 10.0.0.2:7400")
        })?;
        all.extend(found);
    }
    Ok(all)
}

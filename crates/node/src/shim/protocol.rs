//! What the engine and a shim say to each other, and the files they leave for each other.
//!
//! A message is a little-endian `u32` length and that many bytes of JSON; descriptors travel with its first byte.
//! Every connection carries one request and its replies: `Watch` is answered with a [`Snapshot`] at once and after
//! every change, `Exec` with [`Reply::Started`] and later [`Reply::Exited`], everything else with one reply.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Name of the control socket in a pod's folder.
pub const SOCKET: &str = "control.sock";
/// Name of the file that describes the sandbox to its shim, and the pod to the next engine.
pub const SANDBOX: &str = "sandbox.json";
/// Name of the file with the shim's process id.
pub const PID: &str = "shim.pid";
/// Name of a container's state file in its bundle folder.
pub const STATE: &str = "state.json";
/// The folder of container bundles in a pod's folder.
pub const CONTAINERS: &str = "containers";
/// The folder of the shim's memory file system in a pod's folder: secrets and tokens never touch the disk.
pub const MEMORY: &str = "memory";
/// The folder of the pod's shared memory.
pub const SHM: &str = "shm";
/// The folder, in a container's bundle, of its view of control groups of version 1.
pub const CGROUPS: &str = "cgroups";
/// A message longer than this is refused.
pub const MESSAGE_BYTES_MAX: usize = 4 << 20;

/// The pod's sandbox: what its containers share.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Sandbox {
    /// The pod's unique id.
    pub uid: String,
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub name: String,
    /// Host name inside.
    pub hostname: String,
    /// Use the machine's network.
    pub host_network: bool,
    /// The network that the shim is started in is its node's own: it keeps it alive, and the node has a host name.
    pub node_network: bool,
    /// Use the machine's System V IPC and POSIX message queues.
    pub host_ipc: bool,
    /// See the machine's processes.
    pub host_pid: bool,
    /// One process namespace for all containers.
    pub share_process_namespace: bool,
    /// Kernel parameters of the pod's namespaces.
    pub sysctls: Vec<(String, String)>,
    /// Memory file systems for `emptyDir` volumes: folder and size in bytes (0: half the machine's memory).
    pub memory_volumes: Vec<(PathBuf, u64)>,
    /// The pod's cgroup, a path from the root of each hierarchy.
    pub cgroup: String,
    /// How many times this pod got a new sandbox.
    pub attempt: u32,
    /// When the sandbox was made, RFC 3339.
    pub created_at: String,
    /// The pod's addresses, once it has them (written by the engine).
    pub ips: Vec<String>,
}

/// How a container's root file system comes about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Root {
    /// An overlay over these folders (topmost first), with its changes in the bundle.
    Overlay(Vec<PathBuf>),
    /// This folder itself.
    Folder(PathBuf),
}

/// A container to be made from the bundle `containers/<id>`, whose `config.json` the engine has written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Create {
    /// The container's id.
    pub id: String,
    /// Its root file system.
    pub root: Root,
    /// Its log file.
    pub log: PathBuf,
    /// A terminal instead of pipes.
    pub tty: bool,
    /// Keep standard input open for those who attach.
    pub stdin: bool,
    /// Close standard input after the first who attached has left.
    pub stdin_once: bool,
    /// How eagerly the kernel kills it when memory runs out.
    pub oom_score_adj: i32,
    /// It may change its own control groups.
    pub cgroups_writable: bool,
}

/// A program to be run inside a running container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exec {
    /// The container's id.
    pub id: String,
    /// Program and arguments.
    pub args: Vec<String>,
    /// Give it a terminal, whose other end is in the first reply.
    pub tty: bool,
    /// Which of standard input, output and error travel with the request, in this order. Without a terminal only.
    pub stdio: [bool; 3],
}

/// What the engine asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Tell the state now and after every change.
    Watch,
    /// Make a container, ready to start.
    Create(Create),
    /// Start a container that was made.
    Start {
        /// The container's id.
        id: String,
    },
    /// Send a signal to a container's first process; `SIGKILL` goes to all of them.
    Signal {
        /// The container's id.
        id: String,
        /// Number of the signal.
        signal: i32,
    },
    /// Forget a container that has exited, and unmount its root.
    Remove {
        /// The container's id.
        id: String,
    },
    /// Run a program in a container.
    Exec(Exec),
    /// Copy output from now on to the descriptors that travel along (standard output, then error).
    /// The reply carries the writing end of standard input if there is one, or the terminal.
    Attach {
        /// The container's id.
        id: String,
        /// Whether input is wanted.
        stdin: bool,
    },
    /// The one who attached has left.
    Detached {
        /// The container's id.
        id: String,
    },
    /// Kill everything, unmount, and leave.
    Shutdown,
}

/// What a shim answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// To `Watch`.
    Snapshot(Snapshot),
    /// It is done.
    Done,
    /// The program runs.
    Started,
    /// The program has ended with this code (128 plus the signal's number if a signal ended it).
    Exited(i32),
    /// It could not be done.
    Failed(String),
}

/// A sandbox and its containers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// The shim's process id, as the engine sees it.
    pub pid: i32,
    /// Its containers, in the order in which they were made.
    pub containers: Vec<ContainerState>,
}

/// Where a container is in its life: made, running, ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ContainerState {
    /// Its id.
    pub id: String,
    /// Its first process, while it lives.
    pub pid: i32,
    /// When it started, RFC 3339 with nanoseconds; empty before.
    pub started_at: String,
    /// When it ended; empty before.
    pub finished_at: String,
    /// Its exit code: 128 plus the signal's number if a signal ended it.
    pub exit_code: i32,
    /// The signal that ended it, or 0.
    pub signal: i32,
    /// Whether the kernel killed one of its processes for want of memory.
    pub oom_killed: bool,
}

impl ContainerState {
    /// Whether it has ended.
    pub fn exited(&self) -> bool {
        !self.finished_at.is_empty()
    }

    /// Whether it runs.
    pub fn running(&self) -> bool {
        !self.started_at.is_empty() && !self.exited()
    }
}

//! One QEMU process: its start, its life, its end.

use std::fs::{DirBuilder, File};
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt as _;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, ExitStatus, Stdio};
use std::time::Duration;

use bytes::Bytes;
use mycelium_linux::{bound, process, scheduling};
use serde_json::{Value, json};

use super::config::{Launch, MachineConfig};
use super::error::{MachineError, Result};
use super::memory::GuestMemory;
use super::qmp::Qmp;
use super::state_file::StateFile;
use super::{host, shortfalls};

/// How long a guest's devices may take to load.
const MIGRATION_LIMIT: Duration = Duration::from_secs(20);

/// How a machine starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// The guest boots.
    Running,
    /// QEMU waits, warm, for a checkpoint: memory is filled from outside, then [`Machine::load_devices`], then [`Machine::cont`].
    Paused,
}

/// The command that saves devices and nothing else. Neither Xen nor a migration is needed for it.
pub(super) const SAVE_COMMAND: &str = "xen-save-devices-state";

/// How devices are saved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Save {
    /// By [`SAVE_COMMAND`].
    Command,
    /// By a migration without RAM.
    Migration,
}

/// One QEMU. It dies with this process, and when this is dropped.
#[derive(Debug)]
pub struct Machine {
    pub(super) qmp: Qmp,
    pub(super) state: StateFile,
    pub(super) memory: GuestMemory,
    pub(super) userfault: Option<OwnedFd>,
    pub(super) save: Save,
    child: Child,
    config: MachineConfig,
    version: String,
    kvm: bool,
    /// Where QEMU waits for the devices' state.
    loading: Option<UnixStream>,
}

impl Machine {
    /// Starts QEMU with new, empty memory.
    pub fn start(config: &MachineConfig, start: Start) -> Result<Machine> {
        Machine::start_with(config, start, &config.memory()?)
    }

    /// Starts QEMU with existing memory, such as a backup's copy.
    pub fn start_with(config: &MachineConfig, start: Start, memory: &GuestMemory) -> Result<Machine> {
        config.validate()?;
        if memory.len() != config.memory_bytes {
            return Err(MachineError::Config {
                field: "memory",
                reason: format!("{} bytes are there, {} are asked for", memory.len(), config.memory_bytes),
            });
        }
        let program = host::qemu()?;
        let kvm = host::use_kvm(config.accel)?;
        for shortfall in shortfalls(config) {
            tracing::warn!(machine = config.name, "{shortfall}");
        }
        make_folder(config)?;
        let (ours, theirs) = UnixStream::pair().map_err(MachineError::system("making a socket for QEMU"))?;
        let path = PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), memory.file().as_raw_fd()));
        let incoming = start == Start::Paused;
        let launch = Launch { qmp: theirs.as_raw_fd(), memory: &path, huge: memory.is_huge(), kvm, incoming };
        let mut command = process::command(program);
        // What a terminal sends to its foreground group is for us: we ask the guest first.
        command.process_group(0);
        command.args(config.arguments(launch)).stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(messages(config)?);
        let (child, userfault) = bound::spawn_with_userfault(command, vec![theirs.into()])
            .map_err(MachineError::system("starting QEMU with its writes tracked"))?;
        let guard = KillOnDrop(Some(child));
        // One that is too old does not know the board, and ends before it says what it is.
        let (qmp, version) = Qmp::handshake(ours, config.messages())
            .map_err(|error| if error.is_gone() { host::too_old().unwrap_or(error) } else { error })?;
        let state = StateFile::new()?;
        let mut machine = Machine {
            qmp,
            state,
            memory: memory.clone(),
            userfault: Some(userfault),
            save: Save::Command,
            child: guard.release(),
            config: config.clone(),
            version,
            kvm,
            loading: None,
        };
        machine.settle_threads();
        machine.prepare_state()?;
        Ok(machine)
    }

    /// Both sides of a migration tell how it goes, and leave out RAM that is shared. Chooses how devices are saved.
    fn prepare_state(&mut self) -> Result<()> {
        let on = |capability| json!({ "capability": capability, "state": true });
        let capabilities = json!({ "capabilities": [on("events"), on("x-ignore-shared")] });
        self.qmp.execute("migrate-set-capabilities", capabilities)?;
        let commands = self.qmp.execute("query-commands", Value::Null)?;
        let has = |name| commands.as_array().is_some_and(|all| all.iter().any(|command| command["name"] == name));
        if !has(SAVE_COMMAND) {
            self.save_by_migration();
        }
        Ok(())
    }

    /// Saves devices by a migration to a socket from now on, as is done by itself where QEMU has no command for it. Slower.
    pub fn save_by_migration(&mut self) {
        self.save = Save::Migration;
    }

    /// QEMU's main thread does little and is on the path of every pause: it goes first. Neither is needed for running.
    fn settle_threads(&mut self) {
        if let Err(error) = scheduling::nice(self.pid(), -20) {
            tracing::debug!(%error, "QEMU's main thread keeps its ordinary priority");
        }
        if !self.config.cpu_pinning {
            return;
        }
        let Ok(processors) = scheduling::processors() else { return };
        if processors.len() <= self.config.cpus as usize {
            return;
        }
        let threads = self.vcpu_threads().unwrap_or_default();
        // The first processors are left to everything else.
        for (thread, processor) in threads.iter().zip(processors.iter().rev()) {
            if let Err(error) = scheduling::pin(*thread, *processor) {
                tracing::warn!(%error, "a virtual processor is not pinned");
            }
        }
    }

    /// The guest goes on.
    pub fn cont(&mut self) -> Result<()> {
        self.qmp.execute("cont", Value::Null).map(drop)
    }

    /// The guest stops; its block I/O is finished when this returns.
    pub fn stop(&mut self) -> Result<()> {
        self.qmp.execute("stop", Value::Null).map(drop)
    }

    /// The state of the devices and processors of the stopped guest.
    pub fn save_devices(&mut self) -> Result<Bytes> {
        if self.save == Save::Migration {
            return self.migrate_devices();
        }
        self.qmp.execute(SAVE_COMMAND, self.state.arguments())?;
        self.state.take()
    }

    fn migrate_devices(&mut self) -> Result<Bytes> {
        let (mut ours, theirs) = UnixStream::pair().map_err(MachineError::system("making a socket for QEMU"))?;
        self.qmp.give("state", theirs.as_fd())?;
        drop(theirs);
        std::thread::scope(|scope| {
            let reader = scope.spawn(move || {
                let mut state = Vec::new();
                ours.read_to_end(&mut state).map(|_| state)
            });
            self.qmp.execute("migrate", json!({ "uri": "fd:state" }))?;
            self.migrated("migrate")?;
            let state = reader.join().unwrap_or_else(|_| Err(std::io::Error::other("its reader died")));
            Ok(Bytes::from(state.map_err(MachineError::system("reading the devices' state"))?))
        })
    }

    /// Waits for the end of a migration.
    fn migrated(&mut self, command: &str) -> Result<()> {
        let done = |data: &Value| matches!(data["status"].as_str(), Some("completed" | "failed"));
        let event = self.qmp.wait_event("MIGRATION", MIGRATION_LIMIT, done)?;
        if event.data["status"] == "completed" {
            return Ok(());
        }
        let reason = "the state does not fit this machine".to_owned();
        Err(MachineError::Refused { command: command.to_owned(), reason })
    }

    /// Has a machine that was started [`Start::Paused`] wait for the state of devices: what can be done before it is known, is.
    pub fn await_devices(&mut self) -> Result<()> {
        if self.loading.is_some() {
            return Ok(());
        }
        let (ours, theirs) = UnixStream::pair().map_err(MachineError::system("making a socket for QEMU"))?;
        self.qmp.give("checkpoint", theirs.as_fd())?;
        self.qmp.execute("migrate-incoming", json!({ "uri": "fd:checkpoint" }))?;
        self.loading = Some(ours);
        Ok(())
    }

    /// Gives a machine that was started [`Start::Paused`] the state of devices and processors. The memory must already hold what
    /// belongs to it: devices look at their queues in memory while they load. The guest stays paused.
    pub fn load_devices(&mut self, devices: &[u8]) -> Result<()> {
        self.await_devices()?;
        let Some(mut ours) = self.loading.take() else { return Ok(()) };
        std::thread::scope(|scope| {
            let writer = scope.spawn(move || ours.write_all(devices));
            let outcome = self.migrated("migrate-incoming");
            // An early failure of QEMU's side shows as its own error; the writer's broken pipe says less.
            let _ = writer.join();
            outcome
        })
    }

    /// Presses the power button.
    pub fn powerdown(&mut self) -> Result<()> {
        self.qmp.execute("system_powerdown", Value::Null).map(drop)
    }

    /// Waits until the guest has switched itself off, or `limit` has passed; says which.
    pub fn wait_shutdown(&mut self, limit: Duration) -> Result<bool> {
        match self.qmp.wait_event("SHUTDOWN", limit, |_| true) {
            Ok(_) => Ok(true),
            Err(MachineError::Gone { .. }) => Ok(true),
            Err(MachineError::Timeout { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Ends QEMU, as pulling the plug would.
    pub fn quit(mut self) -> Result<ExitStatus> {
        let asked = self.qmp.execute("quit", Value::Null);
        if asked.is_err() {
            let _ = self.child.kill();
        }
        self.child.wait().map_err(MachineError::system("waiting for QEMU's end"))
    }

    /// Whether QEMU has ended, and how.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// QEMU's state in its own word, such as `running` or `paused`.
    pub fn status(&mut self) -> Result<String> {
        let status = self.qmp.execute("query-status", Value::Null)?;
        status["status"]
            .as_str()
            .map(str::to_owned)
            .ok_or_else(|| MachineError::Protocol { during: "query-status".to_owned() })
    }

    /// The threads of the virtual processors.
    pub fn vcpu_threads(&mut self) -> Result<Vec<u32>> {
        let processors = self.qmp.execute("query-cpus-fast", Value::Null)?;
        let threads = processors.as_array().into_iter().flatten();
        Ok(threads.filter_map(|cpu| u32::try_from(cpu["thread-id"].as_u64()?).ok()).collect())
    }

    /// The threads that our commands pass through: the one that reads them, and the one that carries them out.
    pub(super) fn command_threads(&self) -> Vec<u32> {
        let named = |thread: u32| {
            let name = std::fs::read_to_string(format!("/proc/{}/task/{thread}/comm", self.pid())).unwrap_or_default();
            name.contains("mon_iothread")
        };
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.pid())).into_iter().flatten().flatten();
        let threads = tasks.filter_map(|task| task.file_name().to_str()?.parse().ok());
        threads.filter(|thread| *thread == self.pid() || named(*thread)).collect()
    }

    /// QEMU's process, whose number is also that of its main thread.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The guest's RAM.
    pub fn memory(&self) -> &GuestMemory {
        &self.memory
    }

    /// What it was started with.
    pub fn config(&self) -> &MachineConfig {
        &self.config
    }

    /// QEMU's version.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Whether KVM runs it.
    pub fn kvm(&self) -> bool {
        self.kvm
    }

    /// The unix socket of the serial console.
    pub fn console(&self) -> PathBuf {
        self.config.console()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_file(self.config.console());
    }
}

/// A child that is not yet part of a machine.
struct KillOnDrop(Option<Child>);

impl KillOnDrop {
    fn release(mut self) -> Child {
        self.0.take().expect("it is taken only here, by value")
    }
}

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn make_folder(config: &MachineConfig) -> Result<()> {
    let folder = &config.run_dir;
    DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(MachineError::file("creating", folder))?;
    match std::fs::remove_file(config.console()) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(MachineError::file("removing the old", config.console())(error))
        }
        _ => Ok(()),
    }
}

fn messages(config: &MachineConfig) -> Result<File> {
    File::create(config.messages()).map_err(MachineError::file("creating", config.messages()))
}

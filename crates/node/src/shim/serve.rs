//! The shim's poll loop.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use mycelium_linux::cgroup::Hierarchies;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use rustix::event::{PollFd, PollFlags, poll};

use super::container::Container;
use super::log::Stream;
use super::protocol::{PID, Reply, Request, SANDBOX, Sandbox, Snapshot};
use super::sandbox;
use super::wire::{Received, Receiver, encode, send_some};

type Error = Box<dyn std::error::Error>;

/// Files that a container's processes may have open, unless the machine's limit is lower.
const OPEN_FILES_MAX: u64 = 1 << 20;

/// Makes the sandbox and serves until told to shut down.
pub fn run(dir: &Path) -> Result<(), Error> {
    let listener = take_listener()?;
    // Already a session leader when started from a shell by hand; then there is nothing to do.
    let _ = rustix::process::setsid();
    nix::sys::prctl::set_child_subreaper(true)?;
    nix::sys::prctl::set_name(c"mycelium-shim")?;
    std::env::set_current_dir(dir)?;
    fs::write(dir.join(PID), std::process::id().to_string())?;
    let mut blocked = SigSet::empty();
    for signal in [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        blocked.add(signal);
    }
    blocked.thread_block()?;
    let signals = SignalFd::with_flags(&blocked, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
    let sandbox: Sandbox = serde_json::from_slice(&fs::read(dir.join(SANDBOX))?)?;
    prepare(&sandbox);
    let node_network = sandbox.node_network.then(|| File::open("/proc/thread-self/ns/net")).transpose()?;
    let pause = sandbox::make(dir, &sandbox)?;
    fs::write(dir.join("pause"), pause.unwrap_or_default().to_string())?;
    let mut shim = Shim { dir: dir.to_owned(), sandbox, pause, _node_network: node_network, ..Shim::default() };
    mycelium_linux::memory::trim();
    while !shim.finished {
        shim.turn(&listener, &signals)?;
    }
    Ok(())
}

/// What containers inherit, and what must not end with the engine. None of it is worth failing for.
fn prepare(sandbox: &Sandbox) {
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    let files = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let current = files.maximum.map(|max| max.min(OPEN_FILES_MAX)).or(Some(OPEN_FILES_MAX));
    let raised = rustix::process::Rlimit { current, maximum: files.maximum };
    let _ = rustix::process::setrlimit(rustix::process::Resource::Nofile, raised);
    let root = sandbox.cgroup.trim_start_matches('/').split('/').next().unwrap_or_default();
    let membership = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    if let Err(error) = Hierarchies::get().leave_service(&membership, &format!("/{root}/shims")) {
        eprintln!("cannot leave the group of the engine's service: {error}");
    }
}

/// Standard input is the listening socket; everything started from here gets `/dev/null` instead.
fn take_listener() -> io::Result<UnixListener> {
    let listener = rustix::io::fcntl_dupfd_cloexec(io::stdin(), 3)?;
    let null = OpenOptions::new().read(true).write(true).open("/dev/null")?;
    nix::unistd::dup2_stdin(&null)?;
    let listener = UnixListener::from(listener);
    listener.set_nonblocking(true)?;
    Ok(listener)
}

#[derive(Default)]
struct Connection {
    socket: Option<UnixStream>,
    receiver: Receiver,
    watching: bool,
}

/// What a descriptor in the poll set belongs to.
#[derive(Clone, Copy)]
enum Source {
    Listener,
    Signals,
    Connection(u64),
    Output(usize, Stream),
}

#[derive(Default)]
struct Shim {
    dir: PathBuf,
    sandbox: Sandbox,
    pause: Option<i32>,
    /// Held for the node: its network lives as long as one of its pods, and the next engine finds it here.
    _node_network: Option<File>,
    containers: Vec<Container>,
    connections: BTreeMap<u64, Connection>,
    /// Programs run by `Exec`: process id to the connection that waits for the exit code.
    execs: BTreeMap<i32, u64>,
    next_connection: u64,
    changed: bool,
    finished: bool,
}

impl Shim {
    fn turn(&mut self, listener: &UnixListener, signals: &SignalFd) -> Result<(), Error> {
        for source in self.wait(listener, signals)? {
            match source {
                Source::Listener => self.accept(listener),
                Source::Signals => while let Ok(Some(_)) = signals.read_signal() {},
                Source::Connection(id) => self.read(id),
                Source::Output(index, stream) => {
                    if let Some(container) = self.containers.get_mut(index) {
                        container.pump(stream);
                    }
                }
            }
        }
        self.reap();
        if std::mem::take(&mut self.changed) {
            self.notify();
        }
        Ok(())
    }

    fn wait(&self, listener: &UnixListener, signals: &SignalFd) -> Result<Vec<Source>, Error> {
        let mut sources = vec![Source::Signals, Source::Listener];
        let mut fds = vec![PollFd::new(signals, PollFlags::IN), PollFd::new(listener, PollFlags::IN)];
        for (id, connection) in &self.connections {
            if let Some(socket) = &connection.socket {
                sources.push(Source::Connection(*id));
                fds.push(PollFd::new(socket, PollFlags::IN));
            }
        }
        for (index, container) in self.containers.iter().enumerate() {
            for (stream, fd) in [(Stream::Stdout, &container.stdout), (Stream::Stderr, &container.stderr)] {
                if let Some(fd) = fd {
                    sources.push(Source::Output(index, stream));
                    fds.push(PollFd::new(fd, PollFlags::IN));
                }
            }
        }
        match poll(&mut fds, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let ready = fds.iter().zip(sources).filter(|(fd, _)| !fd.revents().is_empty()).map(|(_, source)| source);
        Ok(ready.collect())
    }

    fn accept(&mut self, listener: &UnixListener) {
        while let Ok((socket, _)) = listener.accept() {
            if socket.set_nonblocking(true).is_ok() {
                let connection = Connection { socket: Some(socket), ..Connection::default() };
                self.connections.insert(self.next_connection, connection);
                self.next_connection += 1;
            }
        }
    }

    fn read(&mut self, id: u64) {
        let mut requests = Vec::new();
        let mut alive = true;
        if let Some(connection) = self.connections.get_mut(&id) {
            let Connection { socket: Some(socket), receiver, .. } = connection else { return };
            match receiver.fill(&*socket) {
                Ok(Received::Bytes) => loop {
                    match receiver.take::<Request>() {
                        Ok(Some(request)) => requests.push(request),
                        Ok(None) => break,
                        Err(_) => {
                            alive = false;
                            break;
                        }
                    }
                },
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Ok(Received::End) | Err(_) => alive = false,
            }
        }
        for (request, fds) in requests {
            self.answer(id, request, fds);
        }
        if !alive {
            self.connections.remove(&id);
        }
    }

    fn answer(&mut self, id: u64, request: Request, fds: Vec<OwnedFd>) {
        let result = self.perform(id, request, fds);
        let (reply, fd) = match result {
            Ok(answer) => answer,
            Err(error) => (Reply::Failed(error.to_string()), None),
        };
        self.send(id, &reply, fd.as_ref().map(OwnedFd::as_fd));
    }

    fn perform(&mut self, id: u64, request: Request, fds: Vec<OwnedFd>) -> Result<(Reply, Option<OwnedFd>), Error> {
        match request {
            Request::Watch => {
                if let Some(connection) = self.connections.get_mut(&id) {
                    connection.watching = true;
                }
                return Ok((Reply::Snapshot(self.snapshot()), None));
            }
            Request::Create(create) => {
                if self.containers.iter().any(|c| c.state.id == create.id) {
                    return Err("this container exists".into());
                }
                let created = Container::create(&self.dir, create);
                mycelium_linux::memory::trim();
                self.containers.push(created?);
                self.changed = true;
            }
            Request::Start { id } => {
                self.container(&id)?.start()?;
                self.changed = true;
            }
            Request::Signal { id, signal } => self.signal(&id, signal)?,
            Request::Remove { id } => {
                let Some(index) = self.containers.iter().position(|c| c.state.id == id) else {
                    return Ok((Reply::Done, None));
                };
                if !self.containers[index].state.exited() {
                    return Err("the container has not ended".into());
                }
                self.containers.remove(index).remove();
                self.changed = true;
            }
            Request::Exec(exec) => {
                let (pid, terminal) = self.container(&exec.id)?.exec(&exec, fds)?;
                self.execs.insert(pid, id);
                mycelium_linux::memory::trim();
                return Ok((Reply::Started, terminal));
            }
            Request::Attach { id, stdin } => {
                let stdin = self.container(&id)?.attach(stdin, fds)?;
                return Ok((Reply::Started, stdin));
            }
            Request::Detached { id } => self.container(&id)?.detached(),
            Request::Shutdown => self.shut_down(),
        }
        Ok((Reply::Done, None))
    }

    fn container(&mut self, id: &str) -> Result<&mut Container, Error> {
        self.containers.iter_mut().find(|c| c.state.id == id).ok_or_else(|| "no such container".into())
    }

    fn signal(&mut self, id: &str, signal: i32) -> Result<(), Error> {
        let container = self.container(id)?;
        if container.state.pid <= 0 {
            return Ok(());
        }
        // The process is our child and not yet reaped, so that its id cannot have been given to another.
        kill(Pid::from_raw(container.state.pid), Signal::try_from(signal)?)?;
        if signal == Signal::SIGKILL as i32 {
            Hierarchies::get().kill(&container.cgroup);
        }
        Ok(())
    }

    fn reap(&mut self) {
        loop {
            let (pid, code, signal) = match waitpid(None::<Pid>, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) => (pid.as_raw(), code, 0),
                Ok(WaitStatus::Signaled(pid, signal, _)) => (pid.as_raw(), 128 + signal as i32, signal as i32),
                Ok(WaitStatus::StillAlive) | Err(_) => return,
                Ok(_) => continue,
            };
            if let Some(connection) = self.execs.remove(&pid) {
                self.send(connection, &Reply::Exited(code), None);
            }
            if let Some(container) = self.containers.iter_mut().find(|c| c.state.pid == pid) {
                container.ended(code, signal);
                self.changed = true;
            }
        }
    }

    fn snapshot(&self) -> Snapshot {
        Snapshot {
            pid: std::process::id() as i32,
            containers: self.containers.iter().map(|c| c.state.clone()).collect(),
        }
    }

    fn notify(&mut self) {
        let reply = Reply::Snapshot(self.snapshot());
        let watching: Vec<u64> = self.connections.iter().filter(|(_, c)| c.watching).map(|(id, _)| *id).collect();
        for id in watching {
            self.send(id, &reply, None);
        }
    }

    /// Sends or gives the connection up: a reader that lets its socket fill up must not hold the pod.
    fn send(&mut self, id: u64, reply: &Reply, fd: Option<BorrowedFd<'_>>) {
        let Some(Connection { socket: Some(socket), .. }) = self.connections.get(&id) else { return };
        let fds: Vec<BorrowedFd<'_>> = fd.into_iter().collect();
        let sent = encode(reply).and_then(|bytes| {
            let sent = send_some(socket, &bytes, &fds)?;
            if sent == bytes.len() { Ok(()) } else { Err(io::ErrorKind::WouldBlock.into()) }
        });
        if sent.is_err() {
            self.connections.remove(&id);
        }
    }

    fn shut_down(&mut self) {
        let groups = Hierarchies::get();
        groups.kill(&self.sandbox.cgroup);
        for container in &self.containers {
            if container.state.pid > 0 {
                let _ = kill(Pid::from_raw(container.state.pid), Signal::SIGKILL);
            }
        }
        if let Some(pause) = self.pause {
            let _ = kill(Pid::from_raw(pause), Signal::SIGKILL);
        }
        for _ in 0..100 {
            self.reap();
            match waitpid(None::<Pid>, Some(WaitPidFlag::WNOHANG)) {
                Err(nix::Error::ECHILD) => break,
                _ => std::thread::sleep(Duration::from_millis(2)),
            }
        }
        for container in &self.containers {
            container.remove();
        }
        let _ = groups.remove(&self.sandbox.cgroup);
        self.finished = true;
    }
}

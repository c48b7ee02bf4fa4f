//! The engine's end of a shim's control socket.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;

use tokio::io::Interest;
use tokio::net::UnixStream;

use crate::shim::protocol::{Reply, Request, SANDBOX, SOCKET, Sandbox, Snapshot};
use crate::shim::wire::{Received, Receiver, encode, send_some};
use crate::shim::{connect, listen};

/// Why a shim did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum ShimError {
    /// The connection failed: the shim is gone or going.
    #[error("the pod's shim does not answer")]
    Gone(#[from] io::Error),
    /// The shim could not do it.
    #[error("{0}")]
    Refused(String),
    /// The shim could not be started.
    #[error("the pod's shim did not start: {0}")]
    Start(String),
}

/// How a shim is started: a program and the arguments that come before the pod's folder.
pub type ShimCommand = Arc<[std::ffi::OsString]>;

/// A pod's shim.
#[derive(Clone, Debug)]
pub struct Shim {
    dir: PathBuf,
}

impl Shim {
    /// The shim of the pod whose folder is `dir`, which may or may not be there.
    pub fn at(dir: &Path) -> Self {
        Self { dir: dir.to_owned() }
    }

    /// Starts the shim of a pod; its folder need not exist.
    pub async fn start(dir: &Path, sandbox: &Sandbox, command: &ShimCommand) -> Result<(Self, Watch), ShimError> {
        Self::start_in(None, dir, sandbox, command).await
    }

    /// Starts the shim of a pod in a network namespace that is not this process's.
    pub async fn start_in(
        network: Option<Arc<OwnedFd>>,
        dir: &Path,
        sandbox: &Sandbox,
        command: &ShimCommand,
    ) -> Result<(Self, Watch), ShimError> {
        let failed = |error: &dyn std::fmt::Display| ShimError::Start(error.to_string());
        std::fs::create_dir_all(dir)?;
        std::fs::write(dir.join(SANDBOX), serde_json::to_vec(sandbox).map_err(io::Error::from)?)?;
        let socket = dir.join(SOCKET);
        let _ = std::fs::remove_file(&socket);
        let listener = listen(&socket)?;
        let log = OpenOptions::new().create(true).append(true).open(dir.join("shim.log"))?;
        let Some((program, arguments)) = command.split_first() else { return Err(failed(&"no command is configured")) };
        let mut process = mycelium_linux::process::command(program);
        process.args(arguments).arg(dir).stdin(Stdio::from(OwnedFd::from(listener)));
        process.stdout(Stdio::from(log.try_clone()?)).stderr(Stdio::from(log));
        if let Some(network) = network {
            mycelium_linux::process::enter_network(&mut process, network);
        }
        let mut child = tokio::process::Command::from(process).spawn().map_err(|e| failed(&e))?;
        let shim = Self::at(dir);
        // The kernel accepts on the socket from now on; the shim answers when the sandbox is made.
        match shim.watch().await {
            Ok(watch) => {
                // Reaped here while this engine lives, and by init after.
                tokio::spawn(async move { child.wait().await });
                Ok((shim, watch))
            }
            Err(error) => {
                let _ = child.wait().await;
                let log = std::fs::read_to_string(dir.join("shim.log")).unwrap_or_default();
                Err(failed(&log.lines().last().map_or_else(|| error.to_string(), str::to_owned)))
            }
        }
    }

    /// Follows the shim's state. The first snapshot is there when this returns.
    pub async fn watch(&self) -> Result<Watch, ShimError> {
        let mut connection = Connection::open(&self.dir)?;
        connection.send(&Request::Watch, &[]).await?;
        let mut watch = Watch { connection, first: None };
        watch.first = Some(watch.receive().await?);
        Ok(watch)
    }

    /// Asks for something that has one answer.
    pub async fn ask(&self, request: &Request) -> Result<(), ShimError> {
        self.ask_with(request, &[]).await.map(drop)
    }

    /// Asks with descriptors; returns those that come back. The connection stays for what follows.
    pub async fn ask_with(
        &self,
        request: &Request,
        fds: &[BorrowedFd<'_>],
    ) -> Result<(Connection, Vec<OwnedFd>), ShimError> {
        let mut connection = Connection::open(&self.dir)?;
        connection.send(request, fds).await?;
        match connection.receive().await? {
            (Reply::Failed(message), _) => Err(ShimError::Refused(message)),
            (_, fds) => Ok((connection, fds)),
        }
    }

    /// The way into the shim's view of the file system, where the pod's memory file systems are.
    pub fn inside(&self, pid: i32, path: &Path) -> PathBuf {
        PathBuf::from(format!("/proc/{pid}/root")).join(path.strip_prefix("/").unwrap_or(path))
    }
}

/// A connection to a shim.
pub struct Connection {
    socket: UnixStream,
    receiver: Receiver,
}

impl Connection {
    fn open(dir: &Path) -> io::Result<Self> {
        let socket = connect(&dir.join(SOCKET))?;
        socket.set_nonblocking(true)?;
        Ok(Self { socket: UnixStream::from_std(socket)?, receiver: Receiver::default() })
    }

    async fn send(&mut self, request: &Request, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let bytes = encode(request)?;
        let mut sent = 0;
        while sent < bytes.len() {
            let fds = if sent == 0 { fds } else { &[] };
            let socket = &self.socket;
            sent += socket.async_io(Interest::WRITABLE, || send_some(socket.as_fd(), &bytes[sent..], fds)).await?;
        }
        Ok(())
    }

    /// The next message.
    pub async fn receive(&mut self) -> io::Result<(Reply, Vec<OwnedFd>)> {
        loop {
            if let Some(message) = self.receiver.take()? {
                return Ok(message);
            }
            let (socket, receiver) = (&self.socket, &mut self.receiver);
            if socket.async_io(Interest::READABLE, || receiver.fill(socket.as_fd())).await? == Received::End {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }
}

/// A shim's state as it changes.
pub struct Watch {
    connection: Connection,
    first: Option<Snapshot>,
}

impl Watch {
    /// The first state, which stays to be taken by [`Watch::next`].
    pub async fn peek(&mut self) -> io::Result<Snapshot> {
        let snapshot = self.next().await?;
        self.first = Some(snapshot.clone());
        Ok(snapshot)
    }

    /// The next state. An error means that the shim is gone.
    pub async fn next(&mut self) -> io::Result<Snapshot> {
        match self.first.take() {
            Some(snapshot) => Ok(snapshot),
            None => self.receive().await,
        }
    }

    async fn receive(&mut self) -> io::Result<Snapshot> {
        loop {
            if let (Reply::Snapshot(snapshot), _) = self.connection.receive().await? {
                return Ok(snapshot);
            }
        }
    }
}

/// A pipe whose ends are both ours: the first is read, the second written.
pub fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?)
}

/// Opens `path` for reading, for descriptors that go to a shim.
pub fn open(path: &Path) -> io::Result<OwnedFd> {
    File::open(path).map(OwnedFd::from)
}

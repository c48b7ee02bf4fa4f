//! Accepting connections, and ending them.

use std::io;
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{Builder, JoinHandle};

use super::connection::Connection;
use super::pool::Pool;
use crate::disk::Disk;
use crate::disk::error::{IoContext, Result};

/// More connections at once are refused.
const CONNECTIONS_MAX: usize = 16;

/// Serves one disk until it is dropped.
pub struct BlockServer {
    socket: PathBuf,
    listener: Arc<UnixListener>,
    connections: Connections,
    accepting: Option<JoinHandle<()>>,
}

/// The open connections' streams, for hanging up, and their threads.
type Connections = Arc<Mutex<Vec<(UnixStream, JoinHandle<()>)>>>;

impl BlockServer {
    /// Listens on a new socket at `socket`; one that a dead process left there is replaced.
    pub(in crate::disk) fn start(disk: Disk, socket: &Path) -> Result<Self> {
        match std::fs::remove_file(socket) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error).on("replace", socket)?,
            _ => {}
        }
        let listener = Arc::new(UnixListener::bind(socket).on("listen on", socket)?);
        let pool = Arc::new(Pool::start().on("start threads for", socket)?);
        let connections = Connections::default();
        let (listens, tracks) = (Arc::clone(&listener), Arc::clone(&connections));
        let accepting = Builder::new()
            .name("disk-accept".into())
            .spawn(move || accept(&listens, &tracks, &disk, &pool))
            .on("start a thread for", socket)?;
        Ok(Self { socket: socket.to_owned(), listener, connections, accepting: Some(accepting) })
    }

    /// Where it listens.
    pub fn socket(&self) -> &Path {
        &self.socket
    }
}

impl Drop for BlockServer {
    fn drop(&mut self) {
        let _ = rustix::net::shutdown(&*self.listener, rustix::net::Shutdown::Both);
        if let Some(accepting) = self.accepting.take() {
            let _ = accepting.join();
        }
        let connections = std::mem::take(&mut *self.connections.lock().unwrap_or_else(PoisonError::into_inner));
        for (stream, thread) in connections {
            let _ = stream.shutdown(Shutdown::Both);
            let _ = thread.join();
        }
        let _ = std::fs::remove_file(&self.socket);
    }
}

impl std::fmt::Debug for BlockServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "BlockServer({})", self.socket.display())
    }
}

fn accept(listener: &UnixListener, connections: &Connections, disk: &Disk, pool: &Arc<Pool>) {
    while let Ok((stream, _)) = listener.accept() {
        let mut open = connections.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|(_, thread)| !thread.is_finished());
        if open.len() >= CONNECTIONS_MAX {
            tracing::warn!("the disk's block server refuses a connection: {CONNECTIONS_MAX} are open");
            continue;
        }
        match spawn(stream, disk, pool) {
            Ok(connection) => open.push(connection),
            Err(error) => tracing::warn!(%error, "the disk's block server cannot serve a connection"),
        }
    }
}

fn spawn(stream: UnixStream, disk: &Disk, pool: &Arc<Pool>) -> io::Result<(UnixStream, JoinHandle<()>)> {
    let handle = stream.try_clone()?;
    let connection = Connection::new(stream, disk.clone(), Arc::clone(pool))?;
    let serve = move || {
        if let Err(error) = connection.serve() {
            tracing::warn!(%error, "a client of the disk was hung up on");
        }
    };
    Ok((handle, Builder::new().name("disk-nbd".into()).spawn(serve)?))
}

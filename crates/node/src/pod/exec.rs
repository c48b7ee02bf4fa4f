//! Running a command in a container and waiting for it: for probes and hooks.

use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe::Receiver;

use crate::client::{Shim, ShimError, pipe};
use crate::shim::protocol::{Exec, Reply, Request};

/// What is kept of a command's output.
const OUTPUT_BYTES_MAX: usize = 10 << 10;

/// How a command ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Its exit code.
    pub code: i32,
    /// What it wrote, as far as it is kept.
    pub output: String,
}

/// Why a command has no outcome.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// It could not be run.
    #[error(transparent)]
    Shim(#[from] ShimError),
    /// Its output could not be read.
    #[error("cannot read the command's output")]
    Output(#[from] io::Error),
    /// It took too long.
    #[error("command timed out: \"{command}\" timed out after {secs}s")]
    Timeout {
        /// The command.
        command: String,
        /// The limit.
        secs: u64,
    },
}

/// Runs `command` in the container `id`.
pub async fn run(shim: &Shim, id: &str, command: &[String], timeout: Duration) -> Result<Outcome, ExecError> {
    let work = run_unbounded(shim, id, command);
    let late = || ExecError::Timeout { command: command.join(" "), secs: timeout.as_secs() };
    tokio::time::timeout(timeout, work).await.map_err(|_| late())?
}

async fn run_unbounded(shim: &Shim, id: &str, command: &[String]) -> Result<Outcome, ExecError> {
    let (read, write) = pipe()?;
    let mut read = Receiver::from_owned_fd(read)?;
    let request =
        Request::Exec(Exec { id: id.to_owned(), args: command.to_vec(), tty: false, stdio: [false, true, true] });
    let (mut connection, _) = shim.ask_with(&request, &[write.as_fd(), write.as_fd()]).await?;
    drop(write);
    let mut output = Vec::new();
    // A child left behind may hold the pipe: the exit code ends the wait.
    let code = tokio::select! {
        biased;
        reply = connection.receive() => code_of(reply?.0),
        result = collect(&mut read, &mut output) => {
            result?;
            code_of(connection.receive().await?.0)
        }
    };
    drain(&read, &mut output);
    Ok(Outcome { code, output: String::from_utf8_lossy(&output).into_owned() })
}

fn code_of(reply: Reply) -> i32 {
    match reply {
        Reply::Exited(code) => code,
        _ => 255,
    }
}

async fn collect(read: &mut Receiver, output: &mut Vec<u8>) -> io::Result<()> {
    let mut chunk = [0; 2048];
    loop {
        match read.read(&mut chunk).await? {
            0 => return Ok(()),
            count => keep(output, &chunk[..count]),
        }
    }
}

fn drain(read: &Receiver, output: &mut Vec<u8>) {
    let mut chunk = [0; 2048];
    while let Ok(count @ 1..) = read.try_read(&mut chunk) {
        keep(output, &chunk[..count]);
        if output.len() >= OUTPUT_BYTES_MAX {
            return;
        }
    }
}

fn keep(output: &mut Vec<u8>, chunk: &[u8]) {
    let room = OUTPUT_BYTES_MAX.saturating_sub(output.len());
    output.extend_from_slice(&chunk[..chunk.len().min(room)]);
}

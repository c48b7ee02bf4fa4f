//! `mycelium vm console`: the guest's serial line on this terminal.

use std::io::{self, IsTerminal, Read, Write};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::{Context, Result, bail};
use mycelium_endophyte::host::control::{Request, ask};
use mycelium_endophyte::host::status::{Role, Status};
use mycelium_endophyte::host::{HostError, VmRoot};

use super::NAME;
use crate::commands::exec::terminal::RawTerminal;

/// Ctrl-], as in telnet.
const ESCAPE: u8 = 0x1d;

/// Talk to a guest's serial console.
#[derive(clap::Args)]
#[command(after_help = "Ctrl-] leaves it. Only one console can be open at a time.")]
pub struct Args {
    /// The machine
    #[arg(value_name = NAME)]
    name: String,
}

/// Joins this terminal and the guest's serial line until Ctrl-], the end of input, or the guest's departure.
pub fn run(root: &VmRoot, args: &Args) -> Result<ExitCode> {
    let name = &args.name;
    runs_here(root, name)?;
    let socket = root.vm(name).console();
    let mut stream = UnixStream::connect(&socket)
        .with_context(|| format!("the console of \"{name}\" cannot be opened at {}", socket.display()))?;
    let raw = io::stdin().is_terminal().then(RawTerminal::enter).transpose()?;
    let left = Arc::new(AtomicBool::new(false));
    let (typed, done) = (stream.try_clone()?, Arc::clone(&left));
    thread::spawn(move || {
        // An error is the guest's departure, which the other direction sees too.
        if pass_on(&typed).is_ok() {
            done.store(true, Ordering::Relaxed);
            typed.shutdown(std::net::Shutdown::Both).ok();
        }
    });
    let printed = print(&mut stream);
    drop(raw);
    if left.load(Ordering::Relaxed) {
        return Ok(ExitCode::SUCCESS);
    }
    printed?;
    bail!("the console of \"{name}\" closed: the guest was shut down, or another host runs it now")
}

/// A backup has a console too, of a QEMU that waits: nobody would ever answer there.
fn runs_here(root: &VmRoot, name: &str) -> Result<()> {
    let status: Status = match ask(&root.vm(name).control(), &Request::Status, |_| {}) {
        Ok(value) => serde_json::from_value(value).context("the status is of another version")?,
        Err(HostError::NotRunning { .. }) => {
            bail!("no machine \"{name}\" runs on this host; `mycelium vm status` lists those that do")
        }
        Err(error) => return Err(error.into()),
    };
    match (status.role, status.primary) {
        (Role::Primary, _) => Ok(()),
        (_, Some(primary)) => {
            bail!("the guest of \"{name}\" does not run on this host but on {primary}: open its console there")
        }
        (role, None) => {
            bail!("the guest of \"{name}\" does not run on this host, which is {role}; nobody is known to run it")
        }
    }
}

fn print(stream: &mut UnixStream) -> io::Result<()> {
    let mut buffer = [0; 4096];
    loop {
        let length = stream.read(&mut buffer)?;
        if length == 0 {
            return Ok(());
        }
        let mut out = io::stdout().lock();
        out.write_all(&buffer[..length])?;
        out.flush()?;
    }
}

fn pass_on(mut stream: &UnixStream) -> io::Result<()> {
    let mut buffer = [0; 256];
    loop {
        let length = io::stdin().lock().read(&mut buffer)?;
        let typed = &buffer[..length];
        let until = typed.iter().position(|byte| *byte == ESCAPE).unwrap_or(length);
        stream.write_all(&typed[..until])?;
        if length == 0 || until < length {
            return Ok(());
        }
    }
}

//! `mycelium vm console`: the guest's serial line on this terminal.

use std::io::{self, IsTerminal, Read, Write};
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::thread;

use anyhow::{Context, Result};
use mycelium_endophyte::host::VmRoot;

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

/// Joins this terminal and the guest's serial line until Ctrl-] or the end of input.
pub fn run(root: &VmRoot, args: &Args) -> Result<ExitCode> {
    let socket = root.vm(&args.name).console();
    let stream = UnixStream::connect(&socket).with_context(|| {
        format!("the console of \"{}\" cannot be opened at {}; the guest runs on this host only if `mycelium vm status {0}` says primary", args.name, socket.display())
    })?;
    let stdin = io::stdin();
    let _raw = stdin.is_terminal().then(RawTerminal::enter).transpose()?;
    let mut from_guest = stream.try_clone()?;
    let printer = thread::spawn(move || -> io::Result<()> {
        let mut buffer = [0; 4096];
        loop {
            let length = from_guest.read(&mut buffer)?;
            if length == 0 {
                return Ok(());
            }
            let mut out = io::stdout().lock();
            out.write_all(&buffer[..length])?;
            out.flush()?;
        }
    });
    pass_on(&stream)?;
    stream.shutdown(std::net::Shutdown::Both).ok();
    printer.join().ok();
    Ok(ExitCode::SUCCESS)
}

fn pass_on(mut stream: &UnixStream) -> Result<()> {
    let mut buffer = [0; 256];
    loop {
        let length = io::stdin().lock().read(&mut buffer)?;
        let typed = &buffer[..length];
        let until = typed.iter().position(|byte| *byte == ESCAPE).unwrap_or(length);
        stream.write_all(&typed[..until]).context("the guest's console closed")?;
        if length == 0 || until < length {
            return Ok(());
        }
    }
}

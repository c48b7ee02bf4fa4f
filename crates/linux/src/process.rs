//! The one place where child processes start (invariant 5 of ARCHITECTURE.md).

use std::ffi::OsStr;
use std::process::Command;

/// A command to run `program`, with no inherited environment but `PATH`.
#[allow(clippy::disallowed_methods, reason = "this is the home of process creation")]
pub fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command.env_clear();
    if let Some(path) = std::env::var_os("PATH") {
        command.env("PATH", path);
    }
    command
}

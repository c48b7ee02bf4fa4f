//! What every test on the real machine needs: programs, and waiting for conditions.

#![allow(dead_code, reason = "each test uses a part of it")]

use std::process::{Command, Output, Stdio};
use std::time::Duration;

/// How long anything may take on a busy machine with an unoptimised build.
pub const PATIENCE: Duration = Duration::from_secs(180);

/// A command; tests are the one other place where processes start.
#[allow(clippy::disallowed_methods, reason = "tests drive real programs")]
pub fn command(program: &str) -> Command {
    Command::new(program)
}

/// Runs a command to its end and returns what it printed; panics with both streams if it fails.
pub fn run(command: &mut Command) -> String {
    let output = output(command);
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?} failed: {}\n{out}\n{err}", output.status);
    out.into_owned()
}

/// Runs a command to its end, whatever it returns.
pub fn output(command: &mut Command) -> Output {
    command.stdin(Stdio::null()).output().unwrap_or_else(|error| panic!("{command:?}: {error}"))
}

/// Polls until the condition holds; panics with its last complaint after [`PATIENCE`].
pub fn eventually<T>(what: &str, condition: impl FnMut() -> Result<T, String>) -> T {
    eventually_within(PATIENCE, what, condition)
}

/// The same with a limit of its own.
pub fn eventually_within<T>(limit: Duration, what: &str, mut condition: impl FnMut() -> Result<T, String>) -> T {
    let begun = tokio::time::Instant::now();
    loop {
        match condition() {
            Ok(value) => return value,
            Err(complaint) if begun.elapsed() > limit => panic!("{what}: {complaint}"),
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}

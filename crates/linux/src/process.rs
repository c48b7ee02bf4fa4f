//! The one place where child processes start (invariant 5 of ARCHITECTURE.md).

use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::Arc;

use nix::sched::{CloneFlags, setns};

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

/// Starts `command` inside a network namespace.
pub fn enter_network(command: &mut Command, namespace: Arc<OwnedFd>) {
    let enter = move || Ok(setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET)?);
    // SAFETY: between fork and exec it makes one system call, which allocates nothing and takes no lock; the
    // descriptor is open because the closure owns it.
    unsafe { command.pre_exec(enter) };
}

/// Keeps every descriptor but the standard ones from child processes. A long-lived parent calls it at start, for
/// those that it was itself handed: a shell's pipe that a pod's shim held open would never end for its reader.
pub fn keep_descriptors_private() {
    // SAFETY: only sets the close-on-exec flag of this process's descriptors; no memory is involved.
    let outcome = unsafe { libc::close_range(3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC.cast_signed()) };
    if outcome != 0 {
        tracing::warn!(error = %std::io::Error::last_os_error(), "descriptors may be inherited by pods");
    }
}

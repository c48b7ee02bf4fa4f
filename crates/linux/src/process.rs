//! The one place where child processes start (invariant 5 of ARCHITECTURE.md).

use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use nix::sched::{CloneFlags, setns};

/// A command to run `program`, with no inherited environment but `PATH`.
///
/// It is looked up here and now: the standard library starts a program by its path with `posix_spawn`, which shares this
/// process's memory until the program runs, but forks for a mere name and a `PATH` of our own, which copies the page
/// tables of a large process each time.
#[allow(clippy::disallowed_methods, reason = "this is the home of process creation")]
pub fn command(program: impl AsRef<OsStr>) -> Command {
    let program = program.as_ref();
    let mut command = match find(program) {
        Some(path) => Command::new(path),
        None => Command::new(program),
    };
    command.env_clear();
    if let Some(path) = std::env::var_os("PATH") {
        command.env("PATH", path);
    }
    command
}

/// Where in `PATH` a program is that was given by name only.
fn find(program: &OsStr) -> Option<PathBuf> {
    if Path::new(program).components().count() != 1 {
        return None;
    }
    let runs =
        |path: &PathBuf| path.metadata().is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0);
    std::env::split_paths(&std::env::var_os("PATH")?).map(|folder| folder.join(program)).find(runs)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_found_by_name_and_run_without_an_environment() {
        let path = find(OsStr::new("env")).expect("every Linux has it");
        assert!(path.is_absolute(), "{path:?}");
        let output = command("env").output().expect("it runs");
        let seen = String::from_utf8(output.stdout).expect("text");
        assert!(seen.starts_with("PATH=") && seen.lines().count() == 1, "{seen}");
        assert_eq!(find(OsStr::new("/bin/env")), None, "a path is taken as it is");
        let missing = command("mycelium-no-such-program").spawn().expect_err("there is none");
        assert_eq!(missing.kind(), std::io::ErrorKind::NotFound);
    }
}

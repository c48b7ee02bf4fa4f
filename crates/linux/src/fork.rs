//! `fork` for the one program that may use it: the single-threaded shim.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Why a fork was refused or failed.
#[derive(Debug, thiserror::Error)]
pub enum ForkError {
    /// A copy of a process with several threads may hold locks that nobody will ever release.
    #[error("this process has {0} threads; only a single-threaded process may fork")]
    Threads(usize),
    /// The kernel said no.
    #[error("cannot fork")]
    Kernel(#[source] io::Error),
}

/// Forks; the copy runs `child` and exits with what it returns (101 after a panic). Returns the copy's process id.
///
/// The copy leaves with `_exit`: no destructor and no exit handler of the parent runs twice.
pub fn fork(child: impl FnOnce() -> i32) -> Result<i32, ForkError> {
    let threads = std::fs::read_dir("/proc/self/task").map_err(ForkError::Kernel)?.count();
    if threads != 1 {
        return Err(ForkError::Threads(threads));
    }
    // SAFETY: the process has one thread (checked above, and no other could start one meanwhile), so the copy
    // finds every lock and allocator structure in a consistent state.
    match unsafe { libc::fork() } {
        -1 => Err(ForkError::Kernel(io::Error::last_os_error())),
        0 => {
            let code = catch_unwind(AssertUnwindSafe(child)).unwrap_or(101);
            // SAFETY: `_exit` takes any value and does not return; nothing after it runs.
            unsafe { libc::_exit(code) }
        }
        pid => Ok(pid),
    }
}

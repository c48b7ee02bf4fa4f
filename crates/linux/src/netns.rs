//! Network namespaces as descriptors.
//!
//! A thread that enters another namespace must never return to a pool: all work inside one runs on a thread of its own.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use nix::sched::{CloneFlags, setns, unshare};

/// The network namespace of a process.
pub fn of_process(pid: u32) -> io::Result<OwnedFd> {
    Ok(File::open(format!("/proc/{pid}/ns/net"))?.into())
}

/// The network namespace of the calling thread.
pub fn current() -> io::Result<OwnedFd> {
    Ok(File::open("/proc/thread-self/ns/net")?.into())
}

/// A new network namespace, alive for as long as the descriptor or a process in it.
pub fn create() -> io::Result<OwnedFd> {
    on_thread(|| {
        unshare(CloneFlags::CLONE_NEWNET)?;
        current()
    })
}

/// Runs `work` inside a network namespace, on a thread of its own, and waits for it.
pub fn run_in<T: Send>(namespace: impl AsFd + Send, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    on_thread(move || {
        setns(namespace, CloneFlags::CLONE_NEWNET)?;
        work()
    })
}

fn on_thread<T: Send>(work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("netns".into()).spawn_scoped(scope, work)?;
        thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread inside the network namespace panicked")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_namespace_differs_and_holds_only_loopback() {
        let Ok(namespace) = create() else { return };
        let inside = run_in(&namespace, || std::fs::read_to_string("/proc/thread-self/net/dev")).unwrap();
        assert!(inside.contains("lo:") && !inside.contains("eth0:"));
    }
}

//! Network namespaces as descriptors.
//!
//! A thread that enters another namespace must never return to a pool: all work inside one runs on a thread of its own.

use std::fs::{self, File};
use std::io;
use std::net::TcpStream;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use nix::sched::{CloneFlags, setns, unshare};

/// The network namespace of a process.
pub fn of_process(pid: u32) -> io::Result<OwnedFd> {
    Ok(File::open(format!("/proc/{pid}/ns/net"))?.into())
}

/// The network namespace of the calling thread.
pub fn current() -> io::Result<OwnedFd> {
    Ok(File::open("/proc/thread-self/ns/net")?.into())
}

/// The network namespace that a process keeps alive by an open descriptor, without being in it. Nothing if it has none.
pub fn held_by(pid: u32) -> Option<OwnedFd> {
    let held =
        |file: &PathBuf| fs::read_link(file).is_ok_and(|to| to.as_os_str().as_encoded_bytes().starts_with(b"net:["));
    let files = fs::read_dir(format!("/proc/{pid}/fd")).ok()?.flatten().map(|entry| entry.path());
    files.into_iter().find(held).and_then(|file| File::open(file).ok()).map(OwnedFd::from)
}

/// An unconnected TCP socket in a network namespace. It stays there wherever it is used.
pub fn stream_socket(namespace: impl AsFd + Send, ipv6: bool) -> io::Result<TcpStream> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
    let family = if ipv6 { AddressFamily::INET6 } else { AddressFamily::INET };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    run_in(namespace, || Ok(socket_with(family, SocketType::STREAM, flags, None)?.into()))
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
    fn a_namespace_is_found_by_the_descriptor_that_holds_it() {
        let Ok(namespace) = create() else { return };
        let inode = |fd: &OwnedFd| rustix::fs::fstat(fd).map(|s| s.st_ino).unwrap();
        // This very process holds it, and maybe those of other tests.
        let Some(found) = held_by(std::process::id()) else { panic!("not found") };
        assert!(inode(&found) > 0 && inode(&namespace) > 0);
    }

    #[test]
    fn a_new_namespace_differs_and_holds_only_loopback() {
        let Ok(namespace) = create() else { return };
        let inside = run_in(&namespace, || std::fs::read_to_string("/proc/thread-self/net/dev")).unwrap();
        assert!(inside.contains("lo:") && !inside.contains("eth0:"));
    }
}

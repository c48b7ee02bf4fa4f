//! Children that die with this process, and a userfaultfd out of one of them.
//!
//! The kernel ties a child's death signal and its tracing to the *thread* that started it. All such children are therefore
//! started by one thread, the keeper, which lives as long as the process.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Mutex, OnceLock};

type Work = Box<dyn FnOnce() + Send>;

/// Starts `command` so that it is killed when this process ends, however it ends. `inherit` stays open in the child, each
/// under the number it has here.
pub fn spawn(mut command: Command, inherit: Vec<OwnedFd>) -> io::Result<Child> {
    prepare(&mut command, &inherit, false);
    on_keeper(move || {
        let child = command.spawn();
        drop(inherit);
        child
    })
}

/// Like [`spawn`], and also returns a userfaultfd that belongs to the child's memory.
///
/// Nothing is loaded into the child: it is stopped at its very first instruction, made to execute `userfaultfd(2)`, the
/// descriptor is fetched with `pidfd_getfd(2)`, and the child goes on as if nothing had happened.
pub fn spawn_with_userfault(mut command: Command, inherit: Vec<OwnedFd>) -> io::Result<(Child, OwnedFd)> {
    prepare(&mut command, &inherit, true);
    on_keeper(move || {
        let mut child = command.spawn()?;
        drop(inherit);
        match crate::inject::userfault_of_stopped(child.id()) {
            Ok(descriptor) => Ok((child, descriptor)),
            Err(error) => {
                let _ = child.kill();
                let _ = child.wait();
                Err(error)
            }
        }
    })
}

fn prepare(command: &mut Command, inherit: &[OwnedFd], traced: bool) {
    let parent = std::process::id().cast_signed();
    let inherit: Vec<RawFd> = inherit.iter().map(AsRawFd::as_raw_fd).collect();
    let setup = move || {
        // SAFETY: these calls take integers only and are async-signal-safe.
        unsafe {
            if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) != 0 {
                return Err(io::Error::last_os_error());
            }
            if libc::getppid() != parent {
                return Err(io::Error::from_raw_os_error(libc::ESRCH));
            }
            for descriptor in &inherit {
                if libc::fcntl(*descriptor, libc::F_SETFD, 0) != 0 {
                    return Err(io::Error::last_os_error());
                }
            }
            let nothing = std::ptr::null_mut::<libc::c_void>();
            if traced && libc::ptrace(libc::PTRACE_TRACEME, 0, nothing, nothing) != 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    };
    // SAFETY: `setup` runs between fork and exec; it allocates nothing, takes no lock, and calls async-signal-safe functions only.
    unsafe { command.pre_exec(setup) };
}

/// Runs `work` on the keeper thread and returns its result.
fn on_keeper<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    static KEEPER: OnceLock<Option<Mutex<Sender<Work>>>> = OnceLock::new();
    let gone = || io::Error::other("the thread that starts children is gone");
    let keeper = KEEPER.get_or_init(start_keeper).as_ref().ok_or_else(gone)?;
    let (answer, result) = channel();
    let work: Work = Box::new(move || {
        let _ = answer.send(work());
    });
    keeper.lock().unwrap_or_else(std::sync::PoisonError::into_inner).send(work).map_err(|_| gone())?;
    result.recv().map_err(|_| gone())?
}

fn start_keeper() -> Option<Mutex<Sender<Work>>> {
    let (sender, receiver) = channel::<Work>();
    let run = move || {
        for work in receiver {
            // A panic must not end the thread: its children would die with it.
            let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
        }
    };
    std::thread::Builder::new().name("child-keeper".to_owned()).spawn(run).ok()?;
    Some(Mutex::new(sender))
}

/// A copy of descriptor `number` of process `pid`.
pub(crate) fn descriptor_of(pid: u32, number: RawFd) -> io::Result<OwnedFd> {
    let process = rustix::process::Pid::from_raw(pid.cast_signed()).ok_or(io::ErrorKind::InvalidInput)?;
    let process = rustix::process::pidfd_open(process, rustix::process::PidfdFlags::empty())?;
    // SAFETY: takes integers only.
    let copy = unsafe { libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), number, 0) };
    if copy < 0 {
        return Err(io::Error::last_os_error());
    }
    let copy = RawFd::try_from(copy).map_err(io::Error::other)?;
    // SAFETY: the kernel has just given us this descriptor; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(copy) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_goes_on_as_if_nothing_had_been_done_to_it() {
        let mut command = crate::process::command("/bin/sh");
        command.args(["-c", "ls -l /proc/$$/fd; exit 7"]).stdout(std::process::Stdio::piped());
        let (child, descriptor) = spawn_with_userfault(command, Vec::new()).unwrap();
        crate::userfault::Userfault::new(descriptor).unwrap();
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(7));
        let open = String::from_utf8_lossy(&output.stdout);
        assert!(open.contains("pipe:") && !open.contains("userfaultfd"), "{open}");
    }

    #[test]
    fn a_child_inherits_what_it_is_given() {
        let (here, there) = std::os::unix::net::UnixStream::pair().unwrap();
        let mut command = crate::process::command("/bin/sh");
        command.args(["-c", &format!("echo hello >&{}", there.as_raw_fd())]);
        let mut child = spawn(command, vec![there.into()]).unwrap();
        let mut said = String::new();
        std::io::Read::read_to_string(&mut { here }, &mut said).unwrap();
        assert_eq!(said, "hello\n");
        assert!(child.wait().unwrap().success());
    }
}

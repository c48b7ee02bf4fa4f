//! Running one more program inside a running container.
//!
//! libcontainer's own way leaves out the seccomp profile, so the shim does it itself: it forks; the copy joins the
//! container's groups and namespaces, takes on its user, capabilities and profile, and becomes the program.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, IntoRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use libcontainer::capabilities::{drop_privileges, reset_effective};
use libcontainer::oci_spec::runtime::Spec;
use libcontainer::seccomp::initialize_seccomp;
use libcontainer::syscall::syscall::create_syscall;
use mycelium_linux::cgroup::Hierarchies;
use nix::sched::{CloneFlags, setns};
use nix::sys::wait::waitpid;
use nix::unistd::{Gid, Pid, Uid, setgroups, setresgid, setresuid};
use rustix::thread::{set_keep_capabilities, set_no_new_privs};

use super::program;
use super::protocol::Exec;
use super::wire::Receiver;

/// What the program joins.
pub struct Target<'a> {
    /// The container's first process.
    pub pid: i32,
    /// Its specification.
    pub spec: &'a Spec,
    /// Its cgroup.
    pub cgroup: &'a str,
}

type Error = Box<dyn std::error::Error>;

/// Starts the program. Returns its process id, and the terminal if it has one.
pub fn start(target: &Target<'_>, exec: &Exec, stdio: Vec<OwnedFd>) -> Result<(i32, Option<OwnedFd>), Error> {
    let namespace = |name: &str| File::open(format!("/proc/{}/ns/{name}", target.pid));
    let joined = [(namespace("cgroup")?, CloneFlags::CLONE_NEWCGROUP), (namespace("mnt")?, CloneFlags::CLONE_NEWNS)];
    let (error_read, error_write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    let (terminal, terminal_child) =
        if exec.tty { UnixStream::pair().map(|(a, b)| (Some(a), Some(b)))? } else { (None, None) };
    // Only processes created from now on enter the container's process namespace.
    setns(namespace("pid")?, CloneFlags::CLONE_NEWPID)?;
    let forked = mycelium_linux::fork::fork(|| {
        let mut errors = File::from(error_write.try_clone().unwrap_or_else(|_| std::process::exit(101)));
        let Err(error) = enter(target, &joined, exec, stdio.as_slice(), terminal_child.as_ref());
        let _ = errors.write_all(error.to_string().as_bytes());
        126
    });
    setns(File::open("/proc/self/ns/pid")?, CloneFlags::CLONE_NEWPID)?;
    let pid = forked?;
    drop((error_write, terminal_child, stdio));
    let mut message = String::new();
    File::from(error_read).read_to_string(&mut message)?;
    if !message.is_empty() {
        let _ = waitpid(Pid::from_raw(pid), None);
        return Err(message.into());
    }
    let terminal = terminal.map(|socket| receive_descriptor(&socket)).transpose()?;
    Ok((pid, terminal))
}

/// Takes the one descriptor that waits in `socket`.
pub fn receive_descriptor(socket: &UnixStream) -> io::Result<OwnedFd> {
    let mut receiver = Receiver::default();
    receiver.fill(socket)?;
    receiver.take_descriptor().ok_or_else(|| io::Error::other("the terminal did not arrive"))
}

/// In the copy: everything up to and including the program. Returns only what went wrong.
fn enter(
    target: &Target<'_>,
    joined: &[(File, CloneFlags)],
    exec: &Exec,
    stdio: &[OwnedFd],
    terminal: Option<&UnixStream>,
) -> Result<std::convert::Infallible, Error> {
    for file in Hierarchies::get().procs_files(target.cgroup) {
        fs::write(file, "0")?;
    }
    for (file, kind) in joined {
        setns(file.as_fd(), *kind)?;
    }
    rustix::process::setsid()?;
    match terminal {
        Some(socket) => {
            let copy = socket.try_clone()?.into_raw_fd();
            libcontainer::tty::setup_console(create_syscall().as_ref(), copy, false)?;
        }
        None => connect(exec, stdio)?,
    }
    let process = target.spec.process().as_ref().ok_or("the container has no process")?;
    if let Err(error) = std::env::set_current_dir(process.cwd()) {
        return Err(format!("chdir {}: {error}", process.cwd().display()).into());
    }
    let no_new_privileges = process.no_new_privileges() == Some(true);
    if no_new_privileges {
        set_no_new_privs(true)?;
    }
    become_user(process.user())?;
    let seccomp = target.spec.linux().as_ref().and_then(|l| l.seccomp().as_ref());
    // Without "no new privileges" loading a filter takes a capability that is about to go.
    if let (Some(seccomp), false) = (seccomp, no_new_privileges) {
        initialize_seccomp(seccomp)?;
    }
    let syscall = create_syscall();
    reset_effective(syscall.as_ref())?;
    if let Some(capabilities) = process.capabilities() {
        drop_privileges(capabilities, syscall.as_ref())?;
    }
    if let (Some(seccomp), true) = (seccomp, no_new_privileges) {
        initialize_seccomp(seccomp)?;
    }
    let env = environment(process.env().as_deref().unwrap_or_default(), process.user().uid(), exec.tty);
    Err(program::execute(&exec.args, &env).into())
}

fn connect(exec: &Exec, stdio: &[OwnedFd]) -> io::Result<()> {
    let null = fs::OpenOptions::new().read(true).write(true).open("/dev/null")?;
    let mut given = stdio.iter();
    let mut next = |index: usize| if exec.stdio[index] { given.next().map(AsFd::as_fd) } else { None };
    let (stdin, stdout, stderr) = (next(0), next(1), next(2));
    nix::unistd::dup2_stdin(stdin.unwrap_or(null.as_fd()))?;
    nix::unistd::dup2_stdout(stdout.unwrap_or(null.as_fd()))?;
    nix::unistd::dup2_stderr(stderr.unwrap_or(null.as_fd()))?;
    debug_assert!(null.as_raw_fd() > 2, "standard descriptors are open in every process of ours");
    Ok(())
}

fn become_user(user: &libcontainer::oci_spec::runtime::User) -> Result<(), Error> {
    let groups: Vec<Gid> = user.additional_gids().iter().flatten().map(|gid| Gid::from_raw(*gid)).collect();
    setgroups(&groups)?;
    set_keep_capabilities(true)?;
    let (uid, gid) = (Uid::from_raw(user.uid()), Gid::from_raw(user.gid()));
    setresgid(gid, gid, gid)?;
    setresuid(uid, uid, uid)?;
    reset_effective(create_syscall().as_ref())?;
    set_keep_capabilities(false)?;
    Ok(())
}

fn environment(env: &[String], uid: u32, tty: bool) -> Vec<String> {
    let mut env = env.to_vec();
    if !env.iter().any(|e| e.starts_with("HOME=")) {
        env.push(format!("HOME={}", home_of(uid)));
    }
    if tty && !env.iter().any(|e| e.starts_with("TERM=")) {
        env.push("TERM=xterm".to_owned());
    }
    env
}

fn home_of(uid: u32) -> String {
    let passwd = fs::read_to_string(Path::new("/etc/passwd")).unwrap_or_default();
    let uid = uid.to_string();
    passwd
        .lines()
        .map(|line| line.split(':').collect::<Vec<_>>())
        .find(|fields| fields.get(2) == Some(&uid.as_str()))
        .and_then(|fields| fields.get(5).map(|home| (*home).to_owned()))
        .filter(|home| !home.is_empty())
        .unwrap_or_else(|| "/".to_owned())
}

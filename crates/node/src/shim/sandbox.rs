//! Making the sandbox: the shim's own namespaces, which its containers then share.

use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::path::Path;

use mycelium_linux::cgroup::Hierarchies;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::{SigSet, Signal};

use super::protocol::{CGROUPS, MEMORY, SHM, Sandbox};

type Error = Box<dyn std::error::Error>;

/// Size of the pod's shared memory.
const SHM_BYTES: u64 = 64 << 20;

/// Enters new namespaces as the sandbox wants them and mounts what belongs to the whole pod.
/// Returns the process that holds the common process namespace, if there is one.
pub fn make(dir: &Path, sandbox: &Sandbox) -> Result<Option<i32>, Error> {
    let mut flags = CloneFlags::CLONE_NEWNS;
    flags.set(CloneFlags::CLONE_NEWNET, !sandbox.host_network);
    flags.set(CloneFlags::CLONE_NEWUTS, !sandbox.host_network || sandbox.node_network);
    flags.set(CloneFlags::CLONE_NEWIPC, !sandbox.host_ipc);
    unshare(flags)?;
    // The machine's mounts come in, ours do not go out: when the shim is gone, so are they.
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_SLAVE, None::<&str>)?;
    if !sandbox.host_network || sandbox.node_network {
        nix::unistd::sethostname(&sandbox.hostname)?;
    }
    if !sandbox.host_network {
        mycelium_linux::loopback::up()?;
    }
    tmpfs(&dir.join(MEMORY), 0, 0o755)?;
    if !sandbox.host_ipc {
        tmpfs(&dir.join(SHM), SHM_BYTES, 0o1777)?;
    }
    for (folder, size) in &sandbox.memory_volumes {
        tmpfs(folder, *size, 0o1777)?;
    }
    for (name, value) in &sandbox.sysctls {
        let file = Path::new("/proc/sys").join(name.replace('.', "/"));
        fs::write(&file, value).map_err(|error| format!("sysctl {name}={value}: {error}"))?;
    }
    if sandbox.share_process_namespace && !sandbox.host_pid { pause().map(Some) } else { Ok(None) }
}

fn tmpfs(dir: &Path, size: u64, mode: u32) -> Result<(), Error> {
    fs::create_dir_all(dir)?;
    let size = if size == 0 { String::new() } else { format!(",size={size}") };
    let options = format!("mode={mode:o}{size}");
    mount(Some("tmpfs"), dir, Some("tmpfs"), MsFlags::MS_NOSUID | MsFlags::MS_NODEV, Some(options.as_str()))?;
    Ok(())
}

/// Forks the first process of a new process namespace; it adopts and reaps orphans, and does nothing else.
fn pause() -> Result<i32, Error> {
    unshare(CloneFlags::CLONE_NEWPID)?;
    let pid = mycelium_linux::fork::fork(|| {
        let name = CString::new("mycelium-pause").unwrap_or_default();
        let _ = nix::sys::prctl::set_name(&name);
        // Without the shim nobody would end it, and with it every process of the namespace.
        let _ = nix::sys::prctl::set_pdeathsig(Signal::SIGKILL);
        let mut children = SigSet::empty();
        children.add(Signal::SIGCHLD);
        loop {
            let _ = children.wait();
            while let Ok(Some(_)) = rustix::process::wait(rustix::process::WaitOptions::NOHANG) {}
        }
    });
    setns(File::open("/proc/self/ns/pid")?, CloneFlags::CLONE_NEWPID)?;
    Ok(pid?)
}

/// Mounts a container's root.
pub fn mount_root(bundle: &Path, root: &super::protocol::Root) -> Result<(), Error> {
    let target = bundle.join("rootfs");
    fs::create_dir_all(&target)?;
    match root {
        super::protocol::Root::Folder(folder) => {
            mount(Some(folder), &target, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)?;
        }
        super::protocol::Root::Overlay(lower) => {
            let (upper, work) = (bundle.join("upper"), bundle.join("work"));
            fs::create_dir_all(&upper)?;
            fs::create_dir_all(&work)?;
            overlay(&target, lower, &upper, &work)?;
        }
    }
    Ok(())
}

/// Mounts what a container sees of version 1's control groups: its own group of each hierarchy, not to be written.
///
/// The runtime would do the same with some hundred system calls per hierarchy.
pub fn mount_cgroups(bundle: &Path, cgroup: &str, writable: bool) -> Result<(), Error> {
    let groups = Hierarchies::get();
    if groups.unified() {
        return Ok(());
    }
    let view = bundle.join(CGROUPS);
    fs::create_dir_all(&view)?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("tmpfs"), &view, Some("tmpfs"), flags, Some("mode=755,size=64k"))?;
    for (name, folder) in groups.create_everywhere(cgroup)? {
        let target = view.join(&name);
        fs::create_dir_all(&target)?;
        mount(Some(&folder), &target, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
        if !writable {
            let again = flags | MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
            mount(None::<&str>, &target, None::<&str>, again, None::<&str>)?;
        }
        // Hierarchies that carry several controllers are also known by each one's name.
        for part in name.split(',').filter(|part| *part != name) {
            let _ = std::os::unix::fs::symlink(&name, view.join(part));
        }
    }
    Ok(())
}

/// The kernel takes one page of mount options.
const OPTIONS_BYTES_MAX: usize = 4000;

fn overlay(target: &Path, lower: &[std::path::PathBuf], upper: &Path, work: &Path) -> Result<(), Error> {
    let plain: Vec<String> = lower.iter().map(|dir| dir.display().to_string()).collect();
    let mut options = overlay_options(&plain, upper, work, true);
    // Many layers: descriptors have short names.
    let mut open = Vec::new();
    if options.len() > OPTIONS_BYTES_MAX {
        for dir in lower {
            open.push(File::open(dir)?);
        }
        let short: Vec<String> =
            open.iter().map(|f| format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(f))).collect();
        options = overlay_options(&short, upper, work, true);
    }
    // Device nodes that an image brings, or a container makes, are just files: real ones are in its own /dev.
    let attempt = |options: &str| mount(Some("overlay"), target, Some("overlay"), MsFlags::MS_NODEV, Some(options));
    match attempt(&options) {
        // "volatile" is younger than the rest of overlayfs.
        Err(nix::Error::EINVAL) => Ok(attempt(&options.replace(",volatile", ""))?),
        Err(error) => Err(format!("cannot mount the root file system at {}: {error}", target.display()).into()),
        Ok(()) => Ok(()),
    }
}

/// `volatile`: what a container writes to its root dies with it, so nothing there needs to reach the disk.
fn overlay_options(lower: &[String], upper: &Path, work: &Path, volatile: bool) -> String {
    let tail = if volatile { ",volatile" } else { "" };
    format!("lowerdir={},upperdir={},workdir={}{tail}", lower.join(":"), upper.display(), work.display())
}

/// Creates the folder `path` inside `root`, never following a link out of it.
pub fn make_dir_inside(root: &Path, path: &Path) -> io::Result<()> {
    use rustix::fs::{Mode, OFlags, ResolveFlags, mkdirat, openat2};
    let base = File::open(root)?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mut walked = std::path::PathBuf::new();
    let mut parent = openat2(&base, ".", flags, Mode::empty(), ResolveFlags::IN_ROOT)?;
    for part in path.components() {
        let std::path::Component::Normal(name) = part else { continue };
        walked.push(name);
        match openat2(&base, &walked, flags, Mode::empty(), ResolveFlags::IN_ROOT) {
            Ok(dir) => parent = dir,
            Err(rustix::io::Errno::NOENT) => {
                mkdirat(&parent, name, Mode::from_raw_mode(0o755))?;
                parent = openat2(&base, &walked, flags, Mode::empty(), ResolveFlags::IN_ROOT)?;
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

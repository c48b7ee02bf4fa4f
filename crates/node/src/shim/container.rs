//! One container as its shim holds it: making, starting, ending, and its three streams.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use libcontainer::container::Container as Runtime;
use libcontainer::container::builder::ContainerBuilder;
use libcontainer::oci_spec::runtime::Spec;
use libcontainer::syscall::syscall::SyscallType;
use mycelium_linux::cgroup::Hierarchies;
use rustix::pipe::{PipeFlags, pipe_with};

use super::log::{Log, Stream};
use super::program::Program;
use super::protocol::{CGROUPS, CONTAINERS, ContainerState, Create, STATE};
use super::{clock, exec, sandbox};

type Error = Box<dyn std::error::Error>;

/// One who copies a container's output.
pub struct Attached {
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
}

/// A container.
pub struct Container {
    /// What the engine is told of it.
    pub state: ContainerState,
    /// Its cgroup.
    pub cgroup: String,
    bundle: PathBuf,
    create: Create,
    runtime: Option<Runtime>,
    /// Reading ends of its output; a terminal counts as standard output.
    pub stdout: Option<OwnedFd>,
    /// The same for standard error.
    pub stderr: Option<OwnedFd>,
    stdin: Option<OwnedFd>,
    log: Log,
    attached: Vec<Attached>,
}

impl Container {
    /// Makes a container from its bundle, up to the moment before its program starts.
    pub fn create(dir: &Path, create: Create) -> Result<Self, Error> {
        let bundle = dir.join(CONTAINERS).join(&create.id);
        sandbox::mount_root(&bundle, &create.root)?;
        let result = Self::build(dir, &bundle, &create);
        if result.is_err() {
            unmount(&bundle);
        }
        result
    }

    fn build(dir: &Path, bundle: &Path, create: &Create) -> Result<Self, Error> {
        let spec = Spec::load(bundle.join("config.json"))?;
        if let Some(process) = spec.process() {
            sandbox::make_dir_inside(&bundle.join("rootfs"), process.cwd())?;
        }
        let cgroup = spec.linux().as_ref().and_then(|l| l.cgroups_path().clone()).unwrap_or_default();
        sandbox::mount_cgroups(bundle, &cgroup.display().to_string(), create.cgroups_writable)?;
        let mut log = Log::open(&create.log)?;
        let run = dir.join("run");
        fs::create_dir_all(&run)?;
        let mut streams = Streams::default();
        let mut builder = ContainerBuilder::new(create.id.clone(), SyscallType::default())
            .with_root_path(&run)?
            .with_executor(Program);
        let console = if create.tty {
            let path = run.join(format!("{}.tty", &create.id[..create.id.len().min(12)]));
            let listener = listen(&path)?;
            builder = builder.with_console_socket(Some(&path));
            Some((listener, path))
        } else {
            let (stdin, stdout, stderr) = streams.open(create.stdin)?;
            builder = builder.with_stdin(stdin).with_stdout(stdout).with_stderr(stderr);
            None
        };
        let built = builder.as_init(bundle).with_systemd(false).with_detach(true).build();
        let runtime = match built {
            Ok(runtime) => runtime,
            Err(error) => {
                let _ = Hierarchies::get().remove(&cgroup.display().to_string());
                let _ = fs::remove_dir_all(run.join(&create.id));
                return Err(explain(&error).into());
            }
        };
        if let Some((listener, path)) = console {
            streams.terminal(&listener)?;
            let _ = fs::remove_file(path);
        }
        let pid = runtime.pid().map_or(0, |pid| pid.as_raw());
        // Lowering the value takes a capability that even root may lack; the container runs without it.
        let _ = fs::write(format!("/proc/{pid}/oom_score_adj"), create.oom_score_adj.to_string());
        log.finish(Stream::Stdout);
        let state = ContainerState { id: create.id.clone(), pid, ..ContainerState::default() };
        let container = Self {
            state,
            cgroup: cgroup.display().to_string(),
            bundle: bundle.to_owned(),
            create: create.clone(),
            runtime: Some(runtime),
            stdout: streams.stdout,
            stderr: streams.stderr,
            stdin: streams.stdin,
            log,
            attached: Vec::new(),
        };
        container.save();
        Ok(container)
    }

    /// Lets the program run.
    pub fn start(&mut self) -> Result<(), Error> {
        let Some(mut runtime) = self.runtime.take() else { return Err("the container has been started".into()) };
        self.state.started_at = clock::rfc3339_nanos(clock::now());
        if let Err(error) = runtime.start() {
            self.state.started_at.clear();
            return Err(explain(&error).into());
        }
        self.save();
        Ok(())
    }

    /// Runs one more program in it.
    pub fn exec(&self, request: &super::protocol::Exec, stdio: Vec<OwnedFd>) -> Result<(i32, Option<OwnedFd>), Error> {
        if !self.state.running() {
            return Err("cannot exec in a stopped container".into());
        }
        let spec = Spec::load(self.bundle.join("config.json"))?;
        exec::start(&exec::Target { pid: self.state.pid, spec: &spec, cgroup: &self.cgroup }, request, stdio)
    }

    /// Adds one who copies its output; returns the writing end of its input.
    pub fn attach(&mut self, stdin: bool, fds: Vec<OwnedFd>) -> io::Result<Option<OwnedFd>> {
        let mut fds = fds.into_iter();
        let (stdout, stderr) = (fds.next(), fds.next());
        for fd in stdout.iter().chain(&stderr) {
            rustix::io::ioctl_fionbio(fd, true)?;
        }
        self.attached.push(Attached { stdout, stderr });
        if !stdin && !self.create.tty {
            return Ok(None);
        }
        self.stdin.as_ref().map(OwnedFd::try_clone).transpose()
    }

    /// One who attached has left: `stdinOnce` closes the input then.
    pub fn detached(&mut self) {
        if self.create.stdin_once && !self.create.tty {
            self.stdin = None;
        }
    }

    /// Logs and passes on what a stream has for us. Returns whether the stream is still open.
    pub fn pump(&mut self, stream: Stream) -> bool {
        let mut chunk = [0; 16 << 10];
        let fd = match stream {
            Stream::Stdout => &self.stdout,
            Stream::Stderr => &self.stderr,
        };
        let Some(fd) = fd else { return false };
        match rustix::io::read(fd, &mut chunk) {
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => true,
            Ok(count) if count > 0 => {
                self.log.write(stream, &chunk[..count]);
                self.fan_out(stream, &chunk[..count]);
                true
            }
            // The end, or a terminal whose other side has closed.
            _ => {
                self.log.finish(stream);
                match stream {
                    Stream::Stdout => self.stdout = None,
                    Stream::Stderr => self.stderr = None,
                }
                self.attached.iter_mut().for_each(|a| match stream {
                    Stream::Stdout => a.stdout = None,
                    Stream::Stderr => a.stderr = None,
                });
                false
            }
        }
    }

    /// One who reads too slowly loses output; the container never waits for them.
    fn fan_out(&mut self, stream: Stream, bytes: &[u8]) {
        for attached in &mut self.attached {
            let target = match stream {
                Stream::Stdout => &mut attached.stdout,
                Stream::Stderr => &mut attached.stderr,
            };
            let Some(fd) = target else { continue };
            match rustix::io::write(&*fd, bytes) {
                Ok(_) | Err(rustix::io::Errno::AGAIN) => {}
                Err(_) => *target = None,
            }
        }
        self.attached.retain(|a| a.stdout.is_some() || a.stderr.is_some());
    }

    /// Records its end: everything it wrote is in the log before anyone hears of it.
    pub fn ended(&mut self, exit_code: i32, signal: i32) {
        self.state.finished_at = clock::rfc3339_nanos(clock::now());
        self.state.oom_killed = Hierarchies::get().oom_kills(&self.cgroup) > 0;
        self.state.exit_code = exit_code;
        self.state.signal = signal;
        self.state.pid = 0;
        Hierarchies::get().kill(&self.cgroup);
        for stream in [Stream::Stdout, Stream::Stderr] {
            self.drain(stream);
        }
        self.attached.clear();
        self.stdin = None;
        self.save();
        let _ = Hierarchies::get().remove(&self.cgroup);
        if let Some(run) = self.bundle.ancestors().nth(2) {
            let _ = fs::remove_dir_all(run.join("run").join(&self.state.id));
        }
    }

    fn drain(&mut self, stream: Stream) {
        /// Enough for a full pipe; a process outside the container that still writes must not hold us.
        const READS_MAX: usize = 1024;
        for _ in 0..READS_MAX {
            let fd = match stream {
                Stream::Stdout => &self.stdout,
                Stream::Stderr => &self.stderr,
            };
            let Some(fd) = fd else { return };
            let mut poll = [rustix::event::PollFd::new(fd, rustix::event::PollFlags::IN)];
            let zero = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
            if rustix::event::poll(&mut poll, Some(&zero)).unwrap_or(0) == 0 || !self.pump(stream) {
                return;
            }
        }
    }

    /// Unmounts its root and forgets its files, but for the log.
    pub fn remove(&self) {
        unmount(&self.bundle);
        for part in ["upper", "work", "rootfs"] {
            let _ = fs::remove_dir_all(self.bundle.join(part));
        }
    }

    fn save(&self) {
        let temporary = self.bundle.join("state.json.new");
        if let Ok(bytes) = serde_json::to_vec(&self.state)
            && fs::write(&temporary, bytes).is_ok()
        {
            let _ = fs::rename(&temporary, self.bundle.join(STATE));
        }
    }
}

fn unmount(bundle: &Path) {
    for part in ["rootfs", CGROUPS] {
        let _ = nix::mount::umount2(&bundle.join(part), nix::mount::MntFlags::MNT_DETACH);
    }
}

/// Both ends of a container's streams.
#[derive(Default)]
struct Streams {
    stdin: Option<OwnedFd>,
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
}

impl Streams {
    /// Opens pipes, keeps our ends and returns the container's: standard input, output, error.
    fn open(&mut self, stdin: bool) -> io::Result<(OwnedFd, OwnedFd, OwnedFd)> {
        let (out, out_child) = pipe_with(PipeFlags::CLOEXEC)?;
        let (err, err_child) = pipe_with(PipeFlags::CLOEXEC)?;
        rustix::io::ioctl_fionbio(&out, true)?;
        rustix::io::ioctl_fionbio(&err, true)?;
        (self.stdout, self.stderr) = (Some(out), Some(err));
        let in_child = if stdin {
            let (child, ours) = pipe_with(PipeFlags::CLOEXEC)?;
            self.stdin = Some(ours);
            child
        } else {
            File::open("/dev/null")?.into()
        };
        Ok((in_child, out_child, err_child))
    }

    fn terminal(&mut self, listener: &UnixListener) -> io::Result<()> {
        let (socket, _) = listener.accept()?;
        let master = exec::receive_descriptor(&socket)?;
        self.stdin = Some(master.try_clone()?);
        rustix::io::ioctl_fionbio(master.as_fd(), true)?;
        self.stdout = Some(master);
        Ok(())
    }
}

/// Listens at `path`, which may be longer than a socket address can be.
pub fn listen(path: &Path) -> io::Result<UnixListener> {
    with_short_name(path, |short| UnixListener::bind(short))
}

/// Connects to the socket at `path`, however long.
pub fn connect(path: &Path) -> io::Result<UnixStream> {
    with_short_name(path, |short| UnixStream::connect(short))
}

fn with_short_name<T>(path: &Path, act: impl FnOnce(&Path) -> io::Result<T>) -> io::Result<T> {
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not the path of a socket"));
    };
    let dir = File::open(dir)?;
    act(&PathBuf::from(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&dir))).join(name))
}

/// The innermost messages of a chain of errors, without the runtime's repetitions.
fn explain(error: &dyn std::error::Error) -> String {
    let mut texts: Vec<String> = Vec::new();
    let mut next = Some(error);
    while let Some(error) = next {
        let text = error.to_string();
        if texts.last().is_none_or(|last| !last.contains(&text)) {
            texts.push(text);
        }
        next = error.source();
    }
    let joined = texts.join(": ");
    match joined.rfind("exec: \"") {
        Some(start) => joined[start..].trim_end_matches([')', '"']).to_owned(),
        None => joined,
    }
}

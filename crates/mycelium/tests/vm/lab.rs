//! Hosts as network namespaces on one switch, with a client beside them. Everything goes when the lab is dropped.
//!
//! ```text
//!   client 10.77.0.100 ──┐
//!   a 10.77.0.1 (br0) ───┤ switch
//!   b 10.77.0.2 (br0) ───┤
//!   c 10.77.0.3 (br0) ───┘      guests' taps join br0 of their host, so a guest is on the same network
//! ```

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use mycelium_endophyte::host::VmRoot;
use mycelium_endophyte::host::control::{Request, ask};
use mycelium_endophyte::host::status::{Role, Status};

use crate::common::{command, eventually, run};

/// The client's address.
pub const CLIENT: &str = "10.77.0.100";
/// Where hosts serve metrics, if they do.
pub const METRICS: &str = "127.0.0.1:9400";
/// The guest's address.
pub const GUEST: &str = "10.77.0.50";

static NEXT: AtomicU32 = AtomicU32::new(0);
/// Emulated guests share few processors: one lab at a time.
static TURN: Mutex<()> = Mutex::new(());

fn ip(words: &str) {
    run(command("ip").args(words.split_whitespace()));
}

/// A switch, hosts and a client.
pub struct Lab {
    dir: tempfile::TempDir,
    prefix: String,
    hosts: Vec<Host>,
    mounts: Vec<PathBuf>,
    _turn: MutexGuard<'static, ()>,
}

/// One host: a namespace with a bridge, and the `mycelium` processes in it.
pub struct Host {
    /// `a`, `b`, ...
    pub name: String,
    /// Its address.
    pub address: String,
    namespace: String,
    dir: PathBuf,
    processes: Vec<Child>,
}

impl Lab {
    /// As many hosts as asked for, named `a`, `b` and so on, and a client.
    pub fn new(hosts: usize) -> Self {
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let prefix = format!("mylab{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let dir = tempfile::Builder::new().prefix("mycelium-lab-").tempdir().expect("temporary directory");
        let mut lab = Self { dir, prefix, hosts: Vec::new(), mounts: Vec::new(), _turn: turn };
        ip(&format!("netns add {}-switch", lab.prefix));
        ip(&format!("-n {}-switch link add lan type bridge", lab.prefix));
        ip(&format!("-n {}-switch link set lan up", lab.prefix));
        lab.plug("client");
        ip(&format!("-n {}-client address add {CLIENT}/24 dev uplink", lab.prefix));
        for index in 0..hosts {
            let name = char::from(b'a' + u8::try_from(index).expect("few hosts")).to_string();
            lab.plug(&name);
            let namespace = format!("{}-{name}", lab.prefix);
            let address = format!("10.77.0.{}", index + 1);
            ip(&format!("-n {namespace} link add br0 type bridge"));
            ip(&format!("-n {namespace} link set uplink master br0"));
            ip(&format!("-n {namespace} link set br0 up"));
            ip(&format!("-n {namespace} address add {address}/24 dev br0"));
            let dir = lab.dir.path().join(&name);
            std::fs::create_dir(&dir).expect("host directory");
            lab.hosts.push(Host { name, address, namespace, dir, processes: Vec::new() });
        }
        run(lab.hosts[0].mycelium().args(["vm", "init"]));
        for host in &lab.hosts[1..] {
            std::fs::create_dir(host.dir.join("vm")).expect("vm directory");
            std::fs::copy(lab.hosts[0].dir.join("vm/group.pem"), host.dir.join("vm/group.pem")).expect("group file");
        }
        lab
    }

    /// A namespace with an interface `uplink` that ends in the switch as `to-NAME`.
    fn plug(&self, name: &str) {
        let prefix = &self.prefix;
        ip(&format!("netns add {prefix}-{name}"));
        ip(&format!("-n {prefix}-{name} link set lo up"));
        ip(&format!("-n {prefix}-switch link add to-{name} type veth peer name uplink netns {prefix}-{name}"));
        ip(&format!("-n {prefix}-switch link set to-{name} master lan up"));
        ip(&format!("-n {prefix}-{name} link set uplink up"));
    }

    /// The host of this name.
    pub fn host(&mut self, name: &str) -> &mut Host {
        self.hosts.iter_mut().find(|host| host.name == name).unwrap_or_else(|| panic!("no host {name}"))
    }

    /// All hosts' names.
    pub fn names(&self) -> Vec<String> {
        self.hosts.iter().map(|host| host.name.clone()).collect()
    }

    /// The address of a host.
    pub fn address(&self, name: &str) -> &str {
        let host = self.hosts.iter().find(|host| host.name == name);
        &host.unwrap_or_else(|| panic!("no host {name}")).address
    }

    /// The name of a host's network namespace.
    pub fn namespace(&self, name: &str) -> String {
        format!("{}-{name}", self.prefix)
    }

    /// The host on which the guest runs, and its state. Of two that both think so, the one that was elected last.
    pub fn primary(&self, vm: &str) -> Option<(String, Status)> {
        let all = self.hosts.iter().filter_map(|host| Some((host.name.clone(), host.status(vm)?)));
        all.filter(|(_, status)| status.role == Role::Primary && status.phase != "starting")
            .max_by_key(|(_, status)| status.term)
    }

    /// Waits until this many backups are in sync, and tells who is primary.
    pub fn protected(&self, vm: &str, backups: usize) -> String {
        eventually("the machine is protected", || {
            let (name, status) = self.primary(vm).ok_or("no host has the guest")?;
            let in_sync = status.peers.iter().filter(|peer| peer.state == "backup").count();
            if in_sync >= backups {
                Ok(name)
            } else {
                Err(format!("on {name}, {}: {:?}", status.phase, states(&status)))
            }
        })
    }

    /// Takes a host's cable out, or puts it in.
    pub fn cable(&self, host: &str, plugged: bool) {
        let state = if plugged { "up" } else { "down" };
        ip(&format!("-n {}-switch link set to-{host} {state}", self.prefix));
    }

    /// Cuts the power of a host: nobody hears of it any more, then everything on it is gone.
    pub fn power_off(&mut self, host: &str) {
        self.cable(host, false);
        self.host(host).kill();
    }

    /// Gives a host its cable back after [`Self::power_off`]; its disk is as it was.
    pub fn power_on(&self, host: &str) {
        self.cable(host, true);
    }

    /// The lab's own folder.
    pub fn folder(&self) -> &Path {
        self.dir.path()
    }

    /// Gives a host a file system of so many mebibytes for its machines. Before anything runs there.
    pub fn small_disk(&mut self, host: &str, mebibytes: u64) {
        let folder = self.host(host).dir.join("vm");
        let group = std::fs::read(folder.join("group.pem")).expect("group file");
        let size = format!("size={mebibytes}m,mode=700");
        run(command("mount").args(["-t", "tmpfs", "-o", &size, "tmpfs"]).arg(&folder));
        std::fs::write(folder.join("group.pem"), group).expect("group file");
        self.mounts.push(folder);
    }

    /// The client has never heard of the guest's card: another machine is about to have its address.
    pub fn forget_guest(&self) {
        ip(&format!("-n {}-client neigh flush dev uplink", self.prefix));
    }

    /// What a host serves to Prometheus.
    pub fn metrics(&self, name: &str) -> String {
        let scraped = self.at(name, || {
            let mut stream = TcpStream::connect(METRICS)?;
            stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n")?;
            let mut text = String::new();
            stream.read_to_string(&mut text).map(|_| text)
        });
        let text = scraped.expect("metrics are served");
        let (head, body) = text.split_once("\r\n\r\n").expect("HTTP");
        assert!(head.starts_with("HTTP/1.1 200 OK") && head.contains("text/plain; version=0.0.4"), "{head}");
        body.to_owned()
    }

    /// Does something in the client's network.
    pub fn at_client<T: Send>(&self, work: impl FnOnce() -> io::Result<T> + Send) -> T {
        self.at("client", work).expect("at the client")
    }

    /// Does something in the network of the client or a host.
    pub fn at<T: Send>(&self, name: &str, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
        let namespace = File::open(Path::new("/run/netns").join(self.namespace(name)))?;
        mycelium_linux::netns::run_in(&namespace, work)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for host in &mut self.hosts {
            if std::thread::panicking() {
                eprintln!("---- log of {}\n{}", host.name, host.log());
                for vm in VmRoot::of(&host.dir).names().unwrap_or_default() {
                    eprintln!("---- {vm} on {}: {:#?}", host.name, host.status(&vm));
                    let console = std::fs::read(VmRoot::of(&host.dir).vm(&vm).file("console.log")).unwrap_or_default();
                    eprintln!("---- console of {vm} on {}\n{}", host.name, String::from_utf8_lossy(&console));
                }
            }
            host.kill();
        }
        for folder in &self.mounts {
            let _ = command("umount").arg("-l").arg(folder).status();
        }
        let names = self.hosts.iter().map(|host| host.name.as_str()).chain(["client", "switch"]);
        for name in names {
            let _ = command("ip").args(["netns", "delete", &format!("{}-{name}", self.prefix)]).status();
        }
    }
}

impl Host {
    /// The binary on this host, with its data directory and name.
    fn mycelium(&self) -> Command {
        self.program(&[env!("CARGO_BIN_EXE_mycelium")])
    }

    fn program(&self, words: &[&str]) -> Command {
        let mut command = command("ip");
        command.args(["netns", "exec", &self.namespace]).args(words);
        command.env("MYCELIUM_DATA_DIR", &self.dir).env("MYCELIUM_NODE_NAME", &self.name);
        command
    }

    /// Starts a process that stays.
    pub fn spawn(&mut self, words: &[&str]) {
        let log = File::options().create(true).append(true).open(self.dir.join("log")).expect("log");
        let mut command = self.mycelium();
        command.args(words).stdin(Stdio::null()).stdout(log.try_clone().expect("log")).stderr(log);
        self.processes.push(command.spawn().expect("mycelium vm"));
    }

    /// `mycelium vm backup` on port 7400.
    pub fn stand_by(&mut self) {
        self.serve("backup", "standing by", &[]);
    }

    /// The same with metrics.
    pub fn stand_by_and_tell(&mut self) {
        self.serve("backup", "standing by", &["--metrics", METRICS]);
    }

    /// `mycelium vm witness` on port 7400.
    pub fn vote(&mut self) {
        self.serve("witness", "voting", &[]);
    }

    fn serve(&mut self, verb: &str, ready: &str, flags: &[&str]) {
        let listen = format!("{}:7400", self.address);
        let before = self.log().len();
        let mut words = vec!["vm", verb, "--listen", &listen];
        words.extend(flags);
        self.spawn(&words);
        eventually("the host is ready", || match self.log().get(before..) {
            Some(new) if new.contains(ready) => Ok(()),
            other => Err(other.unwrap_or_default().to_owned()),
        });
    }

    /// Runs a command of `mycelium vm` to its end, which must come.
    pub fn vm(&self, words: &[&str]) -> Output {
        let mut command = self.program(&["timeout", "120", env!("CARGO_BIN_EXE_mycelium")]);
        command.arg("vm").args(words).stdin(Stdio::null());
        command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"))
    }

    /// Starts a command of `mycelium vm` that listens, and does not wait for it.
    pub fn begin(&self, words: &[&str]) -> Child {
        let mut command = self.mycelium();
        command.arg("vm").args(words).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().unwrap_or_else(|error| panic!("{command:?}: {error}"))
    }

    /// The process that was started here last.
    pub fn process(&self) -> u32 {
        self.processes.last().expect("a process").id()
    }

    /// Waits for the last process that was started here to end by itself.
    pub fn wait(&mut self) -> std::process::ExitStatus {
        let mut child = self.processes.pop().expect("a process");
        eventually("the process ends", || match child.try_wait() {
            Ok(Some(status)) => Ok(status),
            other => Err(format!("{other:?}")),
        })
    }

    /// What its processes printed.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }

    /// The state of a machine on this host, if a process has it.
    pub fn status(&self, vm: &str) -> Option<Status> {
        let answer = ask(&VmRoot::of(&self.dir).vm(vm).control(), &Request::Status, |_| {}).ok()?;
        serde_json::from_value(answer).ok()
    }

    /// Its data directory.
    pub fn folder(&self) -> &Path {
        &self.dir
    }

    /// `kill -9` of everything on the host.
    pub fn kill(&mut self) {
        let pids = run(command("ip").args(["netns", "pids", &self.namespace]));
        let _ = command("kill")
            .arg("-9")
            .args(pids.split_whitespace())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        for mut child in self.processes.drain(..) {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Each peer's name and state.
pub fn states(status: &Status) -> Vec<(&str, &str)> {
    status.peers.iter().map(|peer| (peer.name.as_str(), peer.state.as_str())).collect()
}

/// Both streams of a command, for messages.
pub fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// How far a backup's copy was said to be, in percent, where there is no terminal.
pub fn parts(text: &str, backup: &str) -> Vec<u32> {
    let told = text.lines().filter_map(|line| line.strip_prefix(&format!("{backup}: "))?.split_once(" %, "));
    told.filter_map(|(part, _)| part.parse().ok()).collect()
}

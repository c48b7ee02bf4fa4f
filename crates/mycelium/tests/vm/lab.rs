//! Hosts as network namespaces on one switch, with a client beside them. Everything goes when the lab is dropped.
//!
//! ```text
//!   client 10.77.0.100 ──┐
//!   a 10.77.0.1 (br0) ───┤ switch
//!   b 10.77.0.2 (br0) ───┤
//!   c 10.77.0.3 (br0) ───┘      guests' taps join br0 of their host, so a guest is on the same network
//! ```

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use serde_json::Value;

/// How long anything may take on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(180);

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A command; tests are the one other place where processes start.
#[allow(clippy::disallowed_methods, reason = "tests drive real programs")]
pub fn command(program: &str) -> Command {
    Command::new(program)
}

/// Runs a command to its end and returns what it printed; panics with both streams if it fails.
pub fn run(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?} failed: {}\n{out}\n{err}", output.status);
    out.into_owned()
}

fn ip(words: &str) {
    run(command("ip").args(words.split_whitespace()));
}

/// Polls until the condition holds; panics with its last complaint after [`PATIENCE`].
pub fn eventually<T>(what: &str, mut condition: impl FnMut() -> Result<T, String>) -> T {
    let begun = tokio::time::Instant::now();
    loop {
        match condition() {
            Ok(value) => return value,
            Err(complaint) if begun.elapsed() > PATIENCE => panic!("{what}: {complaint}"),
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    }
}

/// A switch, hosts and a client.
pub struct Lab {
    dir: tempfile::TempDir,
    prefix: String,
    hosts: Vec<Host>,
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
        let prefix = format!("mylab{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let dir = tempfile::Builder::new().prefix("mycelium-lab-").tempdir().expect("temporary directory");
        let mut lab = Self { dir, prefix, hosts: Vec::new() };
        ip(&format!("netns add {}-switch", lab.prefix));
        ip(&format!("-n {}-switch link add lan type bridge", lab.prefix));
        ip(&format!("-n {}-switch link set lan up", lab.prefix));
        lab.plug("client");
        ip(&format!("-n {}-client address add 10.77.0.100/24 dev uplink", lab.prefix));
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

    /// Where the lab's files are.
    pub fn dir(&self) -> &Path {
        self.dir.path()
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

    /// Does something in the client's network.
    pub fn at_client<T: Send>(&self, work: impl FnOnce() -> io::Result<T> + Send) -> T {
        let namespace = File::open(format!("/run/netns/{}-client", self.prefix)).expect("client namespace");
        mycelium_linux::netns::run_in(&namespace, work).expect("at the client")
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for host in &mut self.hosts {
            if std::thread::panicking() {
                eprintln!("---- log of {}\n{}", host.name, host.log());
            }
            host.kill();
        }
        let names = self.hosts.iter().map(|host| host.name.as_str()).chain(["client", "switch"]);
        for name in names {
            let _ = command("ip").args(["netns", "delete", &format!("{}-{name}", self.prefix)]).status();
        }
    }
}

impl Host {
    /// The binary on this host, with its data directory and name.
    pub fn mycelium(&self) -> Command {
        let mut command = command("ip");
        command.args(["netns", "exec", &self.namespace, env!("CARGO_BIN_EXE_mycelium")]);
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
        let listen = format!("{}:7400", self.address);
        self.spawn(&["vm", "backup", "--listen", &listen]);
        let begun = tokio::time::Instant::now();
        while !self.log().contains("standing by") {
            assert!(begun.elapsed() < PATIENCE, "{} does not stand by:\n{}", self.name, self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// What its processes printed.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }

    /// The state of a machine on this host, if a process has it.
    pub fn status(&self, vm: &str) -> Option<Value> {
        let output = self.mycelium().args(["vm", "status", vm, "-o", "json"]).output().ok()?;
        output.status.success().then(|| serde_json::from_slice(&output.stdout).ok()).flatten()
    }

    /// The guest's console so far.
    pub fn folder(&self) -> &Path {
        &self.dir
    }

    /// `kill -9` of everything on the host.
    pub fn kill(&mut self) {
        let pids = run(command("ip").args(["netns", "pids", &self.namespace]));
        for pid in pids.split_whitespace() {
            let _ = command("kill").args(["-9", pid]).stderr(Stdio::null()).status();
        }
        for mut child in self.processes.drain(..) {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

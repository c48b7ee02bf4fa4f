//! Hosts as network namespaces on one switch, and a client beside them. All of it goes when the lab is dropped.
//!
//! ```text
//!   client 10.77.0.100 ──┐
//!   a 10.77.0.1 (br0) ───┤ switch
//!   b 10.77.0.2 (br0) ───┤
//!   c 10.77.0.3 (br0) ───┘      guests' taps join br0 of their host, so a guest is on the same network
//! ```

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use tokio::time::Instant;

use crate::engine::command;

/// How long anything may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(180);
/// The client's address.
pub const CLIENT: &str = "10.77.0.100";
/// The guest's address.
pub const GUEST: &str = "10.77.0.50";
/// What the machine is called.
pub const VM: &str = "bench";

/// A switch, hosts and a client.
pub struct Lab {
    binary: PathBuf,
    dir: tempfile::TempDir,
    prefix: String,
    hosts: Vec<Host>,
}

struct Host {
    name: String,
    dir: PathBuf,
    processes: Vec<Child>,
}

/// Runs a command to its end.
pub fn run(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("{command:?}"))?;
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "{command:?}: {}\n{out}{err}", output.status);
    Ok(out.into_owned())
}

fn ip(words: &str) -> Result<()> {
    run(command("ip").args(words.split_whitespace())).map(drop)
}

/// Polls until there is a value.
pub fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> Result<T> {
    let begun = Instant::now();
    loop {
        if let Some(value) = look() {
            return Ok(value);
        }
        ensure!(begun.elapsed() < PATIENCE, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

impl Lab {
    /// As many hosts as asked for, named `a`, `b` and so on, and a client.
    pub fn new(binary: &Path, hosts: u8) -> Result<Self> {
        let prefix = format!("mybench{}", std::process::id());
        let dir = tempfile::Builder::new().prefix("mycelium-bench-").tempdir_in("/var/lib")?;
        let mut lab = Self { binary: binary.to_owned(), dir, prefix, hosts: Vec::new() };
        ip(&format!("netns add {}", lab.namespace("switch")))?;
        ip(&format!("-n {} link add lan type bridge", lab.namespace("switch")))?;
        ip(&format!("-n {} link set lan up", lab.namespace("switch")))?;
        lab.plug("client")?;
        ip(&format!("-n {} address add {CLIENT}/24 dev uplink", lab.namespace("client")))?;
        for index in 0..hosts {
            let name = char::from(b'a' + index).to_string();
            lab.plug(&name)?;
            let namespace = lab.namespace(&name);
            ip(&format!("-n {namespace} link add br0 type bridge"))?;
            ip(&format!("-n {namespace} link set uplink master br0"))?;
            ip(&format!("-n {namespace} link set br0 up"))?;
            ip(&format!("-n {namespace} address add {}/24 dev br0", address(&name)))?;
            let dir = lab.dir.path().join(&name);
            std::fs::create_dir_all(dir.join("vm"))?;
            lab.hosts.push(Host { name, dir, processes: Vec::new() });
        }
        run(lab.mycelium("a").args(["vm", "init"]))?;
        for host in &lab.hosts[1..] {
            std::fs::copy(lab.hosts[0].dir.join("vm/group.pem"), host.dir.join("vm/group.pem"))?;
        }
        Ok(lab)
    }

    fn plug(&self, name: &str) -> Result<()> {
        let (switch, namespace) = (self.namespace("switch"), self.namespace(name));
        ip(&format!("netns add {namespace}"))?;
        ip(&format!("-n {namespace} link set lo up"))?;
        ip(&format!("-n {switch} link add to-{name} type veth peer name uplink netns {namespace}"))?;
        ip(&format!("-n {switch} link set to-{name} master lan up"))?;
        ip(&format!("-n {namespace} link set uplink up"))
    }

    /// The namespace of a host, of the switch or of the client.
    pub fn namespace(&self, name: &str) -> String {
        format!("{}-{name}", self.prefix)
    }

    /// A folder that goes with the lab.
    pub fn folder(&self) -> &Path {
        self.dir.path()
    }

    fn dir(&self, host: &str) -> PathBuf {
        self.dir.path().join(host)
    }

    /// `mycelium` with a host's data, outside of its network.
    fn mycelium(&self, host: &str) -> Command {
        let mut command = command(&self.binary);
        command.env("MYCELIUM_DATA_DIR", self.dir(host)).env("MYCELIUM_NODE_NAME", host);
        command
    }

    /// A program in the network of a host or of the client.
    pub fn inside(&self, name: &str, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = command("ip");
        command.args(["netns", "exec", &self.namespace(name)]).arg(program);
        command.env("MYCELIUM_DATA_DIR", self.dir(name)).env("MYCELIUM_NODE_NAME", name);
        command
    }

    /// Starts `mycelium vm ...` on a host, as a process that stays. Its process is returned.
    pub fn start(&mut self, host: &str, words: &[&str]) -> Result<u32> {
        let log = File::options().create(true).append(true).open(self.dir(host).join("log"))?;
        let mut command = self.inside(host, &self.binary);
        command.arg("vm").args(words).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let child = command.spawn()?;
        let pid = child.id();
        let host = self.hosts.iter_mut().find(|known| known.name == host).context("no such host")?;
        host.processes.push(child);
        Ok(pid)
    }

    /// Starts `mycelium vm backup` on a host.
    pub fn stand_by(&mut self, host: &str) -> Result<u32> {
        let before = self.log(host).len();
        let pid = self.start(host, &["backup", "--listen", &format!("{}:7400", address(host))])?;
        eventually("a host stands by", || {
            self.log(host).get(before..).is_some_and(|new| new.contains("standing by")).then_some(())
        })?;
        Ok(pid)
    }

    /// What the processes of a host printed.
    pub fn log(&self, host: &str) -> String {
        std::fs::read_to_string(self.dir(host).join("log")).unwrap_or_default()
    }

    /// Runs `mycelium vm ...` about the machine on a host.
    pub fn vm(&self, host: &str, verb: &str, words: &[&str]) -> Result<String> {
        run(self.mycelium(host).args(["vm", verb, VM]).args(words))
    }

    /// How the machine is on a host, if a process there has it.
    pub fn status(&self, host: &str) -> Option<Value> {
        serde_json::from_str(&self.vm(host, "status", &["-o", "json"]).ok()?).ok()
    }

    /// The host that has the guest, and its state.
    pub fn primary(&self) -> Option<(String, Value)> {
        let all = self.hosts.iter().filter(|host| !host.processes.is_empty());
        let all = all.filter_map(|host| Some((host.name.clone(), self.status(&host.name)?)));
        all.filter(|(_, status)| status["role"] == "primary" && status["phase"] != "starting")
            .max_by_key(|(_, status)| status["term"].as_u64())
    }

    /// Waits until this many backups are in sync.
    pub fn protected(&self, backups: usize) -> Result<(String, Value)> {
        eventually("the machine is protected", || {
            let (name, status) = self.primary()?;
            let peers = status["peers"].as_array()?;
            (peers.iter().filter(|peer| peer["state"] == "backup").count() >= backups).then_some((name, status))
        })
        .with_context(|| self.logs())
    }

    fn logs(&self) -> String {
        let last = |host: &Host| {
            let log = self.log(&host.name);
            let lines: Vec<&str> = log.lines().rev().take(12).collect();
            format!("{}:\n{}\n", host.name, lines.into_iter().rev().collect::<Vec<_>>().join("\n"))
        };
        self.hosts.iter().map(last).collect()
    }

    /// Limits what leaves a host, in Mbit/s.
    pub fn limit(&self, host: &str, megabits: u32) -> Result<()> {
        let namespace = self.namespace(host);
        let words =
            format!("-n {namespace} qdisc replace dev uplink root tbf rate {megabits}mbit burst 256kb latency 100ms");
        run(command("tc").args(words.split_whitespace())).map(drop)
    }

    /// Processor time that the virtual processors of a host's guest had (proc(5), schedstat: the first number, in ns).
    pub fn processor_seconds(&self, host: &str) -> Result<f64> {
        let pids = run(command("ip").args(["netns", "pids", &self.namespace(host)]))?;
        let tasks = pids.split_whitespace().flat_map(|pid| std::fs::read_dir(format!("/proc/{pid}/task"))).flatten();
        let ns = tasks.flatten().filter_map(|task| {
            let name = std::fs::read_to_string(task.path().join("comm")).ok()?;
            let times = std::fs::read_to_string(task.path().join("schedstat")).ok()?;
            name.starts_with("CPU ").then(|| times.split(' ').next()?.parse::<f64>().ok())?
        });
        let total: f64 = ns.sum();
        ensure!(total > 0.0, "no guest runs on {host}");
        Ok(total / 1e9)
    }

    /// Bytes that left a host by its interface, whoever sent them.
    pub fn sent_bytes(&self, host: &str) -> Result<f64> {
        let text = run(self.inside(host, "cat").arg("/sys/class/net/uplink/statistics/tx_bytes"))?;
        Ok(text.trim().parse()?)
    }

    /// Cuts the power of a host: nobody hears of it any more, then everything on it is gone.
    pub fn power_off(&mut self, host: &str) -> Result<()> {
        ip(&format!("-n {} link set to-{host} down", self.namespace("switch")))?;
        self.kill(host)
    }

    /// Gives a host its power back; its disk is as it was, and it stands by.
    pub fn power_on(&mut self, host: &str) -> Result<()> {
        ip(&format!("-n {} link set to-{host} up", self.namespace("switch")))?;
        self.stand_by(host).map(drop)
    }

    /// Ends everything on a host.
    pub fn kill(&mut self, host: &str) -> Result<()> {
        let pids = run(command("ip").args(["netns", "pids", &self.namespace(host)]))?;
        let _ = command("kill").arg("-9").args(pids.split_whitespace()).stderr(Stdio::null()).status();
        let Some(host) = self.hosts.iter_mut().find(|known| known.name == host) else { bail!("no host {host}") };
        for mut child in host.processes.drain(..) {
            let _ = child.kill();
            let _ = child.wait();
        }
        Ok(())
    }
}

/// The address of a host.
pub fn address(host: &str) -> String {
    format!("10.77.0.{}", host.bytes().next().unwrap_or(b'a') - b'a' + 1)
}

impl Drop for Lab {
    fn drop(&mut self) {
        let names: Vec<String> = self.hosts.iter().map(|host| host.name.clone()).collect();
        for name in names {
            let _ = self.kill(&name);
            let _ = ip(&format!("netns delete {}", self.namespace(&name)));
        }
        let _ = ip(&format!("netns delete {}", self.namespace("client")));
        let _ = ip(&format!("netns delete {}", self.namespace("switch")));
    }
}

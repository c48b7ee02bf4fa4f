//! Start-up and size; an engine for the other measurements.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::time::Instant;

use crate::report::{Report, spread};

/// A running engine in a directory of its own, stopped and cleaned up when dropped.
pub struct Engine {
    binary: PathBuf,
    dir: tempfile::TempDir,
    child: Child,
    /// From starting the process to its line `ready in`.
    pub ready: Duration,
}

/// The name of the first node.
pub const NODE: &str = "bench";

/// Address ranges that no interface has an address of, for pods and for services. The tests' are others.
fn ranges() -> Result<(String, String)> {
    let taken = command("ip").args(["-4", "-o", "addr"]).output().context("ip")?.stdout;
    let taken = String::from_utf8_lossy(&taken);
    let mut choices = (0..15).map(|n| 10 + (std::process::id() + n) % 15 * 2);
    let free = choices.find(|net| !taken.contains(&format!(" 10.{net}."))).context("no free range of addresses")?;
    Ok((format!("10.{free}.0.0/16"), format!("10.{}.0.0/16", free + 1)))
}

#[allow(clippy::disallowed_methods, reason = "a measuring tool starts what it measures")]
pub fn command(program: impl AsRef<std::ffi::OsStr>) -> Command {
    Command::new(program)
}

impl Engine {
    /// Starts an engine; `prepare` may fill the data directory first.
    pub fn start(binary: &Path, prepare: impl FnOnce(&Path) -> Result<()>) -> Result<Self> {
        Self::start_with(binary, &[], prepare)
    }

    /// Starts an engine with more options.
    pub fn start_with(binary: &Path, options: &[&str], prepare: impl FnOnce(&Path) -> Result<()>) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("mycelium-bench-").tempdir_in("/var/lib")?;
        prepare(dir.path())?;
        let (pods, services) = ranges()?;
        let begun = Instant::now();
        let mut child = command(binary)
            .args(["up", "--listen", "127.0.0.1:0", "--pod-cidr", &pods, "--service-cidr", &services])
            .args(["--node-name", NODE, "--ingress-http", "127.0.0.1:0", "--ingress-https", "127.0.0.1:0"])
            .args(options)
            .arg("--data-dir")
            .arg(dir.path())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut lines = BufReader::new(child.stdout.take().context("stdout")?).lines();
        for line in lines.by_ref() {
            if line?.starts_with("ready in") {
                let ready = begun.elapsed();
                std::thread::spawn(move || lines.for_each(drop));
                return Ok(Self { binary: binary.to_owned(), dir, child, ready });
            }
        }
        bail!("the engine ended before it was ready")
    }

    /// The administrator's access.
    pub async fn config(&self) -> Result<kube::Config> {
        let kubeconfig = kube::config::Kubeconfig::read_from(self.dir.path().join("admin.kubeconfig"))?;
        let options = kube::config::KubeConfigOptions::default();
        Ok(kube::Config::from_custom_kubeconfig(kubeconfig, &options).await?)
    }

    /// A client with the administrator's certificate.
    pub async fn client(&self) -> Result<kube::Client> {
        Ok(kube::Client::try_from(self.config().await?)?)
    }

    /// The engine's process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The engine's resident memory in MiB (proc(5), `VmRSS`).
    pub fn resident_mib(&self) -> f64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or("0 kB");
        line.trim().trim_end_matches(" kB").trim().parse::<f64>().unwrap_or(0.0) / 1024.0
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        // The directory goes away next; a failure here shows as one there.
        let _ = command(&self.binary).arg("down").arg("--data-dir").arg(self.dir.path()).stdout(Stdio::null()).status();
        let _ = self.child.wait();
    }
}

/// User and system time of a process so far (proc(5), fields 14 and 15, in ticks of 10 ms).
pub fn cpu(pid: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let ticks: u64 =
        stat.rsplit(") ").next().unwrap_or_default().split(' ').skip(11).take(2).flat_map(str::parse::<u64>).sum();
    Duration::from_millis(ticks * 10)
}

/// `up` on an empty directory, ten times.
pub fn start_up(binary: &Path, report: &mut Report) -> Result<()> {
    let mut samples = Vec::new();
    for _ in 0..10 {
        samples.push(Engine::start(binary, |_| Ok(()))?.ready);
    }
    report.row(
        "up on an empty directory to API ready and node Ready",
        spread(&mut samples),
        "<= 150 ms",
        String::new(),
    );
    Ok(())
}

/// Size of the stripped binary.
pub fn size(binary: &Path, report: &mut Report) -> Result<()> {
    let bytes = std::fs::metadata(binary)?.len();
    report.row("binary, stripped", format!("{:.1} MB", bytes as f64 / 1e6), "<= 40 MB", String::new());
    Ok(())
}

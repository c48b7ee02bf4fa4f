//! Start-up, memory and idle CPU; an engine for the other measurements.

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

#[allow(clippy::disallowed_methods, reason = "a measuring tool starts what it measures")]
pub fn command(program: impl AsRef<std::ffi::OsStr>) -> Command {
    Command::new(program)
}

impl Engine {
    /// Starts an engine; `prepare` may fill the data directory first.
    pub fn start(binary: &Path, prepare: impl FnOnce(&Path) -> Result<()>) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("mycelium-bench-").tempdir_in("/var/lib")?;
        prepare(dir.path())?;
        let begun = Instant::now();
        let mut child = command(binary)
            .args(["up", "--listen", "127.0.0.1:0", "--pod-cidr", "10.40.0.0/16", "--service-cidr", "10.41.0.0/16"])
            .args(["--node-name", "bench", "--ingress-http", "127.0.0.1:0", "--ingress-https", "127.0.0.1:0"])
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

/// Memory and CPU of an engine that has nothing to do.
pub fn idle(binary: &Path, report: &mut Report) -> Result<()> {
    let engine = Engine::start(binary, |_| Ok(()))?;
    std::thread::sleep(Duration::from_secs(5));
    let (before, span) = (cpu(engine.pid()), Duration::from_secs(30));
    std::thread::sleep(span);
    let used = (cpu(engine.pid()) - before).as_secs_f64() / span.as_secs_f64() * 100.0;
    report.row(
        "resident memory, idle, no pods",
        format!("{:.1} MiB", engine.resident_mib()),
        "<= 40 MiB",
        String::new(),
    );
    report.row("idle CPU, 30 s", format!("{used:.2} % of one core"), "<= 0.5 %", String::new());
    Ok(())
}

/// Size of the stripped binary.
pub fn size(binary: &Path, report: &mut Report) -> Result<()> {
    let bytes = std::fs::metadata(binary)?.len();
    report.row("binary, stripped", format!("{:.1} MB", bytes as f64 / 1e6), "<= 40 MB", String::new());
    Ok(())
}

//! Pod create to Running, image present, against podman and containerd; then a hundred pods.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, DeleteParams, PostParams, WatchEvent, WatchParams};
use tokio::time::Instant;

use crate::engine::{Engine, command};
use crate::report::{Report, median_ms, spread};

const ROUNDS: usize = 20;
const HUNDRED: usize = 100;

/// One pod after the other.
pub async fn one_by_one(binary: &Path, report: &mut Report) -> Result<()> {
    let root = busybox_root()?;
    let engine = Engine::start(binary, |dir| import(binary, dir, root.path()))?;
    let api: Api<Pod> = Api::default_namespaced(engine.client().await?);
    let mut samples = Vec::new();
    for number in 0..ROUNDS {
        let name = format!("p{number}");
        samples.push(until_running(&api, &name).await?);
        api.delete(&name, &DeleteParams::default().grace_period(0)).await?;
    }
    let peers = peers(root.path())?;
    report.row("pod create to Running, image present", spread(&mut samples), "p50 <= 80 ms", peers);
    Ok(())
}

/// A hundred pods at once: until all are Ready, and what the engine uses then.
pub async fn hundred(binary: &Path, report: &mut Report) -> Result<()> {
    let root = busybox_root()?;
    let engine = Engine::start(binary, |dir| import(binary, dir, root.path()))?;
    let api: Api<Pod> = Api::default_namespaced(engine.client().await?);
    let begun = Instant::now();
    let mut growth = Vec::new();
    for (from, to) in [(0, 1), (1, 10), (10, 50), (50, HUNDRED)] {
        futures::future::try_join_all((from..to).map(|n| {
            let api = api.clone();
            async move { until_running(&api, &format!("h{n}")).await }
        }))
        .await?;
        growth.push(format!("{to}: {:.0} MiB", engine.resident_mib()));
    }
    let all = begun.elapsed();
    let mut late = Vec::new();
    for number in 0..5 {
        late.push(until_running(&api, &format!("late{number}")).await?);
    }
    report.row("100 pods, all Running", format!("{:.1} s", all.as_secs_f64()), "all Ready", String::new());
    report.row("resident memory by number of pods", growth.join(", "), "100: <= 70 MiB", String::new());
    report.row("pod create to Running with 100 pods there", spread(&mut late), "-", String::new());
    Ok(())
}

/// Creates a pod and waits, by watch, until it is Running.
async fn until_running(api: &Api<Pod>, name: &str) -> Result<Duration> {
    let pod: Pod = serde_json::from_value(serde_json::json!({
        "metadata": {"name": name},
        "spec": {
            "terminationGracePeriodSeconds": 0,
            "containers": [{"name": "main", "image": "busybox:bench", "command": ["/bin/sleep", "100000"]}],
        },
    }))?;
    let begun = Instant::now();
    let created = api.create(&PostParams::default(), &pod).await?;
    let parameters = WatchParams::default().fields(&format!("metadata.name={name}")).timeout(120);
    let version = created.metadata.resource_version.context("no resourceVersion")?;
    let mut events = std::pin::pin!(api.watch(&parameters, &version).await?);
    while let Some(event) = events.next().await {
        if let WatchEvent::Modified(pod) = event?
            && pod.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Running")
        {
            return Ok(begun.elapsed());
        }
    }
    anyhow::bail!("pod {name} did not run within 120 s")
}

/// A root file system of Debian's static busybox.
pub fn busybox_root() -> Result<tempfile::TempDir> {
    let root = tempfile::Builder::new().prefix("bench-root-").tempdir_in("/var/lib")?;
    for folder in ["bin", "etc", "proc", "dev", "sys", "tmp"] {
        std::fs::create_dir(root.path().join(folder))?;
    }
    std::fs::copy("/bin/busybox", root.path().join("bin/busybox")).context("busybox-static is not installed")?;
    for applet in ["sleep", "true", "sh"] {
        std::os::unix::fs::symlink("busybox", root.path().join("bin").join(applet))?;
    }
    Ok(root)
}

/// Imports a root file system as the image `busybox:bench` into a data directory.
pub fn import(binary: &Path, dir: &Path, root: &Path) -> Result<()> {
    let tar = root.with_extension("tar");
    ensure!(command("tar").arg("-C").arg(root).arg("-cf").arg(&tar).arg(".").status()?.success(), "tar failed");
    let mut import = command(binary);
    import.args(["image", "import", "--data-dir"]).arg(dir).arg(&tar).arg("busybox:bench").stdout(Stdio::null());
    let imported = import.status()?.success();
    std::fs::remove_file(&tar)?;
    ensure!(imported, "image import failed");
    Ok(())
}

/// `/bin/true` in the same root file system by podman and by the runtimes below containerd, without a network.
fn peers(root: &Path) -> Result<String> {
    let mut tried = Vec::new();
    for (runtime, options) in PODMAN {
        match podman(options, root) {
            Ok(mut samples) => {
                let podman = format!("podman run ({runtime}) p50 {:.0} ms", median_ms(&mut samples));
                return Ok(format!("{podman}; {}", containerd(root)?));
            }
            Err(why) => tried.push(format!("{runtime}: {why}")),
        }
    }
    Ok(format!("podman run does not run here ({}); {}", tried.join("; "), containerd(root)?))
}

/// Ways to call podman, its own choice first; the first that works counts. crun refuses a machine that has both versions
/// of cgroups, and the usual limits cannot be set where the hard limits are lower.
const PODMAN: [(&str, &[&str]); 4] = [
    ("its default runtime", &["run"]),
    ("without cgroups", &["run", "--cgroups=disabled"]),
    ("low limits", &["run", LOW_LIMITS[0], LOW_LIMITS[1]]),
    ("runc, low limits", &["--cgroup-manager=cgroupfs", "--runtime=runc", "run", LOW_LIMITS[0], LOW_LIMITS[1]]),
];
const LOW_LIMITS: [&str; 2] = ["--ulimit=nofile=1024:1024", "--ulimit=nproc=1024:1024"];

/// A sample of runs, or the last line of what podman said instead.
fn podman(options: &[&str], root: &Path) -> std::result::Result<Vec<Duration>, String> {
    let mut samples = Vec::new();
    for _ in 0..ROUNDS {
        let mut run = command("podman");
        run.args(options).args(["--rm", "--network=none", "--rootfs"]).arg(root).arg("/bin/true");
        let begun = Instant::now();
        let output = run.stdin(Stdio::null()).output().map_err(|error| error.to_string())?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr).trim().lines().last().unwrap_or_default().to_owned();
            return Err(if said.is_empty() { output.status.to_string() } else { said });
        }
        samples.push(begun.elapsed());
    }
    Ok(samples)
}

/// containerd's `ctr run --rootfs`, with a containerd of its own in a temporary directory.
fn containerd(root: &Path) -> Result<String> {
    let dir = tempfile::tempdir()?;
    let socket = dir.path().join("c.sock");
    let spawned = command("containerd")
        .arg("--address")
        .arg(&socket)
        .arg("--root")
        .arg(dir.path().join("root"))
        .arg("--state")
        .arg(dir.path().join("state"))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let Ok(mut daemon) = spawned else { return Ok("containerd is not installed".to_owned()) };
    let mut samples = Vec::new();
    for number in 0..ROUNDS + 100 {
        let mut run = command("ctr");
        run.arg("-a")
            .arg(&socket)
            .args(["run", "--rm", "--rootfs"])
            .arg(root)
            .arg(format!("b{number}"))
            .arg("/bin/true");
        let begun = Instant::now();
        let done = run.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success());
        if done {
            samples.push(begun.elapsed());
        } else if samples.is_empty() {
            // Not ready yet.
            std::thread::sleep(Duration::from_millis(50));
        }
        if samples.len() >= ROUNDS {
            break;
        }
    }
    let _ = daemon.kill();
    let _ = daemon.wait();
    Ok(match samples.is_empty() {
        true => "ctr run: does not run here".to_owned(),
        false => format!("ctr run p50 {:.0} ms", median_ms(&mut samples)),
    })
}

//! A full disk: writes are refused with a clear answer, nothing acknowledged is lost, nothing running is disturbed, and
//! freed space heals it all without a restart.

use std::path::{Path, PathBuf};

use crate::support::{Engine, command, eventually, mycelium, output, run};

/// A small file system on an engine's data directory. Declare it before the engine: it must go after it.
pub struct Small(PathBuf);

impl Small {
    /// One of that size.
    pub fn on(dir: &Path, size: &str) -> Self {
        run(command("mount").args(["-t", "tmpfs", "-o", &format!("size={size}"), "small"]).arg(dir));
        Self(dir.to_owned())
    }

    /// Leaves about `kib` free; what runs may write meanwhile, so it may take several attempts.
    pub fn fill_to(&self, kib: u64) {
        eventually("the disk is filled", || {
            let shown = run(command("df").args(["--output=avail", "-k"]).arg(&self.0));
            let free: u64 = shown.lines().last().and_then(|line| line.trim().parse().ok()).expect("a number");
            let ballast = std::fs::read_dir(&self.0).expect("lists").count();
            let path = self.0.join(format!("ballast-{ballast}"));
            let size = format!("{}K", free.saturating_sub(kib).max(4));
            let made = output(command("fallocate").args(["-l", &size]).arg(path));
            if made.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&made.stderr).into_owned()) }
        });
    }

    /// Frees what was taken.
    pub fn free(&self) {
        for entry in std::fs::read_dir(&self.0).expect("lists").flatten() {
            if entry.file_name().to_string_lossy().starts_with("ballast-") {
                std::fs::remove_file(entry.path()).expect("removes");
            }
        }
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = command("umount").arg("--lazy").arg(&self.0).status();
    }
}

/// A ConfigMap of 100 kB.
fn big(name: &str) -> String {
    format!("{{apiVersion: v1, kind: ConfigMap, metadata: {{name: {name}}}, data: {{a: '{}'}}}}", "x".repeat(100_000))
}

fn create(engine: &Engine, name: &str) -> Result<(), String> {
    // The manifest does not go through the full disk.
    let file = tempfile::NamedTempFile::new().expect("file");
    std::fs::write(file.path(), format!("---\n{}", big(name))).expect("write");
    let made = output(&mut engine.kubectl_command(&["create", "-f", &file.path().display().to_string()]));
    if made.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&made.stderr).into_owned()) }
}

#[test]
fn a_full_disk_refuses_writes_and_heals() {
    let small;
    let mut engine = Engine::prepare();
    small = Small::on(engine.dir(), "64m");
    // What else a node does about it (tests `pressure`) is left out here.
    engine.options = vec!["--eviction-hard=memory.available<100Mi".to_owned()];
    engine.up();
    engine.import_busybox();
    engine.apply(CHATTER);
    engine.kubectl(&["wait", "--for=condition=Ready", "pod/chatter", "--timeout=120s"]);
    let identity = engine.value("pod/chatter", "{.status.containerStatuses[0].containerID}");

    small.fill_to(2048);
    let mut acknowledged = Vec::new();
    let refused = loop {
        let name = format!("big-{}", acknowledged.len());
        match create(&engine, &name) {
            Ok(()) => acknowledged.push(name),
            Err(said) => break said,
        }
        assert!(acknowledged.len() < 200, "the disk never fills");
    };
    assert!(refused.contains("the disk that holds the store is full: free some space"), "{refused}");
    let there = |engine: &Engine| {
        let found = engine.kubectl(&["get", "configmaps", "-o", "name"]);
        for name in &acknowledged {
            assert!(found.contains(&format!("configmap/{name}\n")), "{name} was acknowledged: {found}");
        }
    };
    there(&engine);

    small.fill_to(0);
    let dir = engine.dir().display().to_string();
    let import = ["image", "import", "--data-dir", &dir, "--binary", mycelium(), "large:1"];
    let failed = output(command(mycelium()).args(import));
    let said = String::from_utf8_lossy(&failed.stderr).into_owned();
    assert_eq!(failed.status.code(), Some(1), "{said}");
    assert!(said.contains("the disk is full") && said.contains("mycelium image prune"), "{said}");
    assert!(said.trim().lines().count() <= 3, "one paragraph: {said}");
    // Its output has nowhere to go; it runs on all the same.
    let ticks = |engine: &Engine| {
        let log = engine.kubectl(&["logs", "chatter", "--tail=1"]);
        log.trim().rsplit(' ').next().and_then(|n| n.parse::<u64>().ok()).unwrap_or_else(|| panic!("{log:?}"))
    };
    let stuck = ticks(&engine);

    small.free();
    eventually("writes are taken again", || create(&engine, "after"));
    eventually("the log goes on", || {
        let now = ticks(&engine);
        if now > stuck { Ok(()) } else { Err(format!("{now}")) }
    });
    assert_eq!(engine.value("pod/chatter", "{.status.containerStatuses[0].containerID}"), identity);
    there(&engine);
    engine.kill();
    engine.up();
    there(&engine);
    assert_eq!(engine.value("pod/chatter", "{.status.containerStatuses[0].restartCount}"), "0");
    engine.down();
}

const CHATTER: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: chatter}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: main
    image: busybox:test
    command: [sh, -c, 'i=0; while true; do i=$((i+1)); echo "$(head -c 400 /dev/zero | tr "\0" x) $i"; sleep 0.02; done']
"#;

//! Up, down, status; what is left behind; two engines beside each other.

use crate::support::{Engine, command, mycelium, output, run};

/// What an engine could leave on the machine.
pub fn traces(id: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut look = |what: &str, text: String| {
        found.extend(text.lines().filter(|line| line.contains(id)).map(|line| format!("{what}: {line}")));
    };
    look("link", run(command("ip").args(["-o", "link"])));
    look("nft", run(command("nft").args(["list", "tables"])));
    look("mount", std::fs::read_to_string("/proc/self/mounts").expect("mounts"));
    look("cgroup", run(command("find").args(["/sys/fs/cgroup", "-maxdepth", "2", "-name", "mycelium-*"])));
    look("process", run(command("ps").args(["-eo", "args"])));
    found
}

fn routes() -> String {
    run(command("ip").args(["route", "show", "table", "all"]))
}

#[test]
fn down_leaves_nothing_behind() {
    let mut engine = Engine::start();
    engine.import_busybox();
    engine.apply(SLEEPERS);
    engine.kubectl(&["rollout", "status", "deploy/sleeper", "--timeout=120s"]);
    let id = nft_table_id(&engine);
    assert!(!traces(&id).is_empty(), "a running engine is seen");
    let said = engine.down();
    assert!(said.contains("stopped"), "{said}");
    assert_eq!(traces(&id), Vec::<String>::new());
    let dir = engine.dir().display().to_string();
    assert!(!run(command("ps").args(["-eo", "args"])).contains(&dir), "no process has the directory's name");
    assert!(!routes().contains(&id));
    assert_eq!(std::fs::read_dir(engine.dir().join("pods")).map_or(0, Iterator::count), 0);
}

/// The instance id, read off the name of the engine's nft table.
pub fn nft_table_id(engine: &Engine) -> String {
    let tables = run(command("nft").args(["list", "tables"]));
    let before: Vec<&str> = tables.lines().filter_map(|line| line.split("mycelium_").nth(1)).collect();
    let dir = engine.dir().display().to_string();
    let shims = run(command("ps").args(["-eo", "args"]));
    assert!(shims.contains(&dir), "a shim of {dir} runs");
    let hash = dir.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
    let id = format!("{:06x}", (hash ^ (hash >> 24) ^ (hash >> 48)) & 0x00ff_ffff);
    assert!(before.contains(&id.as_str()), "table mycelium_{id} is there: {before:?}");
    id
}

#[test]
fn status_tells_running_from_stopped() {
    let mut engine = Engine::start();
    let dir = engine.dir().display().to_string();
    let shown = run(command(mycelium()).args(["status", "--data-dir", &dir]));
    assert!(shown.contains("host-1 Ready"), "{shown}");
    let json: serde_json::Value =
        serde_json::from_str(&run(command(mycelium()).args(["status", "-o", "json", "--data-dir", &dir])))
            .expect("JSON");
    assert_eq!(json["running"], true);
    assert_eq!(json["cluster"]["nodeReady"], true);
    engine.terminate();
    let stopped = output(command(mycelium()).args(["status", "--data-dir", &dir]));
    assert_eq!(stopped.status.code(), Some(3));
    assert!(engine.down().contains("stopped"), "down cleans up after an engine that is gone");
}

#[test]
fn two_engines_run_side_by_side() {
    let (mut one, two) = (Engine::start(), Engine::start());
    for engine in [&one, &two] {
        engine.import_busybox();
        engine.apply(SLEEPERS);
    }
    for engine in [&one, &two] {
        engine.kubectl(&["rollout", "status", "deploy/sleeper", "--timeout=120s"]);
    }
    one.down();
    let pods = two.kubectl(&["get", "pods", "--no-headers"]);
    assert_eq!(pods.lines().filter(|line| line.contains("Running")).count(), 2, "{pods}");
    two.kubectl(&["exec", "deploy/sleeper", "--", "nslookup", "kubernetes.default.svc.cluster.local"]);
}

#[test]
fn objects_survive_down_and_up() {
    let mut engine = Engine::start();
    engine.import_busybox();
    engine.apply(SLEEPERS);
    engine.kubectl(&["rollout", "status", "deploy/sleeper", "--timeout=120s"]);
    engine.down();
    engine.up();
    engine.wait_value("deploy/sleeper", "{.status.readyReplicas}", "2");
}

const SLEEPERS: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: sleeper}
spec:
  replicas: 2
  selector: {matchLabels: {app: sleeper}}
  template:
    metadata: {labels: {app: sleeper}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - {name: main, image: "busybox:test", command: [sleep, "100000"]}
"#;

//! Fail static: the engine stops or is killed, pods go on, and the next engine adopts them with what happened meanwhile.

use crate::support::{Engine, command, eventually, run};

const PODS: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: counter}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: busybox:test
    command: [sh, -c, "i=0; while true; do i=$((i+1)); echo tick $i; sleep 0.1; done"]
---
apiVersion: v1
kind: Pod
metadata: {name: once}
spec:
  restartPolicy: Never
  containers:
  - name: main
    image: busybox:test
    command: [sh, -c, "echo working; while [ ! -e /go/now ]; do sleep 0.05; done; exit 42"]
    volumeMounts: [{name: go, mountPath: /go}]
  volumes: [{name: go, hostPath: {path: HOSTDIR}}]
---
apiVersion: v1
kind: Pod
metadata: {name: crasher}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: busybox:test
    command: [sh, -c, "test -e /seen/once || { touch /seen/once; exit 3; }; sleep 100000"]
    volumeMounts: [{name: seen, mountPath: /seen}]
  volumes: [{name: seen, emptyDir: {}}]
"#;

#[test]
fn pods_outlive_the_engine_and_are_adopted() {
    let mut engine = Engine::start();
    engine.import_busybox();
    let go = engine.dir().join("go");
    std::fs::create_dir(&go).expect("folder");
    engine.apply(&PODS.replace("HOSTDIR", &go.display().to_string()));
    engine.kubectl(&["wait", "--for=condition=Ready", "pod/counter", "pod/once", "--timeout=120s"]);
    engine.wait_value("pod/crasher", "{.status.containerStatuses[0].restartCount}", "1");
    engine.wait_value("pod/crasher", "{.status.phase}", "Running");
    let identity =
        |engine: &Engine| engine.value("pod/counter", "{.status.containerStatuses[0].containerID} {.status.podIP}");
    let before = identity(&engine);

    engine.kill();
    std::fs::write(go.join("now"), "").expect("write");
    let ticks = log_lines(&engine, "counter");
    eventually("the pod goes on without an engine", || {
        let now = log_lines(&engine, "counter");
        if now > ticks + 5 { Ok(()) } else { Err(format!("{ticks} lines, now {now}")) }
    });
    engine.up();
    engine.wait_value("pod/once", "{.status.containerStatuses[0].state.terminated.exitCode}", "42");
    engine.wait_value("pod/once", "{.status.phase}", "Failed");
    assert_eq!(identity(&engine), before, "the same container, at the same address");
    assert_eq!(engine.value("pod/counter", "{.status.containerStatuses[0].restartCount}"), "0");
    assert_eq!(engine.value("pod/crasher", "{.status.containerStatuses[0].restartCount}"), "1");
    assert_eq!(engine.value("pod/crasher", "{.status.containerStatuses[0].lastState.terminated.exitCode}"), "3");
    assert_eq!(engine.kubectl(&["logs", "once"]), "working\n");
    assert!(engine.kubectl(&["logs", "counter"]).starts_with("tick 1\n"), "logs are whole");

    engine.terminate();
    engine.up();
    assert_eq!(identity(&engine), before, "also after an orderly stop");
    engine.kubectl(&["exec", "counter", "--", "true"]);
    engine.kubectl(&["delete", "pod", "counter", "--timeout=60s"]);
}

/// Lines in a pod's log file on disk, for when no engine is there to ask.
fn log_lines(engine: &Engine, pod: &str) -> usize {
    let found = run(command("sh").arg("-c").arg(format!(
        "grep -rslE 'stdout F tick' {}/pods --include='*.log*' | head -1 | xargs -r wc -l",
        engine.dir().display()
    )));
    found.split_whitespace().next().and_then(|n| n.parse().ok()).unwrap_or_else(|| panic!("no log of {pod}: {found:?}"))
}

#[test]
fn a_pod_whose_shim_is_killed_is_made_anew() {
    let mut engine = Engine::start();
    engine.import_busybox();
    // A time that no other test sleeps for tells this pod's processes from others.
    let command_line = format!("sleep 31{:06}", std::process::id() % 1_000_000);
    engine.apply(&format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: victim}}, spec: {{terminationGracePeriodSeconds: 0, containers: \
         [{{name: main, image: 'busybox:test', command: [sh, -c, '{command_line}; true']}}]}}}}"
    ));
    engine.kubectl(&["wait", "--for=condition=Ready", "pod/victim", "--timeout=120s"]);
    let dir = engine.dir().display().to_string();
    let made_anew = |engine: &Engine, restarts: &str| {
        engine.wait_value("pod/victim", "{.status.containerStatuses[0].restartCount}", restarts);
        engine.wait_value("pod/victim", "{.status.containerStatuses[0].ready}", "true");
        engine.kubectl(&["exec", "victim", "--", "true"]);
        eventually("nothing of the first sandbox is left", || {
            let alive = processes(&command_line).len();
            // The shell and the program it runs.
            if alive == 2 { Ok(()) } else { Err(format!("{alive} processes run {command_line}")) }
        });
    };
    kill_shims(&dir);
    made_anew(&engine, "1");
    assert!(engine.kubectl(&["get", "events"]).contains("SandboxChanged"));

    engine.kill();
    kill_shims(&dir);
    engine.up();
    made_anew(&engine, "2");
    engine.down();
    assert_eq!(processes(&command_line), [""; 0]);
}

/// `pid command line` of what has `part` in its command line.
fn processes(part: &str) -> Vec<String> {
    let all = run(command("ps").args(["-eo", "pid,args"]));
    all.lines().filter(|line| line.contains(part)).map(|line| line.trim().to_owned()).collect()
}

/// `kill -9` of the shims of the engine with this directory.
fn kill_shims(dir: &str) {
    let shims = processes(&format!("{dir}/pods/"));
    assert!(!shims.is_empty(), "a shim runs");
    for shim in shims {
        run(command("kill").args(["-9", shim.split_whitespace().next().expect("pid")]));
    }
}

//! `kubectl debug`: containers added to a running pod, copies of pods, and pods that see the node.

use std::io::Write;
use std::process::Stdio;

use crate::support::{Engine, command, eventually};

const WEB: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: web}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - {name: main, image: "busybox:test", command: [sleep, "98765"]}
  - {name: other, image: "busybox:test", command: [sleep, "43210"]}
"#;

/// What `kubectl debug ARGS` shows on a terminal on which one line is typed: what a container says before somebody is
/// attached is not shown, so it has to wait for that line.
fn debug(engine: &Engine, args: &str) -> String {
    let line = format!("kubectl --kubeconfig {} debug {args}", engine.kubeconfig().display());
    let mut script = command("script");
    script.args(["-qec", &line, "/dev/null"]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut script = script.spawn().expect("script");
    script.stdin.take().expect("piped").write_all(b"\n").expect("typed");
    let output = script.wait_with_output().expect("it ends");
    let shown = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{line}: {shown}");
    shown
}

#[test]
fn a_container_is_added_to_a_running_pod() {
    let mut engine = Engine::start();
    engine.import_busybox();
    engine.apply(WEB);
    engine.kubectl(&["wait", "--for=condition=Ready", "pod/web", "--timeout=120s"]);
    let shown = debug(
        &engine,
        "-it web --image=busybox:test --target=main -c look -- sh -c 'read line; ps; echo is-$((40+2))'",
    );
    assert!(shown.contains("sleep 98765") && shown.contains("is-42"), "{shown}");
    assert!(!shown.contains("sleep 43210"), "only the target's processes are seen: {shown}");
    engine.wait_value("pod/web", "{.status.ephemeralContainerStatuses[0].state.terminated.exitCode}", "0");
    assert!(engine.kubectl(&["logs", "web", "-c", "look"]).contains("is-42"));

    debug(&engine, "web --image=busybox:test --target=main -c stay -- sleep 11111");
    let running = "{.status.ephemeralContainerStatuses[1].state.running.startedAt}";
    eventually("the second one runs", || match engine.value("pod/web", running).as_str() {
        "" => Err(engine.kubectl(&["describe", "pod/web"])),
        _ => Ok(()),
    });
    assert!(engine.kubectl(&["exec", "web", "-c", "stay", "--", "ps"]).contains("sleep 98765"));
    rules(&engine);

    let ids = "{.status.containerStatuses[*].containerID} {.status.ephemeralContainerStatuses[*].containerID}";
    let before = engine.value("pod/web", ids);
    engine.kill();
    engine.up();
    assert!(engine.kubectl(&["exec", "web", "-c", "stay", "--", "ps"]).contains("sleep 98765"));
    // It ends for good, and the pod does not mind: the first process of the namespace is not its own.
    engine.kubectl(&["exec", "web", "-c", "stay", "--", "killall", "-KILL", "sleep"]);
    engine.wait_value("pod/web", "{.status.ephemeralContainerStatuses[1].state.terminated.reason}", "Error");
    assert_eq!(engine.value("pod/web", ids), before, "nothing else ended, and nothing runs again");
    assert_eq!(engine.value("pod/web", "{.status.ephemeralContainerStatuses[*].restartCount}"), "0 0");
    assert_eq!(engine.value("pod/web", "{.status.containerStatuses[*].ready}"), "true true");
}

/// They are only ever added.
fn rules(engine: &Engine) {
    let refused = |patch: &str| {
        engine.kubectl_fails(&["patch", "pod", "web", "--subresource=ephemeralcontainers", "--type=json", "-p", patch])
    };
    let image = "/spec/ephemeralContainers/1/image";
    let changed = refused(&format!(r#"[{{"op": "replace", "path": "{image}", "value": "other"}}]"#));
    assert!(changed.contains(r#"existing ephemeral containers "stay" may not be changed"#), "{changed}");
    let removed = refused(r#"[{"op": "remove", "path": "/spec/ephemeralContainers/0"}]"#);
    assert!(removed.contains(r#"existing ephemeral containers "look" may not be removed"#), "{removed}");
    let lost = refused(
        r#"[{"op": "add", "path": "/spec/ephemeralContainers/-",
             "value": {"name": "c", "image": "busybox:test", "targetContainerName": "nobody"}}]"#,
    );
    assert!(lost.contains(r#"spec.ephemeralContainers[2].targetContainerName: Not found: "nobody""#), "{lost}");
}

#[test]
fn a_copy_of_a_pod_and_the_node_are_looked_at() {
    let engine = Engine::start();
    engine.import_busybox();
    engine.apply(WEB);
    engine.kubectl(&["wait", "--for=condition=Ready", "pod/web", "--timeout=120s"]);
    let args = "web --copy-to=copy --image=busybox:test -c helper --share-processes -- sleep 22222";
    debug(&engine, args);
    engine.kubectl(&["wait", "--for=condition=Ready", "pod/copy", "--timeout=120s"]);
    let seen = engine.kubectl(&["exec", "copy", "-c", "helper", "--", "ps"]);
    assert!(seen.contains("sleep 98765") && seen.contains("sleep 43210"), "{seen}");

    let kubeconfig = engine.kubeconfig();
    let look = format!("read line; cat /proc/1/comm; ls /host{}; hostname", kubeconfig.display());
    let shown = debug(&engine, &format!("node/host-1 -it --image=busybox:test -- sh -c '{look}'"));
    let first = std::fs::read_to_string("/proc/1/comm").expect("the first process");
    assert!(shown.contains(first.trim()), "the machine's processes: {shown}");
    assert!(shown.contains(&format!("/host{}", kubeconfig.display())), "the machine's files: {shown}");
}

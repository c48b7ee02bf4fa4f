//! A node that runs short of disk: the pod that took it goes, the others stay, and the node says so until it is over.

use std::path::{Path, PathBuf};

use crate::support::{Engine, command, run};

/// A small file system on an engine's data directory. Declare it before the engine: it must go after it.
struct Small(PathBuf);

impl Small {
    fn on(dir: &Path) -> Self {
        run(command("mount").args(["-t", "tmpfs", "-o", "size=256m", "small"]).arg(dir));
        Self(dir.to_owned())
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = command("umount").arg("--lazy").arg(&self.0).status();
    }
}

fn pod(name: &str, resources: &str, volume: &str, script: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  terminationGracePeriodSeconds: 30\n  \
         volumes: [{{name: data, emptyDir: {volume}}}]\n  containers:\n  - name: main\n    image: busybox:test\n    \
         command: [sh, -c, \"{script}; sleep 100000\"]\n    resources: {resources}\n    \
         volumeMounts: [{{name: data, mountPath: /data}}]\n---\n"
    )
}

#[test]
fn pods_that_fill_the_disk_are_evicted() {
    let small;
    let mut engine = Engine::prepare();
    small = Small::on(engine.dir());
    engine.options = vec!["--eviction-pressure-transition-period=5s".to_owned()];
    engine.up();
    engine.import_busybox();
    let calm = pod("calm", "{requests: {ephemeral-storage: 32Mi}}", "{}", "head -c 8m /dev/zero > /data/some");
    engine.apply(&calm);
    engine.kubectl(&["wait", "--for=condition=Ready", "pod/calm", "--timeout=120s"]);

    // Three that keep to what they were given, and break it.
    let limits = "{limits: {ephemeral-storage: 4Mi}}";
    let fill = |path: &str| format!("sleep 1; head -c 8m /dev/zero > {path}");
    engine.apply(&pod("volume", "{}", "{sizeLimit: 2Mi}", &fill("/data/much")));
    engine.apply(&pod("container", limits, "{}", &fill("/much")));
    for (name, message) in [
        ("volume", "Usage of EmptyDir volume \"data\" exceeds the limit \"2Mi\". "),
        ("container", "Pod ephemeral local storage usage exceeds the total limit of containers 4Mi. "),
    ] {
        evicted(&engine, name);
        assert_eq!(engine.value(&format!("pod/{name}"), "{.status.message}"), message);
    }
    assert_eq!(engine.value("node/host-1", PRESSURE), "False", "that was no pressure of the node");

    engine.apply(&pod("hog", "{}", "{}", "sleep 1; head -c 210m /dev/zero > /data/much"));
    engine.wait_value("node/host-1", PRESSURE, "True");
    engine.wait_value("node/host-1", TAINT, "NoSchedule");
    evicted(&engine, "hog");
    let message = engine.value("pod/hog", "{.status.message}");
    assert!(message.starts_with("The node was low on resource: ephemeral-storage. Threshold quantity: "), "{message}");
    // What it had is freed with it, and the node recovers.
    engine.wait_value("node/host-1", PRESSURE, "False");
    engine.wait_value("node/host-1", TAINT, "");
    assert_eq!(engine.value("pod/calm", "{.status.phase}"), "Running");
    assert_eq!(engine.value("pod/calm", "{.status.containerStatuses[0].restartCount}"), "0");
    engine.apply(&pod("later", "{}", "{}", "true"));
    engine.kubectl(&["wait", "--for=condition=Ready", "pod/later", "--timeout=120s"]);
    engine.down();
    drop(small);
}

const PRESSURE: &str = r#"{.status.conditions[?(@.type=="DiskPressure")].status}"#;
const TAINT: &str = r#"{.spec.taints[?(@.key=="node.kubernetes.io/disk-pressure")].effect}"#;

fn evicted(engine: &Engine, name: &str) {
    let pod = format!("pod/{name}");
    engine.wait_value(&pod, "{.status.reason}", "Evicted");
    engine.wait_value(&pod, "{.status.phase}", "Failed");
    let condition = r#"{.status.conditions[?(@.type=="DisruptionTarget")].reason}"#;
    engine.wait_value(&pod, condition, "TerminationByKubelet");
}

//! `mycelium backup` of a running engine, `mycelium restore` into another data directory.

use mycelium_linux::process::command;

use crate::support::{Engine, eventually, mycelium};

const CONFIG_MAP: &str = r#"
apiVersion: v1
kind: ConfigMap
metadata: { name: kept }
data: { key: before }
---
apiVersion: v1
kind: Secret
metadata: { name: hidden }
stringData: { key: open }
"#;

fn fails(args: &[&str]) -> String {
    let output = command(mycelium()).args(args).output().expect("mycelium runs");
    assert_eq!(output.status.code(), Some(1), "{args:?}: {output:?}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// What was written before the backup is there again, with its revision and keys; what came later is not; its pods run.
#[test]
fn a_backup_of_a_running_engine_is_restored() {
    let mut engine = Engine::start();
    engine.import_busybox();
    engine.apply(CONFIG_MAP);
    engine.apply(crate::pods::SLEEPER);
    engine.kubectl(&["wait", "--for=condition=Ready", "pod/sleeper", "--timeout=120s"]);
    let folder = tempfile::tempdir().expect("folder");
    let file = folder.path().join("engine.backup");
    let name = file.to_str().expect("text");
    let dir = engine.dir().to_str().expect("text").to_owned();
    let uid = engine.value("configmap/kept", "{.metadata.uid} {.metadata.resourceVersion}");
    let said = engine.mycelium(&["backup", name, "--data-dir", &dir]);
    assert!(said.contains("revision ") && said.contains("MiB"), "{said}");
    assert!(fails(&["backup", name, "--data-dir", &dir]).contains("exists already"));
    engine.kubectl(&["patch", "configmap/kept", "-p", r#"{"data":{"key":"after"}}"#]);
    assert!(fails(&["restore", name, "--data-dir", &dir]).contains("another engine"));

    engine.down();
    assert!(fails(&["restore", name, "--data-dir", &dir]).contains("--replace"));
    let bytes = std::fs::read(&file).expect("the backup");
    let cut = folder.path().join("cut");
    std::fs::write(&cut, &bytes[..bytes.len() - 100]).expect("written");
    let error = fails(&["restore", cut.to_str().expect("text"), "--data-dir", &dir, "--replace"]);
    assert!(error.contains("is as it was"), "{error}");
    engine.mycelium(&["restore", name, "--data-dir", &dir, "--replace"]);
    assert!(engine.dir().join("before-restore/state").exists());

    engine.up();
    assert_eq!(engine.value("configmap/kept", "{.data.key}"), "before");
    assert_eq!(engine.value("configmap/kept", "{.metadata.uid} {.metadata.resourceVersion}"), uid);
    assert_eq!(engine.value("secret/hidden", "{.data.key}"), "b3Blbg==");
    eventually("the pod runs again", || {
        let state = engine.value("pod/sleeper", "{.status.containerStatuses[0].ready}");
        if state == "true" { Ok(()) } else { Err(state) }
    });
    assert_eq!(engine.kubectl(&["exec", "sleeper", "--", "echo", "here"]).trim(), "here");
}

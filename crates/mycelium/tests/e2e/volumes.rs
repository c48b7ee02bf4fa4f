//! Persistent volumes with real folders: data outlives its pods, belongs to their group, and goes when it is to go.

use std::os::unix::fs::MetadataExt;

use crate::disk::Small;
use crate::support::{Engine, eventually, output};

const CLAIMS: &str = r#"
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: shared}
spec: {accessModes: [ReadWriteMany], storageClassName: fast-ssd, resources: {requests: {storage: 1Gi}}}
---
apiVersion: v1
kind: Pod
metadata: {name: one}
spec: &spec
  terminationGracePeriodSeconds: 0
  securityContext: {runAsUser: 1000, fsGroup: 2000}
  containers:
  - name: main
    image: busybox:test
    command: [sleep, "100000"]
    volumeMounts: [{name: data, mountPath: /data}, {name: data, mountPath: /sub, subPath: a/b}]
  volumes: [{name: data, persistentVolumeClaim: {claimName: shared}}]
---
apiVersion: v1
kind: Pod
metadata: {name: two}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: main
    image: busybox:test
    command: [sleep, "100000"]
    volumeMounts: [{name: data, mountPath: /data}]
  volumes: [{name: data, persistentVolumeClaim: {claimName: shared, readOnly: true}}]
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db}
spec:
  replicas: 2
  serviceName: db
  podManagementPolicy: Parallel
  selector: {matchLabels: {app: db}}
  template:
    metadata: {labels: {app: db}}
    spec:
      terminationGracePeriodSeconds: 0
      containers:
      - name: main
        image: busybox:test
        command: [sh, -c, "echo $HOSTNAME-started >> /data/log; exec sleep 100000"]
        volumeMounts: [{name: data, mountPath: /data}]
  volumeClaimTemplates:
  - metadata: {name: data}
    spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}
"#;

#[test]
fn data_outlives_pods_and_goes_with_its_claim() {
    let mut engine = Engine::start();
    engine.import_busybox();
    assert!(engine.kubectl(&["get", "storageclass"]).contains("local (default)"));
    let manifest = CLAIMS.replace("spec: &spec", "spec:");
    engine.apply(&manifest);
    let ready = |names: &[&str]| {
        let mut args = vec!["wait", "--for=condition=Ready", "--timeout=180s"];
        args.extend(names);
        engine.kubectl(&args);
    };
    ready(&["pod/one", "pod/two"]);
    engine.kubectl(&["rollout", "status", "statefulset/db", "--timeout=180s"]);

    // Two pods share it; one of them may only read. Its files belong to the group.
    engine.kubectl(&["exec", "one", "--", "sh", "-c", "echo hello > /data/file; echo below > /sub/file"]);
    assert_eq!(engine.kubectl(&["exec", "two", "--", "cat", "/data/file", "/data/a/b/file"]), "hello\nbelow\n");
    let refused = engine.kubectl_fails(&["exec", "two", "--", "touch", "/data/other"]);
    assert!(refused.contains("Read-only"), "{refused}");
    let volume = engine.value("pvc/shared", "{.spec.volumeName}");
    let folder = engine.dir().join("volumes").join(&volume);
    let meta = std::fs::metadata(folder.join("file")).expect("the file is in the volume's folder");
    assert_eq!((meta.uid(), meta.gid()), (1000, 2000));

    // The pod goes and comes back, a set shrinks and grows, the engine starts anew: nothing is lost.
    engine.kubectl(&["delete", "pod", "one"]);
    engine.kubectl(&["scale", "statefulset/db", "--replicas=1"]);
    engine.kubectl(&["wait", "--for=delete", "pod/db-1", "--timeout=180s"]);
    engine.apply(&manifest);
    ready(&["pod/one"]);
    assert_eq!(engine.kubectl(&["exec", "one", "--", "cat", "/data/file", "/sub/file"]), "hello\nbelow\n");
    engine.kubectl(&["rollout", "status", "statefulset/db", "--timeout=180s"]);
    eventually("db-1 has what it wrote before", || {
        let log = engine.kubectl(&["exec", "db-1", "--", "cat", "/data/log"]);
        if log == "db-1-started\ndb-1-started\n" { Ok(()) } else { Err(log) }
    });
    engine.kubectl(&["patch", "pvc/shared", "-p", r#"{"spec":{"resources":{"requests":{"storage":"2Gi"}}}}"#]);
    engine.wait_value("pvc/shared", "{.status.capacity.storage}", "2Gi");

    // The claim waits for its pods; then volume and folder go.
    engine.kubectl(&["delete", "pvc/shared", "--wait=false"]);
    assert_eq!(engine.value("pvc/shared", "{.status.phase}"), "Bound");
    engine.kubectl(&["delete", "pod", "one", "two"]);
    engine.kubectl(&["wait", "--for=delete", "pvc/shared", &format!("pv/{volume}"), "--timeout=180s"]);
    assert!(!folder.exists(), "the folder goes with the volume");

    // `down` keeps what is left.
    let kept = engine.dir().join("volumes").join(engine.value("pvc/data-db-0", "{.spec.volumeName}")).join("log");
    engine.down();
    assert!(kept.exists(), "down keeps the volumes");
}

const KEPT: &str = r#"
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: kept}
spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}
---
apiVersion: v1
kind: Pod
metadata: {name: keeper}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: main
    image: busybox:test
    command: [sh, -c, "echo started >> /data/log; exec sleep 100000"]
    volumeMounts: [{name: data, mountPath: /data}]
  volumes: [{name: data, persistentVolumeClaim: {claimName: kept}}]
"#;

/// The place of all volumes cannot be written to, then is not there (a disk that is not mounted): pods wait and say why, and
/// nobody is given an empty folder for a full one.
#[test]
fn volumes_whose_place_is_gone_wait_for_it() {
    let engine = Engine::start();
    engine.import_busybox();
    let (place, away) = (engine.dir().join("volumes"), engine.dir().join("away"));
    let told = |why: &str| {
        eventually(why, || {
            let events = engine.kubectl(&["get", "events", "--field-selector", "reason=FailedMount"]);
            if events.contains(why) { Ok(()) } else { Err(events) }
        });
    };
    let _ = std::fs::remove_dir_all(&place);
    std::fs::write(&place, "in the way").expect("a file in the way");
    engine.apply(KEPT);
    told("cannot make the folder");
    on_the_claim(&engine, "ProvisioningFailed", "cannot make the folder");
    std::fs::remove_file(&place).expect("out of the way");
    engine.kubectl(&["wait", "--for=condition=Ready", "pod/keeper", "--timeout=180s"]);

    engine.kubectl(&["delete", "pod", "keeper"]);
    std::fs::rename(&place, &away).expect("gone");
    engine.apply(KEPT);
    told("it was made before and has gone");
    on_the_claim(&engine, "VolumeConditionAbnormal", "it was made before and has gone");
    let _ = std::fs::remove_dir_all(&place);
    std::fs::rename(&away, &place).expect("back");
    engine.kubectl(&["wait", "--for=condition=Ready", "pod/keeper", "--timeout=180s"]);
    assert_eq!(engine.kubectl(&["exec", "keeper", "--", "cat", "/data/log"]), "started\nstarted\n");
}

/// Whoever looks at the claim reads what is wrong with its volume.
fn on_the_claim(engine: &Engine, reason: &str, words: &str) {
    eventually(&format!("the claim says {reason}: {words}"), || {
        let shown = engine.kubectl(&["describe", "pvc", "kept"]);
        let said = shown.lines().any(|line| line.contains("Warning") && line.contains(reason) && line.contains(words));
        if said { Ok(()) } else { Err(shown) }
    });
}

/// No volume is begun on a full disk: the claim says why, and the pod starts when there is room. A volume in use that fills up
/// refuses its pod's writes as a disk does, and takes them again.
#[test]
fn a_claim_on_a_full_disk_is_told_and_served_when_there_is_room() {
    let engine = Engine::start();
    engine.import_busybox();
    let place = engine.dir().join("volumes");
    std::fs::create_dir_all(&place).expect("the place of volumes");
    let small = Small::on(&place, "4m");
    small.fill_to(64);
    engine.apply(KEPT);
    on_the_claim(&engine, "ProvisioningFailed", "no space left on device");
    assert_eq!(engine.value("pod/keeper", "{.status.phase}"), "Pending");
    small.free();
    engine.kubectl(&["wait", "--for=condition=Ready", "pod/keeper", "--timeout=180s"]);

    let write = |name: &str| {
        let script = format!("dd if=/dev/zero of=/data/{name} bs=4k count=125");
        let said = output(&mut engine.kubectl_command(&["exec", "keeper", "--", "sh", "-c", &script]));
        (said.status.success(), String::from_utf8_lossy(&said.stderr).into_owned())
    };
    assert!(write("before").0);
    small.fill_to(4);
    let (written, said) = write("much");
    assert!(!written && said.contains("No space left on device"), "{said}");
    small.free();
    eventually("it takes writes again", || match write("after") {
        (true, _) => Ok(()),
        (false, said) => Err(said),
    });
    assert_eq!(engine.value("pod/keeper", "{.status.containerStatuses[0].restartCount}"), "0");
    engine.kubectl(&["delete", "pod/keeper", "pvc/kept"]);
}

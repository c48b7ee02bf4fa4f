//! What the node does for a pod: environment, volumes, security, resources, probes, hooks, restarts.

use crate::support::{Engine, eventually};

/// A pod that just is there.
pub const SLEEPER: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: sleeper}
spec:
  terminationGracePeriodSeconds: 1
  containers: [{name: main, image: "busybox:test", command: [sleep, "100000"]}]
"#;

const EVERYTHING: &str = r#"
apiVersion: v1
kind: ConfigMap
metadata: {name: settings}
data: {colour: green, app.conf: "a = 1\n"}
---
apiVersion: v1
kind: Secret
metadata: {name: token}
stringData: {password: hunter2}
---
apiVersion: v1
kind: Pod
metadata:
  name: everything
  labels: {app: everything}
  annotations: {note: "seen from inside"}
spec:
  terminationGracePeriodSeconds: 1
  securityContext: {runAsUser: 1000, runAsGroup: 3000, fsGroup: 2000, runAsNonRoot: true, seccompProfile: {type: RuntimeDefault}}
  initContainers:
  - {name: first, image: "busybox:test", command: [sh, -c, "echo prepared > /work/init"], volumeMounts: [{name: work, mountPath: /work}]}
  - {name: side, image: "busybox:test", restartPolicy: Always, command: [sleep, "100000"]}
  containers:
  - name: main
    image: busybox:test
    command: [sleep, "100000"]
    env:
    - {name: LITERAL, value: "x-$(POD_NAME)-$$(KEPT)"}
    - {name: POD_NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
    - {name: ORDERED, value: "$(POD_NAME)!"}
    - {name: POD_IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
    - {name: COLOUR, valueFrom: {configMapKeyRef: {name: settings, key: colour}}}
    - {name: PASSWORD, valueFrom: {secretKeyRef: {name: token, key: password}}}
    - {name: MEMORY, valueFrom: {resourceFieldRef: {resource: limits.memory}}}
    envFrom: [{configMapRef: {name: settings}, prefix: CM_}]
    resources: {requests: {cpu: 50m, memory: 16Mi}, limits: {cpu: 500m, memory: 64Mi}}
    securityContext: {readOnlyRootFilesystem: true, allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}
    volumeMounts:
    - {name: work, mountPath: /work}
    - {name: memory, mountPath: /memory}
    - {name: settings, mountPath: /settings}
    - {name: settings, mountPath: /one.conf, subPath: app.conf}
    - {name: token, mountPath: /token, readOnly: true}
    - {name: all, mountPath: /all}
  volumes:
  - {name: work, emptyDir: {}}
  - {name: memory, emptyDir: {medium: Memory, sizeLimit: 8Mi}}
  - {name: settings, configMap: {name: settings}}
  - {name: token, secret: {secretName: token, defaultMode: 0440}}
  - name: all
    projected:
      sources:
      - {downwardAPI: {items: [{path: labels, fieldRef: {fieldPath: metadata.labels}}, {path: note, fieldRef: {fieldPath: "metadata.annotations['note']"}}]}}
      - {configMap: {name: settings, items: [{key: colour, path: nested/colour}]}}
      - {serviceAccountToken: {path: jwt, expirationSeconds: 3600, audience: test}}
"#;

#[test]
fn environment_volumes_and_security_are_as_asked() {
    let engine = Engine::start();
    engine.import_busybox();
    engine.apply(EVERYTHING);
    engine.kubectl(&["wait", "--for=condition=Ready", "pod/everything", "--timeout=120s"]);
    let sh = |script: &str| engine.kubectl(&["exec", "everything", "-c", "main", "--", "sh", "-c", script]);
    assert_eq!(sh("echo $ORDERED $COLOUR $PASSWORD $MEMORY $CM_colour"), "everything! green hunter2 67108864 green\n");
    assert_eq!(sh("echo \"$LITERAL\""), "x-$(POD_NAME)-$(KEPT)\n", "a name that is defined later is not expanded");
    assert_eq!(sh("echo $POD_IP").trim(), engine.value("pod/everything", "{.status.podIP}"));
    assert_eq!(sh("id -u; id -g; id -G").split_whitespace().collect::<Vec<_>>(), ["1000", "3000", "3000", "2000"]);
    assert_eq!(sh("cat /work/init /settings/app.conf /one.conf /token/password"), "prepared\na = 1\na = 1\nhunter2");
    assert_eq!(sh("cat /all/labels /all/note /all/nested/colour"), "app=\"everything\"seen from insidegreen");
    assert_eq!(sh("cut -d. -f1 /all/jwt | base64 -d 2>/dev/null | grep -c alg"), "1\n");
    assert_eq!(sh("stat -c %g /work"), "2000\n");
    assert_eq!(
        sh("touch /nope 2>&1 || echo read-only; touch /work/yes && echo writable").lines().last(),
        Some("writable")
    );
    assert!(sh("touch /nope 2>&1; true").contains("Read-only file system"));
    assert_eq!(
        sh("grep -E '^(CapEff|NoNewPrivs|Seccomp):' /proc/self/status | tr -s '\\t\\n' ' '").trim(),
        "CapEff: 0000000000000000 NoNewPrivs: 1 Seccomp: 2"
    );
    assert!(
        sh("unshare -U true 2>&1; true").contains("Operation not permitted"),
        "seccomp forbids new user namespaces"
    );
    assert!(sh("df -k /memory | tail -1").contains("8192"), "the memory volume has its size");
    live_update(&engine);
    assert_eq!(engine.value("pod/everything", "{.status.qosClass}"), "Burstable");
}

/// A mounted ConfigMap follows the object; a subPath mount does not (as in Kubernetes).
fn live_update(engine: &Engine) {
    engine.kubectl(&["patch", "configmap", "settings", "-p", "{\"data\":{\"colour\":\"blue\"}}"]);
    eventually("the mounted map changes", || {
        let seen = engine.kubectl(&["exec", "everything", "-c", "main", "--", "cat", "/settings/colour"]);
        if seen == "blue" { Ok(()) } else { Err(seen) }
    });
}

const TROUBLE: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: hungry}
spec:
  restartPolicy: Never
  containers:
  - name: main
    image: busybox:test
    command: [sh, -c, "exec tail /dev/zero"]
    resources: {limits: {memory: 24Mi}}
---
apiVersion: v1
kind: Pod
metadata: {name: looping}
spec:
  terminationGracePeriodSeconds: 1
  containers: [{name: main, image: "busybox:test", command: [sh, -c, "echo attempt; exit 5"]}]
---
apiVersion: v1
kind: Pod
metadata: {name: unwell}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: busybox:test
    command: [sh, -c, "touch /tmp/ok; sleep 3; rm /tmp/ok; sleep 100000"]
    startupProbe: {exec: {command: [test, -e, /tmp/ok]}, periodSeconds: 1}
    livenessProbe: {exec: {command: [test, -e, /tmp/ok]}, periodSeconds: 1, failureThreshold: 1}
---
apiVersion: v1
kind: Pod
metadata: {name: mapless}
spec:
  containers:
  - {name: main, image: "busybox:test", command: [sleep, "1"], env: [{name: A, valueFrom: {configMapKeyRef: {name: nowhere, key: a}}}]}
---
apiVersion: v1
kind: Pod
metadata: {name: rootless}
spec:
  containers:
  - {name: main, image: "busybox:test", command: [sleep, "1"], securityContext: {runAsNonRoot: true}}
---
apiVersion: v1
kind: Pod
metadata: {name: hooked}
spec:
  terminationGracePeriodSeconds: 30
  containers:
  - name: main
    image: busybox:test
    command: [sh, -c, "trap 'echo term >> /out/log; exit 0' TERM; while true; do sleep 0.1; done"]
    lifecycle:
      postStart: {exec: {command: [sh, -c, "echo post >> /out/log"]}}
      preStop: {exec: {command: [sh, -c, "echo pre >> /out/log"]}}
    volumeMounts: [{name: out, mountPath: /out}]
  volumes: [{name: out, hostPath: {path: HOSTDIR}}]
---
apiVersion: v1
kind: Pod
metadata: {name: huge}
spec:
  containers:
  - {name: main, image: "busybox:test", command: [sleep, "1"], resources: {requests: {cpu: "1000"}}}
"#;

#[test]
fn trouble_is_reported_as_the_kubelet_reports_it() {
    let engine = Engine::start();
    engine.import_busybox();
    let out = engine.dir().join("out");
    std::fs::create_dir(&out).expect("folder");
    engine.apply(&TROUBLE.replace("HOSTDIR", &out.display().to_string()));
    engine.wait_value("pod/hungry", "{.status.containerStatuses[0].state.terminated.reason}", "OOMKilled");
    assert_eq!(engine.value("pod/hungry", "{.status.containerStatuses[0].state.terminated.exitCode}"), "137");
    engine.wait_value("pod/looping", "{.status.containerStatuses[0].state.waiting.reason}", "CrashLoopBackOff");
    assert_eq!(engine.value("pod/looping", "{.status.containerStatuses[0].lastState.terminated.exitCode}"), "5");
    assert_eq!(engine.kubectl(&["logs", "looping", "--previous"]), "attempt\n");
    engine.wait_value("pod/unwell", "{.status.containerStatuses[0].restartCount}", "1");
    engine.wait_value(
        "pod/mapless",
        "{.status.containerStatuses[0].state.waiting.reason}",
        "CreateContainerConfigError",
    );
    let said = engine.value("pod/mapless", "{.status.containerStatuses[0].state.waiting.message}");
    assert_eq!(said, "configmap \"nowhere\" not found");
    engine.wait_value(
        "pod/rootless",
        "{.status.containerStatuses[0].state.waiting.reason}",
        "CreateContainerConfigError",
    );
    engine.wait_value("pod/huge", "{.status.conditions[?(@.type==\"PodScheduled\")].reason}", "Unschedulable");
    let events = engine.kubectl(&["describe", "pod", "huge"]);
    assert!(events.contains("0/1 nodes are available: 1 Insufficient cpu"), "{events}");
    let events = engine.kubectl(&["get", "events"]);
    for expected in ["BackOff", "Unhealthy", "Killing", "FailedScheduling", "Scheduled", "Started", "Created"] {
        assert!(events.contains(expected), "{expected}\n{events}");
    }
    engine.kubectl(&["wait", "--for=condition=Ready", "pod/hooked", "--timeout=60s"]);
    engine.kubectl(&["delete", "pod", "hooked", "--timeout=60s"]);
    assert_eq!(std::fs::read_to_string(out.join("log")).expect("log"), "post\npre\nterm\n");
}

//! What a running pod may use is changed in place: the container's own view of its group shows it, and it never restarts.

use crate::support::{Engine, eventually};

const WEB: &str = r#"
apiVersion: v1
kind: Pod
metadata: {name: web}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: main
    image: busybox:test
    command: [sleep, "100000"]
    resources: {requests: {cpu: 100m, memory: 32Mi}, limits: {cpu: 200m, memory: 64Mi}}
  - name: picky
    image: busybox:test
    command: [sh, -c, "trap 'exit 0' TERM; while :; do sleep 0.2; done"]
    resizePolicy: [{resourceName: memory, restartPolicy: RestartContainer}]
    resources: {requests: {cpu: 50m, memory: 32Mi}}
"#;

fn patch(container: &str, resources: &str) -> String {
    format!(r#"{{"spec": {{"containers": [{{"name": "{container}", "resources": {resources}}}]}}}}"#)
}

fn resize(engine: &Engine, container: &str, resources: &str) {
    engine.kubectl(&["patch", "pod", "web", "--subresource=resize", "-p", &patch(container, resources)]);
}

/// Memory and processor limits as the container's own group says; version 1 or 2.
fn limits(engine: &Engine) -> String {
    const READ: &str = "cd /sys/fs/cgroup; if [ -e memory.max ]; then cat memory.max; cut -d' ' -f1 cpu.max; \
                        else cat memory/memory.limit_in_bytes cpu/cpu.cfs_quota_us; fi";
    engine.kubectl(&["exec", "web", "-c", "main", "--", "sh", "-c", READ]).trim().replace('\n', " ")
}

fn wait_limits(engine: &Engine, expected: &str) {
    eventually("the container's limits", || {
        let found = limits(engine);
        if found == expected { Ok(()) } else { Err(format!("{found}\n{}", engine.kubectl(&["describe", "pod/web"]))) }
    });
}

#[test]
fn a_running_pod_is_resized() {
    let mut engine = Engine::start();
    engine.import_busybox();
    engine.apply(WEB);
    engine.kubectl(&["wait", "--for=condition=Ready", "pod/web", "--timeout=120s"]);
    assert_eq!(limits(&engine), format!("{} 20000", 64 << 20));
    let first = engine.value("pod/web", "{.status.containerStatuses[*].containerID}");

    resize(&engine, "main", r#"{"requests": {"cpu": "200m"}, "limits": {"cpu": "400m", "memory": "128Mi"}}"#);
    wait_limits(&engine, &format!("{} 40000", 128 << 20));
    let status =
        "{.status.containerStatuses[0].resources.limits.memory} {.status.containerStatuses[0].allocatedResources.cpu}";
    engine.wait_value("pod/web", status, "128Mi 200m");
    let conditions = r#"{.status.conditions[?(@.type=="PodResizeInProgress")].status}"#;
    engine.wait_value("pod/web", conditions, "");
    engine.wait_value("pod/web", "{.status.observedGeneration}", "2");

    // Less memory, too, as long as the container does not use more.
    resize(&engine, "main", r#"{"limits": {"memory": "48Mi"}}"#);
    wait_limits(&engine, &format!("{} 40000", 48 << 20));
    assert_eq!(engine.value("pod/web", "{.status.containerStatuses[*].containerID}"), first, "nothing was restarted");
    refused(&engine);

    // An engine that starts anew knows what containers have.
    engine.kill();
    engine.up();
    assert_eq!(limits(&engine), format!("{} 40000", 48 << 20));
    assert_eq!(engine.value("pod/web", "{.status.containerStatuses[0].resources.limits.memory}"), "48Mi");

    // One that wants to be restarted for memory is, and only then.
    resize(&engine, "picky", r#"{"requests": {"cpu": "60m"}}"#);
    engine.wait_value("pod/web", "{.status.containerStatuses[1].resources.requests.cpu}", "60m");
    assert_eq!(engine.value("pod/web", "{.status.containerStatuses[1].restartCount}"), "0");
    resize(&engine, "picky", r#"{"requests": {"memory": "40Mi"}}"#);
    engine.wait_value("pod/web", "{.status.containerStatuses[1].restartCount}", "1");
    engine.wait_value("pod/web", "{.status.containerStatuses[1].resources.requests.memory}", "40Mi");
    assert_eq!(engine.value("pod/web", "{.status.containerStatuses[0].restartCount}"), "0");
    let events = engine.kubectl(&["get", "events", "--field-selector", "involvedObject.name=web"]);
    assert!(events.contains("ResizeCompleted"), "{events}");
}

/// What cannot be, and what cannot be now.
fn refused(engine: &Engine) {
    let class = patch("main", r#"{"requests": {"cpu": "400m", "memory": "48Mi"}}"#);
    let both = r#"[{"op": "remove", "path": "/spec/containers/0/resources/limits/memory"}]"#.to_string();
    let removed = engine.kubectl_fails(&["patch", "pod", "web", "--subresource=resize", "--type=json", "-p", &both]);
    assert!(removed.contains("resource limits cannot be removed"), "{removed}");
    let main = engine.kubectl_fails(&["patch", "pod", "web", "-p", &class]);
    assert!(main.contains("pod updates may not change fields other than"), "{main}");

    let pending = |field: &str| format!(r#"{{.status.conditions[?(@.type=="PodResizePending")].{field}}}"#);
    resize(engine, "picky", r#"{"requests": {"memory": "900Ti"}}"#);
    engine.wait_value("pod/web", &pending("reason"), "Infeasible");
    let message = engine.value("pod/web", &pending("message"));
    assert!(message.starts_with("Node didn't have enough capacity: memory, requested: "), "{message}");
    assert_eq!(engine.value("pod/web", "{.status.containerStatuses[1].allocatedResources.memory}"), "32Mi");

    // As much as the node has is too much beside the other container; it fits when that one wants less.
    let all = engine.value("node/host-1", "{.status.allocatable.cpu}");
    resize(engine, "picky", &format!(r#"{{"requests": {{"cpu": "{all}", "memory": "32Mi"}}}}"#));
    engine.wait_value("pod/web", &pending("reason"), "Infeasible");
    resize(engine, "picky", r#"{"requests": {"cpu": "50m"}}"#);
    engine.wait_value("pod/web", &pending("reason"), "");
    let other = "apiVersion: v1\nkind: Pod\nmetadata: {name: other}\nspec:\n  terminationGracePeriodSeconds: 0\n  containers:\n  \
         - {name: c, image: 'busybox:test', command: [sleep, '100000'], resources: {requests: {cpu: 500m}}}\n".to_string();
    engine.apply(&other);
    engine.kubectl(&["wait", "--for=condition=Ready", "pod/other", "--timeout=120s"]);
    let most = format!("{}m", all.parse::<u64>().expect("whole processors") * 1000 - 300);
    resize(engine, "picky", &format!(r#"{{"requests": {{"cpu": "{most}"}}}}"#));
    engine.wait_value("pod/web", &pending("reason"), "Deferred");
    engine.kubectl(&["delete", "pod/other"]);
    engine.wait_value("pod/web", "{.status.containerStatuses[1].allocatedResources.cpu}", &most);
    engine.wait_value("pod/web", &pending("reason"), "");
    resize(engine, "picky", r#"{"requests": {"cpu": "50m"}}"#);
    engine.wait_value("pod/web", "{.status.containerStatuses[1].allocatedResources.cpu}", "50m");
}

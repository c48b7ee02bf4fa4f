//! Pods from the API to processes and back, on a real server and real containers. Needs root.

mod common;

use std::time::Duration;

use common::{Cluster, ready, state};
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::api::{Api, Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use tokio::time::Instant;

fn shell(script: &str) -> Value {
    json!({"name": "a", "image": "busybox", "imagePullPolicy": "IfNotPresent", "command": ["sh", "-c", script]})
}

/// Sleeps, but ends at once when asked to.
const WAIT: &str = "trap 'exit 0' TERM; while true; do sleep 0.05; done";

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_runs_is_ready_and_goes() {
    let cluster = Cluster::start().await;
    cluster.create("warm", json!({"containers": [shell(WAIT)]})).await;
    cluster.until_ready("warm").await;
    let begun = Instant::now();
    cluster.create("p", json!({"containers": [shell(WAIT)]})).await;
    let pod = cluster.until_ready("p").await;
    println!("ready after {:?}", begun.elapsed());
    assert_eq!(pod["status"]["phase"], "Running");
    assert_eq!(pod["status"]["qosClass"], "BestEffort");
    assert!(state(&pod, 0)["running"].is_object(), "{:#}", pod["status"]);
    cluster.delete("p").await;
    let events = cluster.events("p").await;
    for expected in ["Created: Container created", "Started: Container started", "Killing: Stopping container a"] {
        assert!(events.iter().any(|e| e == expected), "{expected} in {events:?}");
    }
    cluster.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn crashes_are_counted_and_backed_off() {
    let cluster = Cluster::start().await;
    cluster.create("p", json!({"containers": [shell("echo words > /dev/termination-log; exit 3")]})).await;
    let loops = |pod: &Value| state(pod, 0)["waiting"]["reason"] == "CrashLoopBackOff";
    let pod = cluster.until("p", loops).await;
    let status = &pod["status"]["containerStatuses"][0];
    assert_eq!(status["restartCount"], 1);
    assert_eq!(status["lastState"]["terminated"]["exitCode"], 3);
    assert_eq!(status["lastState"]["terminated"]["message"], "words\n");
    cluster.create("once", json!({"restartPolicy": "Never", "containers": [shell("exit 4")]})).await;
    let pod = cluster.until("once", |pod| pod["status"]["phase"] == "Failed").await;
    assert_eq!(state(&pod, 0)["terminated"]["exitCode"], 4);
    cluster.create("job", json!({"restartPolicy": "OnFailure", "containers": [shell("echo done")]})).await;
    let pod = cluster.until("job", |pod| pod["status"]["phase"] == "Succeeded").await;
    assert_eq!(cluster.log(&pod, "a", 0), "done\n");
    for name in ["p", "once", "job"] {
        cluster.delete(name).await;
    }
    cluster.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn init_containers_and_sidecars_come_in_order() {
    let cluster = Cluster::start().await;
    let named = |name: &str, script: &str, extra: Value| {
        let mut container = shell(script);
        container["name"] = name.into();
        container["volumeMounts"] = json!([{"name": "v", "mountPath": "/v"}]);
        for (key, value) in extra.as_object().into_iter().flatten() {
            container[key] = value.clone();
        }
        container
    };
    let probe = json!({"exec": {"command": ["test", "-e", "/v/side"]}, "periodSeconds": 1});
    let spec = json!({
        "volumes": [{"name": "v", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}}],
        "initContainers": [
            named("one", "echo 1 >> /v/order", json!({})),
            named("side", &format!("sleep 0.2; touch /v/side; echo side >> /v/order; {WAIT}"),
                  json!({"restartPolicy": "Always", "startupProbe": probe})),
            named("two", "echo 2 >> /v/order", json!({})),
        ],
        "containers": [named("main", &format!("cat /v/order; df /v | tail -n 1; {WAIT}"), json!({}))],
    });
    cluster.create("p", spec).await;
    let pod = cluster.until_ready("p").await;
    let log = cluster.until_log(&pod, "main", |log| log.lines().count() == 4).await;
    assert!(log.starts_with("1\nside\n2\n"), "{log}");
    assert!(log.contains("1024") && log.contains("tmpfs"), "a memory volume of 1 MiB: {log}");
    cluster.delete("p").await;
    cluster.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn configuration_reaches_containers_and_changes_live() {
    let cluster = Cluster::start().await;
    let maps: Api<ConfigMap> = Api::namespaced(cluster.client.clone(), "default");
    let secrets: Api<Secret> = Api::namespaced(cluster.client.clone(), "default");
    let mut container = shell(&format!("echo $GREETING $S; cat /c/key; cat /s/pass; id -G; {WAIT}"));
    container["env"] = json!([
        {"name": "WHO", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
        {"name": "S", "valueFrom": {"secretKeyRef": {"name": "s", "key": "pass"}}},
        {"name": "GREETING", "value": "hello $(WHO)"},
    ]);
    container["volumeMounts"] = json!([{"name": "c", "mountPath": "/c"}, {"name": "s", "mountPath": "/s"}]);
    let spec = json!({
        "volumes": [{"name": "c", "configMap": {"name": "m"}}, {"name": "s", "secret": {"secretName": "s", "defaultMode": 256}}],
        "securityContext": {"fsGroup": 2000, "runAsUser": 1000},
        "containers": [container],
    });
    cluster.create("p", spec).await;
    // What is missing is waited for, and said.
    let wait = async {
        while !cluster
            .events("p")
            .await
            .iter()
            .any(|e| e.contains("configmap \"m\" not found") || e.contains("secret \"s\" not found"))
        {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), wait).await.expect("an event");
    let secret = json!({"metadata": {"name": "s"}, "stringData": {"pass": "secret\n"}});
    let secret = serde_json::from_value(secret).expect("a secret");
    secrets.create(&PostParams::default(), &secret).await.expect("created");
    let map = serde_json::from_value(json!({"metadata": {"name": "m"}, "data": {"key": "old\n"}})).expect("a map");
    maps.create(&PostParams::default(), &map).await.expect("created");
    let pod = cluster.until_ready("p").await;
    cluster.until_log(&pod, "a", |log| log == "hello p secret\nold\nsecret\n0 2000\n").await;
    let patch = Patch::Merge(json!({"data": {"key": "new\n"}}));
    maps.patch("m", &PatchParams::default(), &patch).await.expect("patched");
    let file = cluster
        .dir
        .path()
        .join("data/pods")
        .join(pod["metadata"]["uid"].as_str().expect("a uid"))
        .join("volumes/c/key");
    let wait = async {
        while std::fs::read_to_string(&file).unwrap_or_default() != "new\n" {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), wait).await.expect("in time");
    cluster.delete("p").await;
    cluster.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_comes_back_finds_everything_as_it_was() {
    let mut cluster = Cluster::start().await;
    let mut probed = shell(WAIT);
    probed["readinessProbe"] =
        json!({"exec": {"command": ["test", "!", "-e", "/tmp/unready"]}, "periodSeconds": 1, "failureThreshold": 1});
    cluster.create("p", json!({"containers": [probed]})).await;
    cluster.create("gone", json!({"containers": [shell(WAIT)]})).await;
    cluster
        .create("ends", json!({"restartPolicy": "Never", "containers": [shell("sleep 0.5; echo last; exit 6")]}))
        .await;
    let before = cluster.until_ready("p").await;
    cluster.until_ready("gone").await;
    cluster.until("ends", |pod| state(pod, 0)["running"].is_object()).await;
    cluster.down().await;
    let now = kube::api::DeleteParams { grace_period_seconds: Some(0), ..Default::default() };
    cluster.pods().delete("gone", &now).await.expect("deleted");
    tokio::time::sleep(Duration::from_millis(700)).await;
    cluster.up().await;
    let pod = cluster.until("ends", |pod| pod["status"]["phase"] == "Failed").await;
    assert_eq!(state(&pod, 0)["terminated"]["exitCode"], 6);
    assert_eq!(cluster.log(&pod, "a", 0), "last\n");
    let after = cluster.until_ready("p").await;
    let id = |pod: &Value| pod["status"]["containerStatuses"][0]["containerID"].clone();
    assert_eq!(id(&before), id(&after), "the container was not touched");
    assert_eq!(after["status"]["containerStatuses"][0]["restartCount"], 0);
    let only = |uid: &Value| cluster.dir.path().join("data/pods").join(uid.as_str().expect("a uid"));
    let orphaned = async {
        while std::fs::read_dir(cluster.dir.path().join("data/pods")).expect("lists").count() > 2 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), orphaned).await.expect("the deleted pod is cleaned up");
    assert!(only(&after["metadata"]["uid"]).exists());
    // Probes go on as well.
    let id = after["status"]["containerStatuses"][0]["containerID"].as_str().and_then(|id| id.rsplit('/').next());
    let state_file = only(&after["metadata"]["uid"]).join("containers").join(id.expect("an id")).join("state.json");
    let state: Value = serde_json::from_slice(&std::fs::read(state_file).expect("reads")).expect("JSON");
    std::fs::write(format!("/proc/{}/root/tmp/unready", state["pid"]), "").expect("writes into the container");
    cluster.until("p", |pod| !ready(pod)).await;
    cluster.delete("p").await;
    cluster.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn probes_decide_about_readiness_and_restarts() {
    let cluster = Cluster::start().await;
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    drop(listener);
    let serve = format!("touch /tmp/live; echo ok > /www/ready; httpd -p 127.0.0.1:{port} -h /www; {WAIT}");
    let mut container = shell(&serve);
    container["readinessProbe"] = json!({"httpGet": {"host": "127.0.0.1", "port": port, "path": "/ready"}, "periodSeconds": 1, "failureThreshold": 1});
    container["livenessProbe"] = json!({"exec": {"command": ["test", "-e", "/tmp/live"]}, "initialDelaySeconds": 1, "periodSeconds": 1, "failureThreshold": 1});
    container["lifecycle"] =
        json!({"preStop": {"exec": {"command": ["sh", "-c", "echo stopping > /dev/termination-log"]}}});
    cluster.create("p", json!({"hostNetwork": true, "containers": [container]})).await;
    let pod = cluster.until_ready("p").await;
    let id = pod["status"]["containerStatuses"][0]["containerID"].clone();
    let (ok, _, err) = cluster.kubectl(&["exec", "p", "--", "sh", "-c", "mv /www/ready /www/no"]).await;
    assert!(ok, "{err}");
    cluster.until("p", |pod| !ready(pod)).await;
    let (ok, _, err) = cluster.kubectl(&["exec", "p", "--", "sh", "-c", "mv /www/no /www/ready; rm /tmp/live"]).await;
    assert!(ok, "{err}");
    let restarted = |pod: &Value| ready(pod) && pod["status"]["containerStatuses"][0]["restartCount"] == 1;
    let pod = cluster.until("p", restarted).await;
    let status = &pod["status"]["containerStatuses"][0];
    assert_ne!(status["containerID"], id);
    assert_eq!(status["lastState"]["terminated"]["message"], "stopping\n", "the hook before the stop ran");
    let events = cluster.events("p").await;
    let failed = "Unhealthy: Readiness probe failed: HTTP probe failed with statuscode: 404".to_owned();
    assert!(events.contains(&failed), "{events:?}");
    assert!(events.contains(&"Killing: Container a failed liveness probe, will be restarted".to_owned()), "{events:?}");
    cluster.delete("p").await;
    cluster.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_identity_and_tokens_are_real() {
    let cluster = Cluster::start().await;
    let mut hog = shell("tail /dev/zero");
    hog["resources"] = json!({"limits": {"memory": "16Mi"}});
    cluster.create("hog", json!({"restartPolicy": "Never", "containers": [hog]})).await;
    let pod = cluster.until("hog", |pod| pod["status"]["phase"] == "Failed").await;
    let terminated = &state(&pod, 0)["terminated"];
    assert_eq!((terminated["reason"].as_str(), terminated["exitCode"].as_i64()), (Some("OOMKilled"), Some(137)));
    let accounts: Api<k8s_openapi::api::core::v1::ServiceAccount> = Api::namespaced(cluster.client.clone(), "default");
    let account = serde_json::from_value(json!({"metadata": {"name": "robot"}})).expect("an account");
    accounts.create(&PostParams::default(), &account).await.expect("created");
    let mut container = shell(&format!(
        "id -u; wc -c < /t/token; cat /t/ns; cat /sys/fs/cgroup/memory/memory.limit_in_bytes; touch /x || echo read-only; {WAIT}"
    ));
    container["volumeMounts"] = json!([{"name": "t", "mountPath": "/t"}]);
    container["resources"] = json!({"limits": {"memory": "64Mi", "cpu": "100m"}});
    container["securityContext"] = json!({"runAsUser": 33, "readOnlyRootFilesystem": true, "allowPrivilegeEscalation": false,
        "capabilities": {"drop": ["ALL"]}, "seccompProfile": {"type": "RuntimeDefault"}});
    let token = json!({"serviceAccountToken": {"path": "token", "expirationSeconds": 3600}});
    let field = json!({"downwardAPI": {"items": [{"path": "ns", "fieldRef": {"fieldPath": "metadata.namespace"}}]}});
    let volume = json!({"name": "t", "projected": {"sources": [token, field]}});
    let spec = json!({"serviceAccountName": "robot", "volumes": [volume], "containers": [container]});
    cluster.create("p", spec).await;
    let pod = cluster.until_ready("p").await;
    assert_eq!(pod["status"]["qosClass"], "Guaranteed");
    let log = cluster.until_log(&pod, "a", |log| log.contains("read-only\n")).await;
    let lines: Vec<&str> = log.lines().collect();
    assert_eq!(lines[0], "33");
    assert!(lines[1].trim().parse::<usize>().is_ok_and(|n| n > 200), "a token: {log}");
    assert!(log.contains("default67108864\n") && log.contains("read-only"), "{log}");
    for name in ["hog", "p"] {
        cluster.delete(name).await;
    }
    let (ok, out, err) = cluster.kubectl(&["get", "nodes", "n1"]).await;
    assert!(ok && out.contains("Ready") && out.contains("v1.35.0+mycelium"), "{out}{err}");
    cluster.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_run_says_why() {
    let cluster = Cluster::start().await;
    let mut absent = shell("true");
    absent["image"] = "nope".into();
    cluster.create("pull", json!({"containers": [absent]})).await;
    let pod = cluster.until("pull", |pod| state(pod, 0)["waiting"]["reason"] == "ErrImagePull").await;
    assert_eq!(state(&pod, 0)["waiting"]["message"], "nope: not found");
    let missing = json!({"name": "a", "image": "busybox", "imagePullPolicy": "Never", "command": ["nope"]});
    cluster.create("exec", json!({"restartPolicy": "Never", "containers": [missing]})).await;
    let pod = cluster.until("exec", |pod| pod["status"]["phase"] == "Failed").await;
    let terminated = &state(&pod, 0)["terminated"];
    assert_eq!((terminated["reason"].as_str(), terminated["exitCode"].as_i64()), (Some("StartError"), Some(128)));
    assert!(terminated["message"].as_str().is_some_and(|m| m.contains("executable file not found in $PATH")));
    let mut root = shell("true");
    root["securityContext"] = json!({"runAsNonRoot": true});
    cluster.create("root", json!({"containers": [root]})).await;
    let pod = cluster.until("root", |pod| state(pod, 0)["waiting"]["reason"] == "CreateContainerConfigError").await;
    assert!(state(&pod, 0)["waiting"]["message"].as_str().is_some_and(|m| m.starts_with("container has runAsNonRoot")));
    for name in ["pull", "exec", "root"] {
        cluster.delete(name).await;
    }
    cluster.finish().await;
}

//! The real kubectl, on a real socket and in real time: what people do with a Deployment.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Client, ResourceExt};
use mycelium_api::env::Env;
use mycelium_apiserver::{ApiServer, Config, Identity, Pki};
use mycelium_controllers::{Options, run};
use mycelium_store::{Options as StoreOptions, Store};
use serde_json::json;

#[allow(clippy::disallowed_methods, reason = "the edge: this test takes the real clock")]
fn real_env() -> Env {
    let next = AtomicU64::new(jiff::Timestamp::now().as_nanosecond() as u64);
    Env::new(jiff::Timestamp::now, move || {
        let x = next.fetch_add(0x9E37_79B9_7F4A_7C15, Ordering::Relaxed);
        (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9)
    })
}

/// A node whose pods are ready at once.
async fn node(client: Client) {
    let nodes: Api<Node> = Api::all(client.clone());
    let node = serde_json::from_value(json!({"metadata": {"name": "n1"}})).unwrap();
    nodes.create(&PostParams::default(), &node).await.unwrap();
    let status = json!({"status": {"allocatable": {"cpu": "4", "memory": "8Gi", "pods": "110"},
        "conditions": [{"type": "Ready", "status": "True"}]}});
    nodes.patch_status("n1", &PatchParams::default(), &Patch::Merge(status)).await.unwrap();
    let pods: Api<Pod> = Api::namespaced(client, "default");
    loop {
        for pod in pods.list(&ListParams::default()).await.map(|list| list.items).unwrap_or_default() {
            let name = pod.name_any();
            let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
            let bound = pod.spec.as_ref().is_some_and(|spec| spec.node_name.is_some());
            if pod.metadata.deletion_timestamp.is_some() {
                let _ = pods.delete(&name, &DeleteParams::default().grace_period(0)).await;
            } else if bound && phase != Some("Running") {
                let status = json!({"status": {"phase": "Running", "podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}],
                    "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": "2020-01-01T00:00:00Z"}]}});
                let _ = pods.patch_status(&name, &PatchParams::default(), &Patch::Merge(status)).await;
            }
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn kubectl(home: &Path, arguments: &str) -> String {
    let mut command = mycelium_linux::process::command("kubectl");
    command.env("HOME", home).arg("--kubeconfig").arg(home.join("kubeconfig")).args(arguments.split_whitespace());
    let output = tokio::task::spawn_blocking(move || command.output()).await.unwrap().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "kubectl {arguments}: {text}");
    text
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rollouts_from_the_command_line() {
    let directory = tempfile::tempdir().unwrap();
    let home = directory.path();
    let env = real_env();
    let store = Store::open_file(&home.join("state"), StoreOptions::default()).unwrap();
    let pki = Pki::in_memory(env.clone(), &["127.0.0.1".to_owned()]).unwrap();
    let server = ApiServer::new(Config::new(store, env.clone(), pki.clone())).unwrap();
    server.bootstrap().await.unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    pki.write_kubeconfig(&home.join("kubeconfig"), &format!("https://{}", listener.local_addr().unwrap())).unwrap();
    let client = || Client::new(server.client_service(Identity::internal("test")), "default");
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(run(client(), env, Options::default()));
    tasks.spawn(node(client()));
    let serving = server.clone();
    tasks.spawn(async move { serving.serve(listener, std::future::pending()).await.unwrap() });

    kubectl(home, "create deployment web --image=v1 --replicas=3").await;
    let rolled = kubectl(home, "rollout status deployment/web --timeout=60s").await;
    assert!(rolled.contains("deployment \"web\" successfully rolled out"), "{rolled}");
    kubectl(home, "set image deployment/web v1=v2").await;
    kubectl(home, "rollout status deployment/web --timeout=60s").await;
    kubectl(home, "rollout restart deployment/web").await;
    kubectl(home, "rollout status deployment/web --timeout=60s").await;
    let history = kubectl(home, "rollout history deployment/web").await;
    assert_eq!(history.lines().filter(|line| line.starts_with(['1', '2', '3'])).count(), 3, "{history}");
    kubectl(home, "rollout undo deployment/web --to-revision=1").await;
    kubectl(home, "rollout status deployment/web --timeout=60s").await;
    let image = kubectl(home, "get deployment web -o jsonpath={.spec.template.spec.containers[0].image}").await;
    assert_eq!(image, "v1");
    let history = kubectl(home, "rollout history deployment/web").await;
    assert!(
        history.lines().any(|line| line.starts_with('4')) && !history.lines().any(|line| line.starts_with("1 ")),
        "{history}"
    );

    kubectl(home, "rollout pause deployment/web").await;
    kubectl(home, "set image deployment/web v1=v3").await;
    kubectl(home, "scale deployment/web --replicas=5").await;
    kubectl(home, "wait deployment/web --for=jsonpath={.status.readyReplicas}=5 --timeout=60s").await;
    assert_eq!(kubectl(home, "get pods -o jsonpath={.items[*].spec.containers[0].image}").await, "v1 v1 v1 v1 v1");
    kubectl(home, "rollout resume deployment/web").await;
    kubectl(home, "rollout status deployment/web --timeout=60s").await;
    let described = kubectl(home, "describe deployment web").await;
    for text in [
        "Progressing    True    NewReplicaSetAvailable",
        "ScalingReplicaSet",
        "deployment-controller",
        "5 desired | 5 updated | 5 total | 5 available | 0 unavailable",
    ] {
        assert!(described.contains(text), "{text} not in {described}");
    }
    let described = kubectl(home, "describe pods").await;
    assert!(described.contains("default-scheduler  Successfully assigned default/web-"), "{described}");
    kubectl(home, "delete deployment web --cascade=foreground --timeout=60s").await;
    assert!(kubectl(home, "get replicasets,pods").await.contains("No resources found"));
    server.shut_down();
}

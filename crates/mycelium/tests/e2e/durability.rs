//! `kill -9` of the engine under write load, 200 times: no acknowledged write is lost, no pod is disturbed.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, Patch, PatchParams, PostParams};
use serde_json::json;

use crate::support::{Engine, eventually};

/// Kills, as the issue of durability asks for.
const KILLS: u32 = 200;
const WRITERS: u32 = 8;

/// Name of a ConfigMap to the highest counter whose write was acknowledged.
type Acknowledged = Arc<Mutex<BTreeMap<String, u64>>>;

#[test]
fn no_acknowledged_write_is_lost_in_200_kills() {
    let mut engine = Engine::start();
    engine.import_busybox();
    engine.apply(crate::pods::SLEEPER);
    engine.kubectl(&["wait", "--for=condition=Ready", "pod/sleeper", "--timeout=120s"]);
    let identity = engine.value("pod/sleeper", "{.status.containerStatuses[0].containerID}");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("runtime");
    let acknowledged = Acknowledged::default();
    let mut seed = u64::from(std::process::id()).wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    for kill in 0..KILLS {
        let stop = Arc::new(AtomicBool::new(false));
        let client = runtime.block_on(client(&engine));
        let writers: Vec<_> = (0..WRITERS)
            .map(|id| runtime.spawn(write(client.clone(), id, acknowledged.clone(), stop.clone())))
            .collect();
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        std::thread::sleep(Duration::from_millis(seed % 120));
        engine.kill();
        stop.store(true, Ordering::Relaxed);
        for writer in writers {
            runtime.block_on(writer).expect("writer");
        }
        engine.up();
        let client = runtime.block_on(client_of(&engine));
        runtime.block_on(verify(client, &acknowledged, kill));
    }
    let total: u64 = acknowledged.lock().expect("lock").values().sum();
    assert!(total > u64::from(KILLS), "only {total} writes were acknowledged: this tested nothing");
    assert_eq!(engine.value("pod/sleeper", "{.status.containerStatuses[0].containerID}"), identity);
    assert_eq!(engine.value("pod/sleeper", "{.status.containerStatuses[0].restartCount}"), "0");
    eventually("the pod is ready", || {
        let ready = engine.value("pod/sleeper", "{.status.containerStatuses[0].ready}");
        if ready == "true" { Ok(()) } else { Err(ready) }
    });
}

async fn client_of(engine: &Engine) -> kube::Client {
    client(engine).await
}

async fn client(engine: &Engine) -> kube::Client {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let kubeconfig = kube::config::Kubeconfig::read_from(engine.kubeconfig()).expect("kubeconfig");
    let options = kube::config::KubeConfigOptions::default();
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &options).await.expect("config");
    kube::Client::try_from(config).expect("client")
}

/// Counts up in one ConfigMap until the engine is gone.
async fn write(client: kube::Client, id: u32, acknowledged: Acknowledged, stop: Arc<AtomicBool>) {
    let api: Api<ConfigMap> = Api::namespaced(client, "default");
    let name = format!("counter-{id}");
    let mut next = acknowledged.lock().expect("lock").get(&name).map_or(1, |last| last + 1);
    while !stop.load(Ordering::Relaxed) {
        let object = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"n": next.to_string()}});
        let written = match api.patch(&name, &PatchParams::default(), &Patch::Merge(&object)).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if status.code == 404 => {
                let object = serde_json::from_value(object).expect("a ConfigMap");
                api.create(&PostParams::default(), &object).await.map(drop)
            }
            Err(error) => Err(error),
        };
        if written.is_err() {
            return;
        }
        acknowledged.lock().expect("lock").insert(name.clone(), next);
        next += 1;
    }
}

/// Everything acknowledged is there; a write that was cut off in flight may be there too.
async fn verify(client: kube::Client, acknowledged: &Acknowledged, kill: u32) {
    let api: Api<ConfigMap> = Api::namespaced(client, "default");
    let expected = acknowledged.lock().expect("lock").clone();
    for (name, last) in expected {
        let found = api.get(&name).await.unwrap_or_else(|error| panic!("after kill {kill}: {name}: {error}"));
        let found: u64 = found.data.and_then(|data| data.get("n")?.parse().ok()).expect("a number");
        assert!(found == last || found == last + 1, "after kill {kill}: {name} is {found}, acknowledged was {last}");
        acknowledged.lock().expect("lock").insert(name, found);
    }
}

//! The server in one thread on a paused clock: time passes only when nothing else can happen, and one seed gives one
//! history.
#![allow(missing_docs)]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use common::Local;
use mycelium_api::env::Env;
use mycelium_apiserver::{ApiServer, Config, Identity, Pki};
use mycelium_store::{Options, Store, Writer};
use serde_json::json;
use tokio::time::Instant;

const CMS: &str = "/api/v1/namespaces/default/configmaps";

/// Wall clock and numbers that follow from the seed and the runtime's clock.
fn seeded(seed: u64) -> Env {
    let start = Instant::now();
    let next = Arc::new(AtomicU64::new(seed));
    let epoch: jiff::Timestamp = "2026-01-01T00:00:00Z".parse().expect("a time");
    Env::new(
        move || epoch + jiff::SignedDuration::try_from(start.elapsed()).expect("in range"),
        move || {
            next.fetch_add(0x9E37_79B9_7F4A_7C15, Ordering::Relaxed).rotate_left(23).wrapping_mul(0xD6E8_FEB8_6659_FD93)
        },
    )
}

async fn server(seed: u64) -> Local {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let env = seeded(seed);
    let options = Options { writer: Writer::Task, ..Options::default() };
    let store = Store::open_file(&directory.path().join("state"), options).expect("a store");
    let pki = Pki::in_memory(env.clone(), &[]).expect("keys");
    let api = ApiServer::new(Config::new(store, env, pki)).expect("a server");
    api.bootstrap().await.expect("the first objects");
    Local { api, directory, who: Identity::internal("admin") }
}

async fn history(seed: u64) -> String {
    let api = server(seed).await;
    for index in 0..5 {
        let body = json!({"metadata": {"generateName": format!("c{index}-")}});
        api.post(CMS, &body).await.expect(201);
        tokio::time::sleep(Duration::from_secs(7)).await;
    }
    // Not those of all namespaces: one holds the certificates of this very server.
    api.get(CMS).await.text() + &api.get("/api/v1/namespaces").await.text()
}

#[tokio::test(start_paused = true)]
async fn one_seed_one_history() {
    let first = history(7).await;
    assert_eq!(first, history(7).await);
    assert_ne!(first, history(8).await);
}

#[tokio::test(start_paused = true)]
async fn bookmarks_and_ends_come_with_time() {
    let api = server(1).await;
    let start = Instant::now();
    let path = format!("{CMS}?watch=1&resourceVersion=0&allowWatchBookmarks=true&timeoutSeconds=150");
    let response = api.open(&api.who, "GET", &path, &[], "").await;
    let text = http_body_util::BodyExt::collect(response.into_body()).await.expect("a body").to_bytes();
    let text = String::from_utf8_lossy(&text);
    assert_eq!(text.lines().filter(|line| line.contains("\"BOOKMARK\"")).count(), 2, "{text}");
    assert_eq!(start.elapsed().as_secs(), 150);
}

#[tokio::test(start_paused = true)]
async fn events_last_an_hour() {
    let api = server(1).await;
    let events = "/api/v1/namespaces/default/events";
    let event = json!({"metadata": {"name": "e"}, "involvedObject": {"kind": "Pod", "namespace": "default", "name": "p"},
        "reason": "Because", "message": "text", "type": "Normal"});
    api.post(events, &event).await.expect(201);
    let newer = api.get("/apis/events.k8s.io/v1/namespaces/default/events/e").await.expect(200);
    assert_eq!((&newer["note"], &newer["apiVersion"]), (&json!("text"), &json!("events.k8s.io/v1")));
    tokio::time::sleep(Duration::from_secs(3500)).await;
    api.get(&format!("{events}/e")).await.expect(200);
    tokio::time::sleep(Duration::from_secs(200)).await;
    api.get(&format!("{events}/e")).await.expect(404);
}

#[tokio::test(start_paused = true)]
async fn shutting_down_ends_watches() {
    let api = server(1).await;
    let mut lines = api.open_watch(&format!("{CMS}?watch=1&resourceVersion=0")).await;
    api.api.shut_down();
    assert_eq!(lines.next().await, None);
}

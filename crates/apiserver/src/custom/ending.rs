//! The end of a definition: its objects are deleted first, each as its finalizers allow, and then it goes itself.

use std::sync::Arc;

use futures::future::BoxFuture;
use http::HeaderMap;
use serde_json::{Value, json};

use super::{PREFIX, definition};
use crate::answer::Warnings;
use crate::auth::Identity;
use crate::codec;
use crate::error::ApiError;
use crate::media::Accept;
use crate::request::{Query, ResourcePath};
use crate::resources::Resource;
use crate::route::Context;
use crate::server::Inner;
use crate::write::delete::{self, DeleteOptions};
use mycelium_store::{Expect, Op};

/// The finalizer that lets the server delete the objects first.
pub const FINALIZER: &str = "customresourcecleanup.apiextensions.k8s.io";

/// Lets a definition wait for the end of its objects.
pub fn hold(definition: &mut Value) {
    let mut finalizers = definition["metadata"]["finalizers"].as_array().cloned().unwrap_or_default();
    if !finalizers.iter().any(|finalizer| finalizer == FINALIZER) {
        finalizers.push(json!(FINALIZER));
        definition["metadata"]["finalizers"] = json!(finalizers);
    }
}

/// Goes on with the end of every definition that was deleted before the server started.
pub fn resume(server: &Arc<Inner>) {
    let entries = server.store.range(PREFIX, None, 0, None).map(|page| page.entries).unwrap_or_default();
    for entry in entries {
        if let Ok(definition) = codec::parse_entry(&entry)
            && definition["metadata"]["deletionTimestamp"].is_string()
        {
            tokio::spawn(end(server.clone(), entry.key.to_string()));
        }
    }
}

/// Ends a definition that is marked as deleted: what can be done at once before the call returns, the rest after it.
pub async fn begin(server: &Arc<Inner>, key: &str) {
    if !pass(server, key).await {
        tokio::spawn(end(server.clone(), key.to_owned()));
    }
}

fn end(server: Arc<Inner>, key: String) -> BoxFuture<'static, ()> {
    Box::pin(async move {
        let mut stopping = server.shutdown.subscribe();
        loop {
            // From before the look, so that what happens meanwhile is not missed.
            let from = server.store.revision();
            if pass(&server, &key).await {
                return;
            }
            let Some(prefix) = server.store.get(&key).and_then(|entry| prefix(&codec::parse_entry(&entry).ok()?))
            else {
                return;
            };
            let Ok(mut watch) = server.store.watch(&prefix, from) else { continue };
            tokio::select! {
                _ = watch.next() => {}
                _ = stopping.wait_for(|stop| *stop) => return,
            }
        }
    })
}

fn prefix(definition: &Value) -> Option<String> {
    let (group, plural) = (definition["spec"]["group"].as_str()?, definition["spec"]["names"]["plural"].as_str()?);
    (!group.is_empty() && !plural.is_empty()).then(|| format!("/registry/{group}/{plural}/"))
}

/// Deletes what there is. Whether the definition is gone.
async fn pass(server: &Arc<Inner>, key: &str) -> bool {
    let Some(entry) = server.store.get(key) else { return true };
    let Ok(mut definition) = codec::parse_entry(&entry) else { return true };
    if !definition["metadata"]["deletionTimestamp"].is_string() {
        return true;
    }
    // One whose names were never accepted has no objects: they are another's.
    if let Some(prefix) = prefix(&definition).filter(|_| definition::is_established(&definition)) {
        if let Some(resource) = resource(server, &definition) {
            delete_all(server, &resource, &prefix).await;
        }
        if server.store.count(&prefix) > 0 {
            return false;
        }
    }
    let finalizers = definition["metadata"]["finalizers"].as_array().cloned().unwrap_or_default();
    let left: Vec<Value> = finalizers.into_iter().filter(|finalizer| finalizer != FINALIZER).collect();
    let expect = Expect::Revision(entry.mod_revision);
    let op = if left.is_empty() {
        Op::Delete { key: key.to_owned(), expect }
    } else {
        definition["metadata"]["finalizers"] = json!(left);
        Op::Put { key: key.to_owned(), value: codec::encode(&definition), expect }
    };
    server.commit(vec![op]).await.is_ok()
}

fn resource(server: &Inner, definition: &Value) -> Option<Arc<Resource>> {
    let table = server.table();
    let (group, plural) = (definition["spec"]["group"].as_str()?, definition["spec"]["names"]["plural"].as_str()?);
    table.customs().iter().find(|resource| resource.group() == group && resource.name() == plural).cloned()
}

async fn delete_all(server: &Arc<Inner>, resource: &Arc<Resource>, prefix: &str) {
    let who = Identity::internal("system:apiserver");
    let (query, headers, warnings) = (Query::default(), HeaderMap::new(), Warnings::default());
    let entries = server.store.range(prefix, None, 0, None).map(|page| page.entries).unwrap_or_default();
    for entry in entries {
        let Ok(object) = codec::parse_entry(&entry) else { continue };
        if object["metadata"]["deletionTimestamp"].is_string() {
            continue;
        }
        let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default().to_owned();
        let path = ResourcePath {
            group: resource.group().to_owned(),
            version: resource.version().to_owned(),
            namespace: text("namespace"),
            resource: resource.name().to_owned(),
            name: text("name"),
            ..ResourcePath::default()
        };
        let (query, headers, warnings) = (&query, &headers, &warnings);
        let cx = Context {
            server,
            who: &who,
            resource,
            path: &path,
            query,
            headers,
            accept: Accept::JSON,
            warnings,
            notes: None,
        };
        match delete::delete_named(&cx, &path.namespace, &path.name, &DeleteOptions::default()).await {
            Ok(_) | Err(ApiError::NotFound(_)) => {}
            Err(error) => tracing::warn!(%error, key = %entry.key, "an object of a deleted definition stays"),
        }
    }
}

//! Events about pods and the node, written in the background: nothing waits for them.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, ObjectReference, Pod};
use kube::api::{Api, Patch, PatchParams, PostParams};
use mycelium_api::env::{Env, rfc3339_seconds};
use serde_json::json;
use tokio::sync::mpsc;

use crate::pod::model::Role;

/// Events that wait to be written; more than this at once are dropped.
const QUEUE_MAX: usize = 1024;
/// Events remembered to be counted rather than written again.
const REMEMBERED_MAX: usize = 512;

/// How serious an event is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// All is well.
    Normal,
    /// Something is wrong.
    Warning,
}

struct Note {
    about: ObjectReference,
    kind: Kind,
    reason: &'static str,
    message: String,
    at: Timestamp,
}

/// Records events. Cheap to clone.
#[derive(Clone)]
pub struct Events {
    env: Env,
    queue: mpsc::Sender<Note>,
}

impl Events {
    /// A recorder that writes through `client`, from the component and host `node`.
    pub fn new(client: kube::Client, env: Env, node: String) -> Self {
        let (queue, notes) = mpsc::channel(QUEUE_MAX);
        tokio::spawn(write_all(client, env.clone(), node, notes));
        Self { env, queue }
    }

    /// Records an event about a pod, or about one of its containers.
    pub fn pod(&self, pod: &Pod, container: Option<(&str, Role)>, kind: Kind, reason: &'static str, message: String) {
        let meta = &pod.metadata;
        let field = container.map(|(name, role)| format!("spec.{}{{{name}}}", role.list()));
        let about = ObjectReference {
            api_version: Some("v1".into()),
            kind: Some("Pod".into()),
            namespace: meta.namespace.clone(),
            name: meta.name.clone(),
            uid: meta.uid.clone(),
            field_path: field,
            resource_version: None,
        };
        self.about(about, kind, reason, message);
    }

    /// Records an event about any object.
    pub fn about(&self, about: ObjectReference, kind: Kind, reason: &'static str, message: String) {
        let note = Note { about, kind, reason, message, at: self.env.now() };
        // A full queue means that the API server does not keep up; events are the first thing to go.
        let _ = self.queue.try_send(note);
    }
}

struct Written {
    name: String,
    count: i32,
}

async fn write_all(client: kube::Client, env: Env, node: String, mut notes: mpsc::Receiver<Note>) {
    let mut written: BTreeMap<String, Written> = BTreeMap::new();
    while let Some(note) = notes.recv().await {
        let namespace = note.about.namespace.clone().unwrap_or_else(|| "default".into());
        let api: Api<Event> = Api::namespaced(client.clone(), &namespace);
        let key = format!(
            "{:?} {:?} {:?} {} {}",
            note.about.uid, note.about.name, note.about.field_path, note.reason, note.message
        );
        if let Some(old) = written.get_mut(&key) {
            old.count += 1;
            let patch = json!({"count": old.count, "lastTimestamp": rfc3339_seconds(note.at)});
            if api.patch(&old.name, &PatchParams::default(), &Patch::Merge(patch)).await.is_ok() {
                continue;
            }
            written.remove(&key);
        }
        let name = format!(
            "{}.{:x}",
            note.about.name.as_deref().unwrap_or("node"),
            note.at.as_nanosecond() as u64 ^ (env.random() & 0xffff)
        );
        match api.create(&PostParams::default(), &event(&note, &name, &namespace, &node)).await {
            Ok(_) => {
                if written.len() >= REMEMBERED_MAX {
                    written.pop_first();
                }
                written.insert(key, Written { name, count: 1 });
            }
            Err(error) => tracing::debug!(%error, reason = note.reason, "cannot write an event"),
        }
    }
}

fn event(note: &Note, name: &str, namespace: &str, node: &str) -> Event {
    let kind = if note.kind == Kind::Normal { "Normal" } else { "Warning" };
    let time = k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(note.at);
    Event {
        metadata: kube::api::ObjectMeta {
            name: Some(name.to_owned()),
            namespace: Some(namespace.to_owned()),
            ..Default::default()
        },
        involved_object: note.about.clone(),
        reason: Some(note.reason.to_owned()),
        message: Some(note.message.chars().take(1024).collect()),
        type_: Some(kind.to_owned()),
        count: Some(1),
        first_timestamp: Some(time.clone()),
        last_timestamp: Some(time),
        source: Some(k8s_openapi::api::core::v1::EventSource {
            component: Some("kubelet".to_owned()),
            host: Some(node.to_owned()),
        }),
        reporting_component: Some("kubelet".to_owned()),
        reporting_instance: Some(node.to_owned()),
        ..Event::default()
    }
}

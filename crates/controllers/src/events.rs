//! Events: what controllers did, for people to read in `kubectl describe`.
//!
//! Repetitions raise the count of the first event instead of adding objects, and one object gets a bounded number of
//! them, so that a fault that repeats cannot fill the store. Events are best effort: they never hold up a controller.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use kube::api::{ObjectMeta, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use mycelium_api::env::Env;
use serde_json::json;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::objects::seconds;

/// Whether an event tells of the usual or of trouble.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Type {
    /// All is as it should be.
    Normal,
    /// Somebody should look.
    Warning,
}

impl Type {
    fn text(self) -> &'static str {
        match self {
            Self::Normal => "Normal",
            Self::Warning => "Warning",
        }
    }
}

/// One thing worth telling about an object.
#[derive(Clone, Debug, PartialEq)]
pub struct Note {
    /// What it is about.
    pub about: ObjectReference,
    /// Good or bad.
    pub type_: Type,
    /// One word for machines.
    pub reason: String,
    /// A sentence for people.
    pub message: String,
    /// Who tells, as Kubernetes names the component.
    pub component: &'static str,
}

/// How many events wait to be written; more are dropped.
const QUEUE: usize = 4096;
/// How many writes run at once.
const WRITES: usize = 16;
/// How many different events are remembered for counting.
const REMEMBERED: usize = 2048;
/// An event repeated after longer than this starts a new object.
const MEMORY: Duration = Duration::from_secs(600);
/// An object may tell this much at once, and then one more per [`REFILL`].
const BURST: f64 = 25.0;
const REFILL: Duration = Duration::from_secs(300);

/// Takes events from controllers. Cheap to clone.
#[derive(Clone)]
pub struct Events(mpsc::Sender<Note>);

impl Events {
    /// A recorder, and the task that writes what it takes.
    pub fn new(client: Client, env: Env) -> (Self, impl Future<Output = ()> + Send) {
        let (sender, receiver) = mpsc::channel(QUEUE);
        (Self(sender), write_all(client, env, receiver))
    }

    /// Hands over an event. It is dropped when too many wait.
    pub fn send(&self, note: Note) {
        if self.0.try_send(note).is_err() {
            tracing::debug!("event dropped: too many are waiting");
        }
    }
}

type Identity = (String, String, String, Type, String, String, &'static str);

struct Written {
    name: String,
    count: i32,
    last: Instant,
}

#[derive(Default)]
struct Memory {
    written: BTreeMap<Identity, Written>,
    budgets: BTreeMap<(String, &'static str), (f64, Instant)>,
    serial: u64,
}

enum Write {
    Create(Box<Event>),
    Count { namespace: String, name: String, count: i32, last: Timestamp, again: Box<Event> },
}

impl Memory {
    /// Whether the object of this note may tell something now.
    fn allow(&mut self, note: &Note, now: Instant) -> bool {
        let key = (note.about.uid.clone().unwrap_or_default(), note.component);
        let (tokens, at) = self.budgets.entry(key).or_insert((BURST, now));
        let earned = now.duration_since(*at).as_secs_f64() / REFILL.as_secs_f64();
        *tokens = (*tokens + earned).min(BURST);
        *at = now;
        let allowed = *tokens >= 1.0;
        if allowed {
            *tokens -= 1.0;
        }
        allowed
    }

    fn forget_old(&mut self, now: Instant) {
        if self.written.len() > REMEMBERED {
            self.written.retain(|_, entry| now.duration_since(entry.last) < MEMORY);
        }
        if self.written.len() > REMEMBERED {
            self.written.clear();
        }
        if self.budgets.len() > REMEMBERED {
            self.budgets.retain(|_, (_, at)| now.duration_since(*at) < REFILL);
        }
    }

    fn plan(&mut self, note: Note, wall: Timestamp) -> Option<Write> {
        let now = Instant::now();
        self.forget_old(now);
        if !self.allow(&note, now) {
            return None;
        }
        let about = &note.about;
        let text = |value: &Option<String>| value.clone().unwrap_or_default();
        let identity = (
            text(&about.uid),
            text(&about.name),
            text(&about.kind),
            note.type_,
            note.reason.clone(),
            note.message.clone(),
            note.component,
        );
        self.serial += 1;
        let name = format!("{}.{:x}{:04x}", text(&about.name), wall.as_nanosecond(), self.serial & 0xffff);
        let namespace = about.namespace.clone().filter(|ns| !ns.is_empty()).unwrap_or_else(|| "default".into());
        let event = Box::new(object(note, &name, &namespace, wall));
        match self.written.get_mut(&identity).filter(|entry| now.duration_since(entry.last) < MEMORY) {
            Some(entry) => {
                entry.count += 1;
                entry.last = now;
                let (name, count) = (entry.name.clone(), entry.count);
                Some(Write::Count { namespace, name, count, last: wall, again: event })
            }
            None => {
                self.written.insert(identity, Written { name, count: 1, last: now });
                Some(Write::Create(event))
            }
        }
    }
}

fn object(note: Note, name: &str, namespace: &str, now: Timestamp) -> Event {
    Event {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            namespace: Some(namespace.to_owned()),
            ..ObjectMeta::default()
        },
        involved_object: note.about,
        type_: Some(note.type_.text().to_owned()),
        reason: Some(note.reason),
        message: Some(note.message),
        count: Some(1),
        first_timestamp: Some(seconds(now)),
        last_timestamp: Some(seconds(now)),
        source: Some(EventSource { component: Some(note.component.to_owned()), host: None }),
        reporting_component: Some(note.component.to_owned()),
        reporting_instance: Some(String::new()),
        ..Event::default()
    }
}

async fn write_all(client: Client, env: Env, mut notes: mpsc::Receiver<Note>) {
    let mut memory = Memory::default();
    let mut writes = FuturesUnordered::new();
    loop {
        tokio::select! {
            biased;
            Some(()) = writes.next(), if !writes.is_empty() => {}
            note = notes.recv(), if writes.len() < WRITES => {
                let Some(note) = note else { break };
                if let Some(planned) = memory.plan(note, env.now()) {
                    writes.push(write(client.clone(), planned));
                }
            }
        }
    }
    while writes.next().await.is_some() {}
}

async fn write(client: Client, planned: Write) {
    let result = match planned {
        Write::Create(event) => create(client, *event).await,
        Write::Count { namespace, name, count, last, again } => {
            let patch = json!({ "count": count, "lastTimestamp": seconds(last) });
            let events: Api<Event> = Api::namespaced(client.clone(), &namespace);
            match events.patch(&name, &PatchParams::default(), &Patch::Merge(patch)).await {
                Err(kube::Error::Api(status)) if status.code == 404 => create(client, *again).await,
                other => other.map(|_| ()),
            }
        }
    };
    if let Err(error) = result {
        tracing::debug!(%error, "event not written");
    }
}

async fn create(client: Client, event: Event) -> Result<(), kube::Error> {
    let namespace = event.metadata.namespace.clone().unwrap_or_default();
    let events: Api<Event> = Api::namespaced(client, &namespace);
    events.create(&PostParams::default(), &event).await.map(|_| ())
}

//! Sees every event of the store, and judges.
//!
//! * Revisions only grow, and an event that was seen once is the same after every restart.
//! * What was acknowledged or seen is there after every restart.
//! * The rules of [`crate::deployments`].

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use mycelium_store::{Event, EventKind, Revision, Store, Watch};
use serde_json::Value;

use crate::clock::Clock;
use crate::deployments::Rules;
use crate::jobs::Jobs;
use crate::plan::Plan;

/// How many events a failure shows.
const SHOWN: usize = 80;

/// Judges a run. Cheap to clone.
#[derive(Clone)]
pub struct Checker {
    inner: Arc<Mutex<Inner>>,
    clock: Clock,
}

struct Inner {
    /// Each key with its revision and the checksum of its value.
    mirror: BTreeMap<Arc<str>, (Revision, u32)>,
    /// Checksum of the events of each revision.
    log: BTreeMap<Revision, u32>,
    revision: Revision,
    acknowledged: Revision,
    trace: u64,
    /// Events of the kinds that come to rest.
    activity: u64,
    rules: Rules,
    jobs: Jobs,
    recent: VecDeque<String>,
}

impl Checker {
    /// A checker that has seen nothing.
    pub fn new(plan: &Plan, clock: &Clock) -> Self {
        let inner = Inner {
            mirror: BTreeMap::new(),
            log: BTreeMap::new(),
            revision: 0,
            acknowledged: 0,
            trace: 0,
            activity: 0,
            rules: Rules::new(plan.calm, plan.staleness()),
            jobs: Jobs::default(),
            recent: VecDeque::new(),
        };
        Self { inner: Arc::new(Mutex::new(inner)), clock: clock.clone() }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The server has answered a write with this resource version.
    pub fn acknowledged(&self, resource_version: &Value) {
        let revision = resource_version.as_str().and_then(|text| text.parse().ok()).unwrap_or(0);
        let mut inner = self.lock();
        inner.acknowledged = inner.acknowledged.max(revision);
        inner.trace = mix(inner.trace, revision);
    }

    /// A number that two runs of one seed must share.
    pub fn trace(&self) -> u64 {
        self.lock().trace
    }

    /// How many events of pods, replica sets and deployments there were.
    pub fn activity(&self) -> u64 {
        self.lock().activity
    }

    /// What is wrong with jobs once all should have settled.
    pub fn jobs(&self) -> Vec<String> {
        self.lock().jobs.faults()
    }

    /// The last events, as text.
    pub fn recent(&self) -> Vec<String> {
        self.lock().recent.iter().cloned().collect()
    }

    /// Notes something in the trace.
    pub fn mark(&self, text: &str) {
        let at = self.clock.elapsed();
        let mut inner = self.lock();
        inner.trace = mix(inner.trace, crc32fast::hash(text.as_bytes()).into());
        inner.show(at, text.to_owned());
    }

    /// Judges what a restarted store holds, and takes in what happened unseen before the restart.
    pub fn reopened(&self, store: &Store) -> Result<(), String> {
        let now = self.clock.elapsed();
        let mut inner = self.lock();
        let least = inner.revision.max(inner.acknowledged);
        if store.revision() < least {
            return Err(format!(
                "the store is at revision {} after a restart, {least} was acknowledged",
                store.revision()
            ));
        }
        let from = store.compacted();
        let replay = replay(store, from).map_err(|error| error.to_string())?;
        let gap = from > inner.revision;
        let seen = inner.revision;
        for events in replay.chunk_by(|a, b| a.revision == b.revision) {
            let revision = events[0].revision;
            if revision > seen {
                inner.events(now, events)?;
            } else if inner.log.get(&revision).is_some_and(|known| *known != checksum(events)) {
                return Err(format!("revision {revision} holds other changes than before the restart"));
            }
        }
        let page = store.range("", None, 0, None).map_err(|error| error.to_string())?;
        let content: BTreeMap<Arc<str>, (Revision, u32)> =
            page.entries.iter().map(|e| (e.key.clone(), (e.mod_revision, crc32fast::hash(&e.value)))).collect();
        if gap {
            inner.jobs.forget();
            for entry in &page.entries {
                inner.rules.load(now, &entry.key, &entry.value)?;
            }
        } else if inner.mirror != content {
            let lost =
                inner.mirror.iter().find(|(key, held)| content.get(*key) != Some(held)).map(|(key, _)| key.clone());
            return Err(format!("after a restart the store differs from what was seen, for example at {lost:?}"));
        }
        inner.mirror = content;
        inner.revision = store.revision();
        Ok(())
    }

    /// Follows a store for ever; returns what is wrong.
    pub async fn follow(&self, mut watch: Watch) -> String {
        loop {
            let events = match watch.next().await {
                Ok(events) => events,
                // The process is being killed, or will be.
                Err(mycelium_store::WatchError::Closed) => std::future::pending().await,
                Err(error) => return format!("the checker's watch: {error}"),
            };
            let now = self.clock.elapsed();
            for events in events.chunk_by(|a, b| a.revision == b.revision) {
                if let Err(violation) = self.lock().events(now, events) {
                    return violation;
                }
            }
        }
    }
}

/// All events after `from`, read at once.
fn replay(store: &Store, from: Revision) -> Result<Vec<Arc<Event>>, mycelium_store::Compacted> {
    use futures::FutureExt;
    let mut watch = store.watch("", from)?;
    let events = watch.next().now_or_never();
    Ok(events.and_then(Result::ok).unwrap_or_default())
}

fn mix(trace: u64, number: u64) -> u64 {
    (trace ^ number).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(31)
}

fn checksum(events: &[Arc<Event>]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    for event in events {
        hasher.update(event.entry.key.as_bytes());
        hasher.update(&[u8::from(event.kind == EventKind::Put)]);
        hasher.update(&event.entry.value);
    }
    hasher.finalize()
}

impl Inner {
    fn events(&mut self, now: Duration, events: &[Arc<Event>]) -> Result<(), String> {
        let revision = events[0].revision;
        if revision != self.revision + 1 {
            return Err(format!("revision {revision} follows {}", self.revision));
        }
        self.revision = revision;
        let sum = checksum(events);
        self.log.insert(revision, sum);
        self.trace = mix(mix(mix(self.trace, revision), sum.into()), now.as_micros() as u64);
        for event in events {
            self.event(now, event)?;
        }
        Ok(())
    }

    fn event(&mut self, now: Duration, event: &Event) -> Result<(), String> {
        let key = &event.entry.key;
        let known = self.mirror.get(key).map(|held| held.0);
        if known != event.prev.as_ref().map(|prev| prev.mod_revision) {
            return Err(format!("the change of {key} at revision {} follows none that was seen", event.revision));
        }
        match event.kind {
            EventKind::Put => {
                let held = (event.revision, crc32fast::hash(&event.entry.value));
                self.mirror.insert(key.clone(), held)
            }
            EventKind::Delete => self.mirror.remove(key),
        };
        if ["/registry/core/pods/", "/registry/apps/", "/registry/batch/"].iter().any(|prefix| key.starts_with(prefix))
        {
            self.activity += 1;
        }
        let object = (event.kind == EventKind::Put).then_some(&event.entry.value);
        let what = match (event.kind, &event.prev) {
            (EventKind::Put, None) => "+",
            (EventKind::Put, Some(_)) => "~",
            (EventKind::Delete, _) => "-",
        };
        if !key.contains("/leases/") {
            let detail = crate::deployments::describe(key, object.map_or(&[], |value| value));
            self.show(now, format!("{:>6} {what} {key} {detail}", event.revision));
        }
        self.jobs.event(key, object.map(|value| &value[..]))?;
        self.rules.event(now, key, object.map(|value| &value[..]))
    }

    fn show(&mut self, at: Duration, text: String) {
        tracing::debug!(at = at.as_secs_f64(), "{text}");
        self.recent.push_back(format!("{:>9.3}s {text}", at.as_secs_f64()));
        if self.recent.len() > SHOWN {
            self.recent.pop_front();
        }
    }
}

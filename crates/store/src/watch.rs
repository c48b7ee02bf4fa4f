//! Watchers: who wants to hear of which keys, and a bounded queue for each.
//!
//! The writer fills the queues while it holds the state for writing, so that registering (under a read lock) and
//! publishing never interleave: a watcher sees the history up to its registration and every event after it.

use std::collections::{BTreeMap, VecDeque};
use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};

use crate::store::Shared;
use crate::types::{Event, Revision, WatchError};

/// A stream of the events under one prefix, in order and without gaps.
///
/// Dropping it unregisters it. [`Watch::next`] may be cancelled without losing events.
#[derive(Debug)]
pub struct Watch {
    shared: Arc<Shared>,
    queue: Arc<Queue>,
    delivered: Revision,
}

impl Watch {
    pub(crate) fn new(shared: Arc<Shared>, queue: Arc<Queue>, from: Revision) -> Self {
        Self { shared, queue, delivered: from }
    }

    /// Waits for events and returns all that have arrived, at least one.
    pub async fn next(&mut self) -> Result<Vec<Arc<Event>>, WatchError> {
        let events = poll_fn(|cx| {
            let mut inner = self.queue.lock();
            match inner.take() {
                Some(result) => Poll::Ready(result),
                None => {
                    inner.waker = Some(cx.waker().clone());
                    Poll::Pending
                }
            }
        })
        .await?;
        if let Some(last) = events.last() {
            self.delivered = self.delivered.max(last.revision);
        }
        Ok(events)
    }

    /// Everything up to this revision that the watch covers has been returned by [`Watch::next`].
    pub fn revision(&self) -> Revision {
        let state = self.shared.read();
        let inner = self.queue.lock();
        if inner.events.is_empty() && inner.ended.is_none() {
            self.delivered.max(state.revision())
        } else {
            self.delivered
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.shared.watchers().remove(&self.queue);
    }
}

/// The events waiting for one watcher.
#[derive(Debug)]
pub struct Queue {
    prefix: Arc<str>,
    from: Revision,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    events: VecDeque<Arc<Event>>,
    bytes: usize,
    ended: Option<WatchError>,
    waker: Option<Waker>,
}

impl Inner {
    fn take(&mut self) -> Option<Result<Vec<Arc<Event>>, WatchError>> {
        if !self.events.is_empty() {
            self.bytes = 0;
            return Some(Ok(std::mem::take(&mut self.events).into()));
        }
        self.ended.map(Err)
    }
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds an event, or ends the watch when its reader is too slow.
    fn push(&self, event: &Arc<Event>, limits: Limits) -> Option<Waker> {
        if event.revision <= self.from {
            return None;
        }
        let mut inner = self.lock();
        if inner.ended.is_some() {
            return None;
        }
        inner.bytes += event.cost();
        if inner.events.len() >= limits.events || inner.bytes > limits.bytes {
            inner.events = VecDeque::new();
            inner.ended = Some(WatchError::Lagged);
        } else {
            inner.events.push_back(event.clone());
        }
        inner.waker.take()
    }
}

/// How much may wait for one watcher.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Events.
    pub events: usize,
    /// Memory they keep alive.
    pub bytes: usize,
}

/// All watchers, by prefix.
#[derive(Debug, Default)]
pub struct Registry {
    by_prefix: BTreeMap<Arc<str>, Vec<Arc<Queue>>>,
    closed: bool,
}

impl Registry {
    /// Registers a watcher that first gets `backlog`.
    pub fn add(&mut self, prefix: &str, from: Revision, backlog: VecDeque<Arc<Event>>) -> Arc<Queue> {
        let prefix: Arc<str> = match self.by_prefix.get_key_value(prefix) {
            Some((known, _)) => known.clone(),
            None => prefix.into(),
        };
        let ended = self.closed.then_some(WatchError::Closed);
        let bytes = backlog.iter().map(|event| event.cost()).sum();
        let inner = Inner { events: backlog, bytes, ended, waker: None };
        let queue = Arc::new(Queue { prefix: prefix.clone(), from, inner: Mutex::new(inner) });
        self.by_prefix.entry(prefix).or_default().push(queue.clone());
        queue
    }

    fn remove(&mut self, queue: &Arc<Queue>) {
        if let Some(queues) = self.by_prefix.get_mut(&queue.prefix) {
            queues.retain(|other| !Arc::ptr_eq(other, queue));
            if queues.is_empty() {
                self.by_prefix.remove(&queue.prefix);
            }
        }
    }

    /// Hands events to those who wait for them; returns whom to wake.
    pub fn publish(&self, events: &[Arc<Event>], limits: Limits) -> Vec<Waker> {
        let mut wakers = Vec::new();
        for (prefix, queues) in &self.by_prefix {
            for event in events.iter().filter(|event| event.entry.key.starts_with(&**prefix)) {
                wakers.extend(queues.iter().filter_map(|queue| queue.push(event, limits)));
            }
        }
        wakers
    }

    /// Ends all watches; returns whom to wake.
    pub fn close(&mut self) -> Vec<Waker> {
        self.closed = true;
        let queues = self.by_prefix.values().flatten();
        queues
            .filter_map(|queue| {
                let mut inner = queue.lock();
                inner.ended.get_or_insert(WatchError::Closed);
                inner.waker.take()
            })
            .collect()
    }
}

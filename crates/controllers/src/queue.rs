//! Work queues: keys to reconcile, each at most once at a time, with delays and retry back-off.
//!
//! Order is first in, first out; delays and back-off have no jitter, so a run under a virtual clock repeats exactly.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt::Display;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::sync::Notify;
use tokio::time::Instant;

/// How often every key is looked at again although nothing seems to have changed.
const RESYNC: Duration = Duration::from_secs(600);
const FIRST_RETRY: Duration = Duration::from_millis(10);
const LONGEST_RETRY: Duration = Duration::from_secs(30);

struct Inner<K> {
    ready: VecDeque<K>,
    queued: BTreeSet<K>,
    running: BTreeSet<K>,
    /// Keys to add when their time comes; the number keeps equal times apart and in order.
    delayed: BTreeMap<(Instant, u64), K>,
    due: BTreeMap<K, (Instant, u64)>,
    failures: BTreeMap<K, u32>,
    serial: u64,
}

/// A queue of keys. Cheap to clone.
pub struct Queue<K> {
    inner: Arc<Mutex<Inner<K>>>,
    changed: Arc<Notify>,
}

impl<K> Clone for Queue<K> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone(), changed: self.changed.clone() }
    }
}

impl<K: Ord + Clone> Default for Queue<K> {
    fn default() -> Self {
        let inner = Inner {
            ready: VecDeque::new(),
            queued: BTreeSet::new(),
            running: BTreeSet::new(),
            delayed: BTreeMap::new(),
            due: BTreeMap::new(),
            failures: BTreeMap::new(),
            serial: 0,
        };
        Self { inner: Arc::new(Mutex::new(inner)), changed: Arc::new(Notify::new()) }
    }
}

impl<K: Ord + Clone> Inner<K> {
    fn add(&mut self, key: K) {
        if self.queued.insert(key.clone()) {
            self.ready.push_back(key);
        }
    }

    fn release_due(&mut self, now: Instant) {
        while let Some(entry) = self.delayed.first_entry().filter(|entry| entry.key().0 <= now) {
            let key = entry.remove();
            self.due.remove(&key);
            self.add(key);
        }
    }

    /// The next key that is not being worked on.
    fn take(&mut self) -> Option<K> {
        let position = self.ready.iter().position(|key| !self.running.contains(key))?;
        let key = self.ready.remove(position)?;
        self.queued.remove(&key);
        self.running.insert(key.clone());
        Some(key)
    }
}

impl<K: Ord + Clone> Queue<K> {
    fn lock(&self) -> MutexGuard<'_, Inner<K>> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a key, unless it waits already.
    pub fn add(&self, key: K) {
        self.lock().add(key);
        self.changed.notify_one();
    }

    /// Adds a key after a while; of several delays the shortest counts.
    pub fn add_after(&self, key: K, delay: Duration) {
        let at = Instant::now() + delay;
        let mut inner = self.lock();
        if let Some(&earlier) = inner.due.get(&key) {
            if earlier.0 <= at {
                return;
            }
            inner.delayed.remove(&earlier);
        }
        inner.serial += 1;
        let slot = (at, inner.serial);
        inner.delayed.insert(slot, key.clone());
        inner.due.insert(key, slot);
        drop(inner);
        self.changed.notify_one();
    }

    /// Adds a key after a delay that doubles with each failure in a row.
    pub fn retry(&self, key: K) {
        let failures = {
            let mut inner = self.lock();
            let count = inner.failures.entry(key.clone()).or_insert(0);
            *count += 1;
            *count
        };
        self.add_after(key, (FIRST_RETRY * 2_u32.pow((failures - 1).min(16))).min(LONGEST_RETRY));
    }

    fn finish<E: Display>(&self, name: &str, key: K, result: Result<Option<Duration>, E>)
    where
        K: Display,
    {
        self.lock().running.remove(&key);
        match result {
            Ok(again) => {
                self.lock().failures.remove(&key);
                if let Some(delay) = again {
                    self.add_after(key, delay);
                }
            }
            Err(error) => {
                tracing::debug!(controller = name, %key, %error, "reconciliation failed, will be repeated");
                self.retry(key);
            }
        }
    }

    fn next_due(&self) -> Option<Instant> {
        self.lock().delayed.first_key_value().map(|((at, _), _)| *at)
    }

    /// Works the queue for ever, `workers` keys at a time; `every` lists all keys for the periodic look.
    pub async fn work<E, F>(&self, name: &str, workers: usize, every: impl Fn() -> Vec<K>, reconcile: impl Fn(K) -> F)
    where
        K: Display,
        E: Display,
        F: Future<Output = Result<Option<Duration>, E>>,
    {
        let mut running = FuturesUnordered::new();
        let mut resync = Instant::now() + RESYNC;
        loop {
            let now = Instant::now();
            if now >= resync {
                resync = now + RESYNC;
                every().into_iter().for_each(|key| self.lock().add(key));
            }
            self.lock().release_due(now);
            while running.len() < workers {
                let Some(key) = self.lock().take() else { break };
                let work = reconcile(key.clone());
                running.push(async move { (key, work.await) });
            }
            let wake = self.next_due().map_or(resync, |due| due.min(resync));
            tokio::select! {
                biased;
                Some((key, result)) = running.next(), if !running.is_empty() => self.finish(name, key, result),
                () = self.changed.notified() => {}
                () = tokio::time::sleep_until(wake) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_key_never_runs_twice_at_once_and_failures_repeat() {
        let queue = Queue::<String>::default();
        let (active, runs) = (AtomicUsize::new(0), AtomicUsize::new(0));
        queue.add("a".into());
        let again = queue.clone();
        let work = queue.work("test", 4, Vec::new, |key| {
            let again = again.clone();
            let (active, runs) = (&active, &runs);
            async move {
                assert_eq!(active.fetch_add(1, Ordering::SeqCst), 0);
                again.add(key);
                tokio::time::sleep(Duration::from_millis(5)).await;
                active.fetch_sub(1, Ordering::SeqCst);
                if runs.fetch_add(1, Ordering::SeqCst) < 3 { Err("not yet") } else { Ok(None) }
            }
        });
        let _ = tokio::time::timeout(Duration::from_secs(1), work).await;
        assert!(runs.load(Ordering::SeqCst) > 4);
    }

    #[tokio::test(start_paused = true)]
    async fn the_shortest_delay_counts() {
        let queue = Queue::<String>::default();
        queue.add_after("a".into(), Duration::from_secs(50));
        queue.add_after("a".into(), Duration::from_secs(5));
        queue.add_after("a".into(), Duration::from_secs(20));
        let start = Instant::now();
        let times = Mutex::new(Vec::new());
        let work = queue.work("test", 1, Vec::new, |_| {
            times.lock().unwrap().push(start.elapsed().as_secs());
            async { Ok::<_, String>(None) }
        });
        let _ = tokio::time::timeout(Duration::from_secs(100), work).await;
        assert_eq!(*times.lock().unwrap(), [5]);
    }
}

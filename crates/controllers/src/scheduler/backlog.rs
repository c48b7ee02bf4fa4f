//! Pods that wait for a node: those to try now, by priority, and those set aside until something changes.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;

use crate::cache::Key;

const FIRST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(10);
/// A pod set aside is tried again after this long although nothing happened.
const PATIENCE: Duration = Duration::from_secs(300);

/// Higher priority first, then older, then by name.
type Place = (Reverse<i32>, Timestamp, Key);

struct Aside {
    place: Place,
    /// Not before this.
    from: Instant,
    /// When it is tried in any case.
    until: Instant,
    /// Something happened that may help.
    woken: bool,
}

/// The waiting pods.
#[derive(Default)]
pub struct Backlog {
    active: BTreeSet<Place>,
    places: BTreeMap<Key, Place>,
    aside: BTreeMap<Key, Aside>,
    attempts: BTreeMap<Key, u32>,
}

impl Backlog {
    /// Adds a pod, unless it waits already.
    pub fn add(&mut self, key: &Key, priority: i32, created: Timestamp) {
        if self.aside.contains_key(key) || self.places.contains_key(key) {
            return;
        }
        let place = (Reverse(priority), created, key.clone());
        self.places.insert(key.clone(), place.clone());
        self.active.insert(place);
    }

    /// The pod is gone, or has a node.
    pub fn remove(&mut self, key: &Key) {
        if let Some(place) = self.places.remove(key) {
            self.active.remove(&place);
        }
        self.aside.remove(key);
        self.attempts.remove(key);
    }

    /// The next pod to try. It is no longer in the backlog then.
    pub fn next(&mut self) -> Option<Key> {
        let (_, _, key) = self.active.pop_first()?;
        self.places.remove(&key);
        Some(key)
    }

    /// Sets a pod aside after a failed attempt. `woken` if it is to be tried again as soon as the back-off is over.
    pub fn set_aside(&mut self, key: &Key, priority: i32, created: Timestamp, now: Instant, woken: bool) {
        let attempts = self.attempts.entry(key.clone()).or_default();
        let wait = (FIRST_WAIT * 2_u32.pow((*attempts).min(8))).min(LONGEST_WAIT);
        *attempts += 1;
        let place = (Reverse(priority), created, key.clone());
        self.aside.insert(key.clone(), Aside { place, from: now + wait, until: now + PATIENCE, woken });
    }

    /// Sets a pod aside until the room that is being made for it is free.
    pub fn set_aside_for_room(&mut self, key: &Key, priority: i32, created: Timestamp, now: Instant) {
        let place = (Reverse(priority), created, key.clone());
        self.aside.insert(key.clone(), Aside { place, from: now, until: now + PATIENCE, woken: false });
    }

    /// Sets a pod aside until something happens, or for this long.
    pub fn set_aside_for(&mut self, key: &Key, priority: i32, created: Timestamp, now: Instant, time: Duration) {
        let place = (Reverse(priority), created, key.clone());
        self.aside.insert(key.clone(), Aside { place, from: now, until: now + time.min(PATIENCE), woken: false });
    }

    /// Something happened that may help the pods that `concerns` names.
    pub fn wake(&mut self, concerns: impl Fn(&Key) -> bool) {
        for (_, aside) in self.aside.iter_mut().filter(|(key, aside)| !aside.woken && concerns(key)) {
            aside.woken = true;
        }
    }

    /// Takes up again what was set aside and is due.
    pub fn resume(&mut self, now: Instant) {
        let due = |aside: &Aside| (aside.woken && aside.from <= now) || aside.until <= now;
        let keys: Vec<Key> = self.aside.iter().filter(|(_, aside)| due(aside)).map(|(key, _)| key.clone()).collect();
        for key in keys {
            if let Some(aside) = self.aside.remove(&key) {
                self.places.insert(key, aside.place.clone());
                self.active.insert(aside.place);
            }
        }
    }

    /// When [`Backlog::resume`] will next find something.
    pub fn next_due(&self) -> Option<Instant> {
        self.aside.values().map(|aside| if aside.woken { aside.from.min(aside.until) } else { aside.until }).min()
    }

    /// Whether there is something to try now.
    pub fn is_busy(&self) -> bool {
        !self.active.is_empty()
    }
}

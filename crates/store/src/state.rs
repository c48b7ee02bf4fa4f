//! What the store holds in memory: the current entries and a bounded history of events.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::sync::Arc;

use crate::types::{Compacted, Entry, Event, EventKind, Page, Revision};

/// Current entries and history. Everything in it is durable.
#[derive(Debug, Default)]
pub struct State {
    entries: BTreeMap<Arc<str>, Entry>,
    history: VecDeque<Arc<Event>>,
    history_bytes: usize,
    revision: Revision,
    compacted: Revision,
}

impl State {
    /// An empty state whose history begins after `compacted`.
    pub fn new(compacted: Revision) -> Self {
        Self { compacted, revision: compacted, ..Self::default() }
    }

    /// The revision of the last transaction.
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// The oldest revision that can be read or watched from.
    pub fn compacted(&self) -> Revision {
        self.compacted
    }

    /// The entry of a key.
    pub fn get(&self, key: &str) -> Option<&Entry> {
        self.entries.get(key)
    }

    /// All current entries, by key.
    pub fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.entries.values()
    }

    /// All events after [`Self::compacted`], oldest first.
    pub fn history(&self) -> impl DoubleEndedIterator<Item = &Arc<Event>> {
        self.history.iter()
    }

    /// Number of events in the history and the memory they keep alive.
    pub fn history_size(&self) -> (usize, usize) {
        (self.history.len(), self.history_bytes)
    }

    /// Takes in an entry that is older than the history, when loading.
    pub fn load(&mut self, entry: Entry) {
        self.entries.insert(entry.key.clone(), entry);
    }

    /// Takes in one event. Events arrive in order.
    pub fn apply(&mut self, event: Arc<Event>) {
        debug_assert!(event.revision >= self.revision);
        match event.kind {
            EventKind::Put => self.entries.insert(event.entry.key.clone(), event.entry.clone()),
            EventKind::Delete => self.entries.remove(&event.entry.key),
        };
        self.revision = event.revision;
        self.history_bytes += event.cost();
        self.history.push_back(event);
    }

    /// Sets the revision after loading: the last transactions may have left no record.
    pub fn finish_load(&mut self, revision: Revision) {
        self.revision = revision;
    }

    /// The current entries without any history. Keys and values are shared.
    pub fn without_history(&self) -> Self {
        Self { entries: self.entries.clone(), revision: self.revision, compacted: self.revision, ..Self::default() }
    }

    /// Forgets the events up to and including `revision`.
    pub fn compact(&mut self, revision: Revision) {
        while self.history.front().is_some_and(|event| event.revision <= revision) {
            if let Some(event) = self.history.pop_front() {
                self.history_bytes -= event.cost();
            }
        }
        self.compacted = self.compacted.max(revision.min(self.revision));
    }

    /// Events after `from`, oldest first.
    pub fn events_after(&self, from: Revision) -> Result<impl Iterator<Item = &Arc<Event>>, Compacted> {
        self.check(from)?;
        let start = self.history.partition_point(|event| event.revision <= from);
        Ok(self.history.range(start..))
    }

    /// The entries under `prefix` whose key sorts after `after`, at most `limit` of them (0: all).
    pub fn range(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
        at: Option<Revision>,
    ) -> Result<Page, Compacted> {
        let limit = if limit == 0 { usize::MAX } else { limit };
        match at.filter(|at| *at < self.revision) {
            None => Ok(take_page(self.under(prefix, after).cloned(), limit, self.revision)),
            Some(at) => {
                let undo = self.changed_since(prefix, after, at)?;
                Ok(take_page(self.rewound(prefix, after, &undo), limit, at))
            }
        }
    }

    /// Number of entries under `prefix`.
    pub fn count(&self, prefix: &str) -> usize {
        self.under(prefix, None).count()
    }

    fn under<'a>(&'a self, prefix: &'a str, after: Option<&'a str>) -> impl Iterator<Item = &'a Entry> {
        let start = match after {
            Some(after) if after >= prefix => Bound::Excluded(after),
            _ => Bound::Included(prefix),
        };
        self.entries
            .range::<str, _>((start, Bound::Unbounded))
            .take_while(move |(key, _)| key.starts_with(prefix))
            .map(|(_, entry)| entry)
    }

    fn check(&self, requested: Revision) -> Result<(), Compacted> {
        if requested < self.compacted { Err(Compacted { requested, compacted: self.compacted }) } else { Ok(()) }
    }

    /// For each key of the range that changed after `at`: what it held at `at`.
    fn changed_since<'a>(
        &'a self,
        prefix: &str,
        after: Option<&str>,
        at: Revision,
    ) -> Result<BTreeMap<&'a str, Option<&'a Entry>>, Compacted> {
        self.check(at)?;
        let mut undo = BTreeMap::new();
        for event in self.history.iter().rev().take_while(|event| event.revision > at) {
            let key = &*event.entry.key;
            if key.starts_with(prefix) && after.is_none_or(|after| key > after) {
                undo.insert(key, event.prev.as_ref());
            }
        }
        Ok(undo)
    }

    /// The range with the changes in `undo` taken back, by key.
    fn rewound<'a>(
        &'a self,
        prefix: &'a str,
        after: Option<&'a str>,
        undo: &'a BTreeMap<&'a str, Option<&'a Entry>>,
    ) -> impl Iterator<Item = Entry> {
        let mut kept = self.under(prefix, after).filter(|entry| !undo.contains_key(&*entry.key)).peekable();
        let mut restored = undo.values().filter_map(|entry| *entry).peekable();
        std::iter::from_fn(move || match (kept.peek(), restored.peek()) {
            (Some(a), Some(b)) if a.key < b.key => kept.next(),
            (_, Some(_)) => restored.next(),
            (_, None) => kept.next(),
        })
        .cloned()
    }
}

fn take_page(mut entries: impl Iterator<Item = Entry>, limit: usize, revision: Revision) -> Page {
    let page: Vec<Entry> = entries.by_ref().take(limit).collect();
    Page { entries: page, revision, remaining: entries.count() }
}

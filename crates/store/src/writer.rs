//! The one writer: gathers requests, makes them durable together, publishes, answers.
//!
//! Requests that arrive while a batch is being synced form the next batch. A batch's transactions are judged one after
//! the other against the state plus the batch's earlier transactions, but nobody hears a verdict before the batch is
//! on disk, as a conflict may rest on a write that never gets there.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};

use crate::disk::{Batch, Disk, DiskError};
use crate::state::State;
use crate::store::{Options, Shared};
use crate::types::{CommitError, Committed, Entry, Event, EventKind, Op, Revision};

/// Limits of one batch: beyond them, waiting for a larger one gains nothing.
const BATCH_REQUESTS: usize = 1024;
const BATCH_BYTES: usize = 8 << 20;

type Reply<T> = oneshot::Sender<Result<T, CommitError>>;

/// What the writer is asked to do.
pub enum Request {
    /// See [`crate::Store::commit`].
    Commit { ops: Vec<Op>, reply: Reply<Committed> },
    /// See [`crate::Store::compact`].
    Compact { revision: Revision, reply: Reply<()> },
}

impl Request {
    fn cost(&self) -> usize {
        let Self::Commit { ops, .. } = self else { return 0 };
        ops.iter().map(|op| if let Op::Put { value, .. } = op { value.len() } else { 0 }).sum()
    }
}

/// An answer that waits for the disk.
enum Answer {
    Commit(Reply<Committed>, Result<Committed, CommitError>),
    Compact(Reply<()>),
}

impl Answer {
    /// Whoever asked may have gone; that is their business.
    fn give(self, failure: Option<&CommitError>) {
        match (self, failure) {
            (Self::Commit(reply, outcome), None) => drop(reply.send(outcome)),
            (Self::Compact(reply), None) => drop(reply.send(Ok(()))),
            (Self::Commit(reply, _), Some(failure)) => drop(reply.send(Err(failure.clone()))),
            (Self::Compact(reply), Some(failure)) => drop(reply.send(Err(failure.clone()))),
        }
    }
}

/// Owns the disk.
pub struct WriterLoop {
    shared: Arc<Shared>,
    disk: Disk,
    options: Options,
    /// After a full disk: keep less history, to win space.
    squeeze: bool,
}

impl WriterLoop {
    pub fn new(shared: Arc<Shared>, disk: Disk, options: Options) -> Self {
        Self { shared, disk, options, squeeze: false }
    }

    /// Runs on a thread of its own until the queue is closed.
    pub fn run_blocking(mut self, mut requests: mpsc::Receiver<Request>) {
        while let Some(first) = requests.blocking_recv() {
            let batch = gather(first, &mut requests);
            self.commit(batch);
        }
    }

    /// Runs as a task until the queue is closed.
    pub async fn run(mut self, mut requests: mpsc::Receiver<Request>) {
        while let Some(first) = requests.recv().await {
            if let Some(pause) = &self.options.pause {
                tokio::time::sleep(pause()).await;
            }
            let batch = gather(first, &mut requests);
            self.commit(batch);
        }
    }

    fn commit(&mut self, requests: Vec<Request>) {
        let shared = self.shared.clone();
        let state = shared.read();
        let mut draft = Draft::new(&state);
        let mut compact = state.compacted();
        let answers: Vec<Answer> = requests
            .into_iter()
            .map(|request| match request {
                Request::Commit { ops, reply } => Answer::Commit(reply, draft.transact(ops)),
                Request::Compact { revision, reply } => {
                    compact = compact.max(revision);
                    Answer::Compact(reply)
                }
            })
            .collect();
        let Draft { events, revision, .. } = draft;
        let (expired, compacted) = self.expire(&state, &events, compact);
        let batch = Batch { events: &events, revision, expired: &expired, compacted };
        let idle = events.is_empty() && compacted == state.compacted();
        let written = if idle { Ok(()) } else { self.disk.write(&state, &batch) };
        drop(state);
        match written {
            Ok(()) => {
                self.squeeze &= idle;
                self.publish(&events, compacted);
                answers.into_iter().for_each(|answer| answer.give(None));
            }
            Err(error) => {
                let failure = self.failure(error);
                answers.into_iter().for_each(|answer| answer.give(Some(&failure)));
            }
        }
    }

    fn failure(&mut self, error: DiskError) -> CommitError {
        match error {
            DiskError::Full => {
                self.squeeze = true;
                CommitError::Full
            }
            DiskError::Io(message) => CommitError::Io(message),
        }
    }

    /// Which events leave the history, so that it keeps its limits (with some slack, to do it in larger steps), and
    /// where it then begins. Events of this very batch stay.
    fn expire(&self, state: &State, new: &[Arc<Event>], asked: Revision) -> (Vec<Arc<Event>>, Revision) {
        let (mut count, mut bytes) = state.history_size();
        count += new.len();
        bytes += new.iter().map(|event| event.cost()).sum::<usize>();
        let divisor = if self.squeeze { 4 } else { 1 };
        let (max_count, max_bytes) = (self.options.history / divisor, self.options.history_bytes / divisor);
        let over = count > max_count + max_count / 16 || bytes > max_bytes + max_bytes / 16;
        let mut compacted = asked.min(state.revision());
        let mut expired = Vec::new();
        for event in state.history() {
            let too_much = over && (count > max_count || bytes > max_bytes);
            // All events of one revision go together.
            if !too_much && event.revision > compacted {
                break;
            }
            compacted = compacted.max(event.revision);
            count -= 1;
            bytes -= event.cost();
            expired.push(event.clone());
        }
        (expired, compacted)
    }

    fn publish(&self, events: &[Arc<Event>], compacted: Revision) {
        let mut state = self.shared.write();
        events.iter().for_each(|event| state.apply(event.clone()));
        if compacted > state.compacted() {
            state.compact(compacted);
        }
        let wakers = self.shared.watchers().publish(events, self.options.watch_limits());
        drop(state);
        wakers.into_iter().for_each(std::task::Waker::wake);
    }
}

impl Drop for WriterLoop {
    fn drop(&mut self) {
        let wakers = self.shared.watchers().close();
        wakers.into_iter().for_each(std::task::Waker::wake);
    }
}

fn gather(first: Request, requests: &mut mpsc::Receiver<Request>) -> Vec<Request> {
    let mut bytes = first.cost();
    let mut batch = vec![first];
    while batch.len() < BATCH_REQUESTS && bytes < BATCH_BYTES {
        let Ok(next) = requests.try_recv() else { break };
        bytes += next.cost();
        batch.push(next);
    }
    batch
}

/// The state plus the transactions of a batch so far.
struct Draft<'a> {
    state: &'a State,
    changed: BTreeMap<Arc<str>, Option<Entry>>,
    events: Vec<Arc<Event>>,
    revision: Revision,
}

impl<'a> Draft<'a> {
    fn new(state: &'a State) -> Self {
        Self { state, changed: BTreeMap::new(), events: Vec::new(), revision: state.revision() }
    }

    fn get(&self, key: &str) -> Option<&Entry> {
        match self.changed.get(key) {
            Some(changed) => changed.as_ref(),
            None => self.state.get(key),
        }
    }

    fn transact(&mut self, ops: Vec<Op>) -> Result<Committed, CommitError> {
        self.check(&ops)?;
        let revision = self.revision + 1;
        let mut events = Vec::new();
        let entries = ops.into_iter().map(|op| self.step(op, revision, &mut events)).collect();
        if !events.is_empty() {
            events.sort_by(|a, b| a.entry.key.cmp(&b.entry.key));
            self.revision = revision;
            self.take(events);
        }
        Ok(Committed { revision: self.revision, entries })
    }

    fn check(&self, ops: &[Op]) -> Result<(), CommitError> {
        let mut changes: Vec<&str> = Vec::new();
        for op in ops {
            let (key, expect) = op.target();
            if key.is_empty() {
                return Err(CommitError::Invalid("a key is empty".into()));
            }
            let current = self.get(key);
            if !expect.holds(current) {
                return Err(CommitError::Conflict { key: key.to_owned(), current: current.cloned() });
            }
            if !matches!(op, Op::Check { .. }) {
                changes.push(key);
            }
        }
        changes.sort_unstable();
        match changes.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(pair) => Err(CommitError::Invalid(format!("it changes {} twice", pair[0]))),
            None => Ok(()),
        }
    }

    fn step(&self, op: Op, revision: Revision, events: &mut Vec<Arc<Event>>) -> Option<Entry> {
        let (kind, prev, entry) = match op {
            Op::Check { key, .. } => return self.get(&key).cloned(),
            Op::Put { key, value, .. } => {
                let prev = self.get(&key).cloned();
                let shared = prev.as_ref().map_or_else(|| key.into(), |prev| prev.key.clone());
                let create_revision = prev.as_ref().map_or(revision, |prev| prev.create_revision);
                (EventKind::Put, prev, Entry { key: shared, value, create_revision, mod_revision: revision })
            }
            Op::Delete { key, .. } => {
                let prev = self.get(&key).cloned()?;
                let entry = Entry { mod_revision: revision, ..prev.clone() };
                (EventKind::Delete, Some(prev), entry)
            }
        };
        events.push(Arc::new(Event { kind, entry: entry.clone(), prev, revision }));
        Some(entry)
    }

    fn take(&mut self, events: Vec<Arc<Event>>) {
        for event in events {
            let now = (event.kind == EventKind::Put).then(|| event.entry.clone());
            self.changed.insert(event.entry.key.clone(), now);
            self.events.push(event);
        }
    }
}

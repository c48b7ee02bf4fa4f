//! Events are kept for an hour.
//!
//! Every event written is noted with its deadline; one task sleeps until the first of them and deletes what nobody
//! touched since. Without events it sleeps for good.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use mycelium_store::{Entry, Expect, Op, Revision};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::server::Inner;

const PREFIX: &str = "/registry/core/events/";
const KEPT: Duration = Duration::from_secs(3600);
const BATCH: usize = 256;

struct Due {
    at: Instant,
    key: Arc<str>,
    revision: Revision,
}

/// Events in the order in which they end.
#[derive(Default)]
pub struct Expiry {
    due: Mutex<VecDeque<Due>>,
    changed: Notify,
}

impl Expiry {
    /// Notes the events among written entries.
    pub fn note(&self, entries: &[Option<Entry>]) {
        for entry in entries.iter().flatten().filter(|e| e.key.starts_with(PREFIX)) {
            let due = Due { at: Instant::now() + KEPT, key: entry.key.clone(), revision: entry.mod_revision };
            let mut queue = self.due.lock().unwrap_or_else(PoisonError::into_inner);
            queue.push_back(due);
            if queue.len() == 1 {
                self.changed.notify_one();
            }
        }
    }

    /// Starts the task that deletes. Events of an earlier run get a full hour.
    pub fn start(self: &Arc<Self>, server: &Arc<Inner>) {
        if let Ok(page) = server.store.range(PREFIX, None, 0, None) {
            self.note(&page.entries.into_iter().map(Some).collect::<Vec<_>>());
        }
        tokio::spawn(sweep(self.clone(), Arc::downgrade(server), server.shutdown.subscribe()));
    }

    fn first(&self) -> Option<Instant> {
        self.due.lock().unwrap_or_else(PoisonError::into_inner).front().map(|due| due.at)
    }

    fn take_due(&self, now: Instant) -> Vec<Due> {
        let mut queue = self.due.lock().unwrap_or_else(PoisonError::into_inner);
        let count = queue.iter().take(BATCH).take_while(|due| due.at <= now).count();
        queue.drain(..count).collect()
    }
}

async fn sweep(expiry: Arc<Expiry>, server: Weak<Inner>, mut shutdown: tokio::sync::watch::Receiver<bool>) {
    loop {
        let wait = async {
            match expiry.first() {
                Some(at) => tokio::time::sleep_until(at).await,
                None => expiry.changed.notified().await,
            }
        };
        tokio::select! {
            biased;
            // An error means that the server is gone.
            _ = shutdown.wait_for(|stop| *stop) => return,
            () = wait => {}
        }
        let Some(server) = server.upgrade() else { return };
        for due in expiry.take_due(Instant::now()) {
            let op = Op::Delete { key: due.key.to_string(), expect: Expect::Revision(due.revision) };
            // A conflict means that the event was written again, which noted it anew.
            let _ = server.store.commit(vec![op]).await;
        }
    }
}

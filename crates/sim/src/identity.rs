//! What really runs on the nodes, whatever the API says: never two pods of one name at a time.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// The pods that run, by namespace and name. Outlives the engine's process.
#[derive(Clone, Debug, Default)]
pub struct Alive(Arc<Mutex<BTreeMap<String, (String, u64)>>>);

impl Alive {
    /// A pod starts on a node. Wrong if another of its name still runs somewhere.
    pub fn start(&self, key: &str, uid: &str, node: u64) -> Result<(), String> {
        let mut alive = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match alive.insert(key.to_owned(), (uid.to_owned(), node)) {
            Some((other, place)) if other != uid => {
                Err(format!("pod {key} starts on node-{node} while its predecessor still runs on node-{place}"))
            }
            _ => Ok(()),
        }
    }

    /// A pod has stopped.
    pub fn stop(&self, uid: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).retain(|_, (held, _)| held != uid);
    }

    /// Stops what runs on a node and is not among these.
    pub fn keep(&self, node: u64, uids: &[String]) {
        let mut alive = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        alive.retain(|_, (uid, place)| *place != node || uids.contains(uid));
    }
}

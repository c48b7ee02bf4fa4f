//! A few counters, in the text form that Prometheus reads.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use http::{Method, StatusCode};

use crate::request;

/// Counters of the server.
#[derive(Default)]
pub struct Metrics {
    requests: Mutex<BTreeMap<(String, String, u16), u64>>,
    watches: Arc<AtomicI64>,
}

/// A request that has begun.
pub struct Begun {
    verb: String,
    resource: String,
}

/// Counts a watch for as long as it lives.
pub struct WatchGauge(Arc<AtomicI64>);

impl Drop for WatchGauge {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Metrics {
    /// Notes what a request is about.
    pub fn begin(&self, method: &Method, path: &str) -> Begun {
        let resource = request::parse_path(path).map(|p| p.resource).unwrap_or_default();
        Begun { verb: method.as_str().to_owned(), resource }
    }

    /// Counts it.
    pub fn end(&self, begun: Begun, status: StatusCode) {
        // An unknown resource must not grow the table without bound.
        let resource = if status == StatusCode::NOT_FOUND { String::new() } else { begun.resource };
        let mut requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        *requests.entry((begun.verb, resource, status.as_u16())).or_default() += 1;
    }

    /// Counts a watch until the gauge is dropped.
    pub fn watch(&self) -> WatchGauge {
        self.watches.fetch_add(1, Ordering::Relaxed);
        WatchGauge(self.watches.clone())
    }

    /// The exposition.
    pub fn render(&self, revision: u64, keys: usize) -> String {
        let mut out = String::from("# TYPE apiserver_request_total counter\n");
        for ((verb, resource, code), count) in &*self.requests.lock().unwrap_or_else(PoisonError::into_inner) {
            let _ =
                writeln!(out, "apiserver_request_total{{verb={verb:?},resource={resource:?},code=\"{code}\"}} {count}");
        }
        let watches = self.watches.load(Ordering::Relaxed);
        let _ = write!(
            out,
            "# TYPE apiserver_longrunning_requests gauge\napiserver_longrunning_requests{{verb=\"WATCH\"}} {watches}\n\
             # TYPE mycelium_store_revision counter\nmycelium_store_revision {revision}\n\
             # TYPE mycelium_store_objects gauge\nmycelium_store_objects {keys}\n"
        );
        out
    }
}

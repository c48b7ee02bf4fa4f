//! The proxy: listeners, and what happens to a request.
//!
//! ```text
//!  accept ─ (TLS: certificate by name) ─ HTTP/1.1 or 2 ─► checks ─► route ─► answers of our own ─► 4xx, 3xx, 503
//!                                                                       └─► endpoint ─► connection ─► answer
//!                                                                              └─ refused: the next one
//! ```
//!
//! | module | holds |
//! |---|---|
//! | [`serve`] | listeners and connections |
//! | [`handle`] | from a request to an answer |
//! | [`forward`] | to an endpoint and back, with retries |
//! | [`headers`] | which headers pass, and which are made |
//! | [`answer`] | answers of our own |
//! | [`body`] | bodies on their way up and down |
//! | [`upstream`] | connections to endpoints |
//! | [`tunnel`] | connections that changed their protocol, such as WebSocket |

pub mod answer;
pub mod body;
pub mod forward;
pub mod handle;
pub mod headers;
pub mod serve;
pub mod tunnel;
pub mod upstream;

use std::net::IpAddr;
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use mycelium_api::env::Env;

use crate::Issue;
use crate::rules::table::Table;
use upstream::Upstreams;

/// What all connections share. Requests see one table from beginning to end; a new one is put in its place at once.
pub struct Shared {
    table: RwLock<Arc<Table>>,
    pub(crate) env: Env,
    pub(crate) issue: Issue,
    pub(crate) upstreams: Arc<Upstreams>,
    /// Where HTTPS is served, for redirects; 0 while it is not.
    https_port: AtomicU16,
}

impl Shared {
    /// An empty table.
    pub fn new(env: Env, issue: Issue) -> Arc<Self> {
        Arc::new(Self {
            table: RwLock::default(),
            env,
            issue,
            upstreams: Arc::new(Upstreams::new()),
            https_port: AtomicU16::new(0),
        })
    }

    /// The table of the moment.
    pub fn table(&self) -> Arc<Table> {
        self.table.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Puts another table in its place.
    pub fn replace(&self, table: Table) {
        let table = Arc::new(table);
        *self.table.write().unwrap_or_else(PoisonError::into_inner) = table.clone();
        self.upstreams.forget_all_but(&table);
    }

    /// Says where HTTPS is served; 0 for nowhere.
    pub fn set_https_port(&self, port: u16) {
        self.https_port.store(port, Ordering::Relaxed);
    }

    pub(crate) fn https_port(&self) -> u16 {
        self.https_port.load(Ordering::Relaxed)
    }
}

/// Who is at the other end of a connection, and where it came in.
#[derive(Clone, Copy, Debug)]
pub struct Peer {
    /// The client's address.
    pub client: IpAddr,
    /// The connection is under TLS.
    pub secure: bool,
    /// The port it came in at.
    pub port: u16,
}

impl Peer {
    /// `http` or `https`.
    pub fn scheme(&self) -> &'static str {
        if self.secure { "https" } else { "http" }
    }
}

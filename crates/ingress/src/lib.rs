//! Ingress: a proxy in front of services, fed by the cluster's Ingresses.
//!
//! ```text
//!  watches ─► world ─► compile ─► table ─► proxy ─► endpoints
//!                         ├─► certificates to make ─► Secrets
//!                         └─► status and events
//! ```
//!
//! The table follows from the objects by a pure function ([`rules::compile`]) and is put in place of the one before at once;
//! requests and connections under way go on with what they have. Nothing listens, and nothing but Ingresses and their
//! classes is watched, before the first Ingress is there.
//!
//! | module | holds |
//! |---|---|
//! | [`annotations`] | what the annotations of an Ingress ask for |
//! | [`rules`] | from objects to the routing table |
//! | [`certificates`] | which certificate a host gets, and which have to be made |
//! | [`limit`] | how much one client may ask for |
//! | [`proxy`] | listeners, requests, connections to endpoints |
//! | [`controller`] | the shell: watches, statuses, events, Secrets |

pub mod annotations;
pub mod certificates;
pub mod controller;
pub mod limit;
pub mod proxy;
pub mod rules;
mod unverified;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

pub use controller::{HTTP, HTTPS, run};
pub use rules::compile::CLASS;

/// A certificate, its key and the authority that signed it, all PEM.
#[derive(Clone)]
pub struct Issued {
    /// The certificate.
    pub cert: String,
    /// Its key.
    pub key: String,
}

/// Makes a certificate for hosts, or says why it will not.
pub type Issue = Arc<dyn Fn(&[String]) -> Result<Issued, String> + Send + Sync>;

/// Where to listen for one of the two protocols.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listen {
    /// Nowhere.
    Off,
    /// At this port of the node's address and of loopback.
    Node(u16),
    /// There.
    At(SocketAddr),
}

impl Listen {
    /// The addresses to take.
    pub fn addresses(self, node: Ipv4Addr) -> Vec<SocketAddr> {
        match self {
            Self::Off => Vec::new(),
            Self::At(address) => vec![address],
            Self::Node(port) => {
                let mut addresses = vec![IpAddr::V4(node), IpAddr::V4(Ipv4Addr::LOCALHOST)];
                addresses.dedup();
                addresses.into_iter().map(|ip| SocketAddr::new(ip, port)).collect()
            }
        }
    }
}

/// What the proxy is told.
#[derive(Clone)]
pub struct Options {
    /// Where HTTP is served.
    pub http: Listen,
    /// Where HTTPS is served.
    pub https: Listen,
    /// The node's address towards the world.
    pub node_ip: Ipv4Addr,
    /// Makes certificates.
    pub issue: Issue,
    /// The authority that signs them, PEM.
    pub authority: String,
}

//! The endpoints of a route, and which of them is next.

use std::fmt::Write;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};

use sha2::{Digest, Sha256};

use crate::annotations::Protocol;

/// Where a request can go.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Address {
    /// An endpoint.
    Socket(SocketAddr),
    /// A name elsewhere, and a port.
    Name(String, u16),
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Socket(address) => write!(f, "{address}"),
            Self::Name(name, port) => write!(f, "{name}:{port}"),
        }
    }
}

/// One of the places a request can go to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Where.
    pub address: Address,
    /// What a client's cookie calls it. It tells nothing about the address.
    pub token: String,
}

/// A service's port, and where it leads at the moment.
#[derive(Debug, Default)]
pub struct Backend {
    /// Namespace, name and port, for people.
    pub name: String,
    /// What its endpoints speak.
    pub protocol: Protocol,
    /// Where it leads.
    pub targets: Vec<Target>,
    next: AtomicUsize,
}

/// How an endpoint is chosen.
pub enum Choice<'a> {
    /// Each in turn.
    Turn,
    /// The one whose token this is, else each in turn.
    Token(&'a str),
    /// Always the same for the same text.
    Hash(&'a str),
}

impl Backend {
    /// A backend that leads to these addresses.
    pub fn new(name: String, protocol: Protocol, addresses: Vec<Address>) -> Self {
        let targets = addresses.into_iter().map(|address| {
            let token = hex(&Sha256::digest(format!("{name} {address}"))[..16]);
            Target { address, token }
        });
        Self { targets: targets.collect(), name, protocol, next: AtomicUsize::new(0) }
    }

    /// Whether this leads to the same places.
    pub fn same(&self, other: &Self) -> bool {
        (&self.name, self.protocol, &self.targets) == (&other.name, other.protocol, &other.targets)
    }

    /// The endpoint for a request that has `tried` some in vain; none if all were.
    pub fn pick(&self, choice: &Choice<'_>, tried: &[usize]) -> Option<usize> {
        let count = self.targets.len();
        if tried.len() >= count {
            return None;
        }
        match choice {
            Choice::Token(token) => {
                let known = self.targets.iter().position(|target| target.token == **token);
                if let Some(known) = known.filter(|known| !tried.contains(known)) {
                    return Some(known);
                }
            }
            Choice::Hash(text) => {
                let left = (0..count).filter(|index| !tried.contains(index));
                return left.max_by_key(|index| weight(text, &self.targets[*index].token));
            }
            Choice::Turn => {}
        }
        let turn = self.next.fetch_add(1, Ordering::Relaxed);
        (0..count).map(|step| turn.wrapping_add(step) % count).find(|index| !tried.contains(index))
    }
}

/// The weight of an endpoint for a text: the greatest wins, so that one endpoint more or less moves few texts (rendezvous
/// hashing). FNV-1a, finished as in MurmurHash3.
fn weight(text: &str, token: &str) -> u64 {
    let bytes = text.bytes().chain(token.bytes());
    let mut hash =
        bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    for factor in [0xff51_afd7_ed55_8ccd_u64, 0xc4ce_b9fe_1a85_ec53] {
        hash = (hash ^ (hash >> 33)).wrapping_mul(factor);
    }
    hash ^ (hash >> 33)
}

fn hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        let _ = write!(text, "{byte:02x}");
    }
    text
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn backend(count: u16) -> Backend {
        let addresses = (1..=count).map(|port| Address::Socket(SocketAddr::from(([10, 0, 0, 1], port))));
        Backend::new("ns/web:80".into(), Protocol::Http, addresses.collect())
    }

    #[test]
    fn each_gets_its_turn_and_none_is_tried_twice() {
        let backend = backend(3);
        let turns: BTreeSet<_> = (0..3).map(|_| backend.pick(&Choice::Turn, &[])).collect();
        assert_eq!(turns.len(), 3);
        assert_eq!(backend.pick(&Choice::Turn, &[0, 2]), Some(1));
        assert_eq!(backend.pick(&Choice::Turn, &[0, 1, 2]), None);
        assert_eq!(Backend::default().pick(&Choice::Turn, &[]), None);
    }

    #[test]
    fn a_token_and_a_hash_stay() {
        let three = backend(3);
        let token = three.targets[2].token.clone();
        assert!((0..5).all(|_| three.pick(&Choice::Token(&token), &[]) == Some(2)));
        assert_ne!(three.pick(&Choice::Token(&token), &[2]), Some(2));
        let four = backend(4);
        let moved = (0..1000).filter(|n| {
            let text = n.to_string();
            three.pick(&Choice::Hash(&text), &[]) != four.pick(&Choice::Hash(&text), &[])
        });
        let moved = moved.count();
        assert!((150..350).contains(&moved), "a quarter moves to the fourth: {moved}");
    }
}

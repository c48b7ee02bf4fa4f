//! Pairs of links, a proxy that misbehaves, and machines of their own.
#![allow(dead_code, reason = "each test file uses a part")]

pub mod network;
pub mod proxy;

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use mycelium_rhizomorph::{Error, Group, Link, LinkConfig, Listener, Options, Priority};

pub const LOOPBACK: &str = "127.0.0.1:0";

/// Two ends of a link.
pub struct Ends {
    pub near: Link,
    pub far: Link,
    /// Lets connections join; must live as long as the link needs new ones.
    pub listener: Listener,
}

/// A link over loopback with this many connections, all of them there.
pub async fn link(count: usize, options: Options) -> Ends {
    let group = Group::create().unwrap();
    let listener = Listener::bind(&[LOOPBACK.parse().unwrap()], group.issue("far").unwrap(), options).await.unwrap();
    link_through(listener.addresses().to_vec(), listener, &group, count, options).await
}

/// A link to a listener through other addresses, a proxy's for instance.
pub async fn link_through(
    remote: Vec<SocketAddr>,
    listener: Listener,
    group: &Group,
    count: usize,
    options: Options,
) -> Ends {
    let config = LinkConfig { target_count: count, options, ..LinkConfig::new(remote) };
    let (near, far) = tokio::join!(Link::connect(config, group.issue("near").unwrap()), listener.accept());
    let ends = Ends { near: near.unwrap(), far: far.unwrap(), listener };
    until("all connections are there", || ends.near.connections() == count && ends.far.connections() == count).await;
    ends
}

/// Waits for a condition.
pub async fn until(what: &str, condition: impl FnMut() -> bool) {
    until_or(what, condition, String::new).await;
}

/// Waits for a condition; says how things stand if it never comes.
pub async fn until_or(what: &str, mut condition: impl FnMut() -> bool, state: impl FnOnce() -> String) {
    let wait = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    if tokio::time::timeout(Duration::from_secs(60), wait).await.is_err() {
        panic!("never: {what} {}", state());
    }
}

/// Bytes that differ from message to message and from place to place.
pub fn pattern(seed: u64, length: usize) -> Bytes {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes.into()
}

/// Sends numbered messages of one length until told to stop; returns how many.
pub async fn pump(link: Link, channel: u16, length: usize, count: u64) -> Result<(), Error> {
    for number in 0..count {
        link.send(channel, Priority::Bulk, vec![pattern(number, length)]).await?;
    }
    link.flush().await
}

/// Receives them, each exactly once and in order.
pub async fn drink(link: &Link, channel: u16, length: usize, count: u64) {
    for number in 0..count {
        let message = link.recv().await.unwrap();
        assert_eq!(message.channel, channel);
        assert!(message.payload == pattern(number, length), "message {number} is whole and in order");
    }
}

//! What a link tells about itself.

use std::net::SocketAddr;

use serde::Serialize;

pub use crate::core::path::PathState;

/// A link at one moment.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LinkStats {
    /// The peer's name.
    pub peer: String,
    /// Its connections.
    pub connections: Vec<ConnectionStats>,
    /// Bytes of bulk messages queued or not yet acknowledged on this side.
    pub queued_bytes: u64,
    /// Bytes received that the application has not taken.
    pub held_bytes: u64,
    /// Messages the application gave.
    pub sent_messages: u64,
    /// Messages the application took.
    pub received_messages: u64,
    /// Connections that were lost since the link began.
    pub lost_connections: u64,
}

/// One connection of a link.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ConnectionStats {
    /// Its number within the link; a connection that was dialled again has a new one.
    pub id: u64,
    /// This side's address.
    pub local: SocketAddr,
    /// The peer's address.
    pub remote: SocketAddr,
    /// Whether it moves.
    pub state: PathState,
    /// Bytes of messages sent over it.
    pub sent_bytes: u64,
    /// Chunks sent over it.
    pub sent_chunks: u64,
    /// Those of them that had been sent before.
    pub resent_chunks: u64,
    /// Bytes of messages received over it, duplicates included.
    pub received_bytes: u64,
    /// Chunks received over it, duplicates included.
    pub received_chunks: u64,
    /// Bytes handed to it and not acknowledged.
    pub in_flight_bytes: u64,
    /// Smoothed round trip.
    pub rtt_us: Option<u64>,
    /// Measured rate of delivery.
    pub bandwidth_bytes_per_s: Option<u64>,
    /// Its part of what the link delivered of late, 0 to 1.
    pub share: f64,
}

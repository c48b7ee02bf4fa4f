//! The link without sockets: what goes where, what arrived, what must be sent again. Time is passed in as the time
//! since the link began; nothing here waits or does I/O.

pub mod message;
pub mod path;
pub mod receiver;
pub mod sender;

#[cfg(test)]
mod tests;

use std::time::Duration;

/// Time since the link began.
pub type Time = Duration;

/// What a message costs besides its bytes, so that many empty ones are bounded too.
const MESSAGE_COST: u64 = 64;

/// What a message takes from a receiver's window.
pub fn cost(bytes: u64) -> u64 {
    bytes.saturating_add(MESSAGE_COST)
}

/// How chunks are spread over a link's connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Balancing {
    /// Each connection carries as much as it delivers: the most bytes per second.
    #[default]
    AdaptiveBandwidth,
    /// Each chunk goes where it arrives first, urgent messages over the two best: the least delay.
    LatencyOptimized,
}

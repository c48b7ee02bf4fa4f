//! What a card has done.

use serde::Serialize;

/// Counters since the start, and how much waits now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NicStats {
    /// Frames to the guest.
    pub ingress_frames: u64,
    /// Their bytes.
    pub ingress_bytes: u64,
    /// Frames for the guest that no QEMU was there to take, or that came while the card was on standby.
    pub ingress_dropped: u64,
    /// Frames the guest has sent.
    pub egress_frames: u64,
    /// Their bytes.
    pub egress_bytes: u64,
    /// Frames handed to the network.
    pub released_frames: u64,
    /// Their bytes.
    pub released_bytes: u64,
    /// Frames that the port refused (too short, or the device is switched off).
    pub refused_frames: u64,
    /// Frames that were dropped because the card was fenced, or on standby.
    pub fenced_frames: u64,
    /// Times the queue became full, and QEMU's socket was no longer read.
    pub full_events: u64,
    /// Seals that left frames in the socket because of the limit; those belong to the next epoch.
    pub seals_cut: u64,
    /// Epochs sealed.
    pub seals: u64,
    /// Times QEMU connected.
    pub connections: u64,
    /// Streams that were closed because they were not QEMU's.
    pub stream_errors: u64,
    /// Frames waiting for their epoch.
    pub queued_frames: u64,
    /// Bytes waiting for their epoch: they count towards the replication buffer.
    pub queued_bytes: u64,
    /// How long the first of them has waited, microseconds.
    pub oldest_queued_us: u64,
    /// Whether the card was fenced.
    pub fenced: bool,
}

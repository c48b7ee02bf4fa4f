//! How a machine is on this host, as `mycelium vm status` shows it and as its metrics count it.

use serde::{Deserialize, Serialize};

/// What this host does for the machine.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Role {
    /// Not yet decided: it looks for the group.
    #[default]
    Joining,
    /// The guest runs here.
    Primary,
    /// It holds a copy and takes over if it must.
    Backup,
    /// It only votes.
    Witness,
}

impl std::fmt::Display for Role {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Joining => "joining",
            Self::Primary => "primary",
            Self::Backup => "backup",
            Self::Witness => "witness",
        })
    }
}

/// One machine on one host.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Status {
    /// The machine.
    pub vm: String,
    /// This host.
    pub host: String,
    /// Its part.
    pub role: Role,
    /// Which host has the guest, if known.
    pub primary: Option<String>,
    /// Generation of the group: goes up with each change of primary.
    pub term: u64,
    /// How often this host took the guest over from another since its process began.
    pub promotions: u64,
    /// What the process is doing, in a word or two.
    pub phase: String,
    /// What keeps this host from its part, and what to do about it; empty if nothing does.
    pub problem: String,
    /// The machine is being handed over.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub migration: Option<Migration>,
    /// Epochs.
    pub epochs: Epochs,
    /// The guest and its processor time.
    pub guest: Guest,
    /// How long the guest stood still per epoch.
    pub pause: Pause,
    /// What replication holds in memory.
    pub buffer: Buffer,
    /// What went out.
    pub traffic: Traffic,
    /// What leaves the guest by its network card.
    pub egress: Egress,
    /// What the guest does with its disk.
    pub disk: Disk,
    /// The others of the group.
    pub peers: Vec<Peer>,
    /// What happened, newest last.
    pub events: Vec<Event>,
}

/// A planned migration, until the other host decides.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Migration {
    /// The other host.
    pub to: String,
    /// What it lacks, 0 to 1: of the copy while that is made, then of what may be under way to it.
    pub lag: f64,
    /// The lag at which the guest is paused and switched.
    pub lag_limit: f64,
}

/// How far the epochs are.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Epochs {
    /// The last one that was taken (on a backup: the last whole one here).
    pub sealed: u64,
    /// The last one whose output was released.
    pub released: u64,
    /// Per second, over the last few seconds.
    pub per_second: f64,
    /// The present length, in milliseconds.
    pub length_ms: f64,
    /// From seal to release, median of late, in milliseconds.
    pub release_ms: f64,
}

/// The guest.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Guest {
    /// `kvm` or `tcg`.
    pub accelerator: String,
    /// QEMU's version.
    pub qemu: String,
    /// Virtual processors.
    pub cpus: u32,
    /// Bytes.
    pub memory_bytes: u64,
    /// How much it is slowed, 0 to 1.
    pub throttle: f64,
}

/// Pauses of the last minute, in milliseconds.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Pause {
    /// Median.
    pub p50_ms: f64,
    /// 99th percentile.
    pub p99_ms: f64,
    /// Longest.
    pub max_ms: f64,
    /// Those of the last seconds one by one, oldest first.
    pub recent_ms: Vec<f64>,
}

/// Memory of replication beyond the guest's.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Buffer {
    /// Bytes held of epochs under way, of copies to backups, and of the guest's output. What several queues share counts
    /// once; what the transport has taken over counts no more.
    pub bytes: u64,
    /// Bytes of pages as they were last sent, from which differences are taken.
    pub page_copies_bytes: u64,
    /// Bytes of both at most, but for one epoch: a checkpoint that was taken is kept although it does not fit.
    pub limit_bytes: u64,
    /// How full it was at the end of the last epoch, by which the guest is slowed: 1 is full.
    pub fill: f64,
    /// How often it was full and the guest had to wait.
    pub emergency_pauses: u64,
}

/// Replication traffic since this host became primary.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Traffic {
    /// Bytes of pages that were dirty.
    pub dirty_bytes: u64,
    /// Bytes that were sent for them, with disk and device state, to one backup.
    pub sent_bytes: u64,
    /// Of these, the disk's.
    pub disk_bytes: u64,
}

/// The guest's outgoing network traffic.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Egress {
    /// Frames that wait for their epoch.
    pub held_frames: u64,
    /// Frames that left.
    pub released_frames: u64,
    /// Frames that came in.
    pub ingress_frames: u64,
    /// `output-commit` or `best-effort`.
    pub mode: String,
}

/// The guest's disk, since it runs on this host.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Disk {
    /// Its size.
    pub size_bytes: u64,
    /// Writes of the guest.
    pub writes: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// Requests for what was written to be durable: the guest's, and QEMU's own at each checkpoint.
    pub flushes: u64,
    /// Bytes written in the present epoch.
    pub log_bytes: u64,
    /// How often a write had to wait for the end of an epoch that held too much.
    pub waits: u64,
}

/// Another member of the group.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Peer {
    /// Its name.
    pub name: String,
    /// Where it listens.
    pub address: String,
    /// `primary`, `backup`, `syncing`, `witness`, `away`.
    pub state: String,
    /// The last epoch it holds.
    pub epoch: u64,
    /// Epochs behind the last sealed one.
    pub lag: u64,
    /// Of its first copy or catching up, memory and disk, 0 to 1; 1 when in sync.
    pub synced: f64,
    /// The copy that is under way.
    pub copy: CopyPart,
    /// The connections to it, as the transport counts them.
    pub connections: serde_json::Value,
}

/// A member's first copy, or its catching up. All zero while there is none.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct CopyPart {
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// Those that are the same there by now.
    pub memory_done_bytes: u64,
    /// Bytes of the disk that may differ, and are no holes.
    pub disk_bytes: u64,
    /// Those that were compared, and sent where they differed.
    pub disk_done_bytes: u64,
    /// Bytes of the disk's content that had to be sent.
    pub disk_sent_bytes: u64,
}

impl CopyPart {
    /// How much of it is done, below 1: that it is whole the backup says.
    pub fn part(&self) -> f64 {
        let (all, done) = (self.memory_bytes + self.disk_bytes, self.memory_done_bytes + self.disk_done_bytes);
        if all == 0 { 0.0 } else { (done as f64 / all as f64).min(0.999) }
    }
}

/// Something worth telling.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Event {
    /// RFC 3339.
    pub time: String,
    /// One sentence.
    pub text: String,
}

/// The value below which a share `quantile` of the samples lies (nearest rank); 0 without samples.
pub fn quantile(samples: &mut [f64], quantile: f64) -> f64 {
    if samples.is_empty() {
        return 0.0;
    }
    samples.sort_by(f64::total_cmp);
    let rank = (quantile * samples.len() as f64).ceil() as usize;
    samples[rank.clamp(1, samples.len()) - 1]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_by_nearest_rank() {
        let mut samples: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        assert_eq!(quantile(&mut samples, 0.5), 50.0);
        assert_eq!(quantile(&mut samples, 0.99), 99.0);
        assert_eq!(quantile(&mut samples, 1.0), 100.0);
        assert_eq!(quantile(&mut [], 0.5), 0.0);
    }
}

//! Telling whoever asked how far backups are brought in sync.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use super::{Agent, now_us};
use crate::host::control::{Call, Progress};
use crate::host::status;

/// Between reports.
const REPORT_EVERY: Duration = Duration::from_millis(250);
const MIB: f64 = (1_u64 << 20) as f64;

/// Who is told.
#[derive(Default)]
pub(super) struct Followings {
    all: Vec<Following>,
    /// When the next report is due.
    next: Duration,
}

struct Following {
    call: Call,
    /// Where the backup listens of which it wants to know; it is answered when that one is in sync. Without: all backups.
    backup: Option<Vec<SocketAddr>>,
    /// What was told of each.
    told: BTreeMap<String, Progress>,
}

impl Followings {
    /// Tells this caller from now on.
    pub fn add(&mut self, call: Call, backup: Option<Vec<SocketAddr>>) {
        self.all.push(Following { call, backup, told: BTreeMap::new() });
    }

    /// A host that was dialled at one address listens at others.
    pub fn moved(&mut self, dialled: &[SocketAddr], listen: &[SocketAddr]) {
        for backup in self.all.iter_mut().filter_map(|following| following.backup.as_mut()) {
            if backup == dialled {
                *backup = listen.to_vec();
            }
        }
    }

    /// A host cannot be reached.
    pub fn trouble(&mut self, to: &[SocketAddr], reason: &str) {
        for following in self.all.iter_mut().filter(|one| one.backup.as_deref() == Some(to)) {
            let who = to.first().map(ToString::to_string).unwrap_or_default();
            following.tell(Progress { text: format!("cannot be reached: {reason}"), part: 0.0, who });
        }
    }
}

impl Following {
    /// Says something once; whether anybody listens.
    fn tell(&mut self, progress: Progress) -> bool {
        if self.told.get(&progress.who) == Some(&progress) {
            return !self.call.answers.is_closed();
        }
        let heard = self.call.progress(&progress);
        self.told.insert(progress.who.clone(), progress);
        heard
    }

    /// Tells what is new of a backup.
    fn report(&mut self, peer: &status::Peer) -> bool {
        let progress = progress_of(peer);
        // What was in sync all the time is no news.
        let news = progress.part < 1.0 || self.told.contains_key(&peer.name);
        if news { self.tell(progress) } else { !self.call.answers.is_closed() }
    }
}

impl Agent {
    /// Reports, if it is time and somebody listens.
    pub(super) fn tell_progress(&mut self) {
        let now = crate::clock::monotonic();
        if self.following.all.is_empty() || now < self.following.next {
            return;
        }
        self.following.next = now + REPORT_EVERY;
        let waits = |following: &Following| {
            following.backup.is_some() || following.told.values().any(|progress| progress.part < 1.0)
        };
        if self.syncs.is_empty() && !self.following.all.iter().any(waits) {
            return;
        }
        let peers = self.peer_status(&self.member.status(now_us()), 0);
        let all = std::mem::take(&mut self.following.all);
        let kept: Vec<Following> = all.into_iter().filter_map(|following| self.tell_one(following, &peers)).collect();
        self.following.all.extend(kept);
    }

    fn tell_one(&self, mut following: Following, peers: &[status::Peer]) -> Option<Following> {
        let Some(backup) = &following.backup else {
            let copied = |peer: &&status::Peer| matches!(&*peer.state, "syncing" | "backup");
            let heard = peers.iter().filter(copied).all(|peer| following.report(peer));
            return (heard && !following.call.answers.is_closed()).then_some(following);
        };
        if !self.has_guest() {
            following.call.finish(Err("another host runs the machine now: ask there".into()));
            return None;
        }
        let listens = |peer: &&status::Peer| {
            self.book.get(&peer.name).is_some_and(|known| known.iter().any(|one| backup.contains(one)))
        };
        let Some(peer) = peers.iter().find(listens) else {
            return (!following.call.answers.is_closed()).then_some(following);
        };
        following.tell(progress_of(peer));
        if peer.state == "backup" {
            let told = format!("{} is in sync with {}", peer.name, self.place.vm);
            following.call.finish(Ok(told.into()));
            return None;
        }
        (!following.call.answers.is_closed()).then_some(following)
    }
}

fn progress_of(peer: &status::Peer) -> Progress {
    let copy = &peer.copy;
    let share = |done: u64, all: u64| format!("{:.0} of {:.0} MiB", done as f64 / MIB, all as f64 / MIB);
    let text = match (&*peer.state, copy.disk_bytes) {
        ("backup", _) => "in sync".to_owned(),
        ("syncing", 0) => format!("memory {}", share(copy.memory_done_bytes, copy.memory_bytes)),
        ("syncing", _) => format!(
            "memory {}, disk {}",
            share(copy.memory_done_bytes, copy.memory_bytes),
            share(copy.disk_done_bytes, copy.disk_bytes)
        ),
        (state, _) => state.to_owned(),
    };
    // Steps of a thousandth are news enough.
    Progress { who: peer.name.clone(), part: (peer.synced * 1000.0).round() / 1000.0, text }
}

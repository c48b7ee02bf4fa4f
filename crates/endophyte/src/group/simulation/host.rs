//! A host: a member, its disk, its clock, its guest or replica, and its egress.

use std::collections::{BTreeMap, VecDeque};

use crate::group::types::{Durable, Name, Position};
use crate::group::{Input, Member, Output, Settings, Timing};

use super::oracle::Guest;

/// Not for ever: a backup that would need more is brought in sync anew.
const KEPT_EPOCHS: usize = 16;
/// Here a guest that nobody hears is stopped soon, so that it happens often.
pub const ISOLATED_US: u64 = 300_000;

/// A running guest.
#[derive(Debug)]
pub struct Running {
    pub guest: Guest,
    pub epoch: u64,
    pub paused: bool,
    /// Pauses and resumptions that were ordered, to be carried out one after the other: whether it is a pause.
    pub orders: VecDeque<bool>,
    /// Stopped, for its host is heard by nobody.
    pub halted: bool,
    /// A warm start takes its time.
    pub from_us: u64,
}

/// Output that waits: the epoch and the packet.
pub type Held = VecDeque<(u64, Guest)>;

pub struct Host {
    pub name: Name,
    pub member: Option<Member>,
    pub disk: Durable,
    pub running: Option<Running>,
    pub replica: Option<(Position, Guest)>,
    /// Who is making the replica anew.
    pub copier: Option<usize>,
    /// Received whole, not yet committed: the states before and after.
    pub staged: BTreeMap<Position, (Guest, Guest)>,
    /// The latest epochs of the guest that runs here, or of the replica, as they can be sent again.
    pub kept: VecDeque<(u64, Guest, Guest)>,
    pub held: Held,
    pub lease_until: u64,
    /// When a lease was last given to it, or its guest began.
    pub heard_us: u64,
    /// Syncs to begin with the next epoch after this time.
    pub syncs: BTreeMap<usize, u64>,
    pub frozen_until_us: u64,
    pub up_at_us: u64,
    pub offset_us: u64,
    pub rate_ppm: i64,
    /// Counts starts, so that events of a former life are dropped.
    pub life: u64,
}

impl Host {
    pub fn new(name: Name, disk: Durable, offset_us: u64, rate_ppm: i64) -> Self {
        Self {
            name,
            member: None,
            disk,
            running: None,
            replica: None,
            copier: None,
            staged: BTreeMap::new(),
            kept: VecDeque::new(),
            held: VecDeque::new(),
            lease_until: 0,
            heard_us: 0,
            syncs: BTreeMap::new(),
            frozen_until_us: 0,
            up_at_us: 0,
            offset_us,
            rate_ppm,
            life: 0,
        }
    }

    /// What its own clock says.
    pub fn local(&self, now_us: u64) -> u64 {
        let drift = (now_us as i64) * self.rate_ppm / 1_000_000;
        self.offset_us + now_us.saturating_add_signed(drift)
    }

    pub fn settings(&self) -> Settings {
        let timing = Timing { isolated_us: ISOLATED_US, ..Timing::default() };
        Settings { timing, ..Settings::new(self.name.clone()) }
    }

    /// All that is not on disk is gone.
    pub fn crash(&mut self) {
        self.life += 1;
        self.member = None;
        self.running = None;
        self.replica = None;
        self.copier = None;
        self.staged.clear();
        self.kept.clear();
        self.held.clear();
        self.lease_until = 0;
        self.syncs.clear();
    }

    /// Keeps an epoch, with the states before and after, to be sent again.
    pub fn keep(&mut self, epoch: u64, before: Guest, after: Guest) {
        self.kept.push_back((epoch, before, after));
        if self.kept.len() > KEPT_EPOCHS {
            self.kept.pop_front();
        }
    }

    pub fn handle(&mut self, now_us: u64, input: Input) -> Vec<Output> {
        let local = self.local(now_us);
        self.member.as_mut().map(|member| member.handle(local, input)).unwrap_or_default()
    }
}

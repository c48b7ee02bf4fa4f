//! The hosts, the network between them, the faults, and what must be true in the end.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::group::mutation::{Fault, Faults};
use crate::group::output::Start;
use crate::group::types::{Alone, Durable, Name, OutputMode, Policy, Position, Rules};
use crate::group::{Command, Input, LAG_THOUSANDTHS_MAX, Member, Message, Output, Protection};

use super::Random;
use super::host::{Host, ISOLATED_US, Running};
use super::oracle::{Guest, Oracle};

pub const YEAR_US: u64 = 30_000_000;
const TICK_US: u64 = 5_000;
const EPOCH_US: u64 = 25_000;
const FAULTS_UNTIL_US: u64 = 1_800_000;
/// A lease, the time until a guest is stopped by a slow clock, and a few epochs.
const ALONE_US_MAX: u64 = 60_000 + ISOLATED_US * 103 / 100 + 3 * EPOCH_US;
const SETTLED_BY_US: u64 = 8_000_000;

#[derive(Debug)]
enum Event {
    Tick,
    Epoch,
    Packet {
        from: usize,
        load: Load,
    },
    SyncDue {
        peer: usize,
    },
    /// Whoever asked for a migration is gone.
    GivesUp,
}

#[derive(Debug)]
enum Load {
    Message(Vec<u8>),
    /// A difference: it means something on top of the former state only.
    Epoch(Position, Guest, Guest),
    SyncBegins,
    Sync(Position, Guest),
}

pub struct World {
    pub now_us: u64,
    pub oracle: Oracle,
    pub stuck: bool,
    pub gentle: bool,
    /// Backups that had to be copied to.
    pub copied: BTreeSet<usize>,
    /// What epochs and copies take longer than messages.
    pub bulk_us: u64,
    hosts: Vec<Host>,
    witnesses: usize,
    random: Random,
    /// Of those who ask for migrations.
    patience: Random,
    fault: Option<Fault>,
    events: BTreeMap<(u64, u64), (usize, u64, Event)>,
    sequence: u64,
    /// Directions that carry nothing.
    cut: BTreeSet<(usize, usize)>,
    /// When the last packet of a direction arrives: the transport keeps order.
    arrives: BTreeMap<(usize, usize), u64>,
    latency_us: u64,
    loss_percent: u64,
    /// Prints what each member is told and answers.
    trace: bool,
}

impl World {
    pub fn new(seed: u64, fault: Option<Fault>) -> Self {
        let mut random = Random(seed);
        let (backups, witnesses) = [(1, 0), (1, 1), (2, 0), (2, 0), (3, 0), (2, 1)][random.range(0, 6) as usize];
        let rules = Rules {
            policy: [Policy::Any, Policy::Majority, Policy::All][random.range(0, 3) as usize],
            alone: if random.chance(30) { Alone::Hold } else { Alone::GoOn },
            output: if random.chance(20) { OutputMode::BestEffort } else { OutputMode::Commit },
        };
        Self::with(random, backups, witnesses, rules, fault)
    }

    /// Two backups, no faults.
    pub fn quiet(seed: u64) -> Self {
        Self::with(Random(seed), 2, 0, Rules::default(), None)
    }

    /// One backup and a witness, output at once, no faults.
    pub fn best_effort(seed: u64, fault: Option<Fault>) -> Self {
        Self::one_backup(seed, Rules { output: OutputMode::BestEffort, ..Rules::default() }, fault)
    }

    /// One backup and a witness, no faults.
    pub fn one_backup(seed: u64, rules: Rules, fault: Option<Fault>) -> Self {
        Self::with(Random(seed), 1, 1, rules, fault)
    }

    fn with(mut random: Random, backups: usize, witnesses: usize, rules: Rules, fault: Option<Fault>) -> Self {
        let names: Vec<Name> = (0..=backups + witnesses).map(|at| Name::from(["a", "b", "c", "d", "w"][at])).collect();
        let (data, rest) = names.split_at(backups + 1);
        let disk = |at: usize| match at {
            0 => Durable::founding(names[0].clone(), &data[1..], rest, rules),
            _ => Durable::default(),
        };
        let clock = |random: &mut Random| (random.range(0, 1 << 40), random.range(0, 40_000) as i64 - 20_000);
        let hosts = names.iter().enumerate().map(|(at, name)| {
            let (offset, rate) = clock(&mut random);
            Host::new(name.clone(), disk(at), offset, rate)
        });
        let mut world = Self {
            hosts: hosts.collect(),
            now_us: 0,
            oracle: Oracle::new(rules.output == OutputMode::Commit),
            stuck: false,
            gentle: false,
            copied: BTreeSet::new(),
            bulk_us: 0,
            witnesses,
            fault,
            events: BTreeMap::new(),
            sequence: 0,
            cut: BTreeSet::new(),
            arrives: BTreeMap::new(),
            latency_us: 300,
            loss_percent: 0,
            patience: Random(random.0 ^ 0x5eed),
            trace: std::env::var_os("MYCELIUM_SIM_TRACE").is_some(),
            random,
        };
        for at in 0..world.hosts.len() {
            world.start(at);
        }
        world.input(0, Input::Command(Command::Start));
        world
    }

    // --- Time ---------------------------------------------------------------------------------------------------

    fn schedule(&mut self, at_us: u64, host: usize, event: Event) {
        self.sequence += 1;
        self.events.insert((at_us, self.sequence), (host, self.hosts[host].life, event));
    }

    fn start(&mut self, at: usize) {
        let host = &mut self.hosts[at];
        let local = host.local(self.now_us);
        let member = Member::with_faults(host.settings(), host.disk.clone(), local, Faults::only(self.fault));
        host.member = Some(member);
        let phase = self.random.range(0, TICK_US);
        self.schedule(self.now_us + phase, at, Event::Tick);
        self.schedule(self.now_us + phase * 5, at, Event::Epoch);
    }

    fn step(&mut self) {
        let Some(((at_us, _), (host, life, event))) = self.events.pop_first() else { return };
        self.now_us = self.now_us.max(at_us);
        let packet = matches!(event, Event::Packet { .. });
        if self.hosts[host].member.is_none() || life != self.hosts[host].life && !packet {
            return;
        }
        if self.hosts[host].frozen_until_us > self.now_us {
            // It is all dealt with, in order, when the host runs again.
            self.hosts[host].heard_us = self.hosts[host].frozen_until_us;
            return self.schedule(self.hosts[host].frozen_until_us, host, event);
        }
        match event {
            Event::Tick => {
                self.schedule(self.now_us + TICK_US, host, Event::Tick);
                self.input(host, Input::Tick);
                self.tell_lag(host);
            }
            Event::Epoch => {
                self.schedule(self.now_us + EPOCH_US, host, Event::Epoch);
                self.seal(host);
            }
            Event::Packet { from, load } => self.arrive(host, from, load),
            Event::GivesUp => self.input(host, Input::Command(Command::AbortMigration)),
            Event::SyncDue { peer } => {
                let name = self.hosts[peer].name.clone();
                self.input(host, Input::SyncFailed(name));
            }
        }
    }

    /// Runs until something is true; panics when it is not in time.
    pub fn until(&mut self, condition: impl Fn(&World) -> bool, within_us: u64) {
        let end = self.now_us + within_us;
        while !condition(self) {
            assert!(self.now_us < end, "not in time:\n{}", self.describe());
            self.step();
        }
    }

    pub fn pass(&mut self, us: u64) {
        let end = self.now_us + us;
        while self.events.first_key_value().is_some_and(|((at_us, _), _)| *at_us <= end) {
            self.step();
        }
        self.now_us = end;
    }

    // --- The network --------------------------------------------------------------------------------------------

    fn transmit(&mut self, from: usize, to: usize, load: Load) {
        let lossy = matches!(load, Load::Message(_)) && self.random.chance(self.loss_percent);
        if self.cut.contains(&(from, to)) || lossy {
            return;
        }
        let usual = self.random.range(self.latency_us / 2, self.latency_us * 2);
        let delay = if self.random.chance(1) { usual * 20 } else { usual };
        // Epochs keep their order; other messages overtake each other.
        let mut at_us = self.now_us + delay;
        if !matches!(load, Load::Message(_)) {
            let last = self.arrives.entry((from, to)).or_default();
            at_us = (at_us + self.bulk_us).max(*last + 1);
            *last = at_us;
        }
        self.schedule(at_us, to, Event::Packet { from, load });
    }

    fn arrive(&mut self, at: usize, from: usize, load: Load) {
        let anybody = self.fault == Some(Fault::TakesFormerCopies);
        match load {
            Load::Message(bytes) => {
                let message = Message::decode(&bytes).unwrap();
                self.input(at, Input::Message { from: self.hosts[from].name.clone(), message });
            }
            Load::Epoch(position, before, guest) => {
                self.hosts[at].staged.insert(position, (before, guest));
                self.input(at, Input::EpochHeld(position));
            }
            Load::SyncBegins => {
                let followed =
                    self.hosts[at].member.as_ref().and_then(Member::following) == Some(&self.hosts[from].name);
                if self.hosts[at].running.is_none() && (followed || anybody) {
                    (self.hosts[at].replica, self.hosts[at].copier) = (None, Some(from));
                    self.hosts[at].kept.clear();
                    self.input(at, Input::ReplicaLost);
                }
            }
            Load::Sync(position, guest) => {
                if self.hosts[at].running.is_none() && (self.hosts[at].copier == Some(from) || anybody) {
                    (self.hosts[at].replica, self.hosts[at].copier) = (Some((position, guest)), None);
                    self.input(at, Input::SyncDone(position));
                }
            }
        }
    }

    // --- The guest ----------------------------------------------------------------------------------------------

    fn seal(&mut self, at: usize) {
        let chance = self.random.next();
        let host = &mut self.hosts[at];
        let best_effort = !self.oracle.strict;
        let Some(running) = &mut host.running else { return };
        if running.orders.front() == Some(&false) {
            running.orders.pop_front();
            running.paused = false;
        }
        if running.paused || running.halted || running.from_us > self.now_us {
            return;
        }
        let alone = self.now_us.saturating_sub(host.heard_us);
        assert!(best_effort || alone < ALONE_US_MAX, "{} runs on, and nobody heard it for {alone} us", host.name);
        let before = running.guest;
        running.guest = self.oracle.step(before, chance);
        running.epoch += 1;
        let (epoch, guest) = (running.epoch, running.guest);
        running.paused = running.orders.pop_front().unwrap_or(false);
        let paused = running.paused;
        if best_effort {
            self.emit_at_once(at, guest);
        } else {
            host.held.push_back((epoch, guest));
        }
        self.input(at, Input::EpochSealed(epoch));
        self.replicate(at, epoch, before, guest);
        if paused {
            self.input(at, Input::GuestPaused { last: epoch });
        }
        self.tell_lag(at);
    }

    /// What the target of a migration lacks: some epochs weigh more than a guest may be paused with.
    fn lag(&self, at: usize, to: &Name) -> u32 {
        let host = &self.hosts[at];
        let held = host.member.as_ref().and_then(|member| member.held_by(to)).map_or(0, |held| held.epoch);
        let weights = host.kept.iter().filter(|(epoch, ..)| *epoch > held).map(|(epoch, ..)| 10 + epoch * 37 % 90);
        weights.sum::<u64>() as u32
    }

    fn tell_lag(&mut self, at: usize) {
        if let Some(to) = self.hosts[at].member.as_ref().and_then(Member::migrating_to).cloned() {
            let thousandths = self.lag(at, &to);
            self.input(at, Input::Lag { of: to, thousandths });
        }
    }

    fn emit_at_once(&mut self, at: usize, guest: Guest) {
        let host = &self.hosts[at];
        if host.local(self.now_us) < host.lease_until {
            let term = host.member.as_ref().map_or(0, |member| member.durable().term);
            self.oracle.saw(term, guest);
        }
    }

    fn replicate(&mut self, at: usize, epoch: u64, before: Guest, guest: Guest) {
        let host = &mut self.hosts[at];
        let Some(term) = host.member.as_ref().and_then(Member::live_since) else { return };
        let position = Position::new(term, epoch);
        host.keep(epoch, before, guest);
        let due: Vec<_> = host.syncs.iter().filter(|(_, due)| **due <= self.now_us).map(|(peer, _)| *peer).collect();
        host.syncs.retain(|peer, _| !due.contains(peer));
        for peer in (0..self.hosts.len() - self.witnesses).filter(|peer| *peer != at) {
            let load =
                if due.contains(&peer) { Load::Sync(position, guest) } else { Load::Epoch(position, before, guest) };
            self.transmit(at, peer, load);
        }
    }

    // --- Outputs ------------------------------------------------------------------------------------------------

    fn input(&mut self, at: usize, input: Input) {
        let told = if self.trace { format!("{input:?}") } else { String::new() };
        let outputs = self.hosts[at].handle(self.now_us, input);
        if self.trace && (told != "Tick" || !outputs.is_empty()) {
            println!("{} us, {}: {told} -> {outputs:?}", self.now_us, self.hosts[at].name);
        }
        for output in outputs {
            // A crash may come between any two acts.
            if self.loss_percent > 0 && !self.gentle && self.random.range(0, 4000) == 0 {
                self.crash(at);
                return;
            }
            self.carry_out(at, output);
        }
    }

    fn carry_out(&mut self, at: usize, output: Output) {
        let now_us = self.now_us;
        let host = &mut self.hosts[at];
        match output {
            Output::Persist(durable) => host.disk = durable,
            Output::Send { to, message } => {
                let to = self.hosts.iter().position(|host| host.name == to).unwrap();
                self.transmit(at, to, Load::Message(message.encode()));
            }
            Output::Release { through } => self.release(at, through),
            Output::Lease { until_us } => (host.lease_until, host.heard_us) = (until_us, now_us),
            Output::HaltGuest => host.running.iter_mut().for_each(|running| running.halted = true),
            Output::ContinueGuest => host.running.iter_mut().for_each(|running| running.halted = false),
            Output::Hold { .. } => host.lease_until = 0,
            Output::StartGuest { term, from } => self.start_guest(at, term, from),
            Output::StopGuest => {
                host.running = None;
                host.held.clear();
                host.kept.clear();
                host.syncs.clear();
            }
            Output::PauseGuest => {
                host.running.iter_mut().for_each(|running| running.orders.push_back(true));
                let to = self.hosts[at].member.as_ref().and_then(Member::migrating_to).cloned().expect("a target");
                assert!(self.lag(at, &to) <= LAG_THOUSANDTHS_MAX, "paused for {to} that lags by {}", self.lag(at, &to));
            }
            Output::ResumeGuest => host.running.iter_mut().for_each(|running| running.orders.push_back(false)),
            Output::Commit(position) => {
                let (before, guest) = host.staged.remove(&position).expect("what is committed was received");
                host.staged.retain(|later, _| *later > position);
                let onto = host.replica.map(|(_, guest)| guest);
                assert_eq!(onto, Some(before), "an epoch is applied to another state than it was made from");
                host.replica = Some((position, guest));
                host.keep(position.epoch, before, guest);
            }
            Output::BeginSync { peer, .. } => {
                let peer = self.hosts.iter().position(|host| host.name == peer).unwrap();
                let takes = self.random.range(10_000, 120_000);
                self.hosts[at].syncs.insert(peer, now_us + takes);
                self.copied.insert(peer);
                self.transmit(at, peer, Load::SyncBegins);
                self.schedule(now_us + takes + 400_000, at, Event::SyncDue { peer });
            }
            Output::Resend { to, after } => {
                let Some(term) = host.member.as_ref().and_then(Member::live_since) else { return };
                let kept: Vec<_> = host.kept.iter().copied().filter(|(epoch, ..)| *epoch > after).collect();
                for peer in
                    (0..self.hosts.len()).filter(|peer| to.contains(&self.hosts[*peer].name)).collect::<Vec<_>>()
                {
                    for (epoch, before, guest) in &kept {
                        self.transmit(at, peer, Load::Epoch(Position::new(term, *epoch), *before, *guest));
                    }
                }
            }
            Output::Settled(_) | Output::Answer(_) => {}
        }
    }

    fn start_guest(&mut self, at: usize, term: u64, from: Start) {
        let host = &mut self.hosts[at];
        let (guest, epoch) = match from {
            Start::Cold => (Guest::default(), 0),
            Start::Promoted { from } => {
                let (position, guest) = host.replica.take().expect("a promotion starts from a replica");
                assert_eq!(position, from);
                self.oracle.promoted(term, guest);
                (guest, position.epoch)
            }
        };
        let from_us = self.now_us + 10_000;
        host.held.clear();
        host.running = Some(Running { guest, epoch, paused: false, orders: VecDeque::new(), halted: false, from_us });
        host.heard_us = from_us;
    }

    fn release(&mut self, at: usize, through: u64) {
        let host = &mut self.hosts[at];
        let term = host.member.as_ref().map_or(0, |member| member.durable().term);
        assert!(host.local(self.now_us) < host.lease_until, "released without a lease");
        while let Some((epoch, guest)) = host.held.front().copied() {
            if epoch > through {
                break;
            }
            host.held.pop_front();
            self.oracle.saw(term, guest);
        }
    }

    // --- Faults -------------------------------------------------------------------------------------------------

    fn crash(&mut self, at: usize) {
        let down = self.random.range(20_000, 500_000);
        if self.trace {
            println!("{} us, {}: crashes", self.now_us, self.hosts[at].name);
        }
        self.hosts[at].crash();
        self.hosts[at].up_at_us = self.now_us + down;
    }

    /// Crashes the primary for good; when.
    pub fn crash_primary(&mut self) -> u64 {
        let at = self.primary().expect("a primary");
        self.hosts[at].crash();
        self.now_us
    }

    fn restart_due(&mut self) {
        for at in 0..self.hosts.len() {
            if self.hosts[at].member.is_none() && self.now_us >= self.hosts[at].up_at_us {
                self.start(at);
            }
        }
    }

    fn inject(&mut self) {
        let hosts = self.hosts.len() as u64;
        let one = self.random.range(0, hosts) as usize;
        let other = self.random.range(0, hosts) as usize;
        match self.random.range(0, 8) {
            0 | 1 => self.crash(one),
            2 => drop(self.cut.insert((one, other))),
            3 => self.cut.extend([(one, other), (other, one)]),
            4 => (0..self.hosts.len()).for_each(|peer| self.cut.extend([(one, peer), (peer, one)])),
            5 => self.hosts[one].frozen_until_us = self.now_us + self.random.range(20_000, 400_000),
            6 => self.latency_us = self.random.range(100, 5_000),
            _ => {
                if let Some(primary) = self.primary() {
                    let to = self.random.range(0, hosts - self.witnesses as u64) as usize;
                    self.migrate(primary, to);
                }
            }
        }
    }

    /// A migration with some time for it, which may be given up at any moment after.
    fn migrate(&mut self, primary: usize, to: usize) {
        let (to, within_us) = (self.hosts[to].name.clone(), self.patience.range(1_000, 800_000));
        self.input(primary, Input::Command(Command::Migrate { to, within_us }));
        if self.patience.chance(40) {
            let after_us = self.patience.range(0, 120_000);
            self.schedule(self.now_us + after_us, primary, Event::GivesUp);
        }
    }

    fn heal(&mut self) {
        self.cut.clear();
        self.latency_us = 300;
    }

    /// The whole run: form the group, hurt it, let it be, look.
    pub fn run(&mut self) {
        self.until(World::protected, 5_000_000);
        self.gentle = self.random.chance(40);
        if self.gentle {
            self.one_fault_at_a_time()
        } else {
            self.many_faults()
        }
        self.heal();
        self.loss_percent = 0;
        self.hosts.iter_mut().for_each(|host| host.up_at_us = host.up_at_us.min(self.now_us));
        self.converge();
    }

    /// The first two hosts do not hear each other for half a second.
    pub fn part_for_a_while(&mut self) {
        self.until(World::protected, 5_000_000);
        let phase = self.random.range(200_000, 300_000);
        self.pass(phase);
        self.cut.extend([(0, 1), (1, 0)]);
        self.pass(500_000);
        self.heal();
        self.converge();
    }

    /// The backup is restarted, and copied to on a slow link. It is whole then, behind what was released meanwhile; what comes
    /// after the copy takes `then_us`.
    pub fn restart_backup(&mut self, then_us: u64) {
        self.until(World::protected, 5_000_000);
        self.hosts[1].crash();
        self.bulk_us = 100_000;
        self.pass(1_500_000);
        self.start(1);
        self.until(|world| !world.hosts[0].syncs.is_empty(), 1_000_000);
        self.until(|world| world.hosts[0].syncs.is_empty(), 1_000_000);
        self.bulk_us = then_us;
        let held = |world: &World| world.hosts[0].member.as_ref().and_then(|member| member.held_by("b"));
        self.until(|world| held(world).is_some(), 1_000_000);
        assert!(!self.protected());
    }

    /// The primary is stopped for longer than its lease lasts. Whether it was elected again afterwards.
    pub fn hold_up_primary(&mut self) -> bool {
        self.until(World::protected, 5_000_000);
        let phase = self.random.range(200_000, 300_000);
        self.pass(phase);
        let (before, term) = (self.primary(), self.term());
        self.latency_us = 12_000;
        self.copied.clear();
        self.hosts[0].frozen_until_us = self.now_us + self.random.range(60_000, 90_000);
        self.pass(200_000);
        self.heal();
        self.converge();
        before == self.primary() && self.term() > term && self.oracle.promotions == 0
    }

    /// The primary is lost while it speaks to one backup only, and has not done so for long enough to do without the other.
    /// Whoever takes over is lost as well, as soon as its guest starts or when the third stood still for `silent_us` and
    /// went on. Both come back with nothing. Whether the third had less than the second.
    pub fn lose_primary_and_heir(&mut self, silent_us: u64) -> bool {
        self.until(World::protected, 5_000_000);
        let (phase, parted) = (self.random.range(200_000, 300_000), self.random.range(1_000, 26_000));
        self.pass(phase);
        let lost = self.primary().expect("a primary");
        self.cut.insert((lost, 2));
        self.pass(parted);
        self.crash_primary();
        self.until(|world| world.oracle.promotions == 1, 1_000_000);
        let heir = (0..self.hosts.len()).find(|at| self.hosts[*at].running.is_some()).expect("an heir");
        let third = (0..self.hosts.len()).find(|at| ![lost, heir].contains(at)).expect("a third");
        let epoch = self.hosts[heir].running.as_ref().map(|running| running.epoch);
        let behind = self.hosts[third].replica.map(|(at, _)| at.epoch) < epoch;
        self.pass(2_000);
        if silent_us > 0 {
            self.hosts[third].frozen_until_us = self.now_us + silent_us;
            let after_us = self.random.range(200, 4_000);
            self.pass(silent_us + after_us);
        }
        self.hosts[heir].crash();
        for at in [lost, heir] {
            self.hosts[at].up_at_us = self.now_us + 100_000;
        }
        self.heal();
        self.converge();
        behind
    }

    fn term(&self) -> u64 {
        self.hosts.iter().map(|host| host.disk.term).max().unwrap_or_default()
    }

    fn one_fault_at_a_time(&mut self) {
        for _ in 0..3 {
            self.inject();
            let lasts = self.random.range(10_000, 700_000);
            self.pass(lasts);
            self.heal();
            // Longer than a host is stopped.
            self.pass(600_000);
            self.converge();
            assert!(!self.stuck, "one fault lost the VM:\n{}", self.describe());
        }
    }

    fn many_faults(&mut self) {
        let end = self.now_us + FAULTS_UNTIL_US;
        self.loss_percent = self.random.range(1, 10);
        while self.now_us < end {
            if self.random.chance(70) {
                self.inject()
            } else {
                self.heal()
            }
            let pause = self.random.range(1_000, 250_000);
            self.pass(pause);
            self.restart_due();
        }
    }

    /// Waits until the VM runs protected, or nobody may take over.
    fn converge(&mut self) {
        let end = self.now_us + SETTLED_BY_US;
        while !self.in_order() {
            self.restart_due();
            self.pass(10_000);
            let late = self.now_us + SETTLED_BY_US * 3 / 4 >= end;
            if self.now_us >= end || late && self.nobody_may() {
                self.stuck = self.nobody_may();
                assert!(self.stuck, "not in order again:\n{}", self.describe());
                return;
            }
        }
    }

    /// Protected, and the guest is heard outside, and still protected: a primary that has not noticed yet that a backup
    /// was restarted thinks that it is protected, and is heard again as soon as it knows that it is not.
    fn in_order(&mut self) -> bool {
        let (before, end) = (self.oracle.packets, self.now_us + 2_000_000);
        if !self.protected() {
            return false;
        }
        while self.oracle.packets <= before + 2 && self.now_us < end {
            self.step();
        }
        self.oracle.packets > before + 2 && self.protected()
    }

    // --- What is true -------------------------------------------------------------------------------------------

    fn primary(&self) -> Option<usize> {
        let primaries =
            self.hosts.iter().enumerate().filter(|(_, host)| host.member.as_ref().is_some_and(Member::is_primary));
        primaries.max_by_key(|(_, host)| host.disk.term).map(|(at, _)| at)
    }

    /// One host runs the VM and every other is in sync.
    pub fn protected(&self) -> bool {
        let running = self
            .hosts
            .iter()
            .filter(|host| host.running.as_ref().is_some_and(|running| !running.paused && !running.halted))
            .count();
        let Some(member) = self.primary().and_then(|at| self.hosts[at].member.as_ref()) else { return false };
        let settled = member
            .durable()
            .proposal
            .as_ref()
            .is_some_and(|proposal| proposal.settled && proposal.config.voters.len() == self.hosts.len());
        // What a stopped host thinks is of the past.
        let up = self.hosts.iter().all(|host| host.member.is_some() && host.frozen_until_us <= self.now_us);
        up && running == 1 && settled && member.protection() == Protection::Protected
    }

    /// Nobody is the primary, and everyone with data (be it a guest that a later primary made obsolete) says why not.
    fn nobody_may(&self) -> bool {
        self.hosts.iter().filter_map(|host| Some((host, host.member.as_ref()?))).all(|(host, member)| {
            let status = member.status(host.local(self.now_us));
            let nothing = status.held.is_none() && host.running.is_none();
            !member.is_primary() && (nothing || status.refusal.is_some())
        })
    }

    pub fn describe(&self) -> String {
        let mut lines = vec![format!("at {} us, cut {:?}, gentle {}", self.now_us, self.cut, self.gentle)];
        for host in &self.hosts {
            let status = host.member.as_ref().map(|member| member.status(host.local(self.now_us)));
            let status = status.map(|status| serde_json::to_string(&status).unwrap_or_default());
            lines.push(format!("{}: {} guest {:?}", host.name, status.unwrap_or("down".into()), host.running));
        }
        lines.join("\n")
    }
}

//! Sender and receiver joined by simulated connections on virtual time: exact, fast, and repeatable.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use proptest::prelude::*;

use super::message::{OutMessage, Outgoing};
use super::receiver::{Limits, Message, Place, Receiver, Wanted};
use super::sender::{PathId, Sender};
use super::{Balancing, Time};
use crate::frame::{DataHeader, Report};

const MS: Duration = Duration::from_millis(1);
const STEP: Duration = Duration::from_micros(500);
const LIMITS: Limits = Limits { window: 4 << 20, urgent_window: 64 << 10, message_max: 6 << 20 };
const TIGHT: Limits = Limits { window: 1 << 20, ..LIMITS };

/// A connection: so many bytes per second one way, a delay both ways, in order.
struct Wire {
    rate: f64,
    delay: Duration,
    frozen: bool,
    busy_until: Time,
    data: VecDeque<(Time, Outgoing)>,
    reports: VecDeque<(Time, Report)>,
    frames: u64,
    delivered: u64,
}

struct World {
    now: Time,
    sender: Sender,
    receiver: Receiver,
    wires: HashMap<PathId, Wire>,
    next_wire: PathId,
    received: Vec<(Time, Message)>,
    /// Whether the receiving application takes messages.
    thirsty: bool,
    held_max: u64,
}

impl World {
    fn new(balancing: Balancing, rates: &[f64]) -> Self {
        Self::limited(balancing, rates, LIMITS)
    }

    fn limited(balancing: Balancing, rates: &[f64], limits: Limits) -> Self {
        let mut world = Self {
            now: Time::ZERO,
            sender: Sender::new(balancing, limits.window, limits.urgent_window),
            receiver: Receiver::new(limits),
            wires: HashMap::new(),
            next_wire: 0,
            received: Vec::new(),
            thirsty: true,
            held_max: 0,
        };
        for rate in rates {
            world.add(*rate, MS);
        }
        world
    }

    fn add(&mut self, rate: f64, delay: Duration) -> PathId {
        let id = self.next_wire;
        self.next_wire += 1;
        self.wires.insert(
            id,
            Wire {
                rate,
                delay,
                frozen: false,
                busy_until: self.now,
                data: VecDeque::new(),
                reports: VecDeque::new(),
                frames: 0,
                delivered: 0,
            },
        );
        self.sender.add(id, self.now);
        self.sender.pong(id, 2 * delay, self.now);
        id
    }

    fn kill(&mut self, id: PathId) {
        if self.wires.remove(&id).is_some() {
            self.sender.remove(id);
        }
    }

    fn wire(&mut self, id: PathId) -> &mut Wire {
        self.wires.get_mut(&id).expect("a live wire")
    }

    fn step(&mut self) {
        self.now += STEP;
        let now = self.now;
        let mut ids: Vec<PathId> = self.wires.keys().copied().collect();
        ids.sort_unstable();
        for id in ids {
            self.transmit(id);
            self.arrive(id);
        }
        if now.as_micros().is_multiple_of(5000) {
            self.sender.tick(now);
        }
        while self.thirsty
            && let Some(message) = self.receiver.take(Wanted::Any)
        {
            self.received.push((now, message));
        }
        self.held_max = self.held_max.max(self.receiver.held());
    }

    fn transmit(&mut self, id: PathId) {
        while let Some(next) = self.sender.next(id, self.now) {
            let now = self.now;
            let wire = self.wire(id);
            let begin = wire.busy_until.max(now);
            wire.busy_until = begin + Duration::from_secs_f64((f64::from(next.header.length) + 60.0) / wire.rate);
            wire.data.push_back((wire.busy_until + wire.delay, next));
        }
    }

    fn arrive(&mut self, id: PathId) {
        let now = self.now;
        loop {
            let wire = self.wire(id);
            if wire.frozen || wire.data.front().is_none_or(|(at, _)| *at > now) {
                break;
            }
            let (_, next) = wire.data.pop_front().expect("it is there");
            wire.frames += 1;
            wire.delivered += u64::from(next.header.length);
            self.take(&next);
        }
        let (bulk, urgent) = self.receiver.consumed();
        let wire = self.wire(id);
        let report = Report { frames: wire.frames, bulk, urgent };
        if wire.reports.back().is_none_or(|(_, last)| *last != report) {
            let at = now + wire.delay;
            wire.reports.push_back((at, report));
        }
        while !self.wire(id).frozen && self.wire(id).reports.front().is_some_and(|(at, _)| *at <= now) {
            let (_, report) = self.wire(id).reports.pop_front().expect("it is there");
            self.sender.report(id, report, now).expect("an honest report");
        }
    }

    fn take(&mut self, next: &Outgoing) {
        let Place::Fill(mut piece) = self.receiver.begin(&next.header).expect("an honest chunk") else { return };
        let mut at = 0;
        next.message.slices(next.header.offset, next.header.length.into(), |slice| {
            piece[at..at + slice.len()].copy_from_slice(slice);
            at += slice.len();
        });
        assert_eq!(at, piece.len());
        self.receiver.finish(&next.header, piece).expect("an honest chunk");
    }

    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.step();
        }
    }

    fn run_until_idle(&mut self, limit: Duration) {
        let end = self.now + limit;
        while self.sender.is_busy() || !self.receiver.is_drained(Wanted::Any) {
            self.step();
            assert!(self.now < end, "still busy after {limit:?}: {} unacknowledged", self.sender.unacknowledged());
        }
    }

    fn push(&mut self, channel: u16, urgent: bool, payload: &Bytes) {
        self.sender.push(channel, urgent, OutMessage::new(vec![payload.clone()]));
    }

    /// Keeps the queue full for a time.
    fn flood(&mut self, time: Duration) {
        let payload = Bytes::from(vec![7; 100_000]);
        let end = self.now + time;
        while self.now < end {
            while self.sender.has_room(false, 100_000, 8 << 20) {
                self.push(0, false, &payload);
            }
            self.step();
        }
    }

    fn delivered(&self, id: PathId) -> u64 {
        self.wires[&id].delivered
    }
}

#[test]
fn each_connection_carries_what_it_delivers() {
    let mut world = World::new(Balancing::AdaptiveBandwidth, &[10e6, 10e6, 10e6, 1e6]);
    world.flood(Duration::from_secs(1));
    let before: Vec<u64> = (0..4).map(|id| world.delivered(id)).collect();
    world.flood(Duration::from_secs(2));
    let rates: Vec<u64> = (0..4).map(|id| (world.delivered(id) - before[id as usize]) / 2).collect();
    assert!(rates.iter().sum::<u64>() > 29_500_000, "31 MB/s are there: {rates:?}");
    assert!(rates[3] > 800_000, "the slow one too: {rates:?}");
    let path = &world.sender.paths()[&0];
    assert!((8e6..14e6).contains(&path.bandwidth().unwrap()), "{:?}", path.bandwidth());
}

#[test]
fn a_slowed_connection_loses_its_share_and_gets_it_back() {
    let mut world = World::new(Balancing::AdaptiveBandwidth, &[10e6, 10e6]);
    world.flood(Duration::from_secs(1));
    world.wire(1).rate = 1e6;
    world.flood(Duration::from_secs(1));
    let received = world.received.len();
    world.flood(Duration::from_secs(1));
    let rate = (world.received.len() - received) * 100_000;
    assert!(rate > 10_000_000, "11 MB/s are left: {rate}");
    world.wire(1).rate = 10e6;
    world.flood(Duration::from_secs(1));
    let received = world.received.len();
    world.flood(Duration::from_secs(1));
    let rate = (world.received.len() - received) * 100_000;
    assert!(rate > 19_000_000, "20 MB/s are back: {rate}");
}

#[test]
fn a_second_after_one_of_four_is_cut_and_one_slowed_to_a_tenth_the_rest_is_used() {
    let mut world = World::new(Balancing::AdaptiveBandwidth, &[10e6, 10e6, 10e6, 10e6]);
    world.flood(Duration::from_secs(1));
    world.wire(0).frozen = true;
    world.wire(1).rate = 1e6;
    world.flood(Duration::from_secs(1));
    let received = world.received.len();
    world.flood(Duration::from_secs(1));
    let rate = (world.received.len() - received) * 100_000;
    assert!(rate > 19_000_000, "21 MB/s are left: {rate}");
}

#[test]
fn a_frozen_connection_holds_nothing_up() {
    let mut world = World::new(Balancing::AdaptiveBandwidth, &[10e6, 10e6]);
    world.flood(Duration::from_secs(1));
    world.wire(1).frozen = true;
    world.flood(Duration::from_millis(300));
    let received = world.received.len();
    world.flood(Duration::from_secs(1));
    let rate = (world.received.len() - received) * 100_000;
    assert!(rate > 9_500_000, "10 MB/s are left: {rate}");
    assert!(world.sender.paths()[&0].resent_chunks > 0);
    world.wire(1).frozen = false;
    world.flood(Duration::from_secs(1));
    let received = world.received.len();
    world.flood(Duration::from_secs(1));
    let rate = (world.received.len() - received) * 100_000;
    assert!(rate > 18_500_000, "both again: {rate}");
}

#[test]
fn urgent_messages_overtake_bulk_ones() {
    for balancing in [Balancing::AdaptiveBandwidth, Balancing::LatencyOptimized] {
        let mut world = World::new(balancing, &[10e6, 10e6]);
        world.flood(Duration::from_secs(1));
        let mut worst = Time::ZERO;
        for _ in 0..50 {
            world.flood(20 * MS);
            world.push(9, true, &Bytes::from_static(b"now"));
            let sent = world.now;
            while world.received.last().is_none_or(|(_, message)| message.channel != 9) {
                world.flood(STEP);
                assert!(world.now < sent + Duration::from_secs(1));
                if let Some((at, _)) = world.received.iter().rev().take(20).find(|(at, m)| m.channel == 9 && *at > sent)
                {
                    worst = worst.max(*at - sent);
                    break;
                }
            }
        }
        assert!(worst < 25 * MS, "{balancing:?}: {worst:?}");
    }
}

#[test]
fn latency_avoids_a_connection_that_is_far_away() {
    let mut world = World::new(Balancing::LatencyOptimized, &[50e6]);
    let far = world.add(50e6, 60 * MS);
    for _ in 0..100 {
        world.push(1, false, &Bytes::from(vec![1; 10_000]));
        world.run(10 * MS);
    }
    world.run_until_idle(Duration::from_secs(1));
    assert_eq!(world.delivered(far), 0, "the near one always had it there first");
}

#[test]
fn a_receiver_that_takes_nothing_bounds_both_sides() {
    let mut world = World::new(Balancing::AdaptiveBandwidth, &[50e6, 50e6]);
    world.thirsty = false;
    world.flood(Duration::from_secs(2));
    let held = world.receiver.held();
    assert!(held <= LIMITS.window, "{held}");
    assert!(held > LIMITS.window - 300_000, "the window is used: {held}");
    assert!(world.sender.unacknowledged() <= 8 << 20);
    // Urgent messages still get through, as many as their window holds.
    world.push(9, true, &Bytes::from_static(b"now"));
    world.run(20 * MS);
    world.thirsty = true;
    world.run_until_idle(Duration::from_secs(5));
    assert_eq!(world.received.first().map(|(_, message)| message.channel), Some(9), "it is the first to be taken");
}

#[test]
fn a_message_may_exceed_the_window_alone() {
    let mut world = World::new(Balancing::AdaptiveBandwidth, &[50e6]);
    let (small, large) = (Bytes::from(vec![1; 1000]), Bytes::from(vec![2; LIMITS.message_max as usize]));
    for payload in [&small, &large, &small, &large] {
        world.push(0, false, payload);
    }
    world.run_until_idle(Duration::from_secs(5));
    let lengths: Vec<usize> = world.received.iter().map(|(_, message)| message.payload.len()).collect();
    assert_eq!(lengths, [small.len(), large.len(), small.len(), large.len()]);
    assert!(world.held_max <= LIMITS.window + LIMITS.message_max);
}

#[test]
fn the_least_round_trip_is_measured_anew_without_the_own_queue() {
    let mut path = super::path::Path::new(Time::ZERO);
    let bandwidth = |path: &mut super::path::Path, now: Time| {
        for _ in 0..3 {
            path.sent(0, 100_000, false, now);
        }
        let frames = path.acknowledged + 3;
        path.acknowledge(frames, now + 10 * MS).unwrap();
    };
    bandwidth(&mut path, MS);
    path.pong(2 * MS, 2 * MS);
    let usual = path.window();
    let late = Duration::from_secs(40);
    path.pong(50 * MS, late);
    assert!(path.window() < usual / 2, "it is emptied for a moment");
    path.pong(20 * MS, late + 10 * MS);
    assert!(path.window() < usual / 2, "that was asked before it was empty");
    path.pong(8 * MS, late + 250 * MS);
    assert!(path.window() > usual, "a longer way needs a larger window");
}

#[derive(Debug, Clone)]
enum Event {
    Send { channel: u16, urgent: bool, length: usize },
    Kill(usize),
    Freeze(usize),
    Thaw,
    Slow(usize),
    Add,
    Thirst(bool),
    Wait(u64),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        6 => (0u16..3, prop_oneof![0usize..100, 0usize..400_000, Just(1_500_000)])
            .prop_map(|(channel, length)| Event::Send { channel, urgent: false, length }),
        2 => (0usize..30_000).prop_map(|length| Event::Send { channel: 7, urgent: true, length }),
        1 => (0usize..8).prop_map(Event::Kill),
        1 => (0usize..8).prop_map(Event::Freeze),
        1 => Just(Event::Thaw),
        1 => (0usize..8).prop_map(Event::Slow),
        2 => Just(Event::Add),
        1 => any::<bool>().prop_map(Event::Thirst),
        4 => (1u64..400).prop_map(Event::Wait),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, max_shrink_time: 20_000, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever happens to connections: every message whole, in order, once; bounded memory; and it ends.
    #[test]
    fn nothing_is_lost_doubled_or_reordered(events in prop::collection::vec(event(), 1..60), latency: bool) {
        let balancing = if latency { Balancing::LatencyOptimized } else { Balancing::AdaptiveBandwidth };
        let mut world = World::limited(balancing, &[20e6, 5e6], TIGHT);
        let mut expected: HashMap<u16, VecDeque<Bytes>> = HashMap::new();
        for (number, event) in events.into_iter().enumerate() {
            let mut ids: Vec<PathId> = world.wires.keys().copied().collect();
            ids.sort_unstable();
            let pick = |index: usize| ids.get(index % ids.len().max(1)).copied();
            match event {
                Event::Send { channel, urgent, length } => {
                    if world.sender.has_room(urgent, length as u64, 8 << 20) {
                        let payload = Bytes::from(vec![number as u8; length]);
                        world.push(channel, urgent, &payload);
                        expected.entry(channel).or_default().push_back(payload);
                    }
                }
                Event::Kill(index) => { if let Some(id) = pick(index) { world.kill(id); } }
                Event::Freeze(index) => { if let Some(id) = pick(index) { world.wire(id).frozen = true; } }
                Event::Thaw => world.wires.values_mut().for_each(|wire| wire.frozen = false),
                Event::Slow(index) => { if let Some(id) = pick(index) { world.wire(id).rate = 100e3; } }
                Event::Add => { world.add(10e6, MS); }
                Event::Thirst(thirsty) => world.thirsty = thirsty,
                Event::Wait(ms) => world.run(MS * ms as u32),
            }
        }
        world.thirsty = true;
        world.add(20e6, MS);
        world.run_until_idle(Duration::from_secs(30));
        for (_, message) in &world.received {
            let sent = expected.get_mut(&message.channel).and_then(VecDeque::pop_front);
            prop_assert!(sent.as_ref() == Some(&message.payload), "channel {}", message.channel);
        }
        prop_assert!(expected.values().all(VecDeque::is_empty));
        prop_assert!(world.held_max <= TIGHT.window + TIGHT.urgent_window + 1_500_000 + 4096);
        prop_assert_eq!(world.sender.unacknowledged(), 0);
    }

    /// A peer of the group that does not keep to the protocol: no panic, and no more memory than was granted.
    #[test]
    fn any_chunks(chunks in prop::collection::vec((0u16..2, 0u64..3, 0u64..30, 0u64..30, 0u32..12, any::<bool>(), any::<bool>()), 0..80)) {
        let limits = Limits { window: 200, urgent_window: 100, message_max: 25 };
        let mut receiver = Receiver::new(limits);
        for (channel, sequence, total, offset, length, urgent, abandoned) in chunks {
            let header = DataHeader { urgent, channel, sequence, total, offset, length };
            // What the decoder of frames lets through.
            let whole = offset + u64::from(length) <= total && (length > 0 || total == 0);
            let Ok(Place::Fill(piece)) = (if whole { receiver.begin(&header) } else { Ok(Place::Drop) }) else { continue };
            prop_assert_eq!(piece.len(), length as usize);
            if abandoned {
                receiver.abandon(&header, piece);
            } else {
                let _ = receiver.finish(&header, piece);
            }
            prop_assert!(receiver.held() <= 2 * 400);
            if length == 5 {
                receiver.take(Wanted::Any);
            }
        }
    }
}

//! Base copy and catch-up with a guest that goes on writing, links that break, and messages that wait.

use std::collections::VecDeque;
use std::path::Path;

use proptest::prelude::*;

use super::sync::{Message, Source, Target};
use super::*;

const SIZE: u64 = 12 * BLOCK + 5 * 512;

/// A guest: writes to the disk, and remembers its content at each seal.
struct Guest {
    disk: Disk,
    random: u64,
    term: u64,
    epoch: u64,
    content: Vec<u8>,
}

impl Guest {
    fn new(dir: &Path, seed: u64) -> Self {
        let disk = Disk::open(dir, None, Some(SIZE)).unwrap();
        let mut guest = Self { disk, random: seed, term: 1, epoch: 1, content: vec![0; SIZE as usize] };
        guest.write(30);
        guest.disk.protect(Protection::new(1, 1)).unwrap();
        guest
    }

    fn random(&mut self, below: u64) -> u64 {
        self.random = self.random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.random >> 33) % below
    }

    fn write(&mut self, times: u64) {
        for _ in 0..times {
            let offset = self.random(SIZE / 512) * 512;
            let len = (self.random(40) * 2048 + 1).min(SIZE - offset);
            // Few values, so that equal blocks happen.
            let value = (self.random(4) * 85) as u8;
            self.content[offset as usize..(offset + len) as usize].fill(value);
            if value == 0 {
                self.disk.zero(offset, len, false).unwrap();
            } else {
                self.disk.write(&vec![value; len as usize], offset).unwrap();
            }
        }
    }

    fn seal(&mut self) -> DiskEpoch {
        self.epoch += 1;
        self.disk.seal(self.epoch - 1).unwrap()
    }
}

/// What a synchronisation needed.
struct Outcome {
    sent: u64,
    total: u64,
    /// Where it ended; `None` if the link broke before.
    end: Option<Position>,
}

/// Synchronises over a link that takes its time and breaks after `patience` steps. The guest writes all the while.
fn synchronise(guest: &mut Guest, replica: &Replica, patience: u64, busy: bool) -> Outcome {
    let mut source = Source::new(&guest.disk).unwrap();
    let mut target = Target::new(replica);
    let (mut up, mut down, mut epochs) = (VecDeque::new(), VecDeque::new(), VecDeque::new());
    let mut history = Vec::new();
    for _ in 0..patience {
        match guest.random(9) {
            0 | 1 => up.extend(target.poll().unwrap().map(|message| message.encode())),
            2 | 3 => down.extend(source.poll().unwrap().map(|message| message.encode())),
            4 | 5 => up.pop_front().into_iter().for_each(|it| source.receive(Message::decode(it).unwrap()).unwrap()),
            6 => down.pop_front().into_iter().for_each(|it| target.receive(Message::decode(it).unwrap()).unwrap()),
            7 => epochs.pop_front().into_iter().for_each(|epoch| target.epoch(guest.term, epoch).unwrap()),
            _ => {
                if busy {
                    let times = guest.random(3);
                    guest.write(times);
                }
                if guest.random(3) == 0 {
                    let sealed = guest.seal();
                    history.push((sealed.epoch, guest.content.clone()));
                    source.sealed(sealed.epoch);
                    epochs.push_back(sealed);
                }
            }
        }
        if let Some(end) = target.finished()
            && epochs.is_empty()
        {
            let held = replica.position().unwrap();
            assert!(held >= end && source.is_done());
            let content = &history.iter().find(|(epoch, _)| *epoch == held.epoch).unwrap().1;
            assert!(content_of(replica) == *content, "the replica differs from the disk at epoch {held}");
            return Outcome { sent: source.progress().sent, total: source.progress().total, end: Some(held) };
        }
    }
    assert!(target.finished().is_some() || patience < 100_000, "no end in sight");
    Outcome { sent: source.progress().sent, total: source.progress().total, end: None }
}

fn content_of(replica: &Replica) -> Vec<u8> {
    replica.maintain().unwrap();
    let mut content = vec![0; replica.size() as usize];
    replica.image().read(&mut content, 0).unwrap();
    content
}

fn open(dir: &Path) -> Replica {
    Replica::open(dir, Some(SIZE), ReplicaOptions::default()).unwrap()
}

/// Blocks of which the replica does not have the disk's content.
fn missing(guest: &Guest, replica: &Replica) -> u64 {
    let (there, wanted) = (content_of(replica), &guest.content);
    there.chunks(BLOCK as usize).zip(wanted.chunks(BLOCK as usize)).filter(|(a, b)| a != b).count() as u64
}

#[test]
fn a_copy_that_broke_goes_on_where_it_was() {
    let mut resumed = 0;
    for (seed, patience) in (1..12).map(|n| (n, n * 60)) {
        let dir = tempfile::tempdir().unwrap();
        let mut guest = Guest::new(&dir.path().join("a"), seed);
        for block in 0..SIZE / BLOCK {
            // Of each other content, so that none stands in for another.
            let content = &mut guest.content[(block * BLOCK) as usize..][..BLOCK as usize];
            content.fill(block as u8 + 1);
            guest.disk.write(content, block * BLOCK).unwrap();
        }
        let replica = open(&dir.path().join("b"));
        let all = missing(&guest, &replica);
        if synchronise(&mut guest, &replica, patience, false).end.is_some() {
            continue;
        }
        drop(replica);
        let replica = open(&dir.path().join("b"));
        let missing = missing(&guest, &replica);
        let outcome = synchronise(&mut guest, &replica, u64::MAX, false);
        assert!(outcome.sent <= missing * BLOCK, "seed {seed}: {} bytes for {missing} blocks", outcome.sent);
        resumed += u32::from(0 < missing && missing < all);
    }
    assert!(resumed >= 2, "the copy broke half way {resumed} times");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    /// From any content, over a link that breaks, with writes all the while: equal at an epoch's end.
    #[test]
    fn a_base_copy_ends_equal(seed: u64, breaks in proptest::collection::vec(0..400_u64, 0..4), stale: bool) {
        let dir = tempfile::tempdir().unwrap();
        let mut guest = Guest::new(&dir.path().join("a"), seed);
        let backup = dir.path().join("b");
        let mut replica = open(&backup);
        if stale {
            let noise: Vec<u8> = (0..SIZE).map(|at| (at / 512 % 4) as u8 * 85).collect();
            replica.image().write(&noise, 0).unwrap();
        }
        for patience in breaks {
            synchronise(&mut guest, &replica, patience, true);
            drop(replica);
            replica = open(&backup);
        }
        synchronise(&mut guest, &replica, u64::MAX, true);
        drop(replica);
        // Promoted, it is the disk that was replicated.
        let disk = open(&backup).into_disk().unwrap();
        prop_assert!(disk.size() == SIZE);
    }

    /// A backup that was away, and a primary that crashed ahead of everybody, catch up by the difference.
    #[test]
    fn who_was_away_catches_up_by_difference(seed: u64, settle: bool) {
        let dir = tempfile::tempdir().unwrap();
        let (first, second) = (dir.path().join("a"), dir.path().join("b"));
        let mut guest = Guest::new(&first, seed);
        let replica = open(&second);
        let position = synchronise(&mut guest, &replica, u64::MAX, false).end.unwrap();
        if settle {
            guest.epoch = guest.epoch.max(position.epoch + 1);
            while guest.epoch < 60 {
                let sealed = guest.seal();
                replica.commit(1, &sealed).unwrap();
            }
            let everywhere = replica.position().unwrap();
            guest.disk.settled(everywhere).unwrap();
            replica.settled(everywhere).unwrap();
        }
        // The backup goes away; little is written meanwhile; it returns.
        drop(replica);
        guest.write(1);
        guest.seal();
        let replica = open(&second);
        let outcome = synchronise(&mut guest, &replica, u64::MAX, false);
        prop_assert!(outcome.total < SIZE || !settle, "{} bytes were compared", outcome.total);
        // The primary writes on, unsealed, and dies. The backup takes over, and writes.
        guest.write(2);
        drop(guest);
        let disk = replica.into_disk().unwrap();
        let mut content = vec![0; SIZE as usize];
        disk.read(&mut content, 0).unwrap();
        let epoch = outcome.end.unwrap().epoch + 1;
        disk.protect(Protection::new(2, epoch)).unwrap();
        let mut guest = Guest { disk, random: seed, term: 2, epoch, content };
        guest.write(2);
        guest.seal();
        // The old primary returns as a backup.
        let returned = open(&first);
        prop_assert!(returned.position().is_none());
        let outcome = synchronise(&mut guest, &returned, u64::MAX, true);
        prop_assert!(outcome.total < SIZE || !settle, "{} bytes were compared", outcome.total);
    }
}

#[test]
fn what_is_there_already_is_not_sent() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Disk::open(&dir.path().join("a"), None, Some(SIZE)).unwrap();
    let block: Vec<u8> = (0..BLOCK).map(|at| (at % 251) as u8).collect();
    for at in [1, 3, 4, 9] {
        disk.write(&block, at * BLOCK).unwrap();
    }
    let mut content = vec![0; SIZE as usize];
    disk.read(&mut content, 0).unwrap();
    disk.protect(Protection::new(1, 1)).unwrap();
    let mut guest = Guest { disk, random: 1, term: 1, epoch: 1, content };
    let replica = open(&dir.path().join("b"));
    let outcome = synchronise(&mut guest, &replica, u64::MAX, false);
    assert_eq!(outcome.sent, BLOCK, "zeroes are free, and equal blocks travel once");
    let elsewhere = open(&dir.path().join("c"));
    elsewhere.image().write(&block, 10 * BLOCK).unwrap();
    let outcome = synchronise(&mut guest, &elsewhere, u64::MAX, false);
    assert_eq!(outcome.sent, 0, "the content was there, at another place");
    assert_eq!(synchronise(&mut guest, &elsewhere, u64::MAX, false).sent, 0);
}

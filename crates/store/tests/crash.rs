//! Crashes and failing disks: what was acknowledged is there afterwards, and nothing half done.

use std::collections::BTreeMap;

use bytes::Bytes;
use mycelium_store::simulated::{Operation, Outcome, SimulatedDisk};
use mycelium_store::{CommitError, Expect, Op, Options, Store, Writer};

type Map = BTreeMap<String, Bytes>;

struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }
}

fn options() -> Options {
    Options { writer: Writer::Task, history: 40, ..Options::default() }
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

/// A transaction and what it makes of the content.
fn transaction(random: &mut Random, content: &mut Map) -> Vec<Op> {
    let mut ops = BTreeMap::new();
    for _ in 0..1 + random.below(3) {
        let key = format!("/k/{:03}", random.below(60));
        let op = if random.below(4) == 0 && content.contains_key(&key) && !ops.contains_key(&key) {
            content.remove(&key);
            Op::Delete { key: key.clone(), expect: Expect::Any }
        } else {
            let value = Bytes::from(vec![random.below(256) as u8; random.below(3000) as usize]);
            content.insert(key.clone(), value.clone());
            Op::Put { key: key.clone(), value, expect: Expect::Any }
        };
        ops.insert(key, op);
    }
    ops.into_values().collect()
}

fn content(store: &Store) -> Map {
    let page = store.range("", None, 0, None).unwrap();
    page.entries.iter().map(|entry| (entry.key.to_string(), entry.value.clone())).collect()
}

/// Lets the machine stop at the `n`th operation from now.
fn crash_in(disk: &SimulatedDisk, mut n: u64) {
    disk.set_hook(Some(Box::new(move |_| {
        n = n.saturating_sub(1);
        if n == 0 { Outcome::Crash } else { Outcome::Proceed }
    })));
}

#[test]
fn acknowledged_writes_survive_crashes_at_any_write() {
    for seed in 1..30 {
        block_on(crashing_run(seed));
    }
}

async fn crashing_run(seed: u64) {
    let mut random = Random(seed * 0x9E37_79B9);
    let disk = SimulatedDisk::new(seed);
    drop(Store::open(disk.backend(), options()).unwrap());
    tokio::task::yield_now().await;
    // The content at each revision.
    let mut past = vec![Map::new()];
    for round in 0..12 {
        disk.set_hook(None);
        let store = Store::open(disk.backend(), options()).unwrap_or_else(|e| panic!("seed {seed} round {round}: {e}"));
        let found = store.revision() as usize;
        assert!(found < past.len(), "seed {seed}: revision {found} from nowhere");
        assert_eq!(content(&store), past[found], "seed {seed} round {round}");
        past.truncate(found + 1);
        let (acknowledged, attempted) = write_until_crash(&store, &disk, &mut random, past.clone()).await;
        drop(store);
        tokio::task::yield_now().await;
        disk.set_hook(None);
        let store = Store::open(disk.backend(), options()).unwrap_or_else(|e| panic!("seed {seed} round {round}: {e}"));
        assert!(store.revision() as usize >= acknowledged, "seed {seed} round {round}: an acknowledged write is lost");
        past = attempted;
        drop(store);
        tokio::task::yield_now().await;
    }
}

/// Commits concurrently until the disk stops. Returns the highest acknowledged revision, and the content at each
/// revision that may have been reached.
async fn write_until_crash(
    store: &Store,
    disk: &SimulatedDisk,
    random: &mut Random,
    mut past: Vec<Map>,
) -> (usize, Vec<Map>) {
    crash_in(disk, 1 + random.below(120));
    let mut acknowledged = past.len() - 1;
    loop {
        let mut content = past.last().unwrap().clone();
        let mut commits = Vec::new();
        for _ in 0..1 + random.below(8) {
            let ops = transaction(random, &mut content);
            past.push(content.clone());
            let store = store.clone();
            commits.push(tokio::spawn(async move { store.commit(ops).await }));
        }
        for commit in commits {
            match commit.await.unwrap() {
                Ok(committed) => acknowledged = committed.revision as usize,
                Err(CommitError::Io(_)) => {}
                Err(other) => panic!("{other}"),
            }
        }
        if disk.crashed() {
            return (acknowledged, past);
        }
    }
}

#[test]
fn after_a_failed_write_the_store_goes_on_and_keeps_its_word() {
    for seed in 1..30 {
        block_on(failing_run(seed));
    }
}

async fn failing_run(seed: u64) {
    let mut random = Random(seed * 0x517C_C1B7);
    let disk = SimulatedDisk::new(seed);
    let mut store = Store::open(disk.backend(), options()).unwrap();
    let mut expected = Map::new();
    let mut failures = 0;
    // What failed transactions would have made of the content since the last success.
    let mut maybe: Vec<Map> = Vec::new();
    for step in 0..60 {
        let fail = random.below(3) == 0;
        if fail {
            let mut n = 1 + random.below(30);
            disk.set_hook(Some(Box::new(move |operation| {
                n = n.saturating_sub(1);
                let kind = if operation == Operation::Resize {
                    std::io::ErrorKind::StorageFull
                } else {
                    std::io::ErrorKind::Other
                };
                if n == 0 { Outcome::Fail(kind) } else { Outcome::Proceed }
            })));
        }
        let mut next = expected.clone();
        match store.commit(transaction(&mut random, &mut next)).await {
            Ok(_) => {
                expected = next;
                maybe.clear();
            }
            Err(CommitError::Io(_) | CommitError::Full) => {
                failures += 1;
                maybe.push(next);
            }
            Err(other) => panic!("{other}"),
        }
        disk.set_hook(None);
        assert_eq!(content(&store), expected, "seed {seed} step {step}: reads show what is not acknowledged");
        if random.below(5) == 0 {
            // A crash right after a failure: what was acknowledged is there, perhaps with what was refused.
            disk.crash();
            drop(store);
            tokio::task::yield_now().await;
            store = Store::open(disk.backend(), options()).unwrap_or_else(|e| panic!("seed {seed} step {step}: {e}"));
            let found = content(&store);
            assert!(found == expected || maybe.contains(&found), "seed {seed} step {step}");
            expected = found;
            maybe.clear();
        } else if random.below(10) == 0 {
            // Once a write has succeeded, a crash brings back exactly what was acknowledged.
            let mut next = expected.clone();
            store.commit(transaction(&mut random, &mut next)).await.unwrap();
            expected = next;
            maybe.clear();
            disk.crash();
            drop(store);
            tokio::task::yield_now().await;
            store = Store::open(disk.backend(), options()).unwrap_or_else(|e| panic!("seed {seed} step {step}: {e}"));
            assert_eq!(content(&store), expected, "seed {seed} step {step}");
        }
    }
    assert!(failures > 0);
}

#[test]
fn a_full_disk_refuses_writes_and_recovers() {
    block_on(async {
        let disk = SimulatedDisk::new(3);
        let store = Store::open(disk.backend(), options()).unwrap();
        let put = |n: u64| Op::Put { key: format!("/{n}"), value: vec![7; 10_000].into(), expect: Expect::Any };
        disk.set_capacity(4 << 20);
        let mut n = 0;
        let error = loop {
            match store.commit(vec![put(n)]).await {
                Ok(_) => n += 1,
                Err(error) => break error,
            }
        };
        assert!(matches!(error, CommitError::Full), "{error}");
        assert!(n > 100);
        assert_eq!(store.count("/"), n as usize);
        assert!(store.get("/0").is_some());
        // Deleting wins space: the history is kept shorter, and what it held is free again.
        let mut wins = 0;
        for k in 0..n / 2 {
            wins +=
                u64::from(store.commit(vec![Op::Delete { key: format!("/{k}"), expect: Expect::Any }]).await.is_ok());
        }
        disk.set_capacity(u64::MAX);
        store.commit(vec![put(n)]).await.unwrap();
        assert_eq!(store.count("/") as u64, n + 1 - wins);
        disk.crash();
        drop(store);
        tokio::task::yield_now().await;
        let store = Store::open(disk.backend(), options()).unwrap();
        assert_eq!(store.count("/") as u64, n + 1 - wins);
    });
}

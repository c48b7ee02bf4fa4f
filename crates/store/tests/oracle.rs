//! The store against a model that keeps every revision as a map.

use std::collections::BTreeMap;

use bytes::Bytes;
use mycelium_store::simulated::SimulatedDisk;
use mycelium_store::{CommitError, EventKind, Expect, Op, Options, Store, Watch, Writer};
use proptest::prelude::*;

type Map = BTreeMap<String, (Bytes, u64, u64)>;

#[derive(Clone, Copy, Debug)]
enum Guess {
    Any,
    Absent,
    Current,
    Stale,
}

#[derive(Clone, Debug)]
enum Step {
    Transaction(Vec<(u8, u8, Guess)>),
    Compact(u8),
    Reopen,
    Crash,
    Page { prefix: u8, after: u8, limit: usize, back: u64 },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let guess = prop_oneof![5 => Just(Guess::Any), 1 => Just(Guess::Absent), 3 => Just(Guess::Current), 1 => Just(Guess::Stale)];
    let transaction = prop::collection::vec((0..3u8, 0..12u8, guess), 1..4).prop_map(Step::Transaction);
    let page = (0..4u8, 0..12u8, 0..5usize, 0..30u64).prop_map(|(prefix, after, limit, back)| Step::Page {
        prefix,
        after,
        limit,
        back,
    });
    let step = prop_oneof![
        12 => transaction,
        1 => (0..40u8).prop_map(Step::Compact),
        1 => Just(Step::Reopen),
        1 => Just(Step::Crash),
        6 => page,
    ];
    prop::collection::vec(step, 1..80)
}

fn key(n: u8) -> String {
    format!("/{}/{n:02}", ["a", "b", "ab"][n as usize % 3])
}

fn prefix(n: u8) -> &'static str {
    ["/", "/a", "/a/", "/nothing"][n as usize]
}

struct World {
    disk: SimulatedDisk,
    store: Store,
    /// The content at each revision.
    past: Vec<Map>,
    watch: Watch,
    /// The content as the watch tells it.
    watched: Map,
}

impl World {
    fn open() -> Self {
        let disk = SimulatedDisk::new(1);
        let store = Store::open(disk.backend(), options()).unwrap();
        let watch = store.watch("/a", 0).unwrap();
        Self { disk, store, past: vec![Map::new()], watch, watched: Map::new() }
    }

    fn now(&self) -> &Map {
        self.past.last().unwrap()
    }

    async fn step(&mut self, n: usize, step: Step) {
        match step {
            Step::Transaction(ops) => self.transact(n, &ops).await,
            Step::Compact(back) => {
                let revision = self.store.revision().saturating_sub(back.into());
                self.store.compact(revision).await.unwrap();
                assert!(self.store.compacted() >= revision);
            }
            Step::Reopen | Step::Crash => self.reopen(matches!(step, Step::Crash)).await,
            Step::Page { prefix: p, after, limit, back } => self.page(prefix(p), &key(after), limit, back),
        }
        self.compare();
    }

    async fn transact(&mut self, n: usize, ops: &[(u8, u8, Guess)]) {
        let mut next = self.now().clone();
        let revision = self.past.len() as u64;
        let mut ok = true;
        let mut changes = 0;
        let mut request = Vec::new();
        for (what, k, guess) in ops {
            let key = key(*k);
            let current = self.now().get(&key);
            let at = current.map_or(0, |c| c.2);
            let expect = match guess {
                Guess::Any => Expect::Any,
                Guess::Absent => Expect::Absent,
                Guess::Current => Expect::Revision(at),
                Guess::Stale => Expect::Revision(at + 1),
            };
            ok &= match guess {
                Guess::Any => true,
                Guess::Absent => current.is_none(),
                Guess::Current => current.is_some(),
                Guess::Stale => false,
            };
            let twice = request.iter().any(|op| !matches!(op, Op::Check { .. }) && op_key(op) == key);
            match what {
                0 => {
                    ok &= !twice;
                    let value = Bytes::from(vec![n as u8; n * 37 % 700]);
                    let created = current.map_or(revision, |c| c.1);
                    next.insert(key.clone(), (value.clone(), created, revision));
                    changes += 1;
                    request.push(Op::Put { key, value, expect });
                }
                1 => {
                    ok &= !twice;
                    changes += usize::from(next.remove(&key).is_some());
                    request.push(Op::Delete { key, expect });
                }
                _ => request.push(Op::Check { key, expect }),
            }
        }
        match self.store.commit(request).await {
            Ok(committed) => {
                assert!(ok);
                if changes > 0 {
                    self.past.push(next);
                }
                assert_eq!(committed.revision, self.past.len() as u64 - 1);
            }
            Err(CommitError::Conflict { .. } | CommitError::Invalid(_)) => assert!(!ok),
            Err(other) => panic!("{other}"),
        }
        self.follow().await;
    }

    /// Reads what the watch has.
    async fn follow(&mut self) {
        while self.watch.revision() < self.store.revision() {
            for event in self.watch.next().await.unwrap() {
                let (key, entry) = (event.entry.key.to_string(), &event.entry);
                let before = self.past[event.revision as usize - 1].get(&key);
                assert_eq!(
                    event.prev.as_ref().map(|e| (e.value.clone(), e.create_revision, e.mod_revision)).as_ref(),
                    before
                );
                match event.kind {
                    EventKind::Put => {
                        self.watched.insert(key, (entry.value.clone(), entry.create_revision, entry.mod_revision))
                    }
                    EventKind::Delete => self.watched.remove(&key),
                };
            }
        }
        assert_eq!(self.watched, under(self.now(), "/a"));
    }

    async fn reopen(&mut self, crash: bool) {
        if crash {
            self.disk.crash();
        }
        let empty = Store::open(SimulatedDisk::new(0).backend(), options()).unwrap();
        let old_watch = std::mem::replace(&mut self.watch, empty.watch("", 0).unwrap());
        drop(std::mem::replace(&mut self.store, empty));
        drop(old_watch);
        // The old writer ends when it sees its queue closed.
        tokio::task::yield_now().await;
        tokio::task::yield_now().await;
        self.store = Store::open(self.disk.backend(), options()).unwrap();
        // Watching from before the restart gives what happened since.
        let from = self.store.compacted();
        self.watched = under(&self.past[from as usize], "/a");
        self.watch = self.store.watch("/a", from).unwrap();
        self.follow().await;
    }

    fn page(&self, prefix: &str, after: &str, limit: usize, back: u64) {
        let at = self.store.revision().saturating_sub(back);
        let result = self.store.range(prefix, Some(after), limit, Some(at));
        if at < self.store.compacted() {
            assert!(result.is_err());
            assert!(self.store.watch(prefix, at).is_err());
            return;
        }
        let page = result.unwrap();
        let expected: Vec<_> =
            self.past[at as usize].iter().filter(|(k, _)| k.starts_with(prefix) && k.as_str() > after).collect();
        let shown = if limit == 0 { expected.len() } else { limit.min(expected.len()) };
        assert_eq!(page.revision, at);
        assert_eq!(page.remaining, expected.len() - shown);
        let got: Vec<_> = page.entries.iter().map(|e| (e.key.to_string(), e.value.clone(), e.mod_revision)).collect();
        let want: Vec<_> = expected[..shown].iter().map(|(k, v)| ((*k).clone(), v.0.clone(), v.2)).collect();
        assert_eq!(got, want);
    }

    fn compare(&self) {
        let page = self.store.range("", None, 0, None).unwrap();
        let got: Map = page
            .entries
            .iter()
            .map(|e| (e.key.to_string(), (e.value.clone(), e.create_revision, e.mod_revision)))
            .collect();
        assert_eq!(&got, self.now());
        assert_eq!(self.store.count("/a"), under(self.now(), "/a").len());
        assert_eq!(self.store.revision(), self.past.len() as u64 - 1);
    }
}

fn options() -> Options {
    Options { writer: Writer::Task, history: 24, ..Options::default() }
}

fn op_key(op: &Op) -> &str {
    match op {
        Op::Put { key, .. } | Op::Delete { key, .. } | Op::Check { key, .. } => key,
    }
}

fn under(map: &Map, prefix: &str) -> Map {
    map.iter().filter(|(k, _)| k.starts_with(prefix)).map(|(k, v)| (k.clone(), v.clone())).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_store_does_as_the_model(steps in steps()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut world = World::open();
            for (n, step) in steps.into_iter().enumerate() {
                world.step(n, step).await;
            }
        });
    }
}

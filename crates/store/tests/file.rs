//! The store as a file: size, damage, locks, and the death of the process.
#![allow(clippy::disallowed_methods, reason = "the test starts itself as the process it kills")]

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use bytes::Bytes;
use mycelium_store::{CommitError, EventKind, Expect, Op, OpenError, Options, Store, WatchError};

fn put(key: impl Into<String>, value: impl Into<Bytes>) -> Op {
    Op::Put { key: key.into(), value: value.into(), expect: Expect::Any }
}

fn open(path: &Path) -> Store {
    Store::open_file(path, Options::default()).unwrap()
}

fn open_error(path: &Path) -> OpenError {
    Store::open_file(path, Options::default()).map(|_| ()).unwrap_err()
}

/// A store with some content, closed.
async fn example(path: &Path) {
    let store = open(path);
    for n in 0..120 {
        store.commit(vec![put(format!("/pods/{}", n % 50), vec![n as u8; 200 + n * 7])]).await.unwrap();
    }
    store.commit(vec![Op::Delete { key: "/pods/3".into(), expect: Expect::Any }]).await.unwrap();
}

fn fingerprint(store: &Store) -> String {
    let events = store.watch("", store.compacted()).unwrap();
    format!("{:?} {:?} {events:?}", store.revision(), store.range("", None, 0, None).unwrap())
}

#[tokio::test]
async fn a_store_can_be_closed_and_opened_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state");
    example(&path).await;
    let before = fingerprint(&open(&path));
    assert_eq!(fingerprint(&open(&path)), before);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "nothing but the file is left");
    let mode = std::os::unix::fs::PermissionsExt::mode(&path.metadata().unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600, "the store holds secrets");
}

#[tokio::test]
async fn a_second_opener_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state");
    let store = open(&path);
    assert!(matches!(open_error(&path), OpenError::Locked(_)));
    store.commit(vec![put("/a", "1")]).await.unwrap();
    drop(store);
    assert!(open(&path).get("/a").is_some());
}

#[tokio::test]
async fn files_that_are_no_store_are_told_apart_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let good = dir.path().join("good");
    example(&good).await;
    let bytes = std::fs::read(&good).unwrap();
    let try_with = |name: &str, bytes: &[u8]| {
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        let error = open_error(&path);
        assert_eq!(std::fs::read(&path).unwrap(), bytes, "{name}: the file was changed");
        assert!(error.to_string().contains(name), "{error}");
        error
    };
    assert!(matches!(try_with("empty", b""), OpenError::Empty(_)));
    assert!(matches!(try_with("text", b"hello, I am a text file of somebody else"), OpenError::Foreign { .. }));
    assert!(matches!(try_with("zeros", &[0; 8192]), OpenError::Corrupt { .. }));
    for len in [1, 9, 300, 4096, bytes.len() / 2, bytes.len() - 1] {
        assert!(matches!(try_with(&format!("cut{len}"), &bytes[..len]), OpenError::Truncated { .. }), "{len}");
    }
    let other = dir.path().join("other");
    drop(redb::Database::create(&other).unwrap());
    assert!(matches!(open_error(&other), OpenError::Foreign { .. }));
    assert!(matches!(open_error(&dir.path().join("no/such/folder")), OpenError::Io { .. }));
    assert!(matches!(open_error(dir.path()), OpenError::Io { .. }));
}

#[tokio::test]
async fn every_damage_is_noticed_or_harmless() {
    let dir = tempfile::tempdir().unwrap();
    let good = dir.path().join("good");
    example(&good).await;
    let expected = fingerprint(&open(&good));
    let bytes = std::fs::read(&good).unwrap();
    let used: Vec<usize> = (0..bytes.len()).filter(|at| bytes[*at] != 0).collect();
    let path = dir.path().join("damaged");
    let mut noticed = 0;
    for n in 0..150 {
        // The header byte by byte, then places all over the used part.
        let at = if n < 40 { n * 8 } else { used[(n * 7919 * 31) % used.len()] };
        let mut damaged = bytes.clone();
        damaged[at] ^= 1 << (n % 8);
        std::fs::write(&path, &damaged).unwrap();
        match Store::open_file(&path, Options::default()) {
            Ok(store) => assert_eq!(fingerprint(&store), expected, "byte {at}: damage went unnoticed"),
            Err(_) => {
                noticed += 1;
                assert!(std::fs::read(&path).unwrap() == damaged, "byte {at}: the damaged file was changed");
            }
        }
    }
    assert!(noticed > 50, "{noticed}");
}

#[tokio::test]
async fn endless_updates_do_not_grow_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state");
    let options = Options { history: 500, ..Options::default() };
    let store = Store::open_file(&path, options).unwrap();
    let mut sizes = Vec::new();
    for round in 0..12_u32 {
        for _ in 0..20 {
            let ops = move |n| vec![put(format!("/leases/{n}"), vec![round as u8; 1000])];
            let mut commits = tokio::task::JoinSet::new();
            for n in 0..50 {
                let store = store.clone();
                commits.spawn(async move { store.commit(ops(n)).await.unwrap() });
            }
            commits.join_all().await;
        }
        sizes.push(path.metadata().unwrap().len());
    }
    assert_eq!(store.revision(), 12_000);
    assert!(sizes[11] <= sizes[5], "{sizes:?}");
    assert!(sizes[11] <= 8 << 20, "{sizes:?}");
}

#[tokio::test]
async fn watches_see_everything_or_say_so() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options { history: 100, ..Options::default() };
    let store = Store::open_file(&dir.path().join("state"), options).unwrap();
    let mut live = store.watch("/a/", 0).unwrap();
    let mut slow = store.watch("/a/", 0).unwrap();
    let reader = tokio::spawn(async move {
        let mut seen = Vec::new();
        while seen.len() < 1000 {
            seen.extend(live.next().await.unwrap());
        }
        seen
    });
    for n in 0..1000 {
        let other = put(format!("/b/{}", n % 3), "x");
        store.commit(vec![put(format!("/a/{}", n % 7), n.to_string()), other]).await.unwrap();
        tokio::task::yield_now().await;
    }
    let seen = reader.await.unwrap();
    for (n, event) in seen.iter().enumerate() {
        assert_eq!((event.revision, event.kind), (n as u64 + 1, EventKind::Put));
        assert_eq!(event.entry.value, n.to_string());
    }
    assert_eq!(slow.next().await, Err(WatchError::Lagged));
    assert!(store.watch("/a/", 1).is_err());
    let mut last = store.watch("/a/", 999).unwrap();
    assert_eq!(last.next().await.unwrap()[0].revision, 1000);
    drop(store);
    assert_eq!(last.next().await, Err(WatchError::Closed));
}

/// A small file system of its own, unmounted when dropped.
struct SmallFileSystem(tempfile::TempDir);

impl SmallFileSystem {
    /// Nothing where mounting is not allowed.
    fn mount() -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=6m", "tmpfs"]).arg(dir.path()).stderr(Stdio::null());
        mount.status().is_ok_and(|status| status.success()).then(|| Self(dir))
    }
}

impl Drop for SmallFileSystem {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg(self.0.path()).status();
        assert!(unmounted.is_ok_and(|status| status.success()));
    }
}

#[tokio::test]
async fn a_full_file_system_refuses_writes_and_nothing_else() {
    let Some(mounted) = SmallFileSystem::mount() else {
        eprintln!("skipped: mounting a file system needs root");
        return;
    };
    let path = mounted.0.path().join("state");
    let ballast = mounted.0.path().join("ballast");
    let store = open(&path);
    std::fs::write(&ballast, vec![1; 2 << 20]).unwrap();
    let value = vec![7; 50_000];
    let mut n = 0;
    let refused = loop {
        match store.commit(vec![put(format!("/{n}"), value.clone())]).await {
            Ok(_) => n += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(refused, CommitError::Full), "{refused}");
    assert_eq!(store.count("/"), n);
    std::fs::remove_file(&ballast).unwrap();
    store.commit(vec![put(format!("/{n}"), value)]).await.unwrap();
    drop(store);
    assert_eq!(open(&path).count("/"), n + 1);
}

const CHILD: &str = "MYCELIUM_STORE_TEST_CHILD";

/// The process that is killed: writes from several tasks and says what was acknowledged.
fn write_until_killed(path: &Path) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
    runtime.block_on(async {
        let store = open(path);
        let mut writers = tokio::task::JoinSet::new();
        for writer in 0..4 {
            let store = store.clone();
            writers.spawn(async move {
                let key = format!("/w/{writer}");
                let mut n: u64 = store.get(&key).map_or(0, |e| String::from_utf8_lossy(&e.value).parse().unwrap());
                loop {
                    n += 1;
                    store.commit(vec![put(key.clone(), n.to_string())]).await.unwrap();
                    println!("ack {writer} {n}");
                }
            });
        }
        writers.join_all().await;
    });
}

#[test]
fn a_killed_process_loses_no_acknowledged_write() {
    if let Some(path) = std::env::var_os(CHILD) {
        return write_until_killed(Path::new(&path));
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state");
    let mut acknowledged = [0_u64; 4];
    for round in 0..8 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "a_killed_process_loses_no_acknowledged_write", "--nocapture"])
            .env(CHILD, &path)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut left = 5 + round * 11;
        while let Some(Ok(line)) = lines.next() {
            if let Some((writer, n)) = line.strip_prefix("ack ").and_then(|rest| rest.split_once(' ')) {
                acknowledged[writer.parse::<usize>().unwrap()] = n.parse().unwrap();
                left -= 1;
            }
            if left == 0 {
                child.kill().unwrap();
            }
        }
        child.wait().unwrap();
        let store = open(&path);
        for (writer, n) in acknowledged.iter().enumerate() {
            let stored =
                store.get(&format!("/w/{writer}")).map_or(0, |e| String::from_utf8_lossy(&e.value).parse().unwrap());
            assert!(stored >= *n, "round {round}: writer {writer} was told {n}, the store holds {stored}");
        }
    }
}

#[tokio::test]
async fn a_copy_is_a_store_of_its_own_at_one_revision() {
    use std::io::{Read, Seek};
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state");
    example(&path).await;
    let store = open(&path);
    let (at, before) = (store.revision(), store.range("", None, 0, None).unwrap());
    let (mut file, revision) = store.copy(dir.path()).unwrap();
    // Writes go on, and do not reach the copy.
    store.commit(vec![put("/later", "1")]).await.unwrap();
    let mut bytes = Vec::new();
    file.rewind().unwrap();
    file.read_to_end(&mut bytes).unwrap();
    drop(file);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "the copy has no name");
    let other = dir.path().join("other");
    std::fs::write(&other, bytes).unwrap();
    let copy = open(&other);
    assert_eq!((revision, copy.revision(), copy.compacted()), (at, at, at));
    assert_eq!(format!("{:?}", copy.range("", None, 0, None).unwrap()), format!("{before:?}"));
    copy.commit(vec![put("/b", "2")]).await.unwrap();
    assert_eq!(copy.revision(), at + 1);
}

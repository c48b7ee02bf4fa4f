//! A backup whose process is killed at any moment, and one whose disk is full: both hold whole epochs only.

use std::io::{BufRead, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;

use bytes::Bytes;
use mycelium_endophyte::disk::sync::{Source, Target};
use mycelium_endophyte::disk::{Disk, DiskEpoch, DiskError, Payload, Protection, Replica, ReplicaOptions, Write};
use mycelium_linux::process::command;

use crate::nbd::apply;

const SIZE: u64 = 1 << 20;
const OPTIONS: ReplicaOptions = ReplicaOptions { durable: false, journal_max: 256 << 10, pending_max: 512 << 10 };
const CHILD: &str = "DISK_TEST_CHILD";

/// The writes of an epoch, from its number.
fn epoch(number: u64) -> DiskEpoch {
    let mut random = number.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let mut next = |below: u64| {
        random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (random >> 33) % below
    };
    let writes = (0..=next(6)).map(|_| {
        let len = next(40_000) + 1;
        let payload = match next(4) {
            0 => Payload::Zero(len),
            value => Payload::Data(Bytes::from(vec![value as u8; len as usize])),
        };
        Write { offset: next(SIZE - len), payload }
    });
    DiskEpoch { epoch: number, writes: writes.collect() }
}

/// A replica that is whole and blank, at epoch 1.
pub fn blank_replica(dir: &Path, size: u64, options: ReplicaOptions) -> Replica {
    let scratch = tempfile::tempdir().unwrap();
    let disk = Disk::open(scratch.path(), None, Some(size)).unwrap();
    disk.protect(Protection::new(1, 1)).unwrap();
    let replica = Replica::open(dir, Some(size), options).unwrap();
    let (mut source, mut target) = (Source::new(&disk).unwrap(), Target::new(&replica));
    loop {
        while let Some(message) = target.poll().unwrap() {
            source.receive(message).unwrap();
        }
        let mut idle = true;
        while let Some(message) = source.poll().unwrap() {
            target.receive(message).unwrap();
            idle = false;
        }
        if idle && disk.epoch_in_progress().unwrap().epoch == 1 {
            let sealed = disk.seal(1).unwrap();
            source.sealed(1);
            target.epoch(1, sealed).unwrap();
        }
        if target.finished().is_some() {
            break;
        }
    }
    drop(target);
    replica
}

/// Not a test of its own: what is killed. Commits epochs, says so after each, and maintains all the while.
#[test]
fn child() {
    let Some(dir) = std::env::var_os(CHILD) else { return };
    let replica = Arc::new(Replica::open(Path::new(&dir), None, OPTIONS).unwrap());
    let maintained = Arc::clone(&replica);
    std::thread::spawn(move || {
        while maintained.maintain().is_ok() {
            std::thread::yield_now();
        }
    });
    let first = replica.position().unwrap().epoch + 1;
    for number in first..first + 500 {
        replica.commit(1, &epoch(number)).unwrap();
        writeln!(std::io::stdout(), "held {number}").unwrap();
    }
    std::process::exit(0);
}

#[test]
fn two_hundred_kills_leave_whole_epochs() {
    let dir = tempfile::tempdir().unwrap();
    let replica = blank_replica(dir.path(), SIZE, OPTIONS);
    let mut oracle = vec![0; SIZE as usize];
    let mut at = replica.position().unwrap().epoch;
    drop(replica);
    let mut random = 1_u64;
    for round in 0..200 {
        let mut child = command(std::env::current_exe().unwrap())
            .args(["crash::child", "--exact", "--nocapture"])
            .env(CHILD, dir.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        let wanted = (random >> 33) % 20;
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut held = at;
        let mut take = |line: String| {
            if let Some(number) = line.split("held ").nth(1) {
                held = number.parse().unwrap();
            }
            held
        };
        let mut seen = 0;
        while seen < wanted {
            let line = lines.next().unwrap().unwrap();
            seen += u64::from(line.contains("held "));
            take(line);
        }
        child.kill().unwrap();
        child.wait().unwrap();
        lines.map_while(Result::ok).for_each(|line| _ = take(line));
        let replica = Replica::open(dir.path(), None, OPTIONS).unwrap();
        let position = replica.position().unwrap().epoch;
        assert!(position == held || position == held + 1, "round {round}: {held} was held, {position} is there");
        (at + 1..=position).for_each(|number| apply(&mut oracle, &epoch(number)));
        at = position;
        let image = std::fs::read(dir.path().join("disk.raw")).unwrap();
        assert!(image == oracle, "round {round}: not the content of epoch {position}");
    }
    assert!(at > 500, "the children got as far as epoch {at}");
}

/// Not a test of its own: runs where `CHILD` is a file system of 4 MiB.
#[test]
fn full_child() {
    let Some(dir) = std::env::var_os(CHILD).map(PathBuf::from) else { return };
    if std::env::var_os("DISK_TEST_FULL").is_none() {
        return;
    }
    let size = 64 << 20;
    let replica = blank_replica(&dir.join("replica"), size, OPTIONS);
    let ballast = dir.join("ballast");
    std::fs::write(&ballast, vec![1; 1 << 20]).unwrap();
    let mut number = replica.position().unwrap().epoch;
    let block = |number: u64| {
        let data = Bytes::from(vec![number as u8; 200_000]);
        DiskEpoch { epoch: number, writes: vec![Write { offset: number * 200_000, payload: Payload::Data(data) }] }
    };
    let refused = loop {
        match replica.commit(1, &block(number + 1)).and_then(|_| replica.maintain()) {
            Ok(()) => number += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(refused, DiskError::Full { .. }) && refused.to_string().contains("no space is left"), "{refused}");
    let held = replica.position().unwrap().epoch;
    assert!(held == number || held == number + 1);
    // A new process finds whole epochs once there is room, and goes on.
    drop(replica);
    std::fs::remove_file(&ballast).unwrap();
    let replica = Replica::open(&dir.join("replica"), None, OPTIONS).unwrap();
    assert_eq!(replica.position().unwrap().epoch, held);
    replica.commit(1, &block(held + 1)).unwrap();
    let disk = replica.into_disk().unwrap();
    let mut content = vec![0; 200_000];
    for number in 2..=held + 1 {
        disk.read(&mut content, number * 200_000).unwrap();
        assert!(content.iter().all(|byte| *byte == number as u8), "epoch {number}");
    }
    // A primary's guest gets the protocol's error, and can go on when there is room.
    std::fs::write(&ballast, vec![1; 4 << 20]).unwrap_err();
    let socket = dir.join("nbd");
    let _server = disk.serve(&socket).unwrap();
    let mut client = crate::client::Client::connect(&socket);
    let write = vec![7; 1 << 20];
    assert_eq!(client.call(0, crate::client::WRITE, 32 << 20, write.len() as u32, &write), Err(28));
    std::fs::remove_file(&ballast).unwrap();
    client.write(32 << 20, &write[..100_000]);
    assert!(client.read(32 << 20, 100_000) == write[..100_000]);
    println!("full and well");
}

#[test]
fn a_full_disk_is_said_and_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let script = "mount -t tmpfs -o size=4m none \"$DISK_TEST_CHILD\" && exec \"$@\"";
    let output = command("unshare")
        .args(["--user", "--map-root-user", "--mount", "sh", "-c", script, "sh"])
        .arg(std::env::current_exe().unwrap())
        .args(["crash::full_child", "--exact", "--nocapture"])
        .env(CHILD, dir.path())
        .env("DISK_TEST_FULL", "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    if said.contains("unshare:") || said.contains("mount:") {
        eprintln!("skipped: no file system of its own: {said}");
        return;
    }
    assert!(output.status.success() && said.contains("full and well"), "{said}");
}

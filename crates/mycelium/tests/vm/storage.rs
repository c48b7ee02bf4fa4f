//! A host whose file system is full.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::common::eventually;
use crate::guests::{VM, order, run_numbers_with};
use crate::lab::{Lab, said, states};
use crate::numbers::Client;
use crate::random::Random;

/// Fills the file system that a folder is on, and tells the file to remove.
fn fill(folder: &Path) -> std::path::PathBuf {
    let path = folder.join("filler");
    let mut file = File::create(&path).expect("filler");
    // To the last byte.
    for size in [1 << 20, 4096, 1] {
        while file.write_all(&vec![0x5a; size]).is_ok() {}
    }
    path
}

/// Keeps the file system that a folder is on full until it is dropped: what is given up there is taken at once.
struct Full {
    stop: Arc<AtomicBool>,
    filling: Option<JoinHandle<()>>,
}

impl Full {
    fn keep(folder: &Path) -> Self {
        let filler = fill(folder);
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let filling = thread::spawn(move || {
            let mut file = File::options().append(true).open(&filler).expect("filler");
            while !stopped.load(Ordering::Relaxed) {
                while file.write_all(&[0x5a; 512]).is_ok() {}
                thread::sleep(Duration::from_millis(1));
            }
            fs::remove_file(filler).expect("filler");
        });
        Self { stop, filling: Some(filling) }
    }
}

impl Drop for Full {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.filling.take().map(JoinHandle::join);
    }
}

/// A backup without room for an epoch cannot hold it: it says why and is left out; the guest goes on under the other's
/// protection. With room again it is brought in sync, and is as good as any: the guest moves to it.
#[test]
fn a_full_disk_costs_a_backup_until_there_is_room() {
    let mut random = Random::new();
    let mut lab = Lab::new(3);
    lab.small_disk("b", 96);
    let image = lab.folder().join("disk.raw");
    File::create(&image).and_then(|file| file.set_len(64 << 20)).expect("image");
    lab.host("b").stand_by();
    lab.host("c").stand_by();
    run_numbers_with(&mut lab, "a", &["b", "c"], &["--disk", &image.to_string_lossy()]);
    let client = Client::start(&lab, &mut random);
    lab.protected(VM, 2);
    order(&lab, "disk", 1);
    client.goes_on();

    let full = Full::keep(&lab.host("b").folder().join("vm"));
    let reason = eventually("b says that it has no room", || {
        let log = lab.host("b").log().to_lowercase();
        log.lines().find(|line| line.contains("no space")).map(str::to_owned).ok_or(log)
    });
    println!("{reason}");
    eventually("b does not count", || {
        let (_, status) = lab.primary(VM).ok_or("no primary")?;
        if states(&status).contains(&("b", "backup")) { Err(format!("{:?}", states(&status))) } else { Ok(()) }
    });
    for _ in 0..3 {
        client.goes_on();
        let (name, status) = lab.primary(VM).expect("a primary");
        assert_ne!(name, "b", "it has no whole copy");
        assert!(!states(&status).contains(&("b", "backup")), "{:?}", states(&status));
    }
    lab.protected(VM, 1);

    drop(full);
    let primary = lab.protected(VM, 2);
    client.goes_on();
    order(&lab, "disk", 0);
    if primary != "b" {
        eventually("the guest moves to b", || {
            let (source, _) = lab.primary(VM).ok_or("no primary")?;
            let moved = lab.host(&source).vm(&["migrate", VM, "--to", "b"]);
            if moved.status.success() { Ok(()) } else { Err(said(&moved)) }
        });
    }
    client.goes_on();
}

/// A host that cannot write its vote or the group's configuration takes no part, says so, and is missed by nobody; with
/// room again it goes on by itself.
#[test]
fn a_host_that_cannot_write_its_state_says_so_and_returns() {
    let mut random = Random::new();
    let mut lab = Lab::new(3);
    lab.small_disk("b", 96);
    lab.host("b").stand_by();
    lab.host("c").stand_by();
    run_numbers_with(&mut lab, "a", &["b", "c"], &[]);
    let client = Client::start(&lab, &mut random);
    lab.protected(VM, 2);
    client.goes_on();

    let filler = fill(&lab.host("b").folder().join("vm"));
    // The group changes, which each of its hosts writes down.
    lab.host("c").kill();
    let told = eventually("b says that it cannot write", || {
        let status = lab.host("b").status(VM).ok_or("no status")?;
        if status.phase == "cannot write" { Ok(status) } else { Err(format!("{}: {:?}", status.phase, status.events)) }
    });
    println!("{}", told.problem);
    assert!(told.problem.contains("member.json: No space left on device"), "{}", told.problem);
    assert!(told.events.iter().any(|event| event.text == told.problem), "{:?}", told.events);
    let shown = said(&lab.host("b").vm(&["status", VM]));
    assert!(shown.contains("cannot write") && shown.contains("free some room"), "{shown}");
    lab.host("c").stand_by();
    eventually("the others go on without b", || {
        let (name, status) = lab.primary(VM).ok_or("no primary")?;
        let states = states(&status);
        if name != "b" && states.contains(&("b", "away")) && states.iter().any(|(_, state)| *state == "backup") {
            Ok(())
        } else {
            Err(format!("on {name}: {states:?}"))
        }
    });
    client.goes_on();

    fs::remove_file(filler).expect("filler");
    lab.protected(VM, 2);
    client.goes_on();
    let status = lab.host("b").status(VM).expect("status");
    assert_eq!(status.problem, "");
    assert!(status.events.iter().any(|event| event.text.contains("can be written again")), "{:?}", status.events);
}

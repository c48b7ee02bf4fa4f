//! What an operator may ask for although it costs something: output that does not wait, and a group without its majority.

use std::thread;
use std::time::Duration;

use mycelium_endophyte::host::status::{Role, Status};
use rustix::process::{Pid, Signal, kill_process};

use crate::common::eventually;
use crate::faults::stops_itself;
use crate::guests::{VM, numbers, order};
use crate::lab::{Lab, said, states};
use crate::numbers::Client;
use crate::random::Random;

/// Best effort: output leaves at once, which is said plainly; after a loss the guest goes on, though it may go back on
/// what it said.
#[test]
fn best_effort_does_not_wait_and_says_so() {
    let mut random = Random::new();
    let (mut lab, client) = numbers(&mut random, &["--best-effort"]);
    drop(client);
    let client = Client::forgiving(&lab, &mut random);
    let primary = lab.protected(VM, 2);
    client.goes_on();
    at_once(&lab);
    let log = lab.host("a").log();
    assert!(log.contains("warning: spec.distributedRAM.emergencyPauseEnabled is false: output leaves before"), "{log}");

    lab.power_off(&primary);
    client.goes_on();
    let heir = lab.protected(VM, 1);
    assert_ne!(heir, primary);
    let status = at_once(&lab);
    let told = status.events.iter().map(|event| event.text.as_str()).find(|text| text.contains("took over at epoch"));
    let plain = format!("best effort: what {primary} sent since that epoch may be contradicted");
    assert!(told.is_some_and(|text| text.contains(&plain)), "{:?}", status.events);
    lab.power_on(&primary);
    lab.host(&primary).stand_by();
    lab.protected(VM, 2);
    client.goes_on();
    println!("{} numbers, went back {} times", client.heard(), client.went_back());
}

/// Waits until output leaves at once: on a busy machine the lease, without which nothing leaves, may run out for a moment.
fn at_once(lab: &Lab) -> Status {
    eventually("output leaves at once", || match lab.primary(VM) {
        Some((_, status)) if status.egress.mode == "at-once" => Ok(status),
        other => Err(format!("{:?}", other.map(|(_, status)| (status.egress.mode, status.phase)))),
    })
}

/// The primary is left alone and holds its output. An operator who knows that the others are off forgets them: then it
/// goes on, unprotected; when they return after all they become backups like any.
#[test]
fn forgotten_hosts_hold_nothing_up() {
    let mut random = Random::new();
    let (mut lab, client) = numbers(&mut random, &[]);
    let primary = lab.protected(VM, 2);
    client.goes_on();
    let lost: Vec<String> = lab.names().into_iter().filter(|name| *name != primary).collect();
    lost.iter().for_each(|host| lab.cable(host, false));
    lost.iter().for_each(|host| lab.power_off(host));
    eventually("it holds its output", || match lab.host(&primary).status(VM) {
        Some(status) if status.phase == "output held" => Ok(()),
        other => Err(format!("{:?}", other.map(|status| status.phase))),
    });
    let heard = client.packets();
    thread::sleep(Duration::from_secs(1));
    assert_eq!(client.packets(), heard, "one of three released output");
    stops_itself(&mut lab, &primary);

    let unknown = lab.host(&primary).vm(&["forget", VM, "nosuch"]);
    assert_eq!(unknown.status.code(), Some(1), "{}", said(&unknown));
    assert!(said(&unknown).contains("nosuch is not a member"), "{}", said(&unknown));
    // Two are no majority while one of them is gone: only the second settles it.
    println!("{}", said(&lab.host(&primary).vm(&["forget", VM, &lost[0]])).trim());
    let second = lab.host(&primary).vm(&["forget", VM, &lost[1]]);
    assert!(second.status.success(), "{}", said(&second));
    client.goes_on();
    let status = lab.host(&primary).status(VM).expect("a status");
    assert_eq!((status.role, status.phase.as_str()), (Role::Primary, "unprotected"));
    assert!(states(&status).is_empty(), "{:?}", states(&status));

    for host in &lost {
        lab.power_on(host);
        lab.host(host).stand_by();
    }
    lab.protected(VM, 2);
    client.goes_on();
}

/// Megabits a second towards a backup that falls behind a guest which rewrites 1 MiB: by so little at a time that it takes many
/// seconds until more waits for it than the buffer holds, and it is no backup any more.
const BEHIND: u32 = 10;

/// The way to a backup is slow and the guest busy, until enough was seen of the epoch that was last released and the last that
/// this backup holds, while it is in sync and behind. One that fell out of sync meanwhile is let back in first.
fn while_behind(lab: &Lab, slow: &str, mut enough: impl FnMut(u64, u64) -> bool) {
    eventually("enough is seen of a backup in sync and behind", || {
        lab.protected(VM, 2);
        lab.slow_towards(slow, BEHIND);
        order(lab, "memory", 1);
        let seen = watched(lab, slow, &mut enough);
        lab.fast_towards(slow);
        order(lab, "memory", 0);
        seen
    });
}

/// Looks at a backup until enough was seen, or it is in sync no more, or seems never to be behind.
fn watched(lab: &Lab, slow: &str, enough: &mut impl FnMut(u64, u64) -> bool) -> Result<(), String> {
    for _ in 0..500 {
        let (name, status) = lab.primary(VM).ok_or("no primary")?;
        let peer = status.peers.iter().find(|peer| peer.name == slow).ok_or(format!("{name} is primary"))?;
        if peer.state != "backup" {
            return Err(format!("{slow} is {} at {} of {}", peer.state, peer.epoch, status.epochs.sealed));
        }
        if peer.epoch + 2 <= status.epochs.sealed && enough(status.epochs.released, peer.epoch) {
            return Ok(());
        }
        thread::sleep(Duration::from_millis(20));
    }
    Err(format!("{slow} keeps up"))
}

/// `all`: output waits for the slowest of the backups in sync.
#[test]
fn output_waits_for_all_when_told_so() {
    let mut random = Random::new();
    let (lab, client) = numbers(&mut random, &["--output-commit", "all"]);
    client.goes_on();
    let mut looks = 0;
    while_behind(&lab, "c", |released, held| {
        assert!(released <= held, "released {released}, and a backup in sync holds {held}");
        looks += 1;
        looks == 10
    });
    client.goes_on();
}

/// `any`: output leaves when the fastest backup has it. So a backup may take over only when it hears every other that was in
/// sync, or is forced.
#[test]
fn output_waits_for_any_and_promotion_for_all() {
    let mut random = Random::new();
    let (mut lab, client) = numbers(&mut random, &["--output-commit", "any"]);
    drop(client);
    let client = Client::forgiving(&lab, &mut random);
    assert_eq!(lab.protected(VM, 2), "a");
    client.goes_on();
    while_behind(&lab, "c", |released, held| released > held);
    client.goes_on();

    // The primary and a backup go at once, and the backup returns without its copy. Nothing happens between.
    lab.protected(VM, 2);
    for host in ["a", "c"] {
        let process = Pid::from_raw(lab.host(host).process().cast_signed()).expect("a process");
        kill_process(process, Signal::STOP).expect("it runs");
    }
    ["a", "c"].into_iter().for_each(|host| lab.power_off(host));
    lab.power_on("c");
    lab.host("c").stand_by();
    let refused = eventually("the two find each other", || {
        let refused = lab.host("b").vm(&["promote", VM]);
        if said(&refused).contains("c of the backups in sync may hold a later epoch") {
            Ok(refused)
        } else {
            Err(said(&refused))
        }
    });
    assert_eq!(refused.status.code(), Some(1));
    assert!(lab.primary(VM).is_none(), "nobody took over");
    let forced = lab.host("b").vm(&["promote", VM, "--force"]);
    assert!(forced.status.success(), "{}", said(&forced));
    client.goes_on();
    let status = lab.host("b").status(VM).expect("a status");
    assert!(status.events.iter().any(|event| event.text.contains("forced: what a sent")), "{:?}", status.events);
}

//! What an operator may ask for although it costs something: output that does not wait, and a group without its majority.

use std::thread;
use std::time::Duration;

use mycelium_endophyte::host::status::Role;

use crate::common::eventually;
use crate::guests::{VM, numbers};
use crate::lab::{said, states};
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
    let (_, status) = lab.primary(VM).expect("a primary");
    assert_eq!(status.egress.mode, "at-once");
    let log = lab.host("a").log();
    assert!(log.contains("warning: spec.distributedRAM.emergencyPauseEnabled is false: output leaves before"), "{log}");

    lab.power_off(&primary);
    client.goes_on();
    let heir = lab.protected(VM, 1);
    assert_ne!(heir, primary);
    let (_, status) = lab.primary(VM).expect("a primary");
    assert_eq!(status.egress.mode, "at-once");
    lab.power_on(&primary);
    lab.host(&primary).stand_by();
    lab.protected(VM, 2);
    client.goes_on();
    println!("{} numbers, went back {} times", client.heard(), client.went_back());
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

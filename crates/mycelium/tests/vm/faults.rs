//! What else goes wrong: a lost backup, a cut network, a wrong certificate, wrong commands.

use std::thread;
use std::time::Duration;

use mycelium_endophyte::host::status::Role;

use crate::common::eventually;
use crate::guests::{VM, numbers, run_numbers, shut_down};
use crate::lab::{Lab, said, states};
use crate::random::Random;

/// A backup is lost and returns; the primary is cut off and returns; the machine is shut down and nobody takes it over.
#[test]
fn a_machine_outlives_its_backups_and_its_network() {
    let mut random = Random::new();
    let (mut lab, client) = numbers(&mut random, &[]);
    lab.protected(VM, 2);
    client.goes_on();

    let second = lab.host("a").vm(&["run", "--name", VM, "--kernel", "/dev/null", "--net", "none"]);
    assert_eq!(second.status.code(), Some(1), "{}", said(&second));
    assert!(said(&second).contains("another process"), "{}", said(&second));

    // A backup is lost.
    lab.power_off("c");
    client.goes_on();
    eventually("c is away", || {
        let (_, status) = lab.primary(VM).ok_or("no primary")?;
        if states(&status).contains(&("c", "away")) { Ok(()) } else { Err(format!("{:?}", states(&status))) }
    });
    client.goes_on();
    lab.power_on("c");
    lab.host("c").stand_by();
    // On a busy machine the group may have chosen another primary meanwhile.
    let cut = lab.protected(VM, 2);

    // The primary is cut off from everybody, and goes on running: it must not be heard.
    lab.cable(&cut, false);
    client.goes_on();
    let (heir, _) = eventually("another host takes over", || {
        lab.primary(VM).filter(|(name, _)| *name != cut).ok_or("none".to_owned())
    });
    let released = |lab: &mut Lab| lab.host(&cut).status(VM).map_or(0, |status| status.egress.released_frames);
    let before = released(&mut lab);
    thread::sleep(Duration::from_millis(500));
    assert_eq!(released(&mut lab), before, "an isolated primary releases nothing");
    stops_itself(&mut lab, &cut);
    lab.cable(&cut, true);
    eventually("it became a backup", || match lab.host(&cut).status(VM) {
        Some(status) if status.role == Role::Backup => Ok(()),
        other => Err(format!("{:?}", other.map(|status| (status.role, status.phase)))),
    });
    assert_ne!(heir, cut);
    let heir = lab.protected(VM, 2);
    client.goes_on();

    // Shut down where it runs; elsewhere that is refused.
    let other = if heir == "b" { "c" } else { "b" };
    let refused = lab.host(other).vm(&["stop", VM]);
    assert_eq!(refused.status.code(), Some(1), "{}", said(&refused));
    shut_down(&mut lab, &heir, VM);
    let quiet = client.packets();
    thread::sleep(Duration::from_secs(2));
    assert!(lab.primary(VM).is_none(), "nobody takes over what was shut down");
    assert!(client.packets() <= quiet + 5, "the guest is gone");
    assert!(lab.host("a").wait().success(), "the process that ran the machine ends with it");
}

/// Waits until a primary that no majority hears has stopped its guest: no epoch is sealed any more.
pub fn stops_itself(lab: &mut Lab, host: &str) {
    let sealed = |lab: &mut Lab| match lab.host(host).status(VM) {
        Some(status) if status.phase == "stopped: no majority" => Ok(status),
        other => Err(format!("{:?}", other.map(|status| status.phase))),
    };
    let stopped = eventually("it stops itself", || sealed(lab));
    assert!(stopped.events.iter().any(|event| event.text.contains("the guest is stopped")), "{:?}", stopped.events);
    thread::sleep(Duration::from_millis(500));
    let later = sealed(lab).expect("it is still cut off").epochs.sealed;
    assert_eq!(later, stopped.epochs.sealed, "a guest that is stopped seals no epoch");
}

/// A host of another group is not let in, and both sides say why.
#[test]
fn a_host_of_another_group_is_refused() {
    let mut lab = Lab::new(2);
    let folder = lab.host("b").folder().join("vm");
    std::fs::remove_file(folder.join("group.pem")).expect("group file");
    let made = lab.host("b").vm(&["init"]);
    assert!(made.status.success(), "{}", said(&made));
    lab.host("b").stand_by();
    run_numbers(&mut lab, "a", &["b"]);
    eventually("a says why b cannot be reached", || {
        let log = lab.host("a").log();
        if log.contains("cannot be reached") && log.contains("certificate") { Ok(()) } else { Err(log) }
    });
    assert!(lab.host("b").status(VM).is_none(), "b took nothing in");
}

/// Exit codes and words of wrong commands.
#[test]
fn wrong_commands_say_what_is_wrong() {
    let mut lab = Lab::new(1);
    let host = lab.host("a");
    let unknown = host.vm(&["status", "nosuch"]);
    assert_eq!(unknown.status.code(), Some(3), "{}", said(&unknown));
    assert!(said(&unknown).contains("nosuch"), "{}", said(&unknown));
    let stop = host.vm(&["stop", "nosuch"]);
    assert_ne!(stop.status.code(), Some(0));
    assert!(said(&stop).contains("nosuch"), "{}", said(&stop));

    let again = host.vm(&["init"]);
    assert_eq!(again.status.code(), Some(1), "{}", said(&again));
    assert!(said(&again).contains("exists already"), "{}", said(&again));

    std::fs::remove_file(host.folder().join("vm/group.pem")).expect("group file");
    let without = host.vm(&["backup", "--listen", "127.0.0.1:0"]);
    assert_eq!(without.status.code(), Some(1), "{}", said(&without));
    assert!(said(&without).contains("vm init"), "{}", said(&without));
    let list = host.vm(&["status", "-o", "json"]);
    assert!(list.status.success() && said(&list).trim() == "[]", "{}", said(&list));
}

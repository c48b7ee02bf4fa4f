//! Planned migration: to a backup, to a host that was none, what is refused, and hosts that are lost on the way.

use std::thread;
use std::time::Duration;

use mycelium_endophyte::host::status::Role;

use crate::common::eventually;
use crate::guests::{VM, numbers, run_numbers};
use crate::lab::{Lab, parts, said, states};
use crate::numbers::Client;
use crate::random::{Random, setting};

/// A machine without backups moves to a host that it did not know while a client uses it, and back; the client sees a short
/// gap. Whoever it came from has it no more. On a slow link it takes long, and can be given up at any time.
#[test]
fn a_machine_moves_under_load_and_back() {
    let mut random = Random::new();
    let mut lab = Lab::new(3);
    lab.host("c").stand_by();
    run_numbers(&mut lab, "a", &[]);
    let client = Client::start(&lab, &mut random);
    client.goes_on();
    let refused = lab.host("a").vm(&["migrate", VM, "--to", "nowhere"]);
    assert_eq!(refused.status.code(), Some(1), "{}", said(&refused));

    lab.slow("a", 8);
    let late = lab.host("a").vm(&["migrate", VM, "--to", "10.77.0.3:7400", "--timeout", "2s"]);
    assert_eq!(late.status.code(), Some(1), "{}", said(&late));
    assert!(said(&late).contains("in time"), "{}", said(&late));
    alone(&mut lab, "a", "c");
    give_up(&mut lab, "10.77.0.3:7400");
    alone(&mut lab, "a", "c");
    client.goes_on();
    lab.fast("a");

    for (from, to, host) in [("a", "c", "10.77.0.3:7400"), ("c", "a", "10.77.0.1:7400")] {
        client.goes_on();
        client.longest_gap();
        // On a busy machine the target may be too late to take over; then the source goes on, and says so.
        let moved = eventually("the machine moves", || {
            let moved = lab.host(from).vm(&["migrate", VM, "--to", host]);
            if moved.status.success() { Ok(moved) } else { Err(said(&moved)) }
        });
        client.goes_on();
        println!("{from} to {to}: longest silence {} ms; {}", client.longest_gap().as_millis(), said(&moved).trim());
        alone(&mut lab, to, from);
        if from == "a" {
            assert!(lab.host("a").wait().success(), "the process that ran the machine ends when it has moved");
            let again = lab.host("a").vm(&["run", "--name", VM, "--kernel", "/dev/null", "--net", "none"]);
            assert!(said(&again).contains("was moved from this host to c"), "{}", said(&again));
            lab.host("a").stand_by();
        }
    }

    // A backup changes places. It is told how far its copy is, from a part to the whole.
    lab.slow("a", 100);
    let asked = lab.host("a").vm(&["protect", VM, "--backup", "10.77.0.3:7400"]);
    lab.fast("a");
    assert!(asked.status.success(), "{}", said(&asked));
    assert!(said(&asked).contains("c is in sync with legacy"), "{}", said(&asked));
    let parts = parts(&said(&asked), "c");
    assert!(parts.iter().any(|part| (1..100).contains(part)) && parts.last() == Some(&100), "{}", said(&asked));
    lab.protected(VM, 1);
    client.goes_on();
    eventually("the guest and its copy change places", || {
        let moved = lab.host("a").vm(&["migrate", VM, "--to", "c"]);
        if moved.status.success() { Ok(()) } else { Err(said(&moved)) }
    });
    assert_eq!(lab.protected(VM, 1), "c");
    client.goes_on();
}

/// Waits until a host runs the guest and nobody else belongs to the group, and another has nothing of it.
fn alone(lab: &mut Lab, host: &str, other: &str) {
    eventually("the guest is where it is, and nowhere else", || {
        let (name, status) = lab.primary(VM).ok_or("no primary")?;
        if name == host && status.phase == "unprotected" && status.peers.is_empty() {
            return lab.host(other).status(VM).map_or(Ok(()), |left| Err(format!("{other} is {:?}", left.phase)));
        }
        Err(format!("on {name}, {}: {:?}", status.phase, states(&status)))
    });
}

/// Begins a migration from `a` that cannot end soon, and kills the command: it is given up.
fn give_up(lab: &mut Lab, to: &str) {
    let mut moving = lab.host("a").begin(&["migrate", VM, "--to", to]);
    let migration = |lab: &mut Lab| lab.host("a").status(VM).ok_or("no status").map(|status| status.migration);
    eventually("it is on its way", || match migration(lab)? {
        Some(migration) if migration.lag > migration.lag_limit => Ok(()),
        other => Err(format!("{other:?}")),
    });
    moving.kill().expect("it still runs");
    moving.wait().expect("it ended");
    eventually("it is given up", || match migration(lab)? {
        None => Ok(()),
        other => Err(format!("{other:?}")),
    });
    let status = lab.host("a").status(VM).expect("a status");
    assert_eq!(status.role, Role::Primary);
    assert!(status.events.iter().any(|event| event.text.contains("given up")), "{:?}", status.events);
}

/// Source or target lose their power at a random moment of a migration: one host runs the guest afterwards, and nothing
/// it said is contradicted.
#[test]
fn a_host_lost_during_a_migration_leaves_one_primary() {
    let mut random = Random::new();
    let (mut lab, client) = numbers(&mut random, &[]);
    for round in 0..setting("MYCELIUM_CHAOS_MIGRATIONS", 4) {
        let source = lab.protected(VM, 2);
        client.goes_on();
        let others: Vec<String> = lab.names().into_iter().filter(|name| *name != source).collect();
        let target = &others[random.below(2) as usize];
        let victim = if round % 2 == 0 { &source } else { target };
        let moving = lab.host(&source).begin(&["migrate", VM, "--to", target]);
        let after = Duration::from_micros(random.below(400_000));
        thread::sleep(after);
        // On a busy machine the primary may be elected again and have no backup that counts for a moment. What happens in
        // such a moment only that host knows, and `vm status` says so.
        eventually("the guest is protected, or on its way", || match lab.primary(VM) {
            Some((_, status)) if !states(&status).iter().any(|(_, state)| *state == "backup") => {
                Err(format!("{:?}", states(&status)))
            }
            _ => Ok(()),
        });
        lab.power_off(victim);
        let moved = moving.wait_with_output().expect("migrate");
        client.goes_on();
        let heir = eventually("one host runs the guest", || {
            let all: Vec<_> = lab.names().into_iter().filter(|name| *name != *victim).collect();
            let mut runs = |name: &String| lab.host(name).status(VM).is_some_and(|status| status.role == Role::Primary);
            match &*all.into_iter().filter(|name| runs(name)).collect::<Vec<_>>() {
                [one] => Ok(one.clone()),
                none_or_two => Err(format!("{none_or_two:?}")),
            }
        });
        println!(
            "{source} to {target}, {victim} lost after {} ms: {heir} goes on; the command said: {}",
            after.as_millis(),
            said(&moved).trim()
        );
        lab.power_on(victim);
        lab.host(victim).stand_by();
    }
    lab.protected(VM, 2);
    client.goes_on();
}

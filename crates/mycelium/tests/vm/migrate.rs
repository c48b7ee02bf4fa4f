//! Planned migration: to a backup, to a host that was none, and what is refused.

use crate::common::eventually;
use crate::guests::{VM, run_numbers};
use crate::lab::{Lab, said};
use crate::numbers::Client;
use crate::random::Random;

/// A machine without backups is protected and moved while a client uses it, and moved back; the client sees a short gap.
#[test]
fn a_machine_moves_under_load_and_back() {
    let mut random = Random::new();
    let mut lab = Lab::new(3);
    lab.host("c").stand_by();
    run_numbers(&mut lab, "a", &[]);
    let client = Client::start(&lab, &mut random);
    client.goes_on();

    let refused = lab.host("a").vm(&["migrate", VM, "--to", "10.77.0.3:7400"]);
    assert_eq!(refused.status.code(), Some(1), "{}", said(&refused));
    assert!(said(&refused).contains("vm protect"), "the way out is named: {}", said(&refused));
    let refused = lab.host("a").vm(&["migrate", VM, "--to", "nowhere"]);
    assert_eq!(refused.status.code(), Some(1), "{}", said(&refused));

    let asked = lab.host("a").vm(&["protect", VM, "--backup", "10.77.0.3:7400"]);
    assert!(asked.status.success(), "{}", said(&asked));
    lab.protected(VM, 1);
    for (from, to, host) in [("a", "c", "10.77.0.3:7400"), ("c", "a", "a")] {
        client.goes_on();
        client.longest_gap();
        // On a busy machine the target may be too late to take over; then the source goes on, and says so.
        let moved = eventually("the machine moves", || {
            let moved = lab.host(from).vm(&["migrate", VM, "--to", host]);
            if moved.status.success() { Ok(moved) } else { Err(said(&moved)) }
        });
        client.goes_on();
        println!("{from} to {to}: longest silence {} ms; {}", client.longest_gap().as_millis(), said(&moved).trim());
        let heir = eventually("the target is primary", || lab.primary(VM).ok_or("none".to_owned()));
        assert_eq!(heir.0, to);
        // The source became a backup.
        lab.protected(VM, 1);
    }
    client.goes_on();
}

//! Groups of two: with a witness a backup takes over by itself, without one only an operator can say so.

use std::thread;
use std::time::Duration;

use crate::common::eventually;
use crate::guests::{VM, run_numbers, run_numbers_with};
use crate::lab::{Lab, said, states};
use crate::numbers::Client;
use crate::random::Random;

/// One backup and a host that only votes: the backup takes over, with two virtual processors.
#[test]
fn a_witness_makes_a_majority() {
    let mut random = Random::new();
    let mut lab = Lab::new(3);
    lab.host("b").stand_by();
    lab.host("c").vote();
    run_numbers_with(&mut lab, "a", &["b"], &["--witness", "10.77.0.3:7400", "--cpus", "2"]);
    let client = Client::start(&lab, &mut random);
    lab.protected(VM, 1);
    eventually("the witness is a member", || {
        let (_, status) = lab.primary(VM).ok_or("no primary")?;
        if states(&status).contains(&("c", "witness")) { Ok(()) } else { Err(format!("{:?}", states(&status))) }
    });
    client.goes_on();
    lab.power_off("a");
    client.goes_on();
    let (heir, _) = eventually("the backup takes over", || lab.primary(VM).ok_or("none".to_owned()));
    assert_eq!(heir, "b");
    lab.power_on("a");
    lab.host("a").stand_by();
    lab.protected(VM, 1);
    client.goes_on();
}

/// One backup and nobody else: it does not know whether the primary is gone, and waits for an operator's word.
#[test]
fn two_hosts_wait_for_an_operator() {
    let mut random = Random::new();
    let mut lab = Lab::new(2);
    lab.host("b").stand_by();
    run_numbers(&mut lab, "a", &["b"]);
    let client = Client::start(&lab, &mut random);
    lab.protected(VM, 1);
    client.goes_on();
    let early = lab.host("b").vm(&["promote", VM]);
    assert_eq!(early.status.code(), Some(1), "the primary is alive: {}", said(&early));

    lab.power_off("a");
    thread::sleep(Duration::from_secs(2));
    assert!(lab.primary(VM).is_none(), "nothing is promoted without a majority");
    let refused = lab.host("b").vm(&["promote", VM]);
    assert_eq!(refused.status.code(), Some(1), "{}", said(&refused));
    let forced = lab.host("b").vm(&["promote", VM, "--force"]);
    assert!(forced.status.success(), "{}", said(&forced));
    client.goes_on();
}

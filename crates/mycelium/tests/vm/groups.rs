//! Groups of two: with a witness a backup takes over by itself, without one only an operator can say so.

use std::thread;
use std::time::Duration;

use crate::common::eventually;
use crate::faults::stops_itself;
use crate::guests::{VM, numbers_document, run_numbers, run_numbers_with};
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

/// The same, told to hold its output rather than go on without a backup: then the backup has all that was ever said, and may
/// take over by hand without force.
#[test]
fn two_hosts_that_hold_need_no_force() {
    let mut random = Random::new();
    let mut lab = Lab::new(2);
    lab.host("b").stand_by();
    run_numbers_with(&mut lab, "a", &["b"], &["--alone", "hold"]);
    let client = Client::start(&lab, &mut random);
    lab.protected(VM, 1);
    client.goes_on();
    lab.power_off("b");
    stops_itself(&mut lab, "a");
    let heard = client.packets();
    lab.power_on("b");
    lab.host("b").stand_by();
    lab.protected(VM, 1);
    client.goes_on();
    assert!(client.packets() > heard);

    lab.power_off("a");
    let promoted = eventually("the backup is let", || {
        let promoted = lab.host("b").vm(&["promote", VM]);
        if promoted.status.success() { Ok(promoted) } else { Err(said(&promoted)) }
    });
    println!("{}", said(&promoted).trim());
    client.goes_on();
}

/// A document that lists three hosts, asks for two backups, and names another group file: two become backups, and when one
/// of them stays away the third takes its place.
#[test]
fn a_document_asks_for_so_many_backups() {
    let mut random = Random::new();
    let mut lab = Lab::new(4);
    for host in ["b", "c", "d"] {
        lab.host(host).stand_by();
    }
    let folder = lab.host("a").folder().join("vm");
    std::fs::rename(folder.join("group.pem"), folder.join("ours.pem")).expect("group file");
    let document = numbers_document(
        &lab,
        "{nodeCount: 2, selectionCriteria: listed, nodes: ['10.77.0.2:7400', '10.77.0.3:7400', '10.77.0.4:7400']}",
        "{heartbeatMilliseconds: 20, group: ours.pem}",
    );
    lab.host("a").spawn(&["vm", "run", "-f", &document.to_string_lossy(), "--listen", "10.77.0.1:7400"]);
    let client = Client::start(&lab, &mut random);
    let backups = |lab: &Lab, wanted: [&str; 2]| {
        let (name, status) = lab.primary(VM).ok_or("no primary")?;
        let both = wanted.map(|host| (host, "backup"));
        if states(&status) == both { Ok(name) } else { Err(format!("{:?}: {:?}", states(&status), status.events)) }
    };
    let primary = eventually("the first two are its backups", || backups(&lab, ["b", "c"]));
    client.goes_on();
    assert_eq!(primary, "a");
    lab.power_off("b");
    client.goes_on();
    eventually("the spare has taken the lost one's place", || backups(&lab, ["c", "d"]));
    client.goes_on();
}

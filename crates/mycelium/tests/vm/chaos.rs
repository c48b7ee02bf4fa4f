//! Hosts lose their power at random moments; the outside must not notice.

use std::thread;
use std::time::Duration;

use tokio::time::Instant;

use crate::common::{command, eventually, run};
use crate::guests::{VM, numbers, run_postgres};
use crate::lab::{Lab, said};
use crate::postgres::Bank;
use crate::random::{Random, setting};

/// Cuts the power of the primary at a moment that nobody knows, lets `goes_on` see that the guest goes on elsewhere, and
/// brings the host back as a backup.
pub fn kill_primary(lab: &mut Lab, random: &mut Random, goes_on: impl FnOnce()) {
    thread::sleep(Duration::from_micros(random.below(800_000)));
    // On a busy machine the primary may lose its lease, be elected again, and for a moment have no backup in sync: what
    // happens in such a moment only that host knows, and `vm status` says so.
    lab.protected(VM, 1);
    let (victim, status) = lab.primary(VM).expect("a primary");
    lab.power_off(&victim);
    let cut = Instant::now();
    goes_on();
    let after = cut.elapsed();
    let (heir, now) = eventually("another host says that it is primary", || lab.primary(VM).ok_or("none".to_owned()));
    assert_ne!(heir, victim);
    assert!(now.term > status.term, "term {} after {}", now.term, status.term);
    tells_its_takeover(lab, &heir, &victim, status.epochs.released);
    println!(
        "{victim} lost at epoch {}, {heir} goes on in term {}; heard {} ms after",
        status.epochs.sealed,
        now.term,
        after.as_millis()
    );
    lab.power_on(&victim);
    lab.host(&victim).stand_by();
}

/// The heir tells in one sentence where the guest went on, how long nobody had heard the former host, what was lost
/// (nothing), and where it is replicated now.
fn tells_its_takeover(lab: &mut Lab, heir: &str, victim: &str, released: u64) {
    let begin = format!("{VM} took over at epoch ");
    let epoch = |text: &str| text.strip_prefix(&begin)?.split_once(',')?.0.parse::<u64>().ok();
    // It may have taken over before: then from an epoch that had less.
    let sentence = eventually("the heir tells how it took over", || {
        let status = lab.host(heir).status(VM).ok_or("no status")?;
        let mut told = status.events.iter().map(|event| event.text.clone());
        told.find(|text| epoch(text) >= Some(released)).ok_or(format!("from {released} on? {:?}", status.events))
    });
    let words: Vec<&str> = sentence.split([' ', ',', ';']).filter(|word| !word.is_empty()).collect();
    let gap = words.iter().position(|word| *word == "ms").and_then(|at| words[at - 1].parse::<u64>().ok());
    assert!(gap.is_some_and(|ms| (40..60_000).contains(&ms)), "{sentence}");
    let rest = format!("ms after the last sign of {victim}; nothing acknowledged was lost; now ");
    assert!(sentence.contains(&rest), "{sentence}");
    assert!(lab.host(heir).log().contains(&sentence), "the log tells it too");
    println!("{sentence}");
}

/// A guest that numbers what it says: no number with other content, none goes back, none acknowledged is lost.
#[test]
fn no_number_is_contradicted() {
    let mut random = Random::new();
    let (mut lab, client) = numbers(&mut random, &[]);
    client.goes_on();
    for kill in 1..=setting("MYCELIUM_CHAOS_KILLS", 3) {
        // Every third time the host that came back is still being brought in sync.
        lab.protected(VM, if kill % 3 == 0 { 1 } else { 2 });
        client.longest_gap();
        kill_primary(&mut lab, &mut random, || client.goes_on());
        println!(
            "kill {kill}: longest silence {} ms, {} numbers so far",
            client.longest_gap().as_millis(),
            client.heard()
        );
    }
    lab.protected(VM, 2);
    client.goes_on();
}

/// Debian's PostgreSQL and one connection to it: it lives on, and every acknowledged transaction is there.
#[test]
fn no_transaction_is_lost() {
    let mut random = Random::new();
    let mut lab = Lab::new(3);
    lab.host("b").stand_by();
    lab.host("c").stand_by();
    run_postgres(&mut lab, "a", &["b", "c"]);
    let bank = Bank::open(&lab, &mut random);
    bank.goes_on();
    for kill in 1..=setting("MYCELIUM_CHAOS_POSTGRES_KILLS", 1) {
        lab.protected(VM, 2);
        kill_primary(&mut lab, &mut random, || bank.goes_on());
        println!("kill {kill}: {} transactions so far", bank.acknowledged());
    }
    // And a planned move: the same connection.
    let source = lab.protected(VM, 2);
    let target = lab.names().into_iter().find(|name| *name != source).expect("three hosts");
    let address = format!("{}:7400", lab.address(&target));
    let moved = lab.host(&source).vm(&["migrate", VM, "--to", &address]);
    assert!(moved.status.success(), "{}", said(&moved));
    bank.goes_on();
    let primary = lab.protected(VM, 2);
    assert_ne!(primary, source);
    bank.goes_on();
    let transactions = bank.close();
    println!("{transactions} transactions, all there");

    let stopped = lab.host(&primary).vm(&["stop", VM]);
    assert!(stopped.status.success(), "{}", said(&stopped));
    let folder = lab.host(&primary).folder().join("vm").join(VM);
    let console =
        String::from_utf8_lossy(&std::fs::read(folder.join("console.log")).expect("console.log")).into_owned();
    assert!(console.contains("guest: off"), "PostgreSQL was not shut down:\n{console}");
    let disk = folder.join("disk/disk.raw");
    // A guest that took too long to shut down was ended: then its journal has the last word, as after any loss of power.
    let _ = command("e2fsck").args(["-y", "-E", "journal_only"]).arg(&disk).output().expect("e2fsck runs");
    run(command("e2fsck").arg("-fn").arg(disk));
}

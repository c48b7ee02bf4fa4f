//! A guest's whole memory, compared by the guest itself after its host was lost: much of it, on two virtual processors, and
//! in huge pages.

use crate::chaos::kill_primary;
use crate::guests::{VM, hint, order, run_numbers_with};
use crate::huge_pages::{HugePages, in_use};
use crate::lab::Lab;
use crate::numbers::Client;
use crate::random::{Random, setting};

/// Two backups of a guest that keeps most of its memory filled, compares it and rewrites a part of it between the
/// losses of its hosts, one of which comes in the middle of that.
fn memory_is_kept(mut lab: Lab, mebibytes: u64, kills: u64, flags: &[&str], look: impl FnOnce()) {
    let mut random = Random::new();
    for backup in ["b", "c"] {
        lab.host(backup).stand_by();
    }
    let memory = format!("{mebibytes}Mi");
    let flags: Vec<&str> = ["--memory", &memory, "--cpus", "2"].iter().chain(flags).copied().collect();
    run_numbers_with(&mut lab, "a", &["b", "c"], &flags);
    let client = Client::start(&lab, &mut random);
    client.goes_on();
    // The guest's kernel and file system need the rest.
    order(&lab, "keep", mebibytes - (mebibytes / 4).max(128));
    for kill in 1..=kills {
        lab.protected(VM, 2);
        order(&lab, "check", 2 * kill - 1);
        // The guest is at the next round while its host is lost.
        hint(&lab, "check", 2 * kill);
        kill_primary(&mut lab, &mut random, || client.goes_on());
        order(&lab, "check", 2 * kill);
    }
    lab.protected(VM, 2);
    order(&lab, "check", 2 * kills + 1);
    look();
    client.goes_on();
}

#[test]
fn much_memory_on_two_processors_is_kept() {
    let (mebibytes, kills) = (setting("MYCELIUM_CHAOS_MEMORY", 512), setting("MYCELIUM_CHAOS_MEMORY_KILLS", 1));
    memory_is_kept(Lab::new(3), mebibytes, kills, &[], || ());
}

#[test]
fn memory_in_huge_pages_is_kept() {
    let lab = Lab::new(3);
    let Some(_pages) = HugePages::set_aside(3 * (256 << 20)) else { return };
    let document = lab.folder().join("vm.yaml");
    std::fs::write(&document, include_str!("huge-pages.yaml")).expect("document");
    memory_is_kept(lab, 256, 1, &["-f", &document.to_string_lossy()], || {
        let used = in_use();
        assert!(used >= Some(3 * 128), "{used:?} huge pages are in use, 128 on each of three hosts are needed");
    });
}

//! Machines on a real QEMU: what is captured is what there was, and what is restored goes on.
//!
//! `MYCELIUM_EPOCHS=2000` makes the long comparisons as long as that; `make test` takes a part.

#[path = "../support/mod.rs"]
mod support;

mod compare;
mod faults;
mod ping;
mod restore;
mod wishes;

use mycelium_endophyte::machine::{Capture, GuestMemory, PAGE};

/// Writes down what a capture holds.
fn apply(capture: &Capture, copy: &GuestMemory) {
    for (page, bytes) in capture.pages.iter() {
        copy.write_page(page, bytes);
    }
}

/// The first page in which the two differ.
fn difference(a: &GuestMemory, b: &GuestMemory) -> Option<u64> {
    const PIECE: usize = 256 * PAGE;
    let (mut left, mut right) = (vec![0; PIECE], vec![0; PIECE]);
    (0..a.len() / PIECE as u64).find_map(|piece| {
        a.copy_range(piece * PIECE as u64, &mut left);
        b.copy_range(piece * PIECE as u64, &mut right);
        let same = |page: &usize| left[page * PAGE..][..PAGE] == right[page * PAGE..][..PAGE];
        if left == right { None } else { (0..256).find(|page| !same(page)).map(|page| piece * 256 + page as u64) }
    })
}

/// Memory for a copy of a guest's.
fn empty_copy(bytes: u64) -> GuestMemory {
    let path = format!("/dev/shm/mycelium-copy-{}-{:?}", std::process::id(), std::thread::current().id());
    GuestMemory::create(path.as_ref(), bytes).unwrap()
}

/// How many epochs a long test makes.
fn epochs(at_least: u64) -> u64 {
    std::env::var("MYCELIUM_EPOCHS").ok().and_then(|number| number.parse().ok()).unwrap_or(at_least)
}

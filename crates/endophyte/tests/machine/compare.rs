//! A copy kept from captures equals the guest's RAM.

use std::time::Duration;

use mycelium_endophyte::disk::Disk;
use mycelium_endophyte::machine::{Checkpointer, Machine, Start};

use crate::support::{Guest, available};
use crate::{apply, difference, empty_copy, epochs};

/// Writes memory and disk for ever, in amounts that change.
const LOAD: &str = r#"
dd if=/dev/urandom of=/tmp/r bs=1M count=8 2>/dev/null
dd if=/dev/zero of=/tmp/z bs=4k count=64 2>/dev/null
(while :; do dd if=/tmp/r of=/dev/vda bs=64k count=16 seek=$((n = (n + 7) % 200)) conv=notrunc 2>/dev/null; dd if=/dev/vda of=/dev/null bs=64k count=64 skip=3 2>/dev/null; done) &
echo READY
n=0
while :; do
  n=$((n + 1))
  cp /tmp/r /tmp/q; dd if=/dev/urandom of=/tmp/z bs=4k count=8 seek=$((n % 64)) conv=notrunc 2>/dev/null
  cmp -s /tmp/r /tmp/q || echo BAD
  echo "n $n"
done
"#;

fn every_epoch_is_whole(cpus: u32) {
    if !available() {
        return;
    }
    let guest = Guest::new("compare", LOAD);
    let mut config = guest.config("a");
    let socket = guest.folder().join("disk.sock");
    let disk = Disk::open(&guest.folder().join("disk"), None, Some(64 << 20)).unwrap();
    let _server = disk.serve(&socket).unwrap();
    (config.cpus, config.disk) = (cpus, Some(socket));
    let mut checkpointer = Checkpointer::new(Machine::start(&config, Start::Running).unwrap()).unwrap();
    let copy = empty_copy(config.memory_bytes);

    // The first passes run while the guest boots.
    for _ in 0..3 {
        loop {
            let part = checkpointer.precopy(4096).unwrap();
            part.pages.iter().for_each(|(page, bytes)| copy.write_page(page, bytes));
            if part.pass_complete {
                break;
            }
        }
    }
    guest.console("a").wait_for("READY");
    let (mut pages, mut most) = (0, 0);
    for epoch in 1..=epochs(120) {
        // Every third time, whole RAM is compared while the guest still stands.
        let compared = epoch % 3 == 0;
        let take = if compared { Checkpointer::capture_and_hold } else { Checkpointer::capture };
        let capture = take(&mut checkpointer, epoch, &mut || ()).unwrap();
        apply(&capture, &copy);
        (pages, most) = (pages + capture.pages.len(), most.max(capture.pages.len()));
        if compared {
            assert_eq!(difference(checkpointer.machine().memory(), &copy), None, "epoch {epoch}");
            checkpointer.machine_mut().cont().unwrap();
        }
        std::thread::sleep(Duration::from_millis(epoch % 5 * 10));
    }
    let said = guest.console("a").text();
    assert!(!said.contains("BAD"), "{said}");
    assert!(pages > 1000 && most > 100, "the guest wrote {pages} pages, at most {most} in an epoch: no load");
}

#[test]
fn a_copy_from_captures_equals_ram_on_one_processor() {
    every_epoch_is_whole(1);
}

#[test]
fn a_copy_from_captures_equals_ram_on_two_processors() {
    every_epoch_is_whole(2);
}

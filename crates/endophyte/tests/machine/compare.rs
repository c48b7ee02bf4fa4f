//! A backup's memory, as it becomes by the epochs that are sent to it, equals the guest's RAM.

use std::time::Duration;

use bytes::Bytes;
use mycelium_endophyte::codec::{EncoderConfig, PageDecoder, PageEncoder};
use mycelium_endophyte::disk::Disk;
use mycelium_endophyte::machine::{Checkpointer, GuestMemory, Machine, Nic as Card, Pages, Start};

use crate::ping::{self, Pinger};
use crate::support::huge_pages::HugePages;
use crate::support::{self, Guest, require_tools};
use crate::{difference, empty_copy, epochs};

/// Writes memory and disk for ever, in amounts that change, and answers whoever pings it.
const LOAD: &str = r#"
ip link set eth0 up; ip addr add 10.0.0.2/24 dev eth0
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

/// A copy that is fed as a backup is: encoded on one side, decoded and applied on the other.
struct Backup {
    encoder: PageEncoder,
    decoder: PageDecoder,
    memory: GuestMemory,
}

impl Backup {
    fn new(memory: GuestMemory) -> Self {
        let pages = memory.pages();
        let config = EncoderConfig { threads: 1, ..EncoderConfig::new(pages, 16 << 20, 7) };
        Self { encoder: PageEncoder::new(config), decoder: PageDecoder::new(pages, 1 << 30), memory }
    }

    /// Sends pages; tells how many bytes that took.
    fn send(&mut self, pages: &Pages) -> usize {
        let section = self.encoder.encode(pages.iter(), u64::MAX).chunks.concat();
        self.decoder.decode(&Bytes::from(section.clone())).unwrap().apply(&mut self.memory).unwrap();
        section.len()
    }
}

fn every_epoch_is_whole(cpus: u32, huge_pages: bool) {
    require_tools();
    let guest = Guest::new("compare", LOAD);
    let mut config = guest.config("a");
    let (disk_socket, card_socket) = (guest.folder().join("disk.sock"), guest.folder().join("card.sock"));
    let disk = Disk::open(&guest.folder().join("disk"), None, Some(64 << 20)).unwrap();
    let _server = disk.serve(&disk_socket).unwrap();
    let (card, pinger) = Pinger::start(&card_socket);
    let mac = ping::GUEST.to_string();
    (config.cpus, config.disk, config.nic) = (cpus, Some(disk_socket), Some(Card { mac, socket: card_socket }));
    config.huge_pages = huge_pages;
    let mut checkpointer = Checkpointer::new(Machine::start(&config, Start::Running).unwrap()).unwrap();
    assert_eq!(checkpointer.machine().memory().is_huge(), huge_pages);
    let mut backup = Backup::new(empty_copy(config.memory_bytes));

    // The first passes run while the guest boots.
    for _ in 0..3 {
        loop {
            let part = checkpointer.precopy(4096).unwrap();
            backup.send(&part.pages);
            if part.pass_complete {
                break;
            }
        }
    }
    guest.console("a").wait_for("READY");
    let (mut pages, mut most, mut bytes) = (0, 0, 0);
    let count = epochs(120);
    for epoch in 1..=count {
        // Two of three times, whole RAM is compared while the guest still stands.
        let compared = epoch % 3 != 0;
        let take = if compared { Checkpointer::capture_and_hold } else { Checkpointer::capture };
        let capture = take(&mut checkpointer, epoch, &mut || _ = card.seal(epoch).unwrap()).unwrap();
        bytes += backup.send(&capture.pages);
        (pages, most) = (pages + capture.pages.len(), most.max(capture.pages.len()));
        if compared {
            assert_eq!(difference(checkpointer.machine().memory(), &backup.memory), None, "epoch {epoch}");
            checkpointer.machine_mut().cont().unwrap();
        }
        card.release(epoch);
        std::thread::sleep(Duration::from_millis(epoch % 5 * 10));
    }
    let said = guest.console("a").text();
    assert!(!said.contains("BAD"), "{said}");
    assert!(pages > 1000 && most > 100, "the guest wrote {pages} pages, at most {most} in an epoch: no load");
    let answers = pinger.answers();
    assert!(answers > 10, "the guest answered {answers} pings: no network load");
    println!("{count} epochs on {cpus} processors: {pages} pages in {bytes} bytes, at most {most}; {answers} pings");
}

#[test]
fn a_copy_from_captures_equals_ram_on_one_processor() {
    every_epoch_is_whole(1, false);
}

#[test]
fn a_copy_from_captures_equals_ram_on_two_processors() {
    every_epoch_is_whole(2, false);
}

#[test]
fn a_copy_from_captures_equals_ram_in_huge_pages() {
    let Some(_pages) = HugePages::set_aside(support::MEMORY) else { return };
    every_epoch_is_whole(2, true);
}

//! A real guest's file system on the disk: through a power cut, and on a replica that was promoted.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use mycelium_endophyte::disk::{Disk, Protection, ReplicaOptions};
use mycelium_endophyte::machine::{Machine, Start};
use mycelium_linux::process::command;

use crate::crash::blank_replica;
use crate::support::{self, Guest};

const SIZE: u64 = 64 << 20;

const SCRIPT: &str = r"
mount -t ext4 /dev/vda /mnt && echo mounted || poweroff -f
[ ! -e /mnt/sums ] || (cd /mnt && sha256sum -c sums >/tmp/out 2>&1 && echo sums are right || cat /tmp/out)
n=0
while :; do
  n=$((n+1))
  dd if=/dev/urandom of=/mnt/file$((n % 40)).new bs=4k count=$((n % 50 + 1)) 2>/dev/null
  rm -f /mnt/sums; mv /mnt/file$((n % 40)).new /mnt/file$((n % 40)); sync
  (cd /mnt && sha256sum file* > sums.new && mv sums.new sums); sync
  echo wrote $n
done
";

fn e2fsprogs(program: &str, args: &[&str], image: &Path) -> String {
    let path = ["/sbin", "/usr/sbin"].map(|folder| Path::new(folder).join(program));
    let path = path.into_iter().find(|path| path.exists());
    let path = path.unwrap_or_else(|| panic!("{program} is missing: run scripts/setup.sh test"));
    let output = command(path).args(args).arg(image).output().unwrap();
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success(), "{program}: {said}");
    said
}

#[test]
fn a_file_system_survives_power_cuts_and_promotion() {
    support::require_tools();
    let guest = Guest::new("disk", SCRIPT);
    let image = guest.folder().join("image");
    std::fs::File::create(&image).unwrap().set_len(SIZE).unwrap();
    e2fsprogs("mkfs.ext4", &["-q", "-F"], &image);
    // An unprotected guest is cut off in the midst of its writing, twice.
    let vm = guest.folder().join("vm");
    let disk = Disk::open(&vm, Some(&image), None).unwrap();
    let socket = guest.folder().join("nbd");
    let server = disk.serve(&socket).unwrap();
    for life in ["a", "b"] {
        let mut config = guest.config(life);
        config.disk = Some(socket.clone());
        let machine = Machine::start(&config, Start::Running).unwrap();
        guest.console(life).wait_for("wrote 5");
        assert!(
            life == "a" || guest.console(life).text().contains("sums are right") || torn(&guest.console(life).text())
        );
        drop(machine);
    }
    // Protected: the replica is a point in time of the running guest's disk, and boots.
    let backup = guest.folder().join("backup");
    let replica = blank_replica(&backup, SIZE, ReplicaOptions::default());
    let mut config = guest.config("c");
    config.disk = Some(socket.clone());
    disk.protect(Protection::new(1, replica.position().unwrap().epoch + 1)).unwrap();
    let first = whole(&disk, replica.position().unwrap().epoch + 1);
    replica.commit(1, &first).unwrap();
    let machine = Machine::start(&config, Start::Running).unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let (stops, seals) = (Arc::clone(&stop), disk.clone());
    let replicating = std::thread::spawn(move || {
        while !stops.load(Ordering::Relaxed) {
            let epoch = seals.seal(replica.position().unwrap().epoch + 1).unwrap();
            replica.commit(1, &epoch).unwrap();
            replica.maintain().unwrap();
            std::thread::sleep(Duration::from_millis(20));
        }
        replica
    });
    guest.console("c").wait_for("wrote 12");
    stop.store(true, Ordering::Relaxed);
    let replica = replicating.join().unwrap();
    drop((machine, server));
    let promoted = replica.into_disk().unwrap();
    let socket = guest.folder().join("nbd2");
    let server = promoted.serve(&socket).unwrap();
    let mut config = guest.config("d");
    config.disk = Some(socket);
    let machine = Machine::start(&config, Start::Running).unwrap();
    guest.console("d").wait_for("wrote 3");
    drop((machine, server));
    drop((promoted, disk));
    // The journal is replayed, and then nothing is wrong.
    for folder in [&vm, &backup] {
        let image = folder.join("disk.raw");
        let _ = command("/sbin/e2fsck").args(["-p"]).arg(&image).output();
        e2fsprogs("e2fsck", &["-f", "-n"], &image);
    }
}

/// Whether the cut came between a file and its sum.
fn torn(said: &str) -> bool {
    said.contains("mounted") && !said.contains("FAILED")
}

/// The disk's whole content as one epoch.
fn whole(disk: &Disk, epoch: u64) -> mycelium_endophyte::disk::DiskEpoch {
    use mycelium_endophyte::disk::{DiskEpoch, Payload, Write};
    let mut epoch = DiskEpoch { epoch, writes: disk.seal(epoch).unwrap().writes };
    let mut content = vec![0; SIZE as usize];
    disk.read(&mut content, 0).unwrap();
    epoch.writes.insert(0, Write { offset: 0, payload: Payload::Data(content.into()) });
    epoch
}

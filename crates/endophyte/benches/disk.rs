//! The block server beside `qemu-nbd`, on the same image and in the same run: `cargo bench -p mycelium-endophyte --bench disk`.
//!
//! `qemu-img bench` is the client and the clock. Each figure is the best of three runs, taken in turns; the image is
//! allocated and in the page cache, so what is compared is the servers and not the medium. `DIR=/somewhere` puts it
//! elsewhere than in the temporary folder.

use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use mycelium_endophyte::disk::{Disk, Protection};
use mycelium_linux::process::command;

const SIZE: u64 = 256 << 20;
const ROUNDS: usize = 3;

/// What is asked of a server.
struct Case {
    name: &'static str,
    block: u64,
    depth: u32,
    count: u64,
    write: bool,
    flush: Option<u32>,
}

const CASES: [Case; 9] = [
    Case { name: "read 4K, 1 at a time", block: 4096, depth: 1, count: 40_000, write: false, flush: None },
    Case { name: "read 4K, 32 at once", block: 4096, depth: 32, count: 100_000, write: false, flush: None },
    Case { name: "read 64K, 16 at once", block: 65536, depth: 16, count: 20_000, write: false, flush: None },
    Case { name: "read 1M, 4 at once", block: 1 << 20, depth: 4, count: 2_000, write: false, flush: None },
    Case { name: "write 4K, 1 at a time", block: 4096, depth: 1, count: 40_000, write: true, flush: None },
    Case { name: "write 4K, 32 at once", block: 4096, depth: 32, count: 100_000, write: true, flush: None },
    Case { name: "write 64K, 16 at once", block: 65536, depth: 16, count: 20_000, write: true, flush: None },
    Case { name: "write 1M, 4 at once", block: 1 << 20, depth: 4, count: 2_000, write: true, flush: None },
    Case { name: "write 4K, flush each 32", block: 4096, depth: 32, count: 4_000, write: true, flush: Some(32) },
];

fn main() {
    let folder = std::env::var_os("DIR").map_or_else(std::env::temp_dir, Into::into);
    let dir = tempfile::tempdir_in(folder).expect("a folder");
    let image = dir.path().join("peer.raw");
    std::fs::write(&image, vec![0xa5; SIZE as usize]).expect("an image");
    let disk = Disk::open(&dir.path().join("vm"), Some(&image), None).expect("a disk");
    let ours = dir.path().join("ours");
    let _server = disk.serve(&ours).expect("a server");
    let peer = dir.path().join("peer");
    let Some(_peer) = qemu_nbd(&image, &peer) else {
        println!("qemu-utils is not installed: nothing to measure with");
        return;
    };
    println!("{:<26}{:>22}{:>22}{:>22}", "", "ours", "ours, recorded", "qemu-nbd");
    for case in &CASES {
        let mut best = [f64::MAX; 3];
        for _ in 0..ROUNDS {
            best[0] = best[0].min(run(case, &ours));
            best[1] = best[1].min(recorded(&disk, || run(case, &ours)));
            best[2] = best[2].min(run(case, &peer));
        }
        let rate = best.map(|seconds| {
            let per_second = case.count as f64 / seconds;
            format!("{:>8.0}/s {:>6.0} MiB/s", per_second, per_second * case.block as f64 / f64::from(1 << 20))
        });
        println!("{:<26}{:>22}{:>22}{:>22}", case.name, rate[0], rate[1], rate[2]);
    }
}

/// Runs `body` while the disk is recorded and sealed 20 times a second.
fn recorded(disk: &Disk, body: impl FnOnce() -> f64) -> f64 {
    disk.protect(Protection::new(1, 1)).expect("recording");
    let stop = Arc::new(AtomicBool::new(false));
    let (sealed, stops) = (disk.clone(), Arc::clone(&stop));
    let sealing = std::thread::spawn(move || {
        for epoch in 1.. {
            if stops.load(Ordering::Relaxed) {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
            drop(sealed.seal(epoch));
        }
    });
    let seconds = body();
    stop.store(true, Ordering::Relaxed);
    sealing.join().expect("the sealing thread");
    disk.unprotect().expect("an end");
    seconds
}

/// One run of `qemu-img bench`, in seconds.
fn run(case: &Case, socket: &Path) -> f64 {
    let export = format!("nbd+unix:///?socket={}", socket.display());
    let mut bench = command("qemu-img");
    bench.args(["bench", "-f", "raw", "-t", "none"]);
    for (option, value) in [("-c", case.count), ("-d", case.depth.into()), ("-s", case.block)] {
        bench.args([option, &value.to_string()]);
    }
    if case.write {
        bench.arg("-w");
    }
    if let Some(flush) = case.flush {
        bench.arg(format!("--flush-interval={flush}"));
    }
    let output = bench.arg(export).output().expect("qemu-img");
    let text = String::from_utf8_lossy(&output.stdout);
    let seconds = text.split("completed in ").nth(1).and_then(|rest| rest.split(' ').next());
    seconds.and_then(|seconds| seconds.parse().ok()).unwrap_or_else(|| {
        panic!("qemu-img bench: {text}{}", String::from_utf8_lossy(&output.stderr));
    })
}

/// A `qemu-nbd` that ends with this value.
struct Peer(Child);

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn qemu_nbd(image: &Path, socket: &Path) -> Option<Peer> {
    let mut server = command("qemu-nbd");
    server.args(["-f", "raw", "--persistent", "--shared=8", "--cache=writeback", "-k"]).args([socket, image]);
    let child = server.stderr(Stdio::inherit()).spawn().ok()?;
    let peer = Peer(child);
    while !socket.exists() {
        std::thread::sleep(Duration::from_millis(10));
    }
    Some(peer)
}

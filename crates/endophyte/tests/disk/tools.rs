//! The block server as QEMU's own tools see it.

use std::path::Path;

use mycelium_endophyte::disk::{Disk, Protection};
use mycelium_linux::process::command;

/// Runs `qemu-img`.
fn qemu_img(args: &[&str]) {
    let output = match command("qemu-img").args(args).output() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            panic!("qemu-img is missing: run scripts/setup.sh test")
        }
        output => output.unwrap(),
    };
    let text = [output.stdout, output.stderr].concat();
    assert!(output.status.success(), "qemu-img {args:?}: {}", String::from_utf8_lossy(&text));
}

/// Bytes with holes, repetitions and noise.
fn image(path: &Path, len: usize) {
    let mut state = 1_u64;
    let mut content = vec![0; len];
    for (at, block) in content.chunks_mut(4096).enumerate() {
        if at % 3 == 0 {
            for byte in block {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                *byte = (state >> 33) as u8;
            }
        }
    }
    std::fs::write(path, content).unwrap();
}

#[test]
fn qemu_img_converts_compares_and_benches() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (raw, qcow2) = (path("in.raw"), path("in.qcow2"));
    image(Path::new(&raw), 8 << 20);
    qemu_img(&["convert", "-f", "raw", "-O", "qcow2", &raw, &qcow2]);
    // A qcow2 image becomes the disk.
    let disk = Disk::open(Path::new(&path("a")), Some(Path::new(&qcow2)), None).unwrap();
    let _server = disk.serve(Path::new(&path("a.sock"))).unwrap();
    let export = format!("nbd+unix:///?socket={}", path("a.sock"));
    qemu_img(&["compare", "-f", "raw", "-F", "raw", &raw, &export]);
    // QEMU fills a blank disk, recorded.
    let disk = Disk::open(Path::new(&path("b")), None, Some(8 << 20)).unwrap();
    disk.protect(Protection { log_max: 256 << 20, ..Protection::new(1, 1) }).unwrap();
    let _server = disk.serve(Path::new(&path("b.sock"))).unwrap();
    let export = format!("nbd+unix:///?socket={}", path("b.sock"));
    qemu_img(&["convert", "-n", "-f", "qcow2", "-O", "raw", &qcow2, &export]);
    qemu_img(&["compare", "-f", "raw", "-F", "raw", &raw, &export]);
    let mut replica = vec![0; 8 << 20];
    crate::nbd::apply(&mut replica, &disk.seal(1).unwrap());
    assert!(replica == std::fs::read(&raw).unwrap());
    for write in [&["-w"][..], &[], &["-w", "--flush-interval=16"]] {
        let args = [&["bench", "-f", "raw", "-c", "2000", "-d", "16", "-s", "4096"][..], write, &[&export]].concat();
        qemu_img(&args);
    }
    disk.unprotect().unwrap();
    qemu_img(&["bench", "-f", "raw", "-c", "500", "-d", "16", "-w", "--flush-interval=16", &export]);
}

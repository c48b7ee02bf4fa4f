//! Turning an image into the raw file that a disk is.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::error::{DiskError, IoContext, Result};

/// What is copied at once, and the size of the holes that are kept.
const CHUNK: usize = 64 * 1024;

/// Writes the content of `image` (raw or qcow2) to the raw sparse file `target`, which appears whole or not at all.
pub(super) fn import(image: &Path, target: &Path) -> Result<()> {
    let part = target.with_extension("part");
    if is_qcow2(image)? {
        convert(image, &part)?;
    } else {
        copy_sparse(image, &part)?;
    }
    let file = File::options().write(true).open(&part).on("open", &part)?;
    let size = file.metadata().on("inspect", &part)?.len();
    file.set_len(size.next_multiple_of(512)).on("grow", &part)?;
    file.sync_all().on("sync", &part)?;
    fs::rename(&part, target).on("create", target)?;
    sync_folder(target)
}

/// Makes the names in the file's folder durable.
pub(super) fn sync_folder(file: &Path) -> Result<()> {
    let folder = file.parent().unwrap_or(Path::new("."));
    File::open(folder).and_then(|folder| folder.sync_all()).on("sync", folder)
}

fn is_qcow2(image: &Path) -> Result<bool> {
    let mut magic = [0; 4];
    let mut file = File::open(image).on("open", image)?;
    match file.read_exact(&mut magic) {
        Ok(()) => Ok(magic == *b"QFI\xfb"),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error).on("read", image),
    }
}

fn convert(image: &Path, target: &Path) -> Result<()> {
    let failed = |reason: String| DiskError::Convert { image: image.to_owned(), reason };
    let output = mycelium_linux::process::command("qemu-img")
        .args(["convert", "-f", "qcow2", "-O", "raw", "--"])
        .args([image, target])
        .output()
        .map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => failed("qemu-img is not installed (Debian: apt install qemu-utils)".into()),
            _ => failed(error.to_string()),
        })?;
    if output.status.success() {
        return Ok(());
    }
    let _ = fs::remove_file(target);
    Err(failed(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
}

fn copy_sparse(image: &Path, target: &Path) -> Result<()> {
    let mut from = File::open(image).on("open", image)?;
    let to = File::create(target).on("create", target)?;
    let mut buffer = vec![0; CHUNK];
    let mut at = 0;
    loop {
        let read = from.read(&mut buffer).on("read", image)?;
        if read == 0 {
            break;
        }
        if buffer[..read].iter().any(|byte| *byte != 0) {
            to.write_all_at(&buffer[..read], at).on("write", target).inspect_err(|_| drop(fs::remove_file(target)))?;
        }
        at += read as u64;
    }
    to.set_len(at).on("grow", target)
}

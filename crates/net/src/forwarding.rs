//! Forwarding on the interfaces towards the world: switched on while an instance lives, off again with the last one.
//!
//! Only interfaces are touched, never the machine-wide switch. What was changed is noted in one small file per network
//! namespace under `/run`, which goes with the settings at a reboot.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::config::Names;
use crate::link::Link;

const NOTES: &str = "/run/mycelium-net";

/// Switches forwarding on for every interface towards the world that has it off.
pub fn enable(links: &[Link]) -> io::Result<()> {
    let off = links.iter().filter(|link| !link.forwarding).map(|link| link.name.as_str());
    let off: Vec<&str> = off.filter(|name| faces_outside(name)).collect();
    if off.is_empty() {
        return Ok(());
    }
    let (mut file, mut noted) = open_notes()?;
    for name in off {
        if noted.insert(name.to_owned()) {
            writeln!(file, "{name}")?;
        }
        switch(name, "1")?;
    }
    Ok(())
}

/// Switches off again what [`enable`] switched on. To be called when no instance is left.
pub fn restore() -> io::Result<()> {
    if !notes_path()?.exists() {
        return Ok(());
    }
    let (_lock, noted) = open_notes()?;
    for name in noted {
        switch(&name, "0")?;
    }
    fs::remove_file(notes_path()?)?;
    // Fails while another network namespace has notes of its own.
    let _ = fs::remove_dir(NOTES);
    Ok(())
}

fn faces_outside(name: &str) -> bool {
    name != "lo" && Names::instance_of_anchor(name).is_none() && !is_pod_end(name)
}

/// Whether this is the host's end of a pod's pair or of a node's link, of any instance.
fn is_pod_end(name: &str) -> bool {
    name.get(2..8).is_some_and(|id| Names::new(id).owns(name))
}

/// Sets the switch of an interface that may have gone. The file also ends receive offloads that break forwarding.
fn switch(name: &str, value: &str) -> io::Result<()> {
    match fs::write(Path::new("/proc/sys/net/ipv4/conf").join(name).join("forwarding"), value) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

fn notes_path() -> io::Result<PathBuf> {
    let namespace = fs::metadata("/proc/thread-self/ns/net")?.ino();
    Ok(Path::new(NOTES).join(format!("forwarding-{namespace}")))
}

/// The notes, locked until the file is dropped, with their present content.
fn open_notes() -> io::Result<(File, BTreeSet<String>)> {
    let path = notes_path()?;
    let mut file = loop {
        fs::create_dir_all(NOTES)?;
        match File::options().create(true).read(true).append(true).open(&path) {
            // Another instance's teardown has just removed the directory.
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            other => break other?,
        }
    };
    file.lock()?;
    file.rewind()?;
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    Ok((file, text.lines().map(str::to_owned).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_foreign_interfaces_face_outside() {
        assert!(faces_outside("eth0") && faces_outside("myeth0"));
        assert!(!faces_outside("lo") && !faces_outside("mya1b2c3gw") && !faces_outside("mya1b2c30002"));
    }
}

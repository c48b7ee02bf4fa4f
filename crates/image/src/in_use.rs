//! Which layers are mounted right now, by anyone on this machine.
//!
//! Asked of the kernel rather than remembered: it holds across restarts, crashes and other processes.

use std::collections::BTreeSet;
use std::fs;

use crate::error::Result;
use crate::index::Index;
use crate::store::{Image, Images, layer_name};

impl Images {
    /// Whether a container runs on this image.
    pub fn in_use(&self, image: &Image) -> Result<bool> {
        let mounted = self.mounted_layers(&*self.index()?);
        Ok(image.layers.last().is_some_and(|top| mounted.contains(layer_name(top))))
    }

    /// The layers of the index that are mounted.
    pub(crate) fn mounted_layers(&self, index: &Index) -> BTreeSet<String> {
        mounted_among(&self.layers_by_name(index).into_keys().collect())
    }
}

/// Which of these layer folders the overlay mounts of all mount namespaces name.
pub(crate) fn mounted_among(names: &BTreeSet<String>) -> BTreeSet<String> {
    let mut mounted = BTreeSet::new();
    for table in mount_tables() {
        for line in table.lines().filter(|line| line.contains(" - overlay ")) {
            mounted.extend(names.iter().filter(|name| line.contains(name.as_str())).cloned());
        }
    }
    mounted
}

/// One mount table per mount namespace that has a process.
fn mount_tables() -> Vec<String> {
    let mut seen = BTreeSet::new();
    let mut tables = Vec::new();
    let Ok(processes) = fs::read_dir("/proc") else { return tables };
    for process in processes.flatten() {
        if !process.file_name().as_encoded_bytes().iter().all(u8::is_ascii_digit) {
            continue;
        }
        // A process may end while it is looked at.
        let Ok(namespace) = fs::read_link(process.path().join("ns/mnt")) else { continue };
        if seen.insert(namespace)
            && let Ok(table) = fs::read_to_string(process.path().join("mountinfo"))
        {
            tables.push(table);
        }
    }
    tables
}

//! What may go: images nobody wants, and content no image names.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::Duration;

use crate::digest::Digest;
use crate::error::{Context, Result};
use crate::in_use::mounted_among;
use crate::index::Index;
use crate::store::{Image, Images, layer_name};

/// A download that nobody continued for this long is thrown away.
const PARTIAL_KEPT: Duration = Duration::from_secs(24 * 3600);

/// Which images to remove. Images in the keep set or under a running container always stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PrunePolicy {
    /// Those without a name.
    Dangling,
    /// All.
    Unused,
    /// The longest unused, and only when the disk is fuller than `high_percent`, until it is at `low_percent`.
    /// Those that were loaded by hand stay: no registry could give them back.
    DiskPressure {
        /// Start above this use of the file system.
        high_percent: u8,
        /// Stop at this use.
        low_percent: u8,
        /// Leave alone what was used less than this ago.
        min_age: Duration,
    },
}

/// What a prune removed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pruned {
    /// Names of the images.
    pub images: Vec<String>,
    /// Bytes of unpacked files freed.
    pub bytes: u64,
}

impl Images {
    /// Removes images by `policy`, except those that `keep` names (references or digests), and content without image.
    pub fn prune(&self, keep: &BTreeSet<String>, policy: PrunePolicy) -> Result<Pruned> {
        let mut kept = BTreeSet::new();
        for name in keep {
            kept.extend(self.resolve(name).ok().flatten().map(|image| image.digest));
        }
        let mut pruned = Pruned::default();
        for image in self.candidates(&kept, policy)? {
            if let PrunePolicy::DiskPressure { low_percent, .. } = policy
                && self.disk_percent()? <= f64::from(low_percent)
            {
                break;
            }
            self.change(|index| index.images.remove(&image.digest))?;
            pruned.images.push(image.name());
            pruned.bytes += self.sweep()?;
        }
        pruned.bytes += self.sweep()?;
        Ok(pruned)
    }

    /// How full the store's file system is.
    pub fn disk_percent(&self) -> Result<f64> {
        let stat = rustix::fs::statvfs(self.dir()).at("read", self.dir())?;
        let used = stat.f_blocks.saturating_sub(stat.f_bfree) as f64;
        let usable = used + stat.f_bavail as f64;
        Ok(if usable > 0.0 { used * 100.0 / usable } else { 0.0 })
    }

    /// What the policy may remove, longest unused first.
    fn candidates(&self, kept: &BTreeSet<Digest>, policy: PrunePolicy) -> Result<Vec<Image>> {
        let index = self.index()?;
        let newest = match policy {
            PrunePolicy::DiskPressure { high_percent, .. } if self.disk_percent()? < f64::from(high_percent) => {
                return Ok(Vec::new());
            }
            PrunePolicy::DiskPressure { min_age, .. } => self.now()? - min_age.as_secs() as i64,
            _ => i64::MAX,
        };
        let mounted = self.mounted_layers(&index);
        let mut images: Vec<_> = index
            .images
            .values()
            .filter(|image| !kept.contains(&image.digest))
            .filter(|image| !image.layers.iter().any(|layer| mounted.contains(layer_name(layer))))
            .filter(|image| match policy {
                PrunePolicy::Dangling => image.tags.is_empty() && image.repo_digests.is_empty(),
                PrunePolicy::Unused => true,
                PrunePolicy::DiskPressure { .. } => !image.loaded_by_hand && self.last_used(image) <= newest,
            })
            .map(|image| (self.last_used(image), image.clone()))
            .collect();
        images.sort_by_key(|(used, image)| (*used, image.digest.clone()));
        Ok(images.into_iter().map(|(_, image)| image).collect())
    }

    /// Removes content that no image names, unless somebody is adding some: then the next prune does it.
    /// Mounted layers stay until their container is gone.
    pub(crate) fn sweep(&self) -> Result<u64> {
        let Some(_removing) = self.removing()? else { return Ok(0) };
        let index = self.index()?;
        self.sweep_blobs(&index)?;
        self.sweep_partial()?;
        self.sweep_layers(&index)
    }

    fn sweep_layers(&self, index: &Index) -> Result<u64> {
        let directory = self.layers_dir();
        let wanted = self.layers_by_name(index);
        let mut freed = 0;
        let unnamed = unnamed_layers(&directory, &wanted.into_keys().collect())?;
        if unnamed.is_empty() {
            return Ok(0);
        }
        let mounted = mounted_among(&unnamed);
        for name in unnamed.difference(&mounted) {
            let description = directory.join(format!("{name}.json"));
            if let Ok(bytes) = fs::read(&description)
                && let Ok(layer) = serde_json::from_slice::<crate::store::Layer>(&bytes)
            {
                freed += layer.size;
            }
            // The description goes first: a folder without one counts as incomplete.
            remove_file(&description)?;
            remove_tree(&directory.join(name))?;
        }
        Ok(freed)
    }

    fn sweep_blobs(&self, index: &Index) -> Result<()> {
        let wanted: BTreeSet<_> =
            index.images.values().flat_map(|image| [image.digest.hex(), image.id.hex()]).collect();
        for name in names_in(&self.blob_dir())?.iter().filter(|name| !wanted.contains(name.as_str())) {
            remove_file(&self.blob_dir().join(name))?;
        }
        Ok(())
    }

    fn sweep_partial(&self) -> Result<()> {
        let now = self.now()?;
        for name in names_in(&self.ingest_dir())? {
            let path = self.ingest_dir().join(name);
            let age = fs::metadata(&path).map_or(0, |data| now - std::os::unix::fs::MetadataExt::mtime(&data));
            if age > PARTIAL_KEPT.as_secs() as i64 {
                remove_file(&path)?;
            }
        }
        Ok(())
    }

    /// The time by the file system's clock, which is the one that last uses are measured with.
    fn now(&self) -> Result<i64> {
        let data = self.temporary_file()?.metadata().at("read", self.ingest_dir())?;
        Ok(std::os::unix::fs::MetadataExt::mtime(&data))
    }
}

/// The layer folders (complete, incomplete and temporary) that no image names.
fn unnamed_layers(directory: &Path, wanted: &BTreeSet<String>) -> Result<BTreeSet<String>> {
    let mut names: BTreeSet<String> =
        names_in(directory)?.into_iter().map(|name| name.trim_end_matches(".json").to_owned()).collect();
    names.retain(|name| name != "empty" && !wanted.contains(name));
    Ok(names)
}

fn names_in(directory: &Path) -> Result<Vec<String>> {
    let entries = fs::read_dir(directory).at("read", directory)?;
    Ok(entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect())
}

fn remove_file(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error).at("remove", path),
        _ => Ok(()),
    }
}

fn remove_tree(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error).at("remove", path),
        _ => Ok(()),
    }
}

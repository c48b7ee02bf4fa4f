//! The index file: which names stand for which images.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::error::{Context, Error, Result};
use crate::reference::Reference;
use crate::store::Image;

/// All images, by the digest of their manifest.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Index {
    pub images: BTreeMap<Digest, Image>,
}

/// The index file as it was read last. Each version is a new inode, and its number is not given to another file while
/// this one is held open.
pub(crate) struct Known {
    file: File,
    inode: u64,
    index: Arc<Index>,
}

impl Known {
    /// Reads the index; none if there is no such file.
    pub(crate) fn read(path: &Path) -> Result<Option<Self>> {
        let mut file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).at("read", path),
        };
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).at("read", path)?;
        let inode = file.metadata().at("read", path)?.ino();
        Ok(Some(Self { file, inode, index: Arc::new(Index::parse(path, &bytes)?) }))
    }

    /// What it says, if the file is still the one that was read.
    pub(crate) fn current(&self, path: &Path) -> Option<Arc<Index>> {
        let there = fs::metadata(path).ok()?;
        let same = there.ino() == self.inode && self.file.metadata().is_ok_and(|data| data.dev() == there.dev());
        same.then(|| Arc::clone(&self.index))
    }

    /// What it says.
    pub(crate) fn index(&self) -> Arc<Index> {
        Arc::clone(&self.index)
    }
}

impl Index {
    /// Reads the index; a missing file is an empty index.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        match fs::read(path) {
            Ok(bytes) => Self::parse(path, &bytes),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(error).at("read", path),
        }
    }

    fn parse(path: &Path, bytes: &[u8]) -> Result<Self> {
        serde_json::from_slice(bytes).map_err(|source| Error::Index { path: path.to_path_buf(), source })
    }

    /// The image a name stands for.
    pub(crate) fn find(&self, reference: &Reference) -> Option<&Image> {
        let key = reference.key();
        self.images.values().find(|image| match reference.digest() {
            Some(_) => image.repo_digests.contains(&key),
            None => image.tags.contains(&key),
        })
    }

    /// The image whose manifest or configuration has this digest.
    pub(crate) fn find_digest(&self, digest: &Digest) -> Option<&Image> {
        self.images.get(digest).or_else(|| self.images.values().find(|image| image.id == *digest))
    }

    /// Adds an image, or more names for one that is there. A name stands for one image only: the last one given it.
    pub(crate) fn insert(&mut self, image: Image) -> Image {
        for other in self.images.values_mut().filter(|other| other.digest != image.digest) {
            other.tags.retain(|tag| !image.tags.contains(tag));
        }
        let entry = self.images.entry(image.digest.clone());
        let merged = entry.or_insert_with(|| Image { tags: Vec::new(), repo_digests: Vec::new(), ..image.clone() });
        for (all, new) in [(&mut merged.tags, &image.tags), (&mut merged.repo_digests, &image.repo_digests)] {
            all.extend(new.iter().cloned());
            all.sort();
            all.dedup();
        }
        // What was made by hand stays so even when a registry has the same bytes: nothing can tell the two apart.
        merged.loaded_by_hand |= image.loaded_by_hand;
        merged.clone()
    }
}

/// Writes a file so that after a crash either the old or the new content is there.
pub(crate) fn write_atomically(directory: &Path, name: &str, bytes: &[u8]) -> Result<()> {
    let path = directory.join(name);
    let mut file = tempfile::Builder::new().prefix(".tmp-").tempfile_in(directory).at("write", &path)?;
    file.write_all(bytes).and_then(|()| file.as_file().sync_all()).at("write", &path)?;
    file.persist(&path).at("write", &path)?;
    sync_directory(directory)
}

/// Makes renames within `directory` durable.
pub(crate) fn sync_directory(directory: &Path) -> Result<()> {
    File::open(directory).and_then(|file| file.sync_all()).at("write", directory)
}

//! [`Images`]: the store's folder and what is in it.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use crate::config::{ConfigDocument, ImageConfig, chain_ids};
use crate::digest::{Digest, Hashing};
use crate::error::{Context, Error, Result};
use crate::index::{Index, Known, sync_directory, write_atomically};
use crate::lock::{self, Lock};
use crate::pull::Pulls;
use crate::reference::Reference;
use crate::unpack::{self, Limits};

/// How much of a chain id names its folder: 128 bits keep the list of lower directories of a mount short.
const LAYER_NAME_DIGITS: usize = 32;

/// An image of the store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Image {
    /// The digest of the manifest: what `name@sha256:...` means.
    pub digest: Digest,
    /// The digest of the configuration: what Docker calls the image id.
    pub id: Digest,
    /// Full names with tag, sorted; empty once every tag moved on to another image.
    pub tags: Vec<String>,
    /// Full names with digest under which the image was pulled, sorted.
    pub repo_digests: Vec<String>,
    /// How to run it.
    pub config: ImageConfig,
    /// The chain ids of its layers, bottom first.
    pub layers: Vec<Digest>,
    /// Bytes of its unpacked files.
    pub size: u64,
    /// When its builder says it was made (RFC 3339).
    pub created: Option<String>,
    /// It came by `load` or `import`, not from a registry.
    pub loaded_by_hand: bool,
    /// When it came into the store, in seconds since 1970.
    pub added: i64,
}

impl Image {
    /// A name for messages: the first tag, else the first digest name, else the digest.
    pub fn name(&self) -> String {
        self.tags.first().or(self.repo_digests.first()).cloned().unwrap_or_else(|| self.digest.to_string())
    }
}

/// The store. Cheap to clone; usable from many threads and processes at once.
#[derive(Clone)]
pub struct Images {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    dir: PathBuf,
    cache: Mutex<Option<Known>>,
    pub(crate) pulls: Pulls,
}

/// A complete unpacked layer, as its file says.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Layer {
    pub chain: Digest,
    pub diff: Digest,
    pub size: u64,
}

impl std::fmt::Debug for Images {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Images").field(&self.inner.dir).finish()
    }
}

impl Images {
    /// Opens the store in `dir`, and makes it if there is none.
    pub fn open(dir: impl Into<PathBuf>) -> Result<Self> {
        let dir = dir.into();
        for part in ["blobs/sha256", "layers", "ingest"] {
            let path = dir.join(part);
            fs::DirBuilder::new().recursive(true).mode(0o700).create(&path).at("make", &path)?;
        }
        let images = Self { inner: Arc::new(Inner { dir, cache: Mutex::default(), pulls: Pulls::default() }) };
        images.index()?;
        Ok(images)
    }

    /// All images, by name.
    pub fn list(&self) -> Result<Vec<Image>> {
        let mut images: Vec<_> = self.index()?.images.values().cloned().collect();
        images.sort_by_key(Image::name);
        Ok(images)
    }

    /// The image a name stands for: a reference, a digest (of manifest or configuration), or 12 and more of its digits.
    pub fn resolve(&self, name: &str) -> Result<Option<Image>> {
        let index = self.index()?;
        if let Ok(digest) = name.parse::<Digest>() {
            return Ok(index.find_digest(&digest).cloned());
        }
        if let Some(image) = name.parse::<Reference>().ok().and_then(|reference| index.find(&reference)) {
            return Ok(Some(image.clone()));
        }
        if name.len() >= 12 && name.bytes().all(|b| b.is_ascii_hexdigit()) {
            let begins = |image: &&Image| image.id.hex().starts_with(name) || image.digest.hex().starts_with(name);
            return Ok(index.images.values().find(begins).cloned());
        }
        name.parse::<Reference>()?;
        Ok(None)
    }

    /// The directories to mount, topmost first as overlayfs takes them. Also marks the image as used now.
    pub fn lowerdirs(&self, image: &Image) -> Result<Vec<PathBuf>> {
        let mut directories = Vec::with_capacity(image.layers.len().max(1));
        for chain in image.layers.iter().rev() {
            let directory = self.layer_dir(chain);
            if !directory.is_dir() {
                let error = io::Error::new(io::ErrorKind::NotFound, "pull or load the image again");
                return Err(error).at("find layer", &directory);
            }
            directories.push(directory);
        }
        if directories.is_empty() {
            directories.push(self.empty_layer()?);
        }
        let manifest = self.blob_path(&image.digest);
        if let Ok(file) = File::open(&manifest) {
            let now = rustix::fs::Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_NOW };
            let _ = rustix::fs::futimens(&file, &rustix::fs::Timestamps { last_access: now, last_modification: now });
        }
        Ok(directories)
    }

    /// Takes a name off; the image goes with its last name. Returns how many bytes that freed.
    ///
    /// An image that a container uses is refused; `force` drops its name and leaves the layers to a later prune.
    pub fn remove(&self, name: &str, force: bool) -> Result<u64> {
        let image = self.resolve(name)?.ok_or_else(|| Error::NotFound { name: name.to_owned() })?;
        let key = name.parse::<Reference>().ok().map(|reference| reference.key());
        let is_name = key.as_ref().is_some_and(|key| image.tags.contains(key) || image.repo_digests.contains(key));
        let last = !is_name || (image.tags.len() == 1 && image.tags.first() == key.as_ref()) || image.tags.is_empty();
        if last && !force && self.in_use(&image)? {
            return Err(Error::InUse { name: name.to_owned() });
        }
        self.change(|index| {
            let Some(entry) = index.images.get_mut(&image.digest) else { return };
            entry.tags.retain(|tag| Some(tag) != key.as_ref());
            if last || entry.tags.is_empty() {
                index.images.remove(&image.digest);
            }
        })?;
        self.sweep()
    }

    /// Gives an image another name.
    pub fn tag(&self, name: &str, new: &str) -> Result<Image> {
        let image = self.resolve(name)?.ok_or_else(|| Error::NotFound { name: name.to_owned() })?;
        let key = new.parse::<Reference>()?.key();
        self.change(|index| index.insert(Image { tags: vec![key], ..image }))
    }

    /// The store's folder.
    pub fn dir(&self) -> &Path {
        &self.inner.dir
    }

    /// The index, read again only when it changed.
    pub(crate) fn index(&self) -> Result<Arc<Index>> {
        let path = self.inner.dir.join("index.json");
        let mut cache = self.inner.cache.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(index) = cache.as_ref().and_then(|known| known.current(&path)) {
            return Ok(index);
        }
        *cache = Known::read(&path)?;
        Ok(cache.as_ref().map(Known::index).unwrap_or_default())
    }

    /// Changes the index under its lock, durably.
    pub(crate) fn change<T>(&self, edit: impl FnOnce(&mut Index) -> T) -> Result<T> {
        let _lock = lock::exclusive(&self.inner.dir.join("index.lock"))?;
        let mut index = Index::read(&self.inner.dir.join("index.json"))?;
        let result = edit(&mut index);
        let bytes = serde_json::to_vec_pretty(&index).map_err(io::Error::from).at("write", &self.inner.dir)?;
        write_atomically(&self.inner.dir, "index.json", &bytes)?;
        Ok(result)
    }

    /// Held while content is added, so that no prune takes away what no image names yet.
    pub(crate) fn adding(&self) -> Result<Lock> {
        lock::shared(&self.inner.dir.join("content.lock"))
    }

    /// Held while content is removed; none while somebody adds.
    pub(crate) fn removing(&self) -> Result<Option<Lock>> {
        lock::try_exclusive(&self.inner.dir.join("content.lock"))
    }

    /// A new temporary file in the store.
    pub(crate) fn temporary_file(&self) -> Result<File> {
        tempfile::tempfile_in(self.ingest_dir()).at("write", self.ingest_dir())
    }

    pub(crate) fn ingest_dir(&self) -> PathBuf {
        self.inner.dir.join("ingest")
    }

    pub(crate) fn blob_dir(&self) -> PathBuf {
        self.inner.dir.join("blobs/sha256")
    }

    pub(crate) fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.blob_dir().join(digest.hex())
    }

    pub(crate) fn layers_dir(&self) -> PathBuf {
        self.inner.dir.join("layers")
    }

    pub(crate) fn layer_dir(&self, chain: &Digest) -> PathBuf {
        self.layers_dir().join(layer_name(chain))
    }

    /// What is known of a complete layer.
    pub(crate) fn layer(&self, chain: &Digest) -> Option<Layer> {
        let bytes = fs::read(self.layers_dir().join(format!("{}.json", layer_name(chain)))).ok()?;
        serde_json::from_slice::<Layer>(&bytes).ok().filter(|layer| layer.chain == *chain)
    }

    fn empty_layer(&self) -> Result<PathBuf> {
        let path = self.layers_dir().join("empty");
        match fs::create_dir(&path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error).at("make", &path),
            _ => Ok(path),
        }
    }

    /// Stores a manifest or configuration.
    pub(crate) fn put_blob(&self, bytes: &[u8]) -> Result<Digest> {
        let digest = Digest::of(bytes);
        if !self.blob_path(&digest).exists() {
            write_atomically(&self.blob_dir(), digest.hex(), bytes)?;
        }
        Ok(digest)
    }

    /// Unpacks one layer on top of `parents` (chain ids, bottom first), unless it is there already.
    /// `diff` is the digest that the uncompressed tar must have; an imported one has none to hold it to.
    pub(crate) fn add_layer(
        &self,
        content: impl io::Read,
        parents: &[Digest],
        diff: Option<&Digest>,
        what: &str,
    ) -> Result<Layer> {
        let layers = self.layers_dir();
        let temporary = tempfile::Builder::new().prefix(".tmp-").tempdir_in(&layers).at("write", &layers)?;
        let root = temporary.path().join("root");
        fs::create_dir(&root).at("make", &root)?;
        fs::set_permissions(&root, fs::Permissions::from_mode(0o755)).at("change", &root)?;

        let failed = |source| Error::Unpack { layer: what.to_owned(), source };
        let mut reader = Hashing::new(unpack::decompress(content).map_err(|e| failed(e.into()))?);
        let lowers: Vec<_> = parents.iter().rev().map(|chain| self.layer_dir(chain)).collect();
        let size = unpack::unpack(&mut reader, &root, &lowers, &Limits::default()).map_err(failed)?;
        let found = reader.digest();
        if let Some(expected) = diff.filter(|expected| **expected != found) {
            let (expected, found) = (expected.to_string(), found.to_string());
            return Err(Error::Corrupt { what: format!("layer {what}"), expected, found });
        }
        let chain = match parents.last() {
            Some(parent) => Digest::of(format!("{parent} {found}").as_bytes()),
            None => found.clone(),
        };
        let layer = Layer { chain, diff: found, size };
        self.finish_layer(&root, &layer)?;
        Ok(layer)
    }

    /// Gives an unpacked layer its place. Two who unpacked the same one meet here: the first wins.
    fn finish_layer(&self, root: &Path, layer: &Layer) -> Result<()> {
        let layers = self.layers_dir();
        let place = self.layer_dir(&layer.chain);
        rustix::fs::syncfs(File::open(root).at("open", root)?).at("write", root)?;
        let _lock = lock::exclusive(&self.inner.dir.join("index.lock"))?;
        if self.layer(&layer.chain).is_some() && place.is_dir() {
            return Ok(());
        }
        if place.exists() {
            fs::remove_dir_all(&place).at("remove", &place)?;
        }
        fs::rename(root, &place).at("move", &place)?;
        sync_directory(&layers)?;
        let bytes = serde_json::to_vec(layer).map_err(io::Error::from).at("write", &place)?;
        write_atomically(&layers, &format!("{}.json", layer_name(&layer.chain)), &bytes)
    }

    /// Puts an image whose layers are all unpacked into the index.
    pub(crate) fn commit(&self, names: &Names, manifest: &[u8], config: &[u8], by_hand: bool) -> Result<Image> {
        let document = ConfigDocument::parse(config, "the image")?;
        let layers = chain_ids(&document.rootfs.diff_ids);
        let size = layers.iter().filter_map(|chain| self.layer(chain)).map(|layer| layer.size).sum();
        let digest = self.put_blob(manifest)?;
        let id = self.put_blob(config)?;
        let added = fs::metadata(self.blob_path(&digest)).at("read", self.blob_path(&digest))?.mtime();
        let image = Image {
            digest,
            id,
            tags: names.tags.clone(),
            repo_digests: names.repo_digests.clone(),
            config: document.config,
            layers,
            size,
            created: document.created,
            loaded_by_hand: by_hand,
            added,
        };
        self.change(|index| index.insert(image))
    }

    /// When an image was last mounted or added, in seconds since 1970.
    pub(crate) fn last_used(&self, image: &Image) -> i64 {
        fs::metadata(self.blob_path(&image.digest)).map_or(image.added, |data| data.mtime())
    }

    /// All complete layers by folder name.
    pub(crate) fn layers_by_name(&self, index: &Index) -> BTreeMap<String, Digest> {
        index
            .images
            .values()
            .flat_map(|i| &i.layers)
            .map(|chain| (layer_name(chain).to_owned(), chain.clone()))
            .collect()
    }
}

/// The names an image gets.
#[derive(Clone, Debug, Default)]
pub(crate) struct Names {
    pub tags: Vec<String>,
    pub repo_digests: Vec<String>,
}

pub(crate) fn layer_name(chain: &Digest) -> &str {
    &chain.hex()[..LAYER_NAME_DIGITS]
}

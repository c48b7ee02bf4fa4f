//! Images from archives made elsewhere: an OCI layout (folder or tar) or the output of `docker save`; the tars may be
//! compressed.

mod archive;

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

use serde::Deserialize;

use crate::config::{
    ConfigDocument, DOCUMENT_BYTES_MAX, Descriptor, Document, Manifest, OCI_LAYER, chain_ids, platforms,
    select_platform,
};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::import::{tag_of, to_json};
use crate::store::{Image, Images, Names};

use archive::Archive;

/// The tag that an OCI layout gives a manifest, and the full name that containerd and Docker give it.
const REF_NAME: &str = "org.opencontainers.image.ref.name";
const FULL_NAME: &str = "io.containerd.image.name";

/// One image of `docker save`'s manifest.json.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

#[derive(Deserialize)]
struct Layout {
    manifests: Vec<Descriptor>,
}

impl Images {
    /// Loads all images of an archive. `name` names the image of an archive that does not do so itself.
    pub fn load(&self, path: &Path, name: Option<&str>) -> Result<Vec<Image>> {
        self.load_archive(&Archive::open(path, || self.temporary_file())?, name)
    }

    /// Loads all images of an archive that is read once, from a pipe for instance.
    pub fn load_reader(&self, reader: impl Read, name: Option<&str>) -> Result<Vec<Image>> {
        self.load_archive(&Archive::from_reader(reader, || self.temporary_file())?, name)
    }

    fn load_archive(&self, archive: &Archive, name: Option<&str>) -> Result<Vec<Image>> {
        let _adding = self.adding()?;
        // Docker writes both descriptions; only its own has all names.
        if archive.has("manifest.json") {
            let list: Vec<DockerImage> = archive.json("manifest.json")?;
            list.iter().map(|image| self.load_docker(archive, image, name)).collect()
        } else if archive.has("index.json") {
            self.load_layout(archive, name)
        } else {
            Err(archive.refused("it holds neither index.json nor manifest.json"))
        }
    }

    fn load_docker(&self, archive: &Archive, image: &DockerImage, name: Option<&str>) -> Result<Image> {
        let tags = match (name, image.repo_tags.as_deref()) {
            (Some(name), _) => vec![tag_of(name)?],
            (None, Some(tags)) if !tags.is_empty() => tags.iter().map(|tag| tag_of(tag)).collect::<Result<_>>()?,
            _ => return Err(archive.unnamed()),
        };
        let what = format!("image {}", tags[0]);
        let config = archive.read(&image.config, DOCUMENT_BYTES_MAX)?;
        let document = ConfigDocument::parse(&config, &what)?;
        self.add_layers(&document, image.layers.len(), &what, |layer| archive.content(&image.layers[layer]))?;
        let layers = document.rootfs.diff_ids.iter().zip(chain_ids(&document.rootfs.diff_ids));
        let layers = layers.map(|(diff, chain)| {
            Descriptor::new(OCI_LAYER, diff.clone(), self.layer(&chain).map_or(0, |layer| layer.size))
        });
        let manifest = to_json(&Manifest::new(&config, layers.collect()))?;
        self.commit(&Names { tags, ..Names::default() }, &manifest, &config, true)
    }

    fn load_layout(&self, archive: &Archive, name: Option<&str>) -> Result<Vec<Image>> {
        let layout: Layout = archive.json("index.json")?;
        let mut groups: BTreeMap<Option<String>, Vec<Descriptor>> = BTreeMap::new();
        for descriptor in layout.manifests {
            groups.entry(tag_in_layout(&descriptor, name)).or_default().push(descriptor);
        }
        if groups.is_empty() {
            return Err(archive.refused("its index.json lists no image"));
        }
        groups.iter().map(|(tag, manifests)| self.load_manifest(archive, tag.as_deref().or(name), manifests)).collect()
    }

    fn load_manifest(&self, archive: &Archive, tag: Option<&str>, manifests: &[Descriptor]) -> Result<Image> {
        let tag = tag.ok_or_else(|| archive.unnamed())?;
        let what = format!("image {tag}");
        let mut manifests = manifests.to_vec();
        // An index may hold an index; deeper than this nobody nests.
        for _ in 0..4 {
            let Some(chosen) = select_platform(&manifests) else {
                let reason = format!("it is made for {}, not for this machine", platforms(&manifests));
                return Err(Error::Document { what, reason });
            };
            let bytes = archive.blob(&chosen.digest)?;
            match Document::parse(&bytes, &what)? {
                Document::Index(inner) => manifests = inner,
                Document::Manifest(manifest) => {
                    let config = archive.blob(&manifest.config.digest)?;
                    let document = ConfigDocument::parse(&config, &what)?;
                    self.add_layers(&document, manifest.layers.len(), &what, |layer| {
                        archive.content(&archive::blob_name(&manifest.layers[layer].digest))
                    })?;
                    let names = Names { tags: vec![tag_of(tag)?], ..Names::default() };
                    return self.commit(&names, &bytes, &config, true);
                }
            }
        }
        Err(Error::Document { what, reason: "its index is nested too deeply".to_owned() })
    }

    /// Unpacks those layers that are not there yet.
    fn add_layers<'a>(
        &self,
        document: &ConfigDocument,
        count: usize,
        what: &str,
        open: impl Fn(usize) -> Result<Box<dyn Read + 'a>>,
    ) -> Result<()> {
        let diffs = &document.rootfs.diff_ids;
        check_layer_count(diffs, count, what)?;
        let chain = chain_ids(diffs);
        for (layer, diff) in diffs.iter().enumerate() {
            if self.layer(&chain[layer]).is_none() {
                self.add_layer(open(layer)?, &chain[..layer], Some(diff), &diff.to_string())?;
            }
        }
        Ok(())
    }
}

/// A manifest and its configuration must speak of the same layers.
pub(crate) fn check_layer_count(diffs: &[Digest], count: usize, what: &str) -> Result<()> {
    if diffs.len() == count {
        return Ok(());
    }
    let reason = format!("its manifest has {count} layers and its configuration {}", diffs.len());
    Err(Error::Document { what: what.to_owned(), reason })
}

/// The name of an entry of a layout. Many tools write only the tag; the rest then comes from `name`.
fn tag_in_layout(descriptor: &Descriptor, name: Option<&str>) -> Option<String> {
    if let Some(name) = name {
        return Some(name.to_owned());
    }
    let full = descriptor.annotations.get(FULL_NAME);
    let short = descriptor.annotations.get(REF_NAME).filter(|name| name.contains([':', '/']));
    full.or(short).cloned()
}

//! Images out of a root file system, or out of a single static program.

use std::fs::File;
use std::io::{self, Read, Seek};
use std::path::{Path, PathBuf};

use crate::config::{ConfigDocument, Descriptor, ImageConfig, Manifest, OCI_LAYER};
use crate::error::{Context, Error, Result};
use crate::reference::Reference;
use crate::store::{Image, Images, Names};

/// How an imported image runs, and when it was made.
#[derive(Clone, Debug, Default)]
pub struct ImportOptions {
    /// Entry point, command, environment, user, folder, ports.
    pub config: ImageConfig,
    /// When the image was made (RFC 3339). Without it, equal content gives an equal digest.
    pub created: Option<String>,
}

impl Images {
    /// Makes an image of one layer out of a tar of a root file system (plain, gzip or zstd).
    pub fn import(&self, tar: impl Read, name: &str, options: ImportOptions) -> Result<Image> {
        let tag = tag_of(name)?;
        let _adding = self.adding()?;
        let layer = self.add_layer(tar, &[], None, name)?;
        let document = ConfigDocument::new(options.config, vec![layer.diff.clone()], options.created);
        let config = to_json(&document)?;
        let manifest = Manifest::new(&config, vec![Descriptor::new(OCI_LAYER, layer.diff, layer.size)]);
        let names = Names { tags: vec![tag], ..Names::default() };
        self.commit(&names, &to_json(&manifest)?, &config, true)
    }

    /// Makes an image that holds nothing but `files`: pairs of a path in the image and a file on this machine.
    pub fn import_files(&self, files: &[(PathBuf, PathBuf)], name: &str, options: ImportOptions) -> Result<Image> {
        let tar = self.tar_of(files)?;
        self.import(tar, name, options)
    }

    /// A tar of `files`, the same for the same content: owned by root, without times.
    fn tar_of(&self, files: &[(PathBuf, PathBuf)]) -> Result<File> {
        let file = self.temporary_file()?;
        let mut builder = tar::Builder::new(&file);
        for (inside, outside) in files {
            let mut source = File::open(outside).at("open", outside)?;
            let data = source.metadata().at("read", outside)?;
            if !data.is_file() {
                return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a file")).at("import", outside);
            }
            let mut header = header_of_root(std::os::unix::fs::MetadataExt::mode(&data) & 0o7777, data.len());
            let inside = inside.strip_prefix("/").unwrap_or(inside);
            append(&mut builder, &mut header, inside, &mut source).at("import", outside)?;
        }
        builder.finish().at("write", self.ingest_dir())?;
        drop(builder);
        rewound(file).at("read", self.ingest_dir())
    }
}

fn header_of_root(mode: u32, size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_mode(mode);
    header.set_size(size);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header
}

/// One file, behind the directories it lies in.
fn append(
    builder: &mut tar::Builder<&File>,
    header: &mut tar::Header,
    inside: &Path,
    source: &mut File,
) -> io::Result<()> {
    let parents: Vec<_> = inside.ancestors().skip(1).filter(|path| !path.as_os_str().is_empty()).collect();
    for parent in parents.into_iter().rev() {
        let mut directory = header_of_root(0o755, 0);
        directory.set_entry_type(tar::EntryType::Directory);
        builder.append_data(&mut directory, parent, io::empty())?;
    }
    builder.append_data(header, inside, source)
}

fn rewound(mut file: File) -> io::Result<File> {
    file.rewind()?;
    Ok(file)
}

/// The tag a hand-made image gets: it cannot be named by a digest that is not known yet.
pub(crate) fn tag_of(name: &str) -> Result<String> {
    let reference: Reference = name.parse()?;
    match reference.digest() {
        None => Ok(reference.key()),
        Some(_) => Err(Error::Document {
            what: format!("the name {name:?}"),
            reason: "an image made here gets its digest from its content; give a name without @sha256:...".to_owned(),
        }),
    }
}

pub(crate) fn to_json(value: &impl serde::Serialize) -> Result<Vec<u8>> {
    serde_json::to_vec(value).map_err(io::Error::from).at("write", "the image's description")
}

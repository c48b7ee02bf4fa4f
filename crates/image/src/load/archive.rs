//! Random access to the files of an archive, be it a folder or a tar.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::config::DOCUMENT_BYTES_MAX;
use crate::digest::Digest;
use crate::error::{Context, Error, Result};
use crate::unpack::decompress;

/// No image archive has that many files.
const ENTRIES_MAX: usize = 100_000;

/// An opened archive.
pub(super) struct Archive {
    path: PathBuf,
    content: Content,
}

enum Content {
    Folder,
    Tar { file: File, entries: BTreeMap<String, Entry> },
}

enum Entry {
    Data {
        offset: u64,
        size: u64,
    },
    /// Docker saves equal layers once, and links to them.
    Link(String),
}

impl Archive {
    pub(super) fn open(path: &Path, temporary: impl FnOnce() -> Result<File>) -> Result<Self> {
        if path.is_dir() {
            return Ok(Self { path: path.to_path_buf(), content: Content::Folder });
        }
        let mut file = File::open(path).at("open", path)?;
        let mut magic = [0; 4];
        let known = file.metadata().is_ok_and(|data| data.is_file());
        let plain = known && file.read_exact_at(&mut magic, 0).is_ok() && !is_compressed(magic);
        if !plain {
            file = spool(file, temporary()?, path)?;
        }
        Self::from_tar(path.to_path_buf(), file)
    }

    pub(super) fn from_reader(reader: impl Read, temporary: impl FnOnce() -> Result<File>) -> Result<Self> {
        let path = PathBuf::from("(standard input)");
        let file = spool(reader, temporary()?, &path)?;
        Self::from_tar(path, file)
    }

    fn from_tar(path: PathBuf, mut file: File) -> Result<Self> {
        file.rewind().at("read", &path)?;
        let entries = index(&file).map_err(|error| Error::Archive {
            path: path.clone(),
            reason: format!("it cannot be read as a tar ({error})"),
        })?;
        Ok(Self { path, content: Content::Tar { file, entries } })
    }

    pub(super) fn refused(&self, reason: &str) -> Error {
        Error::Archive { path: self.path.clone(), reason: reason.to_owned() }
    }

    pub(super) fn unnamed(&self) -> Error {
        Error::Unnamed { path: self.path.clone() }
    }

    pub(super) fn has(&self, name: &str) -> bool {
        match &self.content {
            Content::Folder => self.path.join(name).is_file(),
            Content::Tar { entries, .. } => entries.contains_key(name),
        }
    }

    /// A reader of one file.
    pub(super) fn content(&self, name: &str) -> Result<Box<dyn Read + '_>> {
        let name = normal(name).ok_or_else(|| self.refused(&format!("it refers to {name:?}")))?;
        match &self.content {
            Content::Folder => {
                let path = self.path.join(&name);
                Ok(Box::new(File::open(&path).at("open", &path)?))
            }
            Content::Tar { file, entries } => {
                let mut at = &name;
                for _ in 0..8 {
                    match entries.get(at) {
                        Some(Entry::Data { offset, size }) => {
                            return Ok(Box::new(Window { file, offset: *offset, end: offset.saturating_add(*size) }));
                        }
                        Some(Entry::Link(target)) => at = target,
                        None => break,
                    }
                }
                Err(self.refused(&format!("{name} is missing in it")))
            }
        }
    }

    /// A whole file that must not be larger than `limit`.
    pub(super) fn read(&self, name: &str, limit: u64) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.content(name)?.take(limit + 1).read_to_end(&mut bytes).at("read", self.path.join(name))?;
        if bytes.len() as u64 > limit {
            return Err(self.refused(&format!("{name} is larger than {limit} bytes")));
        }
        Ok(bytes)
    }

    pub(super) fn json<T: serde::de::DeserializeOwned>(&self, name: &str) -> Result<T> {
        serde_json::from_slice(&self.read(name, DOCUMENT_BYTES_MAX)?)
            .map_err(|error| self.refused(&format!("{name} is not valid ({error})")))
    }

    /// A manifest or configuration, held to its digest.
    pub(super) fn blob(&self, digest: &Digest) -> Result<Vec<u8>> {
        let bytes = self.read(&blob_name(digest), DOCUMENT_BYTES_MAX)?;
        let found = Digest::of(&bytes);
        if found == *digest {
            return Ok(bytes);
        }
        let what = format!("a blob of {}", self.path.display());
        Err(Error::Corrupt { what, expected: digest.to_string(), found: found.to_string() })
    }
}

/// Where a layout keeps a blob.
pub(super) fn blob_name(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

fn is_compressed(magic: [u8; 4]) -> bool {
    magic.starts_with(&[0x1f, 0x8b]) || magic == [0x28, 0xb5, 0x2f, 0xfd]
}

/// Writes the plain bytes to a file that can be read from any place.
fn spool(reader: impl Read, mut file: File, path: &Path) -> Result<File> {
    let mut plain = decompress(reader).at("read", path)?;
    io::copy(&mut plain, &mut file).at("read", path)?;
    Ok(file)
}

/// Where each file of the tar begins.
fn index(file: &File) -> io::Result<BTreeMap<String, Entry>> {
    let mut entries = BTreeMap::new();
    let mut archive = tar::Archive::new(file);
    for entry in archive.entries_with_seek()? {
        let entry = entry?;
        let path = entry.path()?.into_owned();
        let Some(name) = path.to_str().and_then(normal) else { continue };
        let kind = entry.header().entry_type();
        let target = match entry.link_name()? {
            Some(target) if kind.is_symlink() => path.parent().unwrap_or(Path::new("")).join(target),
            Some(target) => target.into_owned(),
            None => PathBuf::new(),
        };
        if kind.is_file() {
            entries.insert(name, Entry::Data { offset: entry.raw_file_position(), size: entry.size() });
        } else if let Some(target) = target.to_str().and_then(normal) {
            entries.insert(name, Entry::Link(target));
        }
        if entries.len() > ENTRIES_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "more files than any image archive has"));
        }
    }
    Ok(entries)
}

/// `./a/../b` to `b`; none if the path leaves the archive or is the archive itself.
fn normal(path: &str) -> Option<String> {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()?),
            _ => parts.push(part),
        }
    }
    (!parts.is_empty() && !path.starts_with('/')).then(|| parts.join("/"))
}

/// A part of a file, with a position of its own.
struct Window<'f> {
    file: &'f File,
    offset: u64,
    end: u64,
}

impl Read for Window<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let room = usize::try_from(self.end - self.offset).unwrap_or(usize::MAX).min(buffer.len());
        let read = self.file.read_at(&mut buffer[..room], self.offset)?;
        self.offset += read as u64;
        Ok(read)
    }
}

//! The form of a backup: a tar packed with zstd. First `backup.json`, then the files that it lists.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, Write};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use mycelium_image::digest::Digest;
use serde::{Deserialize, Serialize};

/// The version of this form that the program writes, and the newest it reads.
pub const FORMAT: u32 = 1;
/// The entry that describes the others.
const INDEX: &str = "backup.json";
/// The longest index that is believed.
const INDEX_MAX: u64 = 1 << 20;
const LEVEL: i32 = 3;

/// What a backup says of itself.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Index {
    /// The form of the backup, see [`FORMAT`].
    pub format_version: u32,
    /// The version of the program that wrote it.
    pub version: String,
    /// When, RFC 3339.
    pub created: String,
    /// The revision of the state.
    pub revision: u64,
    /// The files by their path in the data directory.
    pub files: BTreeMap<String, Listed>,
}

/// A file of a backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listed {
    /// Its length in bytes.
    pub bytes: u64,
    /// The hexadecimal SHA-256 of its content.
    pub sha256: String,
}

impl Listed {
    /// Reads a file from its beginning, and leaves it there.
    pub fn of(file: &mut File) -> Result<Self> {
        file.rewind()?;
        let sha256 = Digest::of_reader(&mut *file)?.hex().to_owned();
        let bytes = file.stream_position()?;
        file.rewind()?;
        Ok(Self { bytes, sha256 })
    }
}

/// Writes an archive. Every file of the index must be among `files`, open at its beginning.
pub fn write(to: impl Write, index: &Index, files: &mut BTreeMap<String, File>) -> Result<()> {
    let mut archive = tar::Builder::new(zstd::Encoder::new(to, LEVEL)?);
    let text = serde_json::to_vec_pretty(index)?;
    archive.append_data(&mut header(text.len() as u64), INDEX, &*text)?;
    for (name, listed) in &index.files {
        let file = files.get_mut(name).with_context(|| format!("{name} is listed and missing"))?;
        archive.append_data(&mut header(listed.bytes), name, file.take(listed.bytes))?;
    }
    archive.into_inner()?.finish()?.flush()?;
    Ok(())
}

fn header(bytes: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_size(bytes);
    header.set_mode(0o600);
    header
}

/// Unpacks an archive into a folder, and fails unless all is there and as it was written.
pub fn unpack(from: impl Read, folder: &Path) -> Result<Index> {
    let mut archive = tar::Archive::new(zstd::Decoder::new(from).context("it is not a backup: not packed with zstd")?);
    let mut entries = archive.entries()?;
    let first = entries.next().context("it is empty")?.context("it is not a backup")?;
    ensure!(first.path()?.as_os_str() == INDEX, "it is not a backup: it does not begin with {INDEX}");
    let index = read_index(first)?;
    let mut found = BTreeMap::new();
    for entry in entries {
        let mut entry = entry.context("it is cut off or damaged")?;
        let name = entry.path()?.to_string_lossy().into_owned();
        // Only names of the index are written: an archive cannot name a path outside of the folder.
        let Some(listed) = index.files.get(&name).filter(|_| is_inside(&name)) else {
            bail!("it holds {name:?}, which its index does not list")
        };
        let path = folder.join(&name);
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent)?;
        }
        let mut file = create(&path)?;
        std::io::copy(&mut entry, &mut file).with_context(|| format!("{name} is cut off or damaged"))?;
        ensure!(Listed::of(&mut file)? == *listed, "{name} is damaged: its content is not what the index says");
        file.sync_all()?;
        found.insert(name, ());
    }
    if let Some(missing) = index.files.keys().find(|name| !found.contains_key(*name)) {
        bail!("it is cut off: {missing} is missing");
    }
    Ok(index)
}

/// Whether a name is a plain relative path.
fn is_inside(name: &str) -> bool {
    !name.is_empty() && name.split('/').all(|part| !matches!(part, "" | "." | ".."))
}

/// A new file that only its owner may read.
pub fn create(path: &Path) -> Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    let mut options = File::options();
    let options = options.read(true).write(true).create(true).truncate(true).mode(0o600);
    options.open(path).with_context(|| format!("{} cannot be written", path.display()))
}

/// Its version is looked at before anything else is believed.
fn read_index(entry: impl Read) -> Result<Index> {
    let mut text = String::new();
    entry.take(INDEX_MAX).read_to_string(&mut text).context("its index is damaged")?;
    let value: serde_json::Value = serde_json::from_str(&text).context("its index is damaged")?;
    let version = value["formatVersion"].as_u64().context("its index has no formatVersion")?;
    ensure!(
        version <= FORMAT.into(),
        "it has format version {version}, written by mycelium {}; this program ({}) reads up to {FORMAT}: use the one \
         that wrote it, or a newer one",
        value["version"].as_str().unwrap_or("?"),
        env!("CARGO_PKG_VERSION"),
    );
    serde_json::from_value(value).context("its index is damaged")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(index: &Index, content: &[u8]) -> Vec<u8> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(content).unwrap();
        file.rewind().unwrap();
        let mut out = Vec::new();
        write(&mut out, index, &mut BTreeMap::from([("pki/ca.key".to_owned(), file)])).unwrap();
        out
    }

    fn index(content: &[u8]) -> Index {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(content).unwrap();
        let files = BTreeMap::from([("pki/ca.key".to_owned(), Listed::of(&mut file).unwrap())]);
        Index { format_version: FORMAT, version: "9".into(), created: String::new(), revision: 7, files }
    }

    #[test]
    fn what_is_written_is_unpacked_and_nothing_less() {
        let content = vec![b'x'; 70_000];
        let whole = written(&index(&content), &content);
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(unpack(&*whole, dir.path()).unwrap().revision, 7);
        assert_eq!(std::fs::read(dir.path().join("pki/ca.key")).unwrap(), content);
        for length in 0..whole.len() {
            assert!(unpack(&whole[..length], dir.path()).is_err(), "{length} of {} bytes", whole.len());
        }
        let changed = written(&index(&content), &vec![b'y'; 70_000]);
        let error = unpack(&*changed, dir.path()).unwrap_err().to_string();
        assert!(error.contains("pki/ca.key is damaged"), "{error}");
    }

    #[test]
    fn a_newer_form_is_refused_by_its_version() {
        let newer = Index { format_version: FORMAT + 1, ..index(b"k") };
        let error = unpack(&*written(&newer, b"k"), tempfile::tempdir().unwrap().path()).unwrap_err().to_string();
        assert!(error.contains("format version 2, written by mycelium 9") && error.contains("up to 1"), "{error}");
    }

    #[test]
    fn names_stay_inside() {
        for name in ["", "/etc/passwd", "../x", "a/../../x", "a//b", "."] {
            assert!(!is_inside(name), "{name}");
        }
        assert!(is_inside("state") && is_inside("pki/ca.key"));
    }
}

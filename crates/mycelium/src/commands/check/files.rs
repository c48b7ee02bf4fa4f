//! Files and folders, read for [`mycelium_check`].

use std::io::{self, Read};
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result};
use mycelium_check::{Entry, Source};

const EXTENSIONS: [&str; 3] = ["yaml", "yml", "json"];
const KUSTOMIZATIONS: [&str; 3] = ["kustomization.yaml", "kustomization.yml", "Kustomization"];
/// Larger files are no manifests.
const SIZE_MAX: u64 = 64 * 1024 * 1024;

/// Whether a folder is a kustomization.
pub fn has_kustomization(folder: &Path) -> bool {
    KUSTOMIZATIONS.iter().any(|name| folder.join(name).is_file())
}

/// The texts of a file, a folder's manifests, or standard input, with the names they are shown by.
pub fn read(path: &Path, recursive: bool) -> Result<Vec<(String, String)>> {
    if path == Path::new("-") {
        let mut text = String::new();
        io::stdin().read_to_string(&mut text).context("standard input cannot be read")?;
        return Ok(vec![("standard input".to_owned(), text)]);
    }
    let mut texts = Vec::new();
    for file in files(path, recursive)? {
        let text = text(&file).with_context(|| format!("{} cannot be read", file.display()))?;
        texts.push((file.display().to_string(), text));
    }
    Ok(texts)
}

fn text(file: &Path) -> io::Result<String> {
    if std::fs::metadata(file)?.len() > SIZE_MAX {
        return Err(io::Error::other(format!("it is larger than {SIZE_MAX} bytes, which no manifest is")));
    }
    Ok(String::from_utf8_lossy(&std::fs::read(file)?).into_owned())
}

/// The manifest files of a folder, by name; or the file itself. Folders that are kustomizations or charts of their own
/// are left out.
fn files(path: &Path, recursive: bool) -> Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_path_buf()]);
    }
    let entries = std::fs::read_dir(path).with_context(|| format!("{} cannot be read", path.display()))?;
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.map(|entry| entry.path())).collect::<io::Result<_>>()?;
    paths.sort();
    let mut found = Vec::new();
    for entry in paths {
        if entry.is_symlink() && entry.is_dir() {
            continue;
        }
        if entry.is_dir() {
            if recursive && !has_kustomization(&entry) && !entry.join("Chart.yaml").is_file() {
                found.extend(files(&entry, true)?);
            }
        } else if entry.extension().is_some_and(|extension| EXTENSIONS.iter().any(|known| extension == *known)) {
            found.push(entry);
        }
    }
    Ok(found)
}

/// The file system, seen from the current folder.
pub struct Disk {
    here: PathBuf,
}

impl Disk {
    /// Remembers where the command was started.
    pub fn new() -> Result<Self> {
        Ok(Self { here: std::env::current_dir().context("the current folder is gone")? })
    }

    /// A path from the root, without `.` and `..`.
    pub fn absolute(&self, path: &Path) -> PathBuf {
        let mut absolute = PathBuf::new();
        for part in self.here.join(path).components() {
            match part {
                Component::CurDir => {}
                Component::ParentDir => drop(absolute.pop()),
                part => absolute.push(part),
            }
        }
        absolute
    }
}

impl Source for Disk {
    fn read(&self, path: &Path) -> io::Result<String> {
        text(path)
    }

    fn entry(&self, path: &Path) -> Option<Entry> {
        let metadata = std::fs::metadata(path).ok()?;
        Some(if metadata.is_dir() { Entry::Folder } else { Entry::File })
    }

    fn names(&self, folder: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        let mut names: Vec<String> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    fn show(&self, path: &Path) -> String {
        match path.strip_prefix(&self.here) {
            Ok(below) if below.as_os_str().is_empty() => ".".to_owned(),
            Ok(below) => below.display().to_string(),
            Err(_) => path.display().to_string(),
        }
    }
}

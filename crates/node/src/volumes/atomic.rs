//! A folder of files that changes all at once.
//!
//! ```text
//!   volume/..2026_11_21_02_24_38.1/key     the files, in a folder of their own for every change
//!   volume/..data -> ..2026_11_21_02_24_38.1
//!   volume/key -> ..data/key               what programs open
//! ```
//! A change writes a new folder and swaps `..data` with one rename, so that a program that reads several files through
//! one open folder never sees old and new mixed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Component, Path, PathBuf};

/// A file's content, mode and owner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// What is in it.
    pub content: Vec<u8>,
    /// Permission bits.
    pub mode: u32,
    /// User id of its owner, if not root.
    pub owner: Option<u32>,
}

/// Files by their path in the volume.
pub type Payload = BTreeMap<String, Entry>;

/// Makes the volume at `dir` hold exactly `payload`. Returns whether anything had to change.
pub fn write(dir: &Path, payload: &Payload, stamp: &str, group: Option<u32>) -> io::Result<bool> {
    fs::create_dir_all(dir)?;
    // Whatever the mask of this process is.
    fs::set_permissions(dir, fs::Permissions::from_mode(0o755))?;
    let data = dir.join("..data");
    let old = fs::read_link(&data).ok();
    if old.as_ref().is_some_and(|old| same(&dir.join(old), payload)) {
        return Ok(false);
    }
    let folder = unused(dir, stamp);
    let target = dir.join(&folder);
    fs::create_dir(&target)?;
    fs::set_permissions(&target, fs::Permissions::from_mode(0o755))?;
    for (path, entry) in payload {
        let file = target.join(safe(path)?);
        if let Some(parent) = file.parent() {
            fs::create_dir_all(parent)?;
            fs::set_permissions(parent, fs::Permissions::from_mode(0o755))?;
        }
        fs::write(&file, &entry.content)?;
        fs::set_permissions(&file, fs::Permissions::from_mode(entry.mode))?;
        if group.is_some() || entry.owner.is_some() {
            chown(&file, entry.owner, group)?;
        }
    }
    if let Some(group) = group {
        chown(&target, None, Some(group))?;
    }
    let temporary = dir.join("..data_tmp");
    let _ = fs::remove_file(&temporary);
    symlink(&folder, &temporary)?;
    fs::rename(&temporary, &data)?;
    let names: BTreeSet<String> = payload.keys().filter_map(|path| path.split('/').next().map(str::to_owned)).collect();
    link(dir, &names)?;
    if let Some(old) = old {
        let _ = fs::remove_dir_all(dir.join(old));
    }
    Ok(true)
}

fn unused(dir: &Path, stamp: &str) -> String {
    (0..).map(|n| format!("..{stamp}.{n}")).find(|name| !dir.join(name).exists()).unwrap_or_default()
}

/// The links that programs open: one for every first part of a path, and no others.
fn link(dir: &Path, names: &BTreeSet<String>) -> io::Result<()> {
    for entry in fs::read_dir(dir)?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if !name.starts_with("..") && !names.contains(&name) {
            let _ = fs::remove_file(entry.path());
        }
    }
    for name in names {
        match symlink(Path::new("..data").join(name), dir.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

fn safe(path: &str) -> io::Result<&Path> {
    let path = Path::new(path);
    if path.components().all(|part| matches!(part, Component::Normal(_))) {
        Ok(path)
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{} leads out of the volume", path.display())))
    }
}

fn same(dir: &Path, payload: &Payload) -> bool {
    let mut found = BTreeMap::new();
    collect(dir, dir, &mut found).is_ok()
        && found.len() == payload.len()
        && payload.iter().all(|(path, entry)| {
            found.get(path.as_str()).is_some_and(|file| {
                let mode = fs::metadata(file).map(|m| m.permissions().mode() & 0o7777).unwrap_or(0);
                mode == entry.mode && fs::read(file).is_ok_and(|content| content == entry.content)
            })
        })
}

fn collect(root: &Path, dir: &Path, found: &mut BTreeMap<String, PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            collect(root, &path, found)?;
        } else if let Ok(name) = path.strip_prefix(root) {
            found.insert(name.to_string_lossy().into_owned(), path.clone());
        }
    }
    Ok(())
}

/// Resolves `sub` below `root` as if `root` were the root of the file system: links cannot lead out of it.
pub fn resolve(root: &Path, sub: &str) -> io::Result<PathBuf> {
    /// As many links as the kernel follows.
    const LINKS_MAX: usize = 40;
    let mut rest: Vec<std::ffi::OsString> =
        Path::new(sub).components().rev().map(|c| c.as_os_str().to_owned()).collect();
    let mut at = PathBuf::new();
    let mut links = 0;
    while let Some(part) = rest.pop() {
        match Path::new(&part).components().next() {
            Some(Component::Normal(_)) => {}
            Some(Component::ParentDir) => {
                at.pop();
                continue;
            }
            Some(Component::RootDir) => {
                at = PathBuf::new();
                continue;
            }
            _ => continue,
        }
        let next = at.join(&part);
        match fs::read_link(root.join(&next)) {
            Ok(target) => {
                links += 1;
                if links > LINKS_MAX {
                    return Err(io::Error::other("too many links"));
                }
                rest.extend(target.components().rev().map(|c| c.as_os_str().to_owned()));
            }
            Err(_) => at = next,
        }
    }
    Ok(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload(entries: &[(&str, &str)]) -> Payload {
        let entry = |text: &str| Entry { content: text.into(), mode: 0o644, owner: None };
        entries.iter().map(|(path, text)| ((*path).to_owned(), entry(text))).collect()
    }

    #[test]
    fn a_change_is_seen_whole_and_only_when_there_is_one() {
        let dir = tempfile::tempdir().expect("a folder");
        let read = |name: &str| fs::read_to_string(dir.path().join(name)).ok();
        assert!(write(dir.path(), &payload(&[("a", "1"), ("d/b", "2")]), "t", None).expect("writes"));
        assert_eq!((read("a"), read("d/b")), (Some("1".into()), Some("2".into())));
        assert!(!write(dir.path(), &payload(&[("a", "1"), ("d/b", "2")]), "t", None).expect("compares"));
        assert!(write(dir.path(), &payload(&[("a", "3")]), "t", None).expect("writes"));
        assert_eq!((read("a"), read("d/b")), (Some("3".into()), None));
        let left = fs::read_dir(dir.path()).expect("lists").count();
        assert_eq!(left, 3, "the link, ..data and one folder");
        assert!(write(dir.path(), &payload(&[("../x", "")]), "t", None).is_err());
    }

    #[test]
    fn links_do_not_lead_out() {
        let dir = tempfile::tempdir().expect("a folder");
        symlink("/etc", dir.path().join("out")).expect("links");
        symlink("../../..", dir.path().join("up")).expect("links");
        symlink("loop", dir.path().join("loop")).expect("links");
        let at = |sub| resolve(dir.path(), sub).map(|p| p.to_string_lossy().into_owned()).ok();
        assert_eq!(at("out/passwd"), Some("etc/passwd".into()));
        assert_eq!(at("up/up/a/../b"), Some("b".into()));
        assert_eq!(at("loop"), None);
    }
}

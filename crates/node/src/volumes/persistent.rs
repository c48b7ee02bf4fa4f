//! Volumes behind claims: where they are on this machine, and whose they are.
//!
//! A volume that was made for a claim is a folder of its own below the engine's `volumes`, made when a pod first mounts
//! it. That it was made is noted down beside the folders: one that has gone since is not made again, since what was in it
//! has gone with it (a disk that is not mounted, most often). In the pod's folder each claim is a link to its volume, so that
//! containers start without asking the API again. What is wrong with a volume is told where its owner looks: on the claim.

use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt, lchown, symlink};
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{HostPathVolumeSource, PersistentVolume, PersistentVolumeClaim, Pod, Volume};
use mycelium_api::storage::DRIVER;

/// Where a volume is.
#[derive(Clone, Debug, PartialEq)]
pub enum Source {
    /// A folder of ours, made when it is missing.
    Folder(PathBuf),
    /// A path of the machine.
    Host(HostPathVolumeSource),
    /// A folder that somebody has prepared.
    Local(PathBuf),
}

/// What a disk must have free before another volume is begun on it, in bytes.
const ROOM_MIN: u64 = 1 << 20;

/// The volume behind a claim.
#[derive(Clone, Debug, PartialEq)]
pub struct Claimed {
    /// The claim's name.
    pub claim: String,
    /// And its uid.
    pub uid: String,
    /// Its name.
    pub volume: String,
    /// Where it is.
    pub source: Source,
}

/// Why a volume cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum Unready {
    /// Its folder could not be made.
    #[error("cannot make the folder {0}: {1}")]
    Unmade(PathBuf, io::Error),
    /// What there was is not there.
    #[error("{0}")]
    Gone(String),
    /// It is there, and cannot be given to the pod.
    #[error("{0}")]
    Refused(String),
}

impl Unready {
    /// The word for it on the claim.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Unmade(..) => "ProvisioningFailed",
            Self::Gone(_) | Self::Refused(_) => "VolumeConditionAbnormal",
        }
    }
}

/// The name of the claim that a pod's volume stands for.
pub fn claim_name(pod: &Pod, volume: &Volume) -> Option<String> {
    let named = volume.persistent_volume_claim.as_ref().map(|source| source.claim_name.clone());
    let own = || format!("{}-{}", pod.metadata.name.as_deref().unwrap_or_default(), volume.name);
    named.or_else(|| volume.ephemeral.as_ref().map(|_| own()))
}

/// The volume that a claim has, or why a pod cannot have it. `folders` is where ours are.
pub fn claimed(
    claim: Option<&PersistentVolumeClaim>,
    volume: Option<&PersistentVolume>,
    name: &str,
    folders: &Path,
) -> Result<Claimed, String> {
    let claim = claim.ok_or_else(|| format!("persistentvolumeclaim \"{name}\" not found"))?;
    let spec = claim.spec.clone().unwrap_or_default();
    let held = spec.volume_name.unwrap_or_default();
    let phase = claim.status.as_ref().and_then(|status| status.phase.as_deref());
    if held.is_empty() || phase != Some("Bound") {
        return Err(format!("persistentvolumeclaim \"{name}\" is not bound"));
    }
    let volume = volume.ok_or_else(|| format!("persistentvolume \"{held}\" not found"))?;
    let mine = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref());
    if mine.is_none_or(|mine| mine.uid != claim.metadata.uid) {
        return Err(format!("persistentvolume \"{held}\" is bound to another claim than \"{name}\""));
    }
    let uid = claim.metadata.uid.clone().unwrap_or_default();
    source(volume, folders).map(|source| Claimed { claim: name.to_owned(), uid, volume: held, source })
}

fn source(volume: &PersistentVolume, folders: &Path) -> Result<Source, String> {
    let spec = volume.spec.clone().unwrap_or_default();
    if spec.volume_mode.as_deref() == Some("Block") {
        return Err("volumeMode Block is not served here: ask for Filesystem".into());
    }
    if spec.csi.is_some() {
        return folder(volume, folders).map(Source::Folder);
    }
    if let Some(host) = spec.host_path {
        return Ok(Source::Host(host));
    }
    if let Some(local) = spec.local {
        return Ok(Source::Local(PathBuf::from(local.path)));
    }
    Err("this machine serves hostPath and local volumes, and those that it makes itself".into())
}

/// The folder of a volume of ours.
pub fn folder(volume: &PersistentVolume, folders: &Path) -> Result<PathBuf, String> {
    let csi = volume.spec.as_ref().and_then(|spec| spec.csi.as_ref()).filter(|csi| csi.driver == DRIVER);
    let csi = csi.ok_or("no driver of that name is on this machine")?;
    let handle = csi.volume_handle.as_str();
    let plain = handle.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_'));
    if handle.is_empty() || handle.starts_with('.') || !plain {
        return Err(format!("\"{handle}\" is no name of a volume"));
    }
    Ok(folders.join(handle))
}

impl Claimed {
    /// Makes the volume be there, belong to the pod's group, and be reached by `link`.
    pub fn prepare(&self, link: &Path, group: Option<u32>, only_root: bool) -> Result<(), Unready> {
        let target = self.target()?;
        if fs::read_link(link).is_ok_and(|held| held == target) {
            return Ok(());
        }
        if let (Some(group), false) = (group, matches!(self.source, Source::Host(_))) {
            hand_over(target, group, only_root).map_err(|error| {
                Unready::Refused(format!("cannot give {} to group {group}: {error}", target.display()))
            })?;
        }
        let made = fs::create_dir_all(link.parent().unwrap_or(link)).and_then(|()| {
            let _ = fs::remove_file(link);
            symlink(target, link)
        });
        made.map_err(|error| Unready::Refused(error.to_string()))
    }

    fn target(&self) -> Result<&Path, Unready> {
        match &self.source {
            Source::Folder(path) => {
                make(path)?;
                Ok(path)
            }
            Source::Local(path) if !path.is_dir() => {
                Err(Unready::Gone(format!("path \"{}\" does not exist", path.display())))
            }
            Source::Local(path) => Ok(path),
            Source::Host(host) => {
                super::check_host_path(host).map_err(Unready::Gone)?;
                Ok(Path::new(&host.path))
            }
        }
    }
}

/// Where it is noted down that a volume's folder was made: not in the folder that may go.
pub(super) fn note(path: &Path) -> PathBuf {
    path.parent().unwrap_or(path).with_extension("made").join(path.file_name().unwrap_or_default())
}

/// Makes a folder that any user of a container may write to, in one that nobody else on the machine may enter.
fn make(path: &Path) -> Result<(), Unready> {
    let note = note(path);
    if path.is_dir() {
        return Ok(());
    }
    if note.exists() {
        let text = "it was made before and has gone, with all that was in it: bring it back, or delete the claim";
        return Err(Unready::Gone(format!("cannot find the folder {}: {text}", path.display())));
    }
    make_first(path, &note).map_err(|error| Unready::Unmade(path.to_owned(), error))
}

fn make_first(path: &Path, note: &Path) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
        fs::set_permissions(parent, fs::Permissions::from_mode(0o700))?;
        has_room(parent)?;
    }
    fs::create_dir(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o777))?;
    fs::create_dir_all(note.parent().unwrap_or(note))?;
    fs::write(note, "")
}

/// A folder can often still be made on a disk that takes not a byte more: whoever gets it would not know why.
fn has_room(place: &Path) -> io::Result<()> {
    let found = rustix::fs::statvfs(place)?;
    let free = found.f_bavail.saturating_mul(found.f_frsize);
    if free >= ROOM_MIN {
        return Ok(());
    }
    let text = format!("no space left on device: {} KiB are free on its disk; free some space", free >> 10);
    Err(io::Error::new(io::ErrorKind::StorageFull, text))
}

/// Gives everything below `path` to a group that may read and write it; what is made there later, too.
fn hand_over(path: &Path, group: u32, only_root: bool) -> io::Result<()> {
    use std::os::unix::fs::MetadataExt;
    let root = fs::symlink_metadata(path)?;
    if only_root && root.gid() == group && root.mode() & 0o2070 == 0o2070 {
        return Ok(());
    }
    let mut folders = vec![path.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder)? {
            let path = entry?.path();
            let meta = fs::symlink_metadata(&path)?;
            if meta.is_dir() {
                folders.push(path);
            } else if !meta.is_symlink() {
                lchown(&path, None, Some(group))?;
                fs::set_permissions(&path, fs::Permissions::from_mode(meta.mode() & 0o7777 | 0o660))?;
            } else {
                lchown(&path, None, Some(group))?;
            }
        }
        let mode = fs::symlink_metadata(&folder)?.mode() & 0o7777;
        lchown(&folder, None, Some(group))?;
        fs::set_permissions(&folder, fs::Permissions::from_mode(mode | 0o2770))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use serde_json::{Value, json};

    use super::*;

    fn find(spec: Value) -> Result<Claimed, String> {
        let claim =
            json!({"metadata": {"name": "c", "uid": "1"}, "spec": {"volumeName": "v"}, "status": {"phase": "Bound"}});
        let mut volume = json!({"metadata": {"name": "v"}, "spec": spec});
        if volume["spec"]["claimRef"].is_null() {
            volume["spec"]["claimRef"] = json!({"name": "c", "uid": "1"});
        }
        let claim: PersistentVolumeClaim = serde_json::from_value(claim).expect("a claim");
        let volume: PersistentVolume = serde_json::from_value(volume).expect("a volume");
        claimed(Some(&claim), Some(&volume), "c", Path::new("/data/volumes"))
    }

    #[test]
    fn volumes_are_found_and_never_outside_their_place() {
        let ours = |handle: &str| find(json!({"csi": {"driver": DRIVER, "volumeHandle": handle}})).map(|c| c.source);
        assert_eq!(ours("pvc-1"), Ok(Source::Folder("/data/volumes/pvc-1".into())));
        for bad in ["", "..", "../pods", "/etc", ".x", "a/b"] {
            assert!(ours(bad).is_err(), "{bad}");
        }
        assert_eq!(find(json!({"local": {"path": "/x"}})).map(|c| c.source), Ok(Source::Local("/x".into())));
        assert!(find(json!({"csi": {"driver": "x", "volumeHandle": "y"}})).is_err());
        assert!(find(json!({"nfs": {"server": "s", "path": "/p"}})).is_err_and(|why| why.contains("hostPath")));
        assert!(find(json!({"local": {"path": "/x"}, "claimRef": {"name": "c", "uid": "2"}})).is_err());
        assert!(find(json!({"local": {"path": "/x"}, "volumeMode": "Block"})).is_err_and(|why| why.contains("Block")));
        assert_eq!(claimed(None, None, "c", Path::new("/")), Err("persistentvolumeclaim \"c\" not found".to_owned()));
    }

    #[test]
    fn a_folder_is_made_linked_and_given_to_the_group() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("volumes/pvc-1");
        let of = |path: PathBuf| Claimed {
            claim: "c".into(),
            uid: "1".into(),
            volume: "pvc-1".into(),
            source: Source::Folder(path),
        };
        let claimed = of(path.clone());
        let link = dir.path().join("pod/volumes/data");
        claimed.prepare(&link, None, false).expect("prepares");
        assert_eq!(fs::metadata(&path).expect("is there").mode() & 0o7777, 0o777);
        assert_eq!(fs::metadata(dir.path().join("volumes")).expect("is there").mode() & 0o777, 0o700);
        fs::write(link.join("file"), "x").expect("writes");
        let group = rustix::process::getgid().as_raw();
        fs::remove_file(&link).expect("unlinks");
        claimed.prepare(&link, Some(group), false).expect("prepares again");
        let file = fs::metadata(path.join("file")).expect("is there");
        assert_eq!((file.gid(), file.mode() & 0o060), (group, 0o060));
        assert_eq!(fs::metadata(&path).expect("is there").mode() & 0o2000, 0o2000);
        let blocked = of(path.join("file/b")).prepare(&link, None, false).expect_err("a file is in the way");
        assert!(blocked.to_string().starts_with("cannot make the folder"), "{blocked}");
        assert_eq!(blocked.reason(), "ProvisioningFailed");
        fs::rename(&path, dir.path().join("away")).expect("goes");
        let gone = claimed.prepare(&link, None, false).expect_err("it is not made again");
        assert!(gone.to_string().contains("it was made before and has gone"), "{gone}");
        assert_eq!(gone.reason(), "VolumeConditionAbnormal");
        assert!(!path.exists(), "nobody is given an empty folder for a full one");
    }
}

//! A pod's volumes: where they are, and what is in them.
//!
//! | kind | place |
//! |---|---|
//! | `emptyDir` | `volumes/<name>` in the pod's folder, or a memory file system that the shim mounted there |
//! | `configMap`, `downwardAPI` | `volumes/<name>`, files as [`atomic`] lays them out |
//! | `secret`, `projected` | the same below the shim's memory file system: they never touch the disk |
//! | `hostPath` | where it is |
//! | `persistentVolumeClaim`, `ephemeral` | `volumes/<name>` is a link to where [`persistent`] finds it |

pub mod atomic;
pub mod payload;
pub mod persistent;
pub mod reclaim;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::{FileTypeExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{Container, HostPathVolumeSource, Pod, Volume, VolumeMount};
use mycelium_api::quantity::Quantity;

use crate::pod::environment::{Objects, references as env_references};
use crate::pod::model::{all_containers, ephemeral_containers};
use crate::shim::protocol::MEMORY;
use crate::spec::expand::expand;
use crate::spec::oci::Bind;

/// Why a volume is not there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("MountVolume.SetUp failed for volume \"{volume}\" : {reason}")]
pub struct MountError {
    /// The volume's name in the pod.
    pub volume: String,
    /// What is wrong.
    pub reason: String,
    /// What the claim behind it is told.
    pub claim: Option<Box<ClaimFault>>,
}

impl MountError {
    /// Of a volume without a claim.
    pub fn new(volume: impl Into<String>, reason: impl ToString) -> Self {
        Self { volume: volume.into(), reason: reason.to_string(), claim: None }
    }
}

/// What is wrong with the volume of a claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClaimFault {
    /// The claim's name.
    pub name: String,
    /// Its uid.
    pub uid: String,
    /// In a word.
    pub reason: &'static str,
    /// In a sentence.
    pub message: String,
}

/// The volumes of a pod.
pub fn of(pod: &Pod) -> &[Volume] {
    pod.spec.as_ref().and_then(|s| s.volumes.as_deref()).unwrap_or_default()
}

/// Names of every config map and secret that the pod uses, in volumes and variables, and the tokens it wants.
pub fn references(pod: &Pod) -> (BTreeSet<String>, BTreeSet<String>, BTreeSet<payload::TokenWish>) {
    let (mut maps, mut secrets, mut tokens) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for volume in of(pod) {
        let (m, s, t) = payload::references(volume);
        maps.extend(m);
        secrets.extend(s);
        tokens.extend(t);
    }
    let added: Vec<Container> = pod.spec.iter().flat_map(ephemeral_containers).collect();
    for container in pod.spec.iter().flat_map(all_containers).chain(&added) {
        let (m, s) = env_references(container);
        maps.extend(m);
        secrets.extend(s);
    }
    (maps, secrets, tokens)
}

fn in_memory(volume: &Volume) -> bool {
    volume.empty_dir.as_ref().is_some_and(|e| e.medium.as_deref() == Some("Memory"))
}

/// The memory file systems that the shim mounts for `emptyDir` volumes: folder and size.
pub fn memory_volumes(pod: &Pod, dir: &Path) -> Vec<(PathBuf, u64)> {
    let size = |volume: &Volume| {
        let limit = volume.empty_dir.as_ref().and_then(|e| e.size_limit.as_ref());
        limit.and_then(|q| q.0.parse::<Quantity>().ok()).and_then(|q| u64::try_from(q.value()).ok()).unwrap_or(0)
    };
    of(pod).iter().filter(|v| in_memory(v)).map(|v| (dir.join("volumes").join(&v.name), size(v))).collect()
}

fn is_claim(volume: &Volume) -> bool {
    volume.persistent_volume_claim.is_some() || volume.ephemeral.is_some()
}

fn link(volume: &Volume, dir: &Path) -> PathBuf {
    dir.join("volumes").join(&volume.name)
}

/// Where a volume is, in the shim's view of the file system.
pub fn path(volume: &Volume, dir: &Path) -> Option<PathBuf> {
    if let Some(host) = &volume.host_path {
        return Some(PathBuf::from(&host.path));
    }
    if is_claim(volume) {
        return fs::read_link(link(volume, dir)).ok();
    }
    if volume.secret.is_some() || volume.projected.is_some() {
        return Some(dir.join(MEMORY).join(&volume.name));
    }
    let ours = volume.empty_dir.is_some() || volume.config_map.is_some() || volume.downward_api.is_some();
    ours.then(|| dir.join("volumes").join(&volume.name))
}

/// Everything that filling the volumes takes.
pub struct Fill<'a> {
    /// The pod's folder.
    pub dir: &'a Path,
    /// How the engine reaches a path in the shim's view.
    pub inside: &'a dyn Fn(&Path) -> PathBuf,
    /// What files are made of.
    pub sources: payload::Sources<'a>,
    /// A name for the folder of a change: the time.
    pub stamp: &'a str,
}

/// Makes every volume be there and hold what it should; called again when something may have changed.
pub fn fill(pod: &Pod, fill: &Fill<'_>) -> Result<(), MountError> {
    for volume in of(pod) {
        match is_claim(volume) {
            true => claim(volume, fill)?,
            false => one(volume, fill).map_err(|reason| MountError::new(&volume.name, reason))?,
        }
    }
    Ok(())
}

fn one(volume: &Volume, fill: &Fill<'_>) -> Result<(), String> {
    let path = path(volume, fill.dir).ok_or("this kind of volume is not supported here")?;
    let group = fill.sources.group;
    if let Some(host) = &volume.host_path {
        return check_host_path(host);
    }
    let reachable = (fill.inside)(&path);
    if volume.empty_dir.is_some() {
        return empty_dir(&reachable, group).map_err(|e| e.to_string());
    }
    match payload::build(volume, &fill.sources) {
        Some(payload) => {
            let payload = payload.map_err(|e| e.to_string())?;
            atomic::write(&reachable, &payload, fill.stamp, group).map(drop).map_err(|e| e.to_string())
        }
        None => Ok(()),
    }
}

fn claim(volume: &Volume, fill: &Fill<'_>) -> Result<(), MountError> {
    let sources = &fill.sources;
    let refused = |why: &str| MountError::new(&volume.name, why);
    let found = sources.objects.claims.get(&volume.name).ok_or_else(|| refused("the claim was not looked up"))?;
    let found = found.as_ref().map_err(|why| refused(why))?;
    let context = sources.pod.spec.as_ref().and_then(|spec| spec.security_context.as_ref());
    let policy = context.and_then(|context| context.fs_group_change_policy.as_deref());
    let prepared = found.prepare(&link(volume, fill.dir), sources.group, policy == Some("OnRootMismatch"));
    prepared.map_err(|why| {
        let fault = ClaimFault {
            name: found.claim.clone(),
            uid: found.uid.clone(),
            reason: why.reason(),
            message: format!("volume {}: {why}", found.volume),
        };
        MountError { claim: Some(Box::new(fault)), ..refused(&why.to_string()) }
    })
}

fn empty_dir(path: &Path, group: Option<u32>) -> std::io::Result<()> {
    fs::create_dir_all(path)?;
    let mode = fs::metadata(path)?.permissions().mode() & 0o7777;
    let wanted = if group.is_some() { 0o2777 } else { 0o777 };
    if let Some(group) = group {
        chown(path, None, Some(group))?;
    }
    if mode & 0o2777 != wanted {
        fs::set_permissions(path, fs::Permissions::from_mode(wanted))?;
    }
    Ok(())
}

fn check_host_path(host: &HostPathVolumeSource) -> Result<(), String> {
    let path = Path::new(&host.path);
    let kind = host.type_.as_deref().unwrap_or_default();
    let made = match kind {
        "DirectoryOrCreate" => fs::create_dir_all(path),
        "FileOrCreate" if !path.exists() => fs::write(path, ""),
        _ => Ok(()),
    };
    made.map_err(|e| e.to_string())?;
    let found = fs::metadata(path).map(|m| m.file_type());
    let is = |test: fn(&fs::FileType) -> bool| found.as_ref().is_ok_and(test);
    let (fits, what) = match kind {
        "" => (true, ""),
        "DirectoryOrCreate" | "Directory" => (is(fs::FileType::is_dir), "directory"),
        "FileOrCreate" | "File" => (is(fs::FileType::is_file), "file"),
        "Socket" => (is(|t| t.is_socket()), "socket file"),
        "CharDevice" => (is(|t| t.is_char_device()), "character device"),
        "BlockDevice" => (is(|t| t.is_block_device()), "block device"),
        other => return Err(format!("{other} is an invalid volume type")),
    };
    if fits { Ok(()) } else { Err(format!("hostPath type check failed: {} is not a {what}", host.path)) }
}

/// The volumes that a container sees.
pub fn binds(
    pod: &Pod,
    container: &Container,
    dir: &Path,
    inside: &dyn Fn(&Path) -> PathBuf,
    env: &[(String, String)],
) -> Result<Vec<Bind>, String> {
    container.volume_mounts.iter().flatten().map(|mount| bind(pod, container, mount, dir, inside, env)).collect()
}

fn bind(
    pod: &Pod,
    container: &Container,
    mount: &VolumeMount,
    dir: &Path,
    inside: &dyn Fn(&Path) -> PathBuf,
    env: &[(String, String)],
) -> Result<Bind, String> {
    let missing = || format!("cannot find volume \"{}\" to mount into container \"{}\"", mount.name, container.name);
    let volume = of(pod).iter().find(|v| v.name == mount.name).ok_or_else(missing)?;
    let root = path(volume, dir).ok_or_else(missing)?;
    let sub = match (&mount.sub_path, &mount.sub_path_expr) {
        (Some(sub), _) if !sub.is_empty() => Some(sub.clone()),
        (_, Some(text)) if !text.is_empty() => Some(expanded(text, env)?),
        _ => None,
    };
    let source = match sub {
        None => root,
        Some(sub) => {
            let refused = |e: &dyn std::fmt::Display| {
                format!(
                    "failed to prepare subPath for volumeMount \"{}\" of container \"{}\": {e}",
                    mount.name, container.name
                )
            };
            if Path::new(&sub).components().any(|c| c == std::path::Component::ParentDir) {
                return Err(refused(&"must not contain \"..\""));
            }
            if Path::new(&sub).is_absolute() {
                return Err(refused(&format!("{sub:?} must be a relative path")));
            }
            let reachable = inside(&root);
            let inner = atomic::resolve(&reachable, &sub).map_err(|e| refused(&e))?;
            make_below(&reachable, &inner).map_err(|e| refused(&e))?;
            root.join(inner)
        }
    };
    let filled = volume.config_map.is_some()
        || volume.secret.is_some()
        || volume.projected.is_some()
        || volume.downward_api.is_some();
    let claimed_read_only = volume.persistent_volume_claim.as_ref().is_some_and(|claim| claim.read_only == Some(true));
    let follow = matches!(mount.mount_propagation.as_deref(), Some("HostToContainer" | "Bidirectional"));
    let target =
        if mount.mount_path.starts_with('/') { mount.mount_path.clone() } else { format!("/{}", mount.mount_path) };
    // What the node fills is the node's to change.
    Ok(Bind { source, target, read_only: mount.read_only == Some(true) || filled || claimed_read_only, follow })
}

/// Makes what is missing of a folder in a volume, as open as the volume itself.
fn make_below(root: &Path, inner: &Path) -> std::io::Result<()> {
    if root.join(inner).exists() {
        return Ok(());
    }
    let mode = fs::metadata(root)?.permissions().mode() & 0o7777;
    let mut at = root.to_owned();
    for part in inner {
        at.push(part);
        if !at.exists() {
            fs::create_dir(&at)?;
            fs::set_permissions(&at, fs::Permissions::from_mode(mode))?;
        }
    }
    Ok(())
}

fn expanded(text: &str, env: &[(String, String)]) -> Result<String, String> {
    let missing = std::cell::RefCell::new(Vec::new());
    let out = expand(text, |name| {
        let found = env.iter().rev().find(|(key, _)| key == name).map(|(_, value)| value.clone());
        if found.is_none() {
            missing.borrow_mut().push(name.to_owned());
        }
        found
    });
    match missing.into_inner().as_slice() {
        [] => Ok(out),
        names => Err(format!("missing value for \"{}\"", names.join("\", \""))),
    }
}

/// Those of `names` that changed concern this pod.
pub fn concerns(pod: &Pod, kind: ObjectKind, name: &str) -> bool {
    let in_volume = |volume: &Volume| {
        let (maps, secrets, _) = payload::references(volume);
        match kind {
            ObjectKind::ConfigMap => maps.iter().any(|m| m == name),
            ObjectKind::Secret => secrets.iter().any(|s| s == name),
        }
    };
    of(pod).iter().any(in_volume)
}

/// What a volume is filled from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ObjectKind {
    /// A config map.
    ConfigMap,
    /// A secret.
    Secret,
}

/// The objects a pod uses, by name.
pub type Fetched = Objects;

/// Container names to the user they run as, if all agree on one.
pub fn common_user(pod: &Pod) -> Option<u32> {
    let spec = pod.spec.as_ref()?;
    let pod_user = spec.security_context.as_ref().and_then(|c| c.run_as_user);
    let users: BTreeMap<Option<i64>, ()> = all_containers(spec)
        .map(|c| (c.security_context.as_ref().and_then(|s| s.run_as_user).or(pod_user), ()))
        .collect();
    match users.keys().collect::<Vec<_>>().as_slice() {
        [Some(user)] => u32::try_from(*user).ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(value: Value) -> Pod {
        serde_json::from_value(json!({"spec": value})).expect("a pod")
    }

    #[test]
    fn sub_paths_stay_in_their_volume() {
        let dir = tempfile::tempdir().expect("a folder");
        let volume = dir.path().join("volumes/v");
        fs::create_dir_all(&volume).expect("creates");
        std::os::unix::fs::symlink("/etc", volume.join("out")).expect("links");
        let bound = |mount: Value| {
            let pod = pod(
                json!({"volumes": [{"name": "v", "emptyDir": {}}], "containers": [{"name": "c", "volumeMounts": [mount]}]}),
            );
            let container = pod.spec.clone().expect("a spec").containers[0].clone();
            let env = [("POD", "p1"), ("ROOT", "/tmp"), ("UP", "..")]
                .map(|(name, value)| (name.to_owned(), value.to_owned()));
            binds(&pod, &container, dir.path(), &|p| p.to_owned(), &env).map(|b| b[0].source.clone())
        };
        assert_eq!(bound(json!({"name": "v", "mountPath": "/m", "subPath": "out/x"})), Ok(volume.join("etc/x")));
        assert_eq!(bound(json!({"name": "v", "mountPath": "/m", "subPathExpr": "$(POD)"})), Ok(volume.join("p1")));
        assert!(bound(json!({"name": "v", "mountPath": "/m", "subPath": "../x"})).is_err());
        assert!(bound(json!({"name": "v", "mountPath": "/m", "subPathExpr": "$(ROOT)"})).is_err());
        assert!(bound(json!({"name": "v", "mountPath": "/m", "subPathExpr": "$(UP)"})).is_err());
        assert!(
            bound(json!({"name": "w", "mountPath": "/m"})).is_err_and(|e| e.starts_with("cannot find volume \"w\""))
        );
    }

    #[test]
    fn host_paths_are_checked() {
        let check = |path: &str, kind: &str| {
            check_host_path(&HostPathVolumeSource { path: path.into(), type_: Some(kind.into()) })
        };
        assert_eq!(
            check("/etc/passwd", "Directory"),
            Err("hostPath type check failed: /etc/passwd is not a directory".into())
        );
        assert_eq!((check("/dev/null", "CharDevice"), check("/none", "")), (Ok(()), Ok(())));
    }
}

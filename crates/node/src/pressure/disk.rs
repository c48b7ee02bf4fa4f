//! What pods have on disk (what containers wrote, logs, `emptyDir` volumes), and the limits of it.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{Pod, Volume};
use mycelium_api::quantity::Quantity;

use crate::pod::disk::bundle;
use crate::spec::resources::limit;

/// Folders deeper than this are not looked into: no ordinary tree is, and the walk must end.
const DEPTH_MAX: usize = 512;
/// `stat` counts in these units, whatever the file system's own.
const BLOCK: u64 = 512;

/// Bytes and files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Size {
    /// On disk.
    pub bytes: u64,
    /// Folders included.
    pub files: u64,
}

impl Size {
    fn add(&mut self, other: Self) {
        self.bytes += other.bytes;
        self.files += other.files;
    }
}

/// What a pod has on disk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DiskUse {
    /// What each container wrote to its root and its log.
    pub containers: Vec<(String, Size)>,
    /// What is in each `emptyDir`.
    pub volumes: Vec<(String, Size)>,
}

impl DiskUse {
    /// All of it.
    pub fn total(&self) -> Size {
        let mut total = Size::default();
        self.containers.iter().chain(&self.volumes).for_each(|(_, size)| total.add(*size));
        total
    }
}

/// A pod to be measured: itself, its folder, and the name and id of each container's run.
pub struct Place {
    /// The pod.
    pub pod: std::sync::Arc<Pod>,
    /// Its folder.
    pub dir: PathBuf,
    /// Its containers.
    pub runs: Vec<(String, String)>,
}

/// Walks a pod's folders.
pub fn measure(place: &Place) -> DiskUse {
    let container = |(name, id): &(String, String)| {
        let mut all = size(&bundle(&place.dir, id).join("upper"));
        all.add(size(&place.dir.join("logs").join(name)));
        (name.clone(), all)
    };
    let volume = |volume: &Volume| (volume.name.clone(), size(&place.dir.join("volumes").join(&volume.name)));
    DiskUse {
        containers: place.runs.iter().map(container).collect(),
        volumes: on_disk(&place.pod).map(volume).collect(),
    }
}

/// The `emptyDir` volumes that are not in memory.
fn on_disk(pod: &Pod) -> impl Iterator<Item = &Volume> {
    crate::volumes::of(pod)
        .iter()
        .filter(|v| v.empty_dir.as_ref().is_some_and(|e| e.medium.as_deref() != Some("Memory")))
}

fn size_limit(volume: &Volume) -> Option<(u64, &str)> {
    let text = volume.empty_dir.as_ref()?.size_limit.as_ref()?.0.as_str();
    let bytes = u64::try_from(text.parse::<Quantity>().ok()?.value()).ok()?;
    (bytes > 0).then_some((bytes, text))
}

fn storage_limits(pod: &Pod) -> Vec<(&str, u64)> {
    let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
    let limited = containers.filter_map(|c| Some((c.name.as_str(), limit(c.resources.as_ref(), "ephemeral-storage")?)));
    limited.filter_map(|(name, bytes)| Some((name, u64::try_from(bytes).ok()?))).collect()
}

/// Whether the pod has limits that only a walk can tell about.
pub fn has_limits(pod: &Pod) -> bool {
    on_disk(pod).any(|volume| size_limit(volume).is_some()) || !storage_limits(pod).is_empty()
}

/// Which limit the pod exceeds, in the words of Kubernetes.
pub fn exceeded(pod: &Pod, used: &DiskUse) -> Option<String> {
    for volume in on_disk(pod) {
        let Some((bytes, text)) = size_limit(volume) else { continue };
        let has = used.volumes.iter().find(|(name, _)| *name == volume.name).map_or(0, |(_, size)| size.bytes);
        if has > bytes {
            return Some(format!("Usage of EmptyDir volume {:?} exceeds the limit {text:?}. ", volume.name));
        }
    }
    let limits = storage_limits(pod);
    let sum: u64 = limits.iter().map(|(_, bytes)| bytes).sum();
    let text = |bytes: u64| {
        let format = mycelium_api::quantity::Format::BinarySi;
        Quantity::from_value(i64::try_from(bytes).unwrap_or(i64::MAX), format).to_string()
    };
    if !limits.is_empty() && used.total().bytes > sum {
        return Some(format!(
            "Pod ephemeral local storage usage exceeds the total limit of containers {}. ",
            text(sum)
        ));
    }
    limits.iter().find_map(|(name, bytes)| {
        let has = used.containers.iter().find(|(used, _)| used == name).map_or(0, |(_, size)| size.bytes);
        let message = || format!("Container {name} exceeded its local ephemeral storage limit {:?}. ", text(*bytes));
        (has > *bytes).then(message)
    })
}

/// The size of a tree, within one file system. What vanishes meanwhile does not count.
pub fn size(root: &Path) -> Size {
    let Ok(top) = fs::symlink_metadata(root) else { return Size::default() };
    let mut total = Size { bytes: top.blocks() * BLOCK, files: 1 };
    let mut open = vec![(root.to_owned(), 0)];
    while let Some((dir, depth)) = open.pop() {
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            let Ok(meta) = entry.metadata() else { continue };
            if meta.dev() != top.dev() {
                continue;
            }
            // A file with several names is one file: each name counts for its part.
            let names = if meta.is_dir() { 1 } else { meta.nlink().max(1) };
            total.add(Size { bytes: meta.blocks() * BLOCK / names, files: 1 });
            if meta.is_dir() && depth < DEPTH_MAX {
                open.push((entry.path(), depth + 1));
            }
        }
    }
    total
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(spec: serde_json::Value) -> Pod {
        serde_json::from_value(json!({"spec": spec})).expect("a pod")
    }

    #[test]
    fn limits_are_told_in_kubernetes_words() {
        let limits = |name: &str| json!({"name": name, "resources": {"limits": {"ephemeral-storage": "1Mi"}}});
        let volumes = json!([{"name": "v", "emptyDir": {"sizeLimit": "1Mi"}}, {"name": "m", "emptyDir": {"medium": "Memory", "sizeLimit": "1"}}]);
        let both = pod(json!({"containers": [limits("a"), limits("b")], "volumes": volumes}));
        let size = |bytes| Size { bytes, files: 1 };
        let used = |a, b, v| DiskUse {
            containers: vec![("a".into(), size(a)), ("b".into(), size(b))],
            volumes: vec![("v".into(), size(v))],
        };
        assert!(has_limits(&both));
        assert_eq!(exceeded(&both, &used(1 << 20, 1 << 19, 1 << 19)), None);
        let expect = |used: DiskUse, text: &str| assert_eq!(exceeded(&both, &used).as_deref(), Some(text));
        expect(used(0, 0, (1 << 20) + 1), "Usage of EmptyDir volume \"v\" exceeds the limit \"1Mi\". ");
        expect(
            used(1 << 20, 1 << 20, 1),
            "Pod ephemeral local storage usage exceeds the total limit of containers 2Mi. ",
        );
        expect(used((1 << 20) + 1, 0, 0), "Container a exceeded its local ephemeral storage limit \"1Mi\". ");
        assert!(!has_limits(&pod(json!({"containers": [{"name": "a"}], "volumes": [{"name": "v", "emptyDir": {}}]}))));
    }

    #[test]
    fn a_tree_is_measured_without_following_links() {
        let dir = tempfile::tempdir().expect("a folder");
        fs::create_dir(dir.path().join("sub")).expect("a folder");
        fs::write(dir.path().join("sub/file"), vec![1; 100_000]).expect("writes");
        fs::hard_link(dir.path().join("sub/file"), dir.path().join("again")).expect("links");
        std::os::unix::fs::symlink("/usr", dir.path().join("link")).expect("links");
        let found = size(dir.path());
        assert_eq!(found.files, 5);
        assert!((100_000..150_000).contains(&found.bytes), "{found:?}");
        assert_eq!(size(&dir.path().join("missing")), Size::default());
    }
}

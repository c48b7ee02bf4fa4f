//! What pods and everything with a pod template share.

pub mod defaults;
pub mod label_keys;
pub mod qos;
pub mod resize;
pub mod resources;
pub mod status;
pub mod update;
pub mod validate;
mod validate_container;
mod validate_env;
mod validate_mounts;
mod validate_probes;
mod validate_resources;
pub(crate) mod validate_scheduling;
mod validate_security;
mod validate_volume;
pub mod warnings;

use serde_json::Value;

use crate::value::{list, text};

/// The lists in a pod spec that hold containers.
pub const CONTAINER_LISTS: [&str; 3] = ["initContainers", "containers", "ephemeralContainers"];

/// The tag of an image reference: `latest` where neither tag nor digest is given, empty for a bare digest.
pub fn image_tag(image: &str) -> &str {
    let (name, digest) = image.split_once('@').map_or((image, ""), |(name, digest)| (name, digest));
    let last = name.rsplit('/').next().unwrap_or(name);
    match last.split_once(':') {
        Some((_, tag)) => tag,
        None if digest.is_empty() && !image.is_empty() => "latest",
        None => "",
    }
}

/// Whether an init container keeps running beside the others.
pub fn is_sidecar(container: &Value) -> bool {
    text(container, &["restartPolicy"]) == "Always"
}

/// Whether a pod in this phase never runs again.
pub fn is_terminal(phase: &str) -> bool {
    matches!(phase, "Succeeded" | "Failed")
}

/// The container of a name in one of the lists of a pod spec.
pub fn container<'a>(spec: &'a Value, lists: &[&str], name: &str) -> Option<&'a Value> {
    lists.iter().flat_map(|key| list(spec, &[key])).find(|container| text(container, &["name"]) == name)
}

#[cfg(test)]
mod tests {
    use super::image_tag;

    #[test]
    fn tags() {
        assert_eq!(image_tag("nginx"), "latest");
        assert_eq!(image_tag("host:5000/a/nginx"), "latest");
        assert_eq!(image_tag("host:5000/a/nginx:1.2"), "1.2");
        assert_eq!(image_tag("nginx@sha256:abc"), "");
        assert_eq!(image_tag("nginx:1@sha256:abc"), "1");
        assert_eq!(image_tag(""), "");
    }
}

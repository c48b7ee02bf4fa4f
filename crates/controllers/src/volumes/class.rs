//! Storage classes: found by name, or by one of the other names that a class says it goes by.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use mycelium_api::storage::{ALIASES, IS_DEFAULT_CLASS, PROVISIONER};

use crate::objects::{annotation, name};

/// Where classes were named before they had a field of their own.
const LEGACY: &str = "volume.beta.kubernetes.io/storage-class";

/// The class that a claim names; nothing if it leaves the choice to the cluster.
pub fn of_claim(claim: &PersistentVolumeClaim) -> Option<&str> {
    let field = || claim.spec.as_ref()?.storage_class_name.as_deref();
    annotation(&claim.metadata, LEGACY).or_else(field)
}

/// The class that a volume belongs to; empty if to none.
pub fn of_volume(volume: &PersistentVolume) -> &str {
    let field = || volume.spec.as_ref()?.storage_class_name.as_deref();
    annotation(&volume.metadata, LEGACY).or_else(field).unwrap_or_default()
}

/// The class of that name, or else the first that has it among its other names.
pub fn find<'a>(classes: &'a [Arc<StorageClass>], wanted: &str) -> Option<&'a Arc<StorageClass>> {
    let goes_by = |class: &&Arc<StorageClass>| {
        let aliases = annotation(&class.metadata, ALIASES).unwrap_or_default();
        aliases.split(',').any(|alias| alias.trim() == wanted)
    };
    let by_name = classes.iter().find(|class| name(&class.metadata) == wanted);
    by_name.or_else(|| classes.iter().filter(goes_by).min_by_key(|class| name(&class.metadata)))
}

/// The class of claims that name none: of several the newest, and of those the first by name.
pub fn default(classes: &[Arc<StorageClass>]) -> Option<&Arc<StorageClass>> {
    let marked = |class: &&Arc<StorageClass>| annotation(&class.metadata, IS_DEFAULT_CLASS) == Some("true");
    let age = |class: &&Arc<StorageClass>| {
        let made = class.metadata.creation_timestamp.as_ref().map(|time| time.0);
        (std::cmp::Reverse(made), name(&class.metadata).to_owned())
    };
    classes.iter().filter(marked).min_by_key(age)
}

/// Whether claims of the class get their volume only when a pod needs it.
pub fn waits_for_pod(class: &StorageClass) -> bool {
    class.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer")
}

/// Whether anybody makes volumes of the class.
pub fn is_dynamic(class: &StorageClass) -> bool {
    !matches!(class.provisioner.as_str(), "" | "kubernetes.io/no-provisioner")
}

/// Whether its volumes are ours to make.
pub fn is_ours(class: &StorageClass) -> bool {
    class.provisioner == PROVISIONER
}

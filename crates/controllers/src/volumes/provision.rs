//! Volumes made for claims. Only the object: the node makes the folder when a pod first mounts it.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    CSIPersistentVolumeSource, PersistentVolume, PersistentVolumeClaim, PersistentVolumeSpec,
};
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use mycelium_api::storage::{DRIVER, FOLDER_PROTECTION, PROVISIONED_BY, PROVISIONER, VOLUME_PROTECTION};

use super::matching;
use crate::objects::reference;

/// The volume for a claim, or why there can be none.
pub fn volume(
    claim: &PersistentVolumeClaim,
    class: &StorageClass,
    class_name: &str,
) -> Result<PersistentVolume, String> {
    let wanted = claim.spec.clone().unwrap_or_default();
    if matching::mode(wanted.volume_mode.as_ref()) == "Block" {
        return Err("volumeMode Block is not served here: volumes are folders; ask for Filesystem".into());
    }
    if wanted.data_source.is_some() || wanted.data_source_ref.is_some() {
        return Err("a dataSource is not served here: volumes begin empty".into());
    }
    let selector = wanted.selector.unwrap_or_default();
    if selector.match_labels.is_some_and(|all| !all.is_empty())
        || selector.match_expressions.is_some_and(|all| !all.is_empty())
    {
        return Err("claim Selector is not supported".into());
    }
    let name = format!("pvc-{}", claim.metadata.uid.as_deref().unwrap_or_default());
    let metadata = ObjectMeta {
        name: Some(name.clone()),
        annotations: Some(BTreeMap::from([(PROVISIONED_BY.to_owned(), PROVISIONER.to_owned())])),
        finalizers: Some(vec![FOLDER_PROTECTION.to_owned(), VOLUME_PROTECTION.to_owned()]),
        ..ObjectMeta::default()
    };
    let spec = PersistentVolumeSpec {
        capacity: Some(BTreeMap::from([("storage".to_owned(), Quantity(matching::request(claim).to_string()))])),
        access_modes: wanted.access_modes,
        claim_ref: Some(reference(claim)),
        csi: Some(CSIPersistentVolumeSource {
            driver: DRIVER.to_owned(),
            volume_handle: name,
            ..CSIPersistentVolumeSource::default()
        }),
        mount_options: class.mount_options.clone(),
        persistent_volume_reclaim_policy: Some(class.reclaim_policy.clone().unwrap_or_else(|| "Delete".into())),
        storage_class_name: Some(class_name.to_owned()),
        volume_mode: Some("Filesystem".into()),
        ..PersistentVolumeSpec::default()
    };
    Ok(PersistentVolume { metadata, spec: Some(spec), status: None })
}

//! Which volume suits a claim.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;
use mycelium_api::quantity::Quantity;

use super::class;
use crate::labels::Matcher;
use crate::objects::{labels, name};

fn quantity(map: Option<&std::collections::BTreeMap<String, ApiQuantity>>) -> Quantity {
    let text = map.and_then(|map| map.get("storage")).map(|quantity| quantity.0.as_str());
    text.and_then(|text| text.parse().ok()).unwrap_or(Quantity::ZERO)
}

/// How much a claim asks for.
pub fn request(claim: &PersistentVolumeClaim) -> Quantity {
    let resources = claim.spec.as_ref().and_then(|spec| spec.resources.as_ref());
    quantity(resources.and_then(|resources| resources.requests.as_ref()))
}

/// How much a claim has.
pub fn granted(claim: &PersistentVolumeClaim) -> Quantity {
    quantity(claim.status.as_ref().and_then(|status| status.capacity.as_ref()))
}

/// How large a volume is.
pub fn capacity(volume: &PersistentVolume) -> Quantity {
    quantity(volume.spec.as_ref().and_then(|spec| spec.capacity.as_ref()))
}

/// `Filesystem` or `Block`.
pub fn mode(mode: Option<&String>) -> &str {
    mode.map_or("Filesystem", String::as_str)
}

/// Whether the volume says that it is for this claim, by name and, if it knows it, by uid.
pub fn is_for(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let Some(held) = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref()) else { return false };
    held.name == claim.metadata.name
        && held.namespace == claim.metadata.namespace
        && held.uid.as_ref().is_none_or(|uid| uid.is_empty() || Some(uid) == claim.metadata.uid.as_ref())
}

fn has_modes(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let offered = volume.spec.as_ref().and_then(|spec| spec.access_modes.as_deref()).unwrap_or_default();
    let wanted = claim.spec.as_ref().and_then(|spec| spec.access_modes.as_deref()).unwrap_or_default();
    wanted.iter().all(|mode| offered.contains(mode))
}

fn same_mode(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> bool {
    let offered = volume.spec.as_ref().and_then(|spec| spec.volume_mode.as_ref());
    mode(offered) == mode(claim.spec.as_ref().and_then(|spec| spec.volume_mode.as_ref()))
}

/// Why a claim cannot have the volume that it names.
pub fn objection(volume: &PersistentVolume, claim: &PersistentVolumeClaim) -> Option<String> {
    let plain = |text: &str| Some(text.to_owned());
    if request(claim) > capacity(volume) {
        return plain("requested PV is too small");
    }
    if class::of_claim(claim).unwrap_or_default() != class::of_volume(volume) {
        return plain("storageClassName does not match");
    }
    if !same_mode(volume, claim) {
        return plain("incompatible volumeMode");
    }
    (!has_modes(volume, claim)).then(|| "incompatible accessMode".to_owned())
}

/// Whether a claim may have a volume that nobody has.
fn is_candidate(volume: &PersistentVolume, claim: &PersistentVolumeClaim, selector: Option<&Matcher>) -> bool {
    volume.metadata.deletion_timestamp.is_none()
        && volume.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Available")
        && volume.spec.as_ref().is_some_and(|spec| spec.claim_ref.is_none())
        && objection(volume, claim).is_none()
        && selector.is_none_or(|selector| selector.matches(labels(&volume.metadata)))
}

/// The volumes that a claim may have, the smallest first.
pub fn candidates(volumes: &[Arc<PersistentVolume>], claim: &PersistentVolumeClaim) -> Vec<Arc<PersistentVolume>> {
    let selector = claim.spec.as_ref().and_then(|spec| spec.selector.as_ref()).map(Matcher::new);
    let fits = |volume: &&Arc<PersistentVolume>| is_candidate(volume, claim, selector.as_ref());
    let mut found: Vec<_> = volumes.iter().filter(fits).cloned().collect();
    found.sort_by(|a, b| capacity(a).cmp(&capacity(b)).then_with(|| name(&a.metadata).cmp(name(&b.metadata))));
    found
}

/// The volume that was set aside for this very claim.
pub fn reserved(volumes: &[Arc<PersistentVolume>], claim: &PersistentVolumeClaim) -> Option<Arc<PersistentVolume>> {
    let fits = |volume: &&Arc<PersistentVolume>| {
        volume.metadata.deletion_timestamp.is_none()
            && is_for(volume, claim)
            && same_mode(volume, claim)
            && capacity(volume) >= request(claim)
    };
    volumes.iter().find(fits).cloned()
}

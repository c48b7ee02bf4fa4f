//! What becomes of a volume.
//!
//! ```text
//!   Available ──a claim gets it──► Bound ──the claim is gone──► Released ──Delete, and that is impossible──► Failed
//! ```
//! What was made for a claim and is to be deleted stays `Released` until the node has removed its folder and the object.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use mycelium_api::storage::{DRIVER, PROVISIONED_BY, VOLUME_PROTECTION};

use super::claim::{BOUND_BY_CONTROLLER, set_phase};
use super::{Note, matching};
use crate::events::Type;
use crate::objects::{annotation, name};

/// What is to be done about a volume.
#[derive(Debug)]
pub struct Outcome {
    /// The volume as it should be.
    pub volume: PersistentVolume,
    /// What is to be told about it.
    pub notes: Vec<Note>,
}

fn phase(volume: &PersistentVolume) -> &str {
    volume.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default()
}

/// Decides about a volume, given the claim that it names.
pub fn plan(volume: &PersistentVolume, claim: Option<&Arc<PersistentVolumeClaim>>) -> Outcome {
    let mut outcome = Outcome { volume: volume.clone(), notes: Vec::new() };
    let deleting = volume.metadata.deletion_timestamp.is_some();
    let held = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref());
    match held {
        None => set_phase(&mut outcome.volume, "Available", ""),
        Some(held) if held.uid.as_deref().unwrap_or_default().is_empty() => {
            set_phase(&mut outcome.volume, "Available", "");
        }
        Some(held) => match claim.filter(|claim| claim.metadata.uid == held.uid) {
            Some(claim) => with_claim(&mut outcome, volume, claim),
            None => release(&mut outcome, volume),
        },
    }
    if deleting && phase(&outcome.volume) != "Bound" {
        let finalizers = outcome.volume.metadata.finalizers.get_or_insert_default();
        finalizers.retain(|finalizer| finalizer != VOLUME_PROTECTION);
    }
    outcome
}

fn with_claim(outcome: &mut Outcome, volume: &PersistentVolume, claim: &PersistentVolumeClaim) {
    let chosen = claim.spec.as_ref().and_then(|spec| spec.volume_name.as_deref()).unwrap_or_default();
    if chosen.is_empty() {
        // The claim is about to take it, or cannot.
        if !matches!(phase(volume), "Bound" | "Released" | "Failed") && !matching::is_for(volume, claim) {
            set_phase(&mut outcome.volume, "Available", "");
        }
    } else if chosen == name(&volume.metadata) {
        set_phase(&mut outcome.volume, "Bound", "");
    } else if annotation(&volume.metadata, PROVISIONED_BY).is_some() {
        // Made for the claim, which took another meanwhile.
        release(outcome, volume);
    } else {
        let ours = annotation(&volume.metadata, BOUND_BY_CONTROLLER).is_some();
        let spec = outcome.volume.spec.get_or_insert_default();
        if ours {
            spec.claim_ref = None;
            outcome.volume.metadata.annotations.get_or_insert_default().remove(BOUND_BY_CONTROLLER);
        } else if let Some(held) = &mut spec.claim_ref {
            held.uid = None;
        }
        set_phase(&mut outcome.volume, "Available", "");
    }
}

fn release(outcome: &mut Outcome, volume: &PersistentVolume) {
    let failed = phase(volume) == "Failed";
    if !failed {
        set_phase(&mut outcome.volume, "Released", "");
    }
    let spec = volume.spec.clone().unwrap_or_default();
    let ours = spec.csi.is_some_and(|csi| csi.driver == DRIVER);
    let (reason, message) = match spec.persistent_volume_reclaim_policy.as_deref() {
        Some("Delete") if !ours && annotation(&volume.metadata, PROVISIONED_BY).is_none() => {
            let message = "error getting deleter volume plugin for volume \"{}\": no deletable volume plugin matched";
            ("VolumeFailedDelete", message.replace("{}", name(&volume.metadata)))
        }
        Some("Recycle") => ("VolumeFailedRecycle", "No recycler plugin found for the volume!".to_owned()),
        _ => return,
    };
    set_phase(&mut outcome.volume, "Failed", &message);
    if !failed {
        outcome.notes.push(Note { type_: Type::Warning, reason, message });
    }
}

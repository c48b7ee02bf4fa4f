//! What becomes of a claim: which volume it gets, which is made for it, and what it is told.
//!
//! ```text
//!   Pending ──a volume suits, or is made──► Bound ──the volume is gone or another's──► Lost
//! ```

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;
use mycelium_api::storage::PROVISIONER;

use super::{Note, class, matching, provision};
use crate::events::Type;
use crate::objects::{annotation, name, node_name, reference};

/// On a claim: it has its volume for good. On a volume or claim: the binding was our choice.
pub const BIND_COMPLETED: &str = "pv.kubernetes.io/bind-completed";
/// See [`BIND_COMPLETED`].
pub const BOUND_BY_CONTROLLER: &str = "pv.kubernetes.io/bound-by-controller";
/// On a claim: the node that its pod was given.
pub const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
/// On a claim: who is to make its volume.
const STORAGE_PROVISIONER: &str = "volume.kubernetes.io/storage-provisioner";
const LEGACY_PROVISIONER: &str = "volume.beta.kubernetes.io/storage-provisioner";

/// What a claim's fate depends on.
pub struct World {
    /// All volumes.
    pub volumes: Vec<Arc<PersistentVolume>>,
    /// All storage classes.
    pub classes: Vec<Arc<StorageClass>>,
    /// The pods that use the claim.
    pub pods: Vec<Arc<Pod>>,
}

/// What is to be done, in this order.
#[derive(Debug)]
pub struct Outcome {
    /// A volume as it is, and as it should be.
    pub volume: Option<(Arc<PersistentVolume>, PersistentVolume)>,
    /// A volume to be made.
    pub create: Option<PersistentVolume>,
    /// The claim as it should be.
    pub claim: PersistentVolumeClaim,
    /// What is to be told about the claim.
    pub notes: Vec<Note>,
}

impl Outcome {
    fn unchanged(claim: &PersistentVolumeClaim) -> Self {
        Self { volume: None, create: None, claim: claim.clone(), notes: Vec::new() }
    }

    fn tell(mut self, type_: Type, reason: &'static str, message: impl Into<String>) -> Self {
        self.notes.push(Note { type_, reason, message: message.into() });
        self
    }

    fn in_phase(mut self, phase: &str) -> Self {
        self.claim.status.get_or_insert_default().phase = Some(phase.to_owned());
        self
    }
}

/// Whether a claim has its volume for good.
pub fn is_bound(claim: &PersistentVolumeClaim) -> bool {
    annotation(&claim.metadata, BIND_COMPLETED).is_some()
}

fn volume_name(claim: &PersistentVolumeClaim) -> &str {
    claim.spec.as_ref().and_then(|spec| spec.volume_name.as_deref()).unwrap_or_default()
}

/// Decides about a claim that is not being deleted.
pub fn plan(claim: &PersistentVolumeClaim, world: &World) -> Outcome {
    let named = volume_name(claim);
    let volume = world.volumes.iter().find(|volume| name(&volume.metadata) == named);
    match (is_bound(claim), named.is_empty()) {
        (true, true) => {
            lost(claim, "ClaimLost", "Bound claim has lost reference to PersistentVolume. Data on the volume is lost!")
        }
        (true, false) => bound(claim, volume),
        (false, true) => choose(claim, world),
        (false, false) => named_volume(claim, named, volume),
    }
}

fn lost(claim: &PersistentVolumeClaim, reason: &'static str, message: &str) -> Outcome {
    let outcome = Outcome::unchanged(claim);
    let known = claim.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Lost");
    let outcome = outcome.in_phase("Lost");
    if known { outcome } else { outcome.tell(Type::Warning, reason, message) }
}

fn bound(claim: &PersistentVolumeClaim, volume: Option<&Arc<PersistentVolume>>) -> Outcome {
    let Some(volume) = volume else {
        return lost(claim, "ClaimLost", "Bound claim has lost its PersistentVolume. Data on the volume is lost!");
    };
    let holder = volume.spec.as_ref().and_then(|spec| spec.claim_ref.as_ref());
    if holder.is_some() && !matching::is_for(volume, claim) {
        let message = "Two claims are bound to the same volume, this one is bound incorrectly";
        return lost(claim, "ClaimMisbound", message);
    }
    let wanted = matching::request(claim);
    let ours = annotation(&volume.metadata, mycelium_api::storage::PROVISIONED_BY) == Some(PROVISIONER);
    let grows =
        ours && wanted > matching::granted(claim) && matching::granted(claim) > mycelium_api::quantity::Quantity::ZERO;
    let outcome = bind(claim, volume);
    if !grows { outcome } else { grow(outcome, volume, &wanted.to_string()) }
}

/// A folder has no size of its own: a larger volume is only another number.
fn grow(mut outcome: Outcome, volume: &Arc<PersistentVolume>, size: &str) -> Outcome {
    let storage = BTreeMap::from([("storage".to_owned(), ApiQuantity(size.to_owned()))]);
    let (_, grown) = outcome.volume.get_or_insert_with(|| (volume.clone(), volume.as_ref().clone()));
    grown.spec.get_or_insert_default().capacity = Some(storage.clone());
    let status = outcome.claim.status.get_or_insert_default();
    status.capacity = Some(storage.clone());
    status.allocated_resources = Some(storage);
    status.allocated_resource_statuses = None;
    status.conditions = None;
    outcome.tell(Type::Normal, "VolumeResizeSuccessful", "Resize volume succeeded")
}

fn named_volume(claim: &PersistentVolumeClaim, named: &str, volume: Option<&Arc<PersistentVolume>>) -> Outcome {
    let waiting = Outcome::unchanged(claim).in_phase("Pending");
    let Some(volume) = volume else { return waiting };
    let free = volume.spec.as_ref().is_none_or(|spec| spec.claim_ref.is_none());
    if free {
        return match matching::objection(volume, claim) {
            Some(why) => {
                let message = format!("Cannot bind to requested volume \"{named}\": {why}");
                waiting.tell(Type::Warning, "VolumeMismatch", message)
            }
            None => bind(claim, volume),
        };
    }
    if matching::is_for(volume, claim) {
        return bind(claim, volume);
    }
    let message = format!("volume \"{named}\" already bound to a different claim.");
    waiting.tell(Type::Warning, "FailedBinding", message)
}

/// Ties claim and volume to each other.
fn bind(claim: &PersistentVolumeClaim, volume: &Arc<PersistentVolume>) -> Outcome {
    let mut outcome = Outcome::unchanged(claim);
    let volume_name = name(&volume.metadata).to_owned();
    let spec = volume.spec.clone().unwrap_or_default();

    let mut taken = volume.as_ref().clone();
    let held = taken.spec.get_or_insert_default();
    if held.claim_ref.as_ref().is_none_or(|held| held.uid != claim.metadata.uid) {
        if held.claim_ref.is_none() {
            taken.metadata.annotations.get_or_insert_default().insert(BOUND_BY_CONTROLLER.into(), "yes".into());
        }
        held.claim_ref = Some(reference(claim));
    }
    set_phase(&mut taken, "Bound", "");
    if taken != **volume {
        outcome.volume = Some((volume.clone(), taken));
    }

    let annotations = outcome.claim.metadata.annotations.get_or_insert_default();
    let wanted = outcome.claim.spec.get_or_insert_default();
    if wanted.volume_name.as_deref().unwrap_or_default().is_empty() {
        annotations.insert(BOUND_BY_CONTROLLER.into(), "yes".into());
        wanted.volume_name = Some(volume_name);
    }
    annotations.entry(BIND_COMPLETED.into()).or_insert_with(|| "yes".into());
    let status = outcome.claim.status.get_or_insert_default();
    let fresh = status.phase.as_deref() != Some("Bound");
    status.phase = Some("Bound".into());
    status.access_modes = spec.access_modes;
    if fresh || status.capacity.is_none() {
        status.capacity = spec.capacity;
    }
    outcome
}

/// Puts a volume in a phase.
pub fn set_phase(volume: &mut PersistentVolume, phase: &str, message: &str) {
    let status = volume.status.get_or_insert_default();
    if status.phase.as_deref() != Some(phase) {
        status.phase = Some(phase.to_owned());
    }
    status.message = (!message.is_empty()).then(|| message.to_owned());
}

/// Finds a volume for a claim that names none, or has one made.
fn choose(claim: &PersistentVolumeClaim, world: &World) -> Outcome {
    if let Some(volume) = matching::reserved(&world.volumes, claim) {
        return bind(claim, &volume);
    }
    let mut claim = claim.clone();
    if class::of_claim(&claim).is_none()
        && let Some(class) = class::default(&world.classes)
    {
        claim.spec.get_or_insert_default().storage_class_name = class.metadata.name.clone();
    }
    let wanted = class::of_claim(&claim).unwrap_or_default().to_owned();
    let class = class::find(&world.classes, &wanted);
    let node = annotation(&claim.metadata, SELECTED_NODE);
    if class.is_some_and(|class| class::waits_for_pod(class)) && node.is_none() {
        return wait(&claim, world);
    }
    if let Some(volume) = matching::candidates(&world.volumes, &claim).first() {
        return bind(&claim, volume);
    }
    let waiting = Outcome::unchanged(&claim).in_phase("Pending");
    if wanted.is_empty() {
        let message = "no persistent volumes available for this claim and no storage class is set";
        return waiting.tell(Type::Normal, "FailedBinding", message);
    }
    let Some(class) = class else {
        let message = format!("storageclass.storage.k8s.io \"{wanted}\" not found");
        return waiting.tell(Type::Warning, "ProvisioningFailed", message);
    };
    make(waiting, class, &wanted)
}

fn wait(claim: &PersistentVolumeClaim, world: &World) -> Outcome {
    let waiting = Outcome::unchanged(claim).in_phase("Pending");
    match world.pods.iter().find(|pod| node_name(pod).is_none()) {
        Some(pod) => {
            let message = format!("waiting for pod {} to be scheduled", name(&pod.metadata));
            waiting.tell(Type::Normal, "WaitForPodScheduled", message)
        }
        None => {
            let message = "waiting for first consumer to be created before binding";
            waiting.tell(Type::Normal, "WaitForFirstConsumer", message)
        }
    }
}

fn make(mut outcome: Outcome, class: &StorageClass, wanted: &str) -> Outcome {
    let who = class.provisioner.clone();
    if !class::is_dynamic(class) {
        let message = format!("storage class \"{wanted}\" has no provisioner, and no volume suits the claim");
        return outcome.tell(Type::Warning, "ProvisioningFailed", message);
    }
    let annotations = outcome.claim.metadata.annotations.get_or_insert_default();
    for key in [LEGACY_PROVISIONER, STORAGE_PROVISIONER] {
        annotations.insert(key.into(), who.clone());
    }
    if !class::is_ours(class) {
        let message = format!(
            "Waiting for a volume to be created either by the external provisioner '{who}' or manually by the system \
             administrator. If volume creation is delayed, please verify that the provisioner is running and correctly \
             registered."
        );
        return outcome.tell(Type::Normal, "ExternalProvisioning", message);
    }
    let volume = match provision::volume(&outcome.claim, class, wanted) {
        Ok(volume) => volume,
        Err(why) => {
            let message = format!("failed to provision volume with StorageClass \"{wanted}\": {why}");
            return outcome.tell(Type::Warning, "ProvisioningFailed", message);
        }
    };
    let mut message = format!("Successfully provisioned volume {}", name(&volume.metadata));
    if name(&class.metadata) != wanted {
        message = format!("{message} of class {}, which serves claims for {wanted} here", name(&class.metadata));
    }
    outcome.create = Some(volume);
    outcome.tell(Type::Normal, "ProvisioningSucceeded", message)
}

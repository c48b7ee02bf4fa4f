//! What a pod's claims mean for where it can run.

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};

use super::node::Node;
use super::pod::NodeTerm;
use super::why::Reason;
use crate::cache::Key;
use crate::context::Caches;
use crate::objects::{annotation, is_controlled_by, is_terminal, name, node_name, reference};
use crate::volumes::claim::{BOUND_BY_CONTROLLER, SELECTED_NODE, is_bound};
use crate::volumes::{claims_of, class, ephemeral, matching};
use crate::write::{Error, Part, Writer};

/// A pod or claim younger than this is about to get what it lacks; nobody is told of it.
const QUIET: SignedDuration = SignedDuration::from_secs(2);

/// The nodes from which a volume can be reached; none means all.
type Reach = Option<Vec<NodeTerm>>;

/// A claim that gets its volume when its pod has a node.
#[derive(Clone, Debug, PartialEq)]
struct Late {
    claim: Arc<PersistentVolumeClaim>,
    candidates: Vec<(Arc<PersistentVolume>, Reach)>,
    /// A volume can be made for it.
    makeable: bool,
}

/// What a pod's claims demand of a node.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Storage {
    bound: Vec<Reach>,
    late: Vec<Late>,
    /// A claim is bound to a volume that is not there.
    gone: bool,
    /// Another pod has what only one pod may have.
    taken: bool,
}

/// Why a pod cannot be placed anywhere yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// In Kubernetes' words.
    pub message: String,
    /// How long nobody need be told.
    pub quiet: Option<SignedDuration>,
}

fn reach(volume: &PersistentVolume) -> Reach {
    let affinity = volume.spec.as_ref()?.node_affinity.as_ref()?.required.as_ref()?;
    Some(affinity.node_selector_terms.iter().map(NodeTerm::new).collect())
}

fn reaches(reach: &Reach, node: &Node) -> bool {
    reach.as_ref().is_none_or(|terms| terms.iter().any(|term| term.holds(node)))
}

impl Storage {
    /// What speaks against a node.
    pub fn objection(&self, node: &Node) -> Option<Reason> {
        if self.taken {
            return Some(Reason::VolumeTaken);
        }
        if self.gone {
            return Some(Reason::VolumeGone);
        }
        if !self.bound.iter().all(|reach| reaches(reach, node)) {
            return Some(Reason::VolumeAffinity);
        }
        let served = |late: &Late| late.makeable || late.candidates.iter().any(|(_, reach)| reaches(reach, node));
        (!self.late.iter().all(served)).then_some(Reason::VolumeMissing)
    }

    /// Whether volumes must be found once the node is known.
    pub fn is_late(&self) -> bool {
        !self.late.is_empty()
    }

    /// Asks for the volumes that can only be chosen now: takes one that suits, or has one made.
    pub async fn choose(self, caches: &Caches, writer: &Writer, node: &Node) -> Result<(), Error> {
        for late in self.late {
            let fitting = late.candidates.iter().find(|(_, reach)| reaches(reach, node));
            if let Some((volume, _)) = fitting {
                let mut taken = volume.as_ref().clone();
                taken.spec.get_or_insert_default().claim_ref = Some(reference(late.claim.as_ref()));
                taken.metadata.annotations.get_or_insert_default().insert(BOUND_BY_CONTROLLER.into(), "yes".into());
                writer.update(&caches.volumes, volume.as_ref(), &taken, Part::Main).await?;
            } else {
                let mut told = late.claim.as_ref().clone();
                told.metadata.annotations.get_or_insert_default().insert(SELECTED_NODE.into(), node.name.clone());
                writer.update(&caches.claims, late.claim.as_ref(), &told, Part::Main).await?;
            }
        }
        Ok(())
    }
}

/// Looks at the claims of a pod.
pub fn look(pod: &Pod, caches: &Caches, now: Timestamp) -> Result<Storage, Refusal> {
    let mut storage = Storage::default();
    let namespace = pod.metadata.namespace.clone().unwrap_or_default();
    let mut unbound = false;
    let mut youngest = created(&pod.metadata);
    for (volume, claim_name) in claims_of(pod) {
        let key = Key::new(namespace.clone(), claim_name);
        let own = ephemeral::claim_name(pod, volume) == key.name && is_ephemeral(pod, volume);
        let Some(claim) = caches.claims.get(&key) else {
            let message = match own {
                true => format!(
                    "waiting for ephemeral volume controller to create the persistentvolumeclaim \"{}\"",
                    key.name
                ),
                false => format!("persistentvolumeclaim \"{}\" not found", key.name),
            };
            return Err(refusal(message, youngest, now));
        };
        if own && !is_controlled_by(&claim.metadata, pod.metadata.uid.as_deref()) {
            let message = format!("PVC {key} was not created for pod {} (pod is not owner)", Key::of(pod));
            return Err(Refusal { message, quiet: None });
        }
        youngest = youngest.max(created(&claim.metadata));
        if let Some(message) = unusable(&claim) {
            return Err(Refusal { message, quiet: None });
        }
        if is_bound(&claim) {
            let held = claim.spec.as_ref().and_then(|spec| spec.volume_name.clone()).unwrap_or_default();
            match caches.volumes.get(&Key::new("", held)) {
                Some(volume) => storage.bound.push(reach(&volume)),
                None => storage.gone = true,
            }
        } else {
            match late(claim.clone(), caches) {
                Some(late) => storage.late.push(late),
                None => unbound = true,
            }
        }
        storage.taken |= is_taken(pod, &claim, caches);
    }
    if unbound {
        return Err(refusal("pod has unbound immediate PersistentVolumeClaims".into(), youngest, now));
    }
    Ok(storage)
}

fn created(meta: &kube::api::ObjectMeta) -> Timestamp {
    meta.creation_timestamp.as_ref().map_or(Timestamp::MIN, |time| time.0)
}

fn refusal(message: String, youngest: Timestamp, now: Timestamp) -> Refusal {
    let left = QUIET.saturating_sub(now.duration_since(youngest));
    Refusal { message, quiet: left.is_positive().then_some(left) }
}

fn is_ephemeral(pod: &Pod, volume: &str) -> bool {
    let mut volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    volumes.any(|held| held.name == volume && held.ephemeral.is_some())
}

fn unusable(claim: &PersistentVolumeClaim) -> Option<String> {
    let claim_name = name(&claim.metadata);
    if claim.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Lost") {
        let volume = claim.spec.as_ref().and_then(|spec| spec.volume_name.as_deref()).unwrap_or_default();
        return Some(format!(
            "persistentvolumeclaim \"{claim_name}\" bound to non-existent persistentvolume \"{volume}\""
        ));
    }
    let going = claim.metadata.deletion_timestamp.is_some();
    going.then(|| format!("persistentvolumeclaim \"{claim_name}\" is being deleted"))
}

/// A claim that waits for its pod to have a node; nothing if it must have a volume before.
fn late(claim: Arc<PersistentVolumeClaim>, caches: &Caches) -> Option<Late> {
    let named = claim.spec.as_ref().and_then(|spec| spec.volume_name.as_deref()).unwrap_or_default();
    let chosen = annotation(&claim.metadata, SELECTED_NODE).is_some();
    let classes = caches.classes.all();
    let class = class::find(&classes, class::of_claim(&claim)?).filter(|class| class::waits_for_pod(class))?;
    let volumes = caches.volumes.all();
    if !named.is_empty() || chosen || matching::reserved(&volumes, &claim).is_some() {
        return None;
    }
    let makeable = class::is_dynamic(class);
    let found = matching::candidates(&volumes, &claim);
    let candidates = found.into_iter().map(|volume| (volume.clone(), reach(&volume))).collect();
    Some(Late { claim, candidates, makeable })
}

/// Whether another pod has a claim that only one pod may have.
fn is_taken(pod: &Pod, claim: &PersistentVolumeClaim, caches: &Caches) -> bool {
    let modes = claim.spec.as_ref().and_then(|spec| spec.access_modes.as_deref()).unwrap_or_default();
    if !modes.iter().any(|mode| mode == "ReadWriteOncePod") {
        return false;
    }
    let others = caches.pods.by_index(&format!("claim:{}", Key::of(claim)));
    others
        .iter()
        .any(|other| other.metadata.uid != pod.metadata.uid && node_name(other).is_some() && !is_terminal(other))
}

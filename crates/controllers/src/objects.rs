//! Small questions about objects that several controllers ask.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ObjectReference, Pod, PodCondition, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference, Time};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::Resource;

/// The label that ties a ReplicaSet and its pods to one pod template of a Deployment.
pub const TEMPLATE_HASH: &str = "pod-template-hash";

/// The owner that manages an object.
pub fn controller_of(meta: &ObjectMeta) -> Option<&OwnerReference> {
    meta.owner_references.as_ref()?.iter().find(|owner| owner.controller == Some(true))
}

/// Whether the object with this uid manages the one with this metadata.
pub fn is_controlled_by(meta: &ObjectMeta, uid: Option<&str>) -> bool {
    uid.is_some() && controller_of(meta).map(|owner| owner.uid.as_str()) == uid
}

/// A reference that makes `owner` the manager of another object.
pub fn controller_reference<K: Resource<DynamicType = ()>>(owner: &K) -> OwnerReference {
    OwnerReference {
        api_version: K::api_version(&()).into_owned(),
        kind: K::kind(&()).into_owned(),
        name: owner.meta().name.clone().unwrap_or_default(),
        uid: owner.meta().uid.clone().unwrap_or_default(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

/// A reference to an object, as events carry it.
pub fn reference<K: Resource<DynamicType = ()>>(object: &K) -> ObjectReference {
    let meta = object.meta();
    ObjectReference {
        api_version: Some(K::api_version(&()).into_owned()),
        kind: Some(K::kind(&()).into_owned()),
        name: meta.name.clone(),
        namespace: meta.namespace.clone(),
        uid: meta.uid.clone(),
        resource_version: meta.resource_version.clone(),
        field_path: None,
    }
}

/// The name of an object, or nothing.
pub fn name(meta: &ObjectMeta) -> &str {
    meta.name.as_deref().unwrap_or_default()
}

/// The labels of an object; no labels are an empty map.
pub fn labels(meta: &ObjectMeta) -> &BTreeMap<String, String> {
    static NONE: BTreeMap<String, String> = BTreeMap::new();
    meta.labels.as_ref().unwrap_or(&NONE)
}

/// An annotation.
pub fn annotation<'a>(meta: &'a ObjectMeta, key: &str) -> Option<&'a str> {
    meta.annotations.as_ref()?.get(key).map(String::as_str)
}

/// The phase of a pod; `Pending` if its status says nothing.
pub fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or("Pending")
}

/// A pod whose containers will never run again.
pub fn is_terminal(pod: &Pod) -> bool {
    matches!(phase(pod), "Succeeded" | "Failed")
}

/// A pod that runs or will run: not finished and not being deleted.
pub fn is_active(pod: &Pod) -> bool {
    !is_terminal(pod) && pod.metadata.deletion_timestamp.is_none()
}

/// A condition of a pod.
pub fn pod_condition<'a>(pod: &'a Pod, type_: &str) -> Option<&'a PodCondition> {
    pod.status.as_ref()?.conditions.as_ref()?.iter().find(|condition| condition.type_ == type_)
}

/// When the pod became ready; nothing if it is not.
pub fn ready_since(pod: &Pod) -> Option<Option<Timestamp>> {
    let condition = pod_condition(pod, "Ready").filter(|condition| condition.status == "True")?;
    Some(condition.last_transition_time.as_ref().map(|time| time.0))
}

/// Whether a pod is ready.
pub fn is_ready(pod: &Pod) -> bool {
    ready_since(pod).is_some()
}

/// When a ready pod counts as available: `min_ready_seconds` after it became ready. Nothing if it is not ready.
pub fn available_at(pod: &Pod, min_ready_seconds: i32) -> Option<Timestamp> {
    let since = ready_since(pod)?;
    if min_ready_seconds == 0 {
        return Some(Timestamp::MIN);
    }
    Some(since?.saturating_add(jiff::SignedDuration::from_secs(min_ready_seconds.into())).unwrap_or(Timestamp::MAX))
}

/// The node a pod is bound to.
pub fn node_name(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref().filter(|name| !name.is_empty())
}

/// The time as `metav1.Time` carries it: in whole seconds.
pub fn seconds(now: Timestamp) -> Time {
    Time(Timestamp::from_second(now.as_second()).unwrap_or(now))
}

/// A count or a percentage of `total`, rounded up or down.
pub fn scaled(value: Option<&IntOrString>, total: i32, round_up: bool) -> i32 {
    match value {
        None => 0,
        Some(IntOrString::Int(count)) => *count,
        Some(IntOrString::String(text)) => {
            let percent: i64 = text.trim_end_matches('%').parse().unwrap_or(0);
            let product = percent * i64::from(total);
            let share = if round_up { (product + 99).div_euclid(100) } else { product.div_euclid(100) };
            i32::try_from(share).unwrap_or(i32::MAX)
        }
    }
}

/// A short text that depends only on the template and, if the last one was taken, on the collision count.
pub fn template_hash(template: &PodTemplateSpec, collisions: Option<i32>) -> String {
    // A template is plain data: it always has a JSON form.
    safe_hash(&serde_json::to_vec(template).unwrap_or_default(), collisions)
}

/// A short text without vowels that depends only on the bytes and, if the last one was taken, on the collision count.
pub fn safe_hash(bytes: &[u8], collisions: Option<i32>) -> String {
    const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    let mut hash = Fnv1a::new();
    hash.write(bytes);
    if let Some(count) = collisions {
        hash.write(&count.to_le_bytes());
    }
    hash.0.to_string().bytes().map(|digit| ALPHABET[usize::from(digit) % ALPHABET.len()] as char).collect()
}

/// The 32-bit FNV-1a hash.
pub struct Fnv1a(pub u32);

impl Fnv1a {
    /// The hash of nothing.
    pub fn new() -> Self {
        Self(0x811c_9dc5)
    }

    /// Takes in bytes.
    pub fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u32::from(*byte)).wrapping_mul(0x0100_0193);
        }
    }
}

impl Default for Fnv1a {
    fn default() -> Self {
        Self::new()
    }
}

/// Whether two templates say the same, apart from the hash label; absent, null and empty are one.
pub fn same_template(a: &PodTemplateSpec, b: &PodTemplateSpec) -> bool {
    let plain = |template: &PodTemplateSpec| {
        let mut template = template.clone();
        if let Some(labels) = template.metadata.as_mut().and_then(|meta| meta.labels.as_mut()) {
            labels.remove(TEMPLATE_HASH);
        }
        let mut value = serde_json::to_value(&template).unwrap_or_default();
        drop_empty(&mut value);
        value
    };
    plain(a) == plain(b)
}

/// Removes null members and empty lists, which mean the same as absence. An empty object may mean something
/// (`emptyDir: {}`) and stays.
pub fn drop_empty(value: &mut serde_json::Value) {
    use serde_json::Value;
    match value {
        Value::Object(map) => {
            map.values_mut().for_each(drop_empty);
            map.retain(|_, value| !value.is_null() && value.as_array().is_none_or(|list| !list.is_empty()));
        }
        Value::Array(list) => list.iter_mut().for_each(drop_empty),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_round_as_kubernetes_rounds_them() {
        let percent = |text: &str| IntOrString::String(text.into());
        assert_eq!(scaled(Some(&percent("25%")), 10, true), 3);
        assert_eq!(scaled(Some(&percent("25%")), 10, false), 2);
        assert_eq!(scaled(Some(&percent("0%")), 10, true), 0);
        assert_eq!(scaled(Some(&IntOrString::Int(4)), 10, true), 4);
        assert_eq!(scaled(None, 10, true), 0);
    }

    #[test]
    fn template_hashes_are_safe_and_depend_on_collisions() {
        let template = PodTemplateSpec::default();
        let hash = template_hash(&template, None);
        assert!((1..=10).contains(&hash.len()));
        assert_ne!(hash, template_hash(&template, Some(1)));
    }
}

//! Keeping the picture of the cluster up to date from watch events. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1 as networking;
use kube::ResourceExt;
use kube::runtime::watcher::Event;

use crate::certificates::Pair;
use crate::rules::compile::is_ours;
use crate::rules::model::{Ingress, ObjectName, Service, Slice, World};

/// A watch event of one of the kinds we follow.
#[allow(clippy::large_enum_variant, reason = "it lives for one call")]
pub enum Update {
    Ingress(Event<networking::Ingress>),
    Class(Event<networking::IngressClass>),
    Service(Event<core::Service>),
    Slice(Event<EndpointSlice>),
    Secret(Event<core::Secret>),
}

/// Progress of one kind's watch.
#[derive(Default)]
struct Listing {
    /// Names seen since the list began; none outside of a list.
    seen: Option<BTreeSet<ObjectName>>,
    /// A list was complete at least once.
    complete: bool,
}

/// What an event means for the picture.
enum Step<K> {
    Put(K),
    Remove(ObjectName),
    Keep(BTreeSet<ObjectName>),
    Nothing,
}

impl Listing {
    fn step<K: ResourceExt>(&mut self, event: Event<K>) -> Step<K> {
        match event {
            Event::Init => {
                self.seen = Some(BTreeSet::new());
                Step::Nothing
            }
            Event::InitApply(object) => {
                if let Some(seen) = &mut self.seen {
                    seen.insert(name(&object));
                }
                Step::Put(object)
            }
            Event::InitDone => {
                self.complete = true;
                self.seen.take().map_or(Step::Nothing, Step::Keep)
            }
            Event::Apply(object) => Step::Put(object),
            Event::Delete(object) => Step::Remove(name(&object)),
        }
    }
}

fn name<K: ResourceExt>(object: &K) -> ObjectName {
    (object.namespace().unwrap_or_default(), object.name_any())
}

/// Carries a step out on a map of objects cut down by `cut`; one that is cut down to nothing is not kept.
fn apply<K: ResourceExt, V>(
    map: &mut BTreeMap<ObjectName, V>,
    step: Step<K>,
    cut: impl FnOnce(&K) -> Option<V>,
) -> bool {
    match step {
        Step::Put(object) => match cut(&object) {
            Some(value) => {
                map.insert(name(&object), value);
                true
            }
            None => map.remove(&name(&object)).is_some(),
        },
        Step::Remove(name) => map.remove(&name).is_some(),
        Step::Keep(names) => {
            map.retain(|name, _| names.contains(name));
            true
        }
        Step::Nothing => false,
    }
}

/// The picture, and how far each watch is.
#[derive(Default)]
pub struct Tracker {
    pub world: World,
    classes: BTreeMap<ObjectName, String>,
    slice_owner: BTreeMap<ObjectName, ObjectName>,
    ingresses: Listing,
    class_list: Listing,
    services: Listing,
    slices: Listing,
    secrets: Listing,
}

impl Tracker {
    /// Ingresses and classes were listed.
    pub fn knows_ingresses(&self) -> bool {
        self.ingresses.complete && self.class_list.complete
    }

    /// All that Ingresses need was listed.
    pub fn knows_details(&self) -> bool {
        self.services.complete && self.slices.complete && self.secrets.complete
    }

    /// There is an Ingress to serve.
    pub fn has_work(&self) -> bool {
        self.world.ingresses.values().any(|ingress| !ingress.ending && is_ours(&self.world, ingress))
    }

    /// Forgets what is known of services and the like.
    pub fn forget_details(&mut self) {
        (self.services, self.slices, self.secrets) = Default::default();
        self.slice_owner.clear();
        self.world.services.clear();
        self.world.slices.clear();
        self.world.secrets.clear();
    }

    /// Takes an event in; says whether the picture changed.
    pub fn update(&mut self, update: Update) -> bool {
        let world = &mut self.world;
        match update {
            Update::Ingress(event) => apply(&mut world.ingresses, self.ingresses.step(event), |object| {
                Some(Arc::new(Ingress::from_api(object)))
            }),
            Update::Class(event) => {
                let controller = |class: &networking::IngressClass| class.spec.clone()?.controller;
                let changed = apply(&mut self.classes, self.class_list.step(event), controller);
                let classes = self.classes.iter();
                world.classes = classes.map(|((_, name), controller)| (name.clone(), controller.clone())).collect();
                changed
            }
            Update::Service(event) => {
                apply(&mut world.services, self.services.step(event), |object| Some(Service::from_api(object)))
            }
            Update::Secret(event) => {
                apply(&mut world.secrets, self.secrets.step(event), |object| Pair::from_api(object).map(Arc::new))
            }
            Update::Slice(event) => self.slice(event),
        }
    }

    fn slice(&mut self, event: Event<EndpointSlice>) -> bool {
        match self.slices.step(event) {
            Step::Put(object) => {
                let name = name(&object);
                let mut changed = false;
                let found = Slice::from_api(&object);
                let moved =
                    self.slice_owner.get(&name).is_some_and(|owner| found.as_ref().is_none_or(|(of, _)| of != owner));
                if moved {
                    changed = self.remove_slice(&name);
                }
                if let Some((owner, slice)) = found {
                    let slices = self.world.slices.entry(owner.clone()).or_default();
                    changed |= slices.get(&name.1) != Some(&slice);
                    slices.insert(name.1.clone(), slice);
                    self.slice_owner.insert(name, owner);
                }
                changed
            }
            Step::Remove(name) => self.remove_slice(&name),
            Step::Keep(names) => {
                let gone: Vec<ObjectName> =
                    self.slice_owner.keys().filter(|name| !names.contains(name)).cloned().collect();
                gone.iter().for_each(|name| {
                    self.remove_slice(name);
                });
                true
            }
            Step::Nothing => false,
        }
    }

    fn remove_slice(&mut self, name: &ObjectName) -> bool {
        let Some(owner) = self.slice_owner.remove(name) else { return false };
        if let Some(slices) = self.world.slices.get_mut(&owner) {
            slices.remove(&name.1);
            if slices.is_empty() {
                self.world.slices.remove(&owner);
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn slice(name: &str, service: &str) -> EndpointSlice {
        serde_json::from_value(json!({
            "metadata": {"name": name, "namespace": "ns", "labels": {"kubernetes.io/service-name": service}},
            "addressType": "IPv4", "ports": [{"port": 80}], "endpoints": [{"addresses": ["10.0.0.1"]}],
        }))
        .expect("a slice")
    }

    #[test]
    fn slices_follow_their_service_and_lists_forget_what_is_gone() {
        let mut tracker = Tracker::default();
        let owner = |service: &str| ("ns".to_owned(), service.to_owned());
        assert!(tracker.update(Update::Slice(Event::Apply(slice("a", "web")))));
        assert!(!tracker.update(Update::Slice(Event::Apply(slice("a", "web")))), "nothing changed");
        assert!(tracker.update(Update::Slice(Event::Apply(slice("a", "other")))));
        assert!(
            !tracker.world.slices.contains_key(&owner("web")) && tracker.world.slices.contains_key(&owner("other"))
        );
        for event in [Event::Init, Event::InitApply(slice("b", "web")), Event::InitDone] {
            tracker.update(Update::Slice(event));
        }
        assert!(
            !tracker.world.slices.contains_key(&owner("other")) && tracker.world.slices.contains_key(&owner("web"))
        );
    }
}

//! Keeping the picture of the cluster up to date from watch events. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1 as networking;
use kube::runtime::watcher::Event;
use mycelium_informer::{Listing, ObjectName, Slices};

use crate::certificates::Pair;
use crate::rules::compile::is_ours;
use crate::rules::model::{Ingress, Service, Slice, World};

/// A watch event of one of the kinds we follow.
#[allow(clippy::large_enum_variant, reason = "it lives for one call")]
pub enum Update {
    Ingress(Event<networking::Ingress>),
    Class(Event<networking::IngressClass>),
    Service(Event<core::Service>),
    Slice(Event<EndpointSlice>),
    Secret(Event<core::Secret>),
}

/// The picture, and how far each watch is.
#[derive(Default)]
pub struct Tracker {
    pub world: World,
    classes: BTreeMap<ObjectName, String>,
    ingresses: Listing,
    class_list: Listing,
    services: Listing,
    slices: Slices,
    secrets: Listing,
}

impl Tracker {
    /// Ingresses and classes were listed.
    pub fn knows_ingresses(&self) -> bool {
        self.ingresses.complete() && self.class_list.complete()
    }

    /// All that Ingresses need was listed.
    pub fn knows_details(&self) -> bool {
        self.services.complete() && self.slices.complete() && self.secrets.complete()
    }

    /// There is an Ingress to serve.
    pub fn has_work(&self) -> bool {
        self.world.ingresses.values().any(|ingress| !ingress.ending && is_ours(&self.world, ingress))
    }

    /// Forgets what is known of services and the like.
    pub fn forget_details(&mut self) {
        (self.services, self.slices, self.secrets) = Default::default();
        self.world.services.clear();
        self.world.slices.clear();
        self.world.secrets.clear();
    }

    /// Takes an event in; says whether the picture changed, or how much of it is known.
    pub fn update(&mut self, update: Update) -> bool {
        let known = (self.knows_ingresses(), self.knows_details());
        self.take(update) || known != (self.knows_ingresses(), self.knows_details())
    }

    fn take(&mut self, update: Update) -> bool {
        let world = &mut self.world;
        match update {
            Update::Ingress(event) => self.ingresses.step(event).apply(
                &mut world.ingresses,
                |object| Some(Arc::new(Ingress::from_api(object))),
                never,
            ),
            Update::Class(event) => {
                let controller = |class: &networking::IngressClass| class.spec.clone()?.controller;
                let changed = self.class_list.step(event).apply(&mut self.classes, controller, PartialEq::eq);
                let classes = self.classes.iter();
                world.classes = classes.map(|((_, name), controller)| (name.clone(), controller.clone())).collect();
                changed
            }
            Update::Service(event) => self.services.step(event).apply(
                &mut world.services,
                |object| Some(Service::from_api(object)),
                PartialEq::eq,
            ),
            Update::Secret(event) => {
                self.secrets.step(event).apply(&mut world.secrets, |object| Pair::from_api(object).map(Arc::new), never)
            }
            Update::Slice(event) => self.slices.update(&mut world.slices, event, |slice| Some(Slice::from_api(slice))),
        }
    }
}

/// What holds a pattern or a key is not compared: each event counts as a change.
fn never<V>(_: &V, _: &V) -> bool {
    false
}

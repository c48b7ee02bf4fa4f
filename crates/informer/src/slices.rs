//! Endpoints by service, from the EndpointSlices that name it.

use std::collections::BTreeMap;

use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::runtime::watcher::Event;

use crate::{Listing, ObjectName, Step, name};

/// The label of a slice that names its service.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// What is kept of slices: by service, then by the slice's name.
pub type Groups<S> = BTreeMap<ObjectName, BTreeMap<String, S>>;

/// The service that a slice belongs to; none for an orphan.
pub fn service(slice: &EndpointSlice) -> Option<ObjectName> {
    let service = slice.metadata.labels.as_ref()?.get(SERVICE_NAME)?;
    Some((slice.metadata.namespace.clone().unwrap_or_default(), service.clone()))
}

/// Progress of the slices' watch, and which service each belongs to.
#[derive(Default)]
pub struct Slices {
    listing: Listing,
    service_of: BTreeMap<ObjectName, ObjectName>,
}

impl Slices {
    /// A list was complete at least once.
    pub fn complete(&self) -> bool {
        self.listing.complete()
    }

    /// Takes an event in; `reduce` says what is kept of a slice, if anything. Says whether anything changed.
    pub fn update<S: PartialEq>(
        &mut self,
        groups: &mut Groups<S>,
        event: Event<EndpointSlice>,
        reduce: impl FnOnce(&EndpointSlice) -> Option<S>,
    ) -> bool {
        match self.listing.step(event) {
            Step::Nothing => false,
            Step::Remove(name) => self.remove(groups, &name),
            Step::Keep(names) => {
                let gone: Vec<_> = self.service_of.keys().filter(|name| !names.contains(*name)).cloned().collect();
                gone.iter().filter(|name| self.remove(groups, name)).count() > 0
            }
            Step::Put(object) => self.put(groups, name(&object), service(&object).zip(reduce(&object))),
        }
    }

    fn put<S: PartialEq>(&mut self, groups: &mut Groups<S>, name: ObjectName, found: Option<(ObjectName, S)>) -> bool {
        let Some((service, slice)) = found else { return self.remove(groups, &name) };
        let moved = self.service_of.get(&name).is_some_and(|old| *old != service) && self.remove(groups, &name);
        self.service_of.insert(name.clone(), service.clone());
        let slices = groups.entry(service).or_default();
        let changed = slices.get(&name.1) != Some(&slice);
        slices.insert(name.1, slice);
        moved || changed
    }

    fn remove<S>(&mut self, groups: &mut Groups<S>, name: &ObjectName) -> bool {
        let Some(service) = self.service_of.remove(name) else { return false };
        let Some(slices) = groups.get_mut(&service) else { return false };
        let removed = slices.remove(&name.1).is_some();
        if slices.is_empty() {
            groups.remove(&service);
        }
        removed
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn slice(name: &str, service: &str) -> EndpointSlice {
        let labels = json!({"kubernetes.io/service-name": service});
        serde_json::from_value(json!({
            "metadata": {"name": name, "namespace": "d", "labels": labels}, "addressType": "IPv4", "endpoints": [],
        }))
        .expect("a slice")
    }

    #[test]
    fn slices_follow_their_service_and_lists_forget_what_is_gone() {
        let (mut slices, mut groups) = (Slices::default(), Groups::<String>::new());
        let mut update = |event| {
            let changed = slices.update(&mut groups, event, |slice| Some(slice.address_type.clone()));
            (changed, groups.keys().map(|(_, service)| service.as_str()).collect::<String>())
        };
        assert_eq!(update(Event::Apply(slice("s", "a"))), (true, "a".to_owned()));
        assert_eq!(update(Event::Apply(slice("s", "a"))), (false, "a".to_owned()));
        assert_eq!(update(Event::Apply(slice("s", "b"))), (true, "b".to_owned()), "it moved");
        update(Event::Init);
        assert_eq!(update(Event::InitApply(slice("t", "c"))), (true, "bc".to_owned()));
        assert_eq!(update(Event::InitDone), (true, "c".to_owned()));
        assert_eq!(update(Event::Delete(slice("t", "c"))), (true, String::new()));
    }
}

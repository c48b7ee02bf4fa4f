//! What is kept of watched objects: events of a watch to maps that hold of each object only what matters. Pure.
//!
//! A watch begins with a list, and begins again whenever it was interrupted for too long; what a new list does not name is gone
//! (Kubernetes' list-and-watch, as [`kube::runtime::watcher`] tells it). [`Listing`] turns that into [`Step`]s on a map,
//! [`Slices`] into steps on endpoints by service.

mod slices;

pub use slices::{Groups, Slices, service};

use std::collections::{BTreeMap, BTreeSet};

use kube::ResourceExt;
use kube::runtime::watcher::Event;

/// Namespace (empty for what has none) and name.
pub type ObjectName = (String, String);

/// The name of an object.
pub fn name<K: ResourceExt>(object: &K) -> ObjectName {
    (object.namespace().unwrap_or_default(), object.name_any())
}

/// Progress of one kind's watch.
#[derive(Default)]
pub struct Listing {
    /// Names seen since the list began; `None` outside of a list.
    seen: Option<BTreeSet<ObjectName>>,
    complete: bool,
}

/// What an event means for a map of objects.
pub enum Step<K> {
    /// This object is there, or has changed.
    Put(K),
    /// The object of this name is gone.
    Remove(ObjectName),
    /// Only the objects of these names are left.
    Keep(BTreeSet<ObjectName>),
    /// Nothing yet.
    Nothing,
}

impl Listing {
    /// A list was complete at least once.
    pub fn complete(&self) -> bool {
        self.complete
    }

    /// Takes an event in.
    pub fn step<K: ResourceExt>(&mut self, event: Event<K>) -> Step<K> {
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

impl<K: ResourceExt> Step<K> {
    /// Carries it out on a map of what `reduce` keeps of an object, if anything; says whether the map changed in the eyes of `same`.
    pub fn apply<V>(
        self,
        map: &mut BTreeMap<ObjectName, V>,
        reduce: impl FnOnce(&K) -> Option<V>,
        same: fn(&V, &V) -> bool,
    ) -> bool {
        match self {
            Step::Nothing => false,
            Step::Remove(name) => map.remove(&name).is_some(),
            Step::Keep(names) => keep(map, &names),
            Step::Put(object) => put(map, name(&object), reduce(&object), same),
        }
    }
}

/// Removes what is not named; says whether anything was.
pub fn keep<V>(map: &mut BTreeMap<ObjectName, V>, names: &BTreeSet<ObjectName>) -> bool {
    let before = map.len();
    map.retain(|name, _| names.contains(name));
    map.len() != before
}

/// Sets or removes a value; says whether the map changed.
pub fn put<V>(map: &mut BTreeMap<ObjectName, V>, name: ObjectName, value: Option<V>, same: fn(&V, &V) -> bool) -> bool {
    let Some(value) = value else { return map.remove(&name).is_some() };
    let changed = map.get(&name).is_none_or(|old| !same(old, &value));
    if changed {
        map.insert(name, value);
    }
    changed
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::ConfigMap;
    use serde_json::json;

    use super::*;

    fn object(name: &str, value: &str) -> ConfigMap {
        serde_json::from_value(json!({"metadata": {"name": name, "namespace": "d"}, "data": {"k": value}}))
            .expect("one")
    }

    #[test]
    fn a_new_list_removes_what_it_does_not_name() {
        let (mut listing, mut map) = (Listing::default(), BTreeMap::new());
        let mut update = |event| {
            let value = |object: &ConfigMap| object.data.as_ref()?.get("k").cloned().filter(|value| !value.is_empty());
            let changed = listing.step(event).apply(&mut map, value, PartialEq::eq);
            (changed, listing.complete(), map.keys().map(|(_, name)| name.clone()).collect::<String>())
        };
        assert_eq!(update(Event::Init), (false, false, String::new()));
        assert_eq!(update(Event::InitApply(object("a", "1"))), (true, false, "a".to_owned()));
        assert_eq!(update(Event::InitApply(object("b", "1"))), (true, false, "ab".to_owned()));
        assert_eq!(update(Event::InitDone), (false, true, "ab".to_owned()));
        assert_eq!(update(Event::Apply(object("a", "1"))), (false, true, "ab".to_owned()));
        assert_eq!(update(Event::Apply(object("a", "2"))), (true, true, "ab".to_owned()));
        assert_eq!(update(Event::Init), (false, true, "ab".to_owned()));
        assert_eq!(update(Event::InitApply(object("b", "1"))), (false, true, "ab".to_owned()));
        assert_eq!(update(Event::InitDone), (true, true, "b".to_owned()));
        assert_eq!(update(Event::Apply(object("b", ""))), (true, true, String::new()));
        assert_eq!(update(Event::Delete(object("b", ""))), (false, true, String::new()));
    }
}

//! Which fields a value has, and which fields two values differ in.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::set::{FieldSet, Node, field};
use super::walk::{Items, View, common_view, entries, entry, implied, items, same, view};
use crate::schema::{Field, Type};

/// The fields that a value sets: its leaves, list items and map entries.
pub(super) fn fields_of(ty: &Type, value: &Value) -> FieldSet {
    node_of(ty, value).children
}

fn node_of(ty: &Type, value: &Value) -> Node {
    let mut node = Node::default();
    match view(ty, value) {
        View::Leaf => node.member = true,
        View::List(list) => {
            let items = items(Some(value));
            for (element, item) in list.elements(items).into_iter().zip(items) {
                // A repeated item is owned as a whole.
                let repeated = node.children.nodes.contains_key(&element);
                let children = if repeated { FieldSet::default() } else { node_of(list.ty, item).children };
                node.children.nodes.insert(element, Node { member: true, children });
            }
        }
        View::Map(ty) => {
            for (key, value) in entries(Some(value)).into_iter().flatten() {
                let (ty, known) = entry(ty, key);
                let mut child = node_of(ty, value);
                let empty = value.is_null() || value.as_object().is_some_and(Map::is_empty);
                child.member |= empty || known.is_none();
                node.children.put(field(key), child);
            }
        }
    }
    node
}

/// What changed from one value to another.
#[derive(Debug, Default)]
pub(super) struct Changes {
    pub added: FieldSet,
    pub modified: FieldSet,
    pub removed: FieldSet,
}

impl Changes {
    /// Leaves out fields and what is below them.
    pub fn without(mut self, ignored: &FieldSet) -> Self {
        for set in [&mut self.added, &mut self.modified, &mut self.removed] {
            set.subtract_trees(ignored);
        }
        self
    }
}

/// Compares two values of a type.
pub(super) fn compare(ty: &Type, old: &Value, new: &Value) -> Changes {
    let difference = difference(ty, Some(old), Some(new));
    Changes {
        added: difference.added.children,
        modified: difference.modified.children,
        removed: difference.removed.children,
    }
}

#[derive(Default)]
struct Difference {
    added: Node,
    modified: Node,
    removed: Node,
}

impl Difference {
    fn leaf(old: Option<&Value>, new: Option<&Value>) -> Self {
        let mut difference = Self::default();
        match (old, new) {
            (None, None) => {}
            (None, Some(_)) => difference.added.member = true,
            (Some(_), None) => difference.removed.member = true,
            (Some(old), Some(new)) => difference.modified.member = !same(old, new),
        }
        difference
    }

    fn put(&mut self, element: impl Fn() -> String, child: Self) {
        for (mine, node) in
            [(&mut self.added, child.added), (&mut self.modified, child.modified), (&mut self.removed, child.removed)]
        {
            if !node.is_empty() {
                mine.children.nodes.insert(element(), node);
            }
        }
    }
}

fn difference(ty: &Type, old: Option<&Value>, new: Option<&Value>) -> Difference {
    // Most of an update changes nothing; finding that out is cheaper than looking at each field.
    if old == new {
        return Difference::default();
    }
    let empty = |value: Option<&Value>| items(value).is_empty() && entries(value).is_none_or(Map::is_empty);
    let mut result = match common_view(ty, old, new) {
        View::Leaf => return Difference::leaf(old, new),
        // The difference between empty and null is one too.
        _ if empty(old) && empty(new) => return Difference::leaf(old, new),
        View::List(list) => list_difference(list, items(old), items(new)),
        View::Map(ty) => map_difference(ty, old, new),
    };
    result.added.member |= old.is_none();
    result.removed.member |= new.is_none();
    result
}

fn map_difference(ty: &Type, old: Option<&Value>, new: Option<&Value>) -> Difference {
    let mut result = Difference::default();
    let (left, right) = (entries(old), entries(new));
    let only_right = right.into_iter().flat_map(Map::keys).filter(|key| left.is_none_or(|l| !l.contains_key(*key)));
    for key in left.into_iter().flat_map(Map::keys).chain(only_right) {
        let (child, known) = entry(ty, key);
        let (l, r) = (value_of(ty, known, left, key), value_of(ty, known, right, key));
        result.put(|| field(key), difference(child, l, r));
    }
    // Fields that neither sets, but Go writes, come and go with the object.
    let ((None, Some(map)) | (Some(map), None)) = (left, right) else { return result };
    for known in ty.fields().iter().filter(|f| implied(ty, f).is_some() && !map.contains_key(f.name.as_ref())) {
        let name = &known.name;
        let (l, r) = (value_of(ty, Some(known), left, name), value_of(ty, Some(known), right, name));
        result.put(|| field(name), difference(&known.ty, l, r));
    }
    result
}

/// The value of a field: its own, or what Go would write.
fn value_of<'v>(ty: &Type, known: Option<&Field>, map: Option<&'v Map<String, Value>>, key: &str) -> Option<&'v Value> {
    let map = map?;
    map.get(key).or_else(|| known.and_then(|field| implied(ty, field)))
}

fn list_difference(list: Items<'_>, old: &[Value], new: &[Value]) -> Difference {
    let mut result = Difference::default();
    let mut found: BTreeMap<String, (Vec<&Value>, Vec<&Value>)> = BTreeMap::new();
    for (element, item) in list.elements(old).into_iter().zip(old) {
        found.entry(element).or_default().0.push(item);
    }
    for (element, item) in list.elements(new).into_iter().zip(new) {
        found.entry(element).or_default().1.push(item);
    }
    for (element, (old, new)) in found {
        let child = match (old.as_slice(), new.as_slice()) {
            ([] | [_], [] | [_]) => difference(list.ty, old.first().copied(), new.first().copied()),
            // Repeated items are compared as a whole.
            _ => {
                let mut child = Difference::default();
                child.added.member = old.is_empty();
                child.removed.member = new.is_empty();
                let equal = old.len() == new.len() && old.iter().zip(&new).all(|(l, r)| same(l, r));
                child.modified.member = !(child.added.member || child.removed.member || equal);
                child
            }
        };
        result.put(|| element.clone(), child);
    }
    result
}

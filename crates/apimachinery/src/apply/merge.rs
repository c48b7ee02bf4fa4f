//! Merging a configuration into an object, and taking fields out of one.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use serde_json::{Map, Value};

use super::set::{FieldSet, Node, field};
use super::walk::{Items, View, common_view, entries, entry, items, view};
use crate::schema::{Shape, Type};

/// The object with the configuration laid over it.
pub(super) fn merge(ty: &Type, live: &Value, config: &Value) -> Value {
    merged(ty, Some(live), Some(config)).unwrap_or_default()
}

fn merged(ty: &Type, old: Option<&Value>, new: Option<&Value>) -> Option<Value> {
    let (Some(left), Some(right)) = (old, new) else { return new.or(old).cloned() };
    match common_view(ty, Some(left), Some(right)) {
        View::Leaf => Some(right.clone()),
        View::List(_) if items(old).is_empty() && items(new).is_empty() => Some(right.clone()),
        View::List(list) => Some(Value::Array(merge_lists(list, items(old), items(new)))),
        View::Map(ty) => {
            let mut map = entries(old).cloned().unwrap_or_default();
            for (key, value) in entries(new).into_iter().flatten() {
                let (ty, _) = entry(ty, key);
                let value = merged(ty, map.get(key), Some(value)).unwrap_or_default();
                map.insert(key.clone(), value);
            }
            Some(Value::Object(map))
        }
    }
}

/// Merges the items of two lists. The order is that of `new`; items that only `old` has stay between the neighbours
/// they had.
fn merge_lists(list: Items<'_>, old: &[Value], new: &[Value]) -> Vec<Value> {
    let (left, right) = (list.elements(old), list.elements(new));
    let left_items = unique(&left, old);
    let right_items: BTreeMap<&str, &Value> = right.iter().map(String::as_str).zip(new).collect();
    let both =
        |element: &str| merged(list.ty, left_items.get(element).copied().flatten(), right_items.get(element).copied());
    let mut shared: VecDeque<&str> = right.iter().map(String::as_str).filter(|e| left_items.contains_key(e)).collect();
    let mut done: BTreeSet<&str> = BTreeSet::new();
    let mut out = Vec::new();
    let (mut l, mut r) = (0, 0);
    while l < left.len() || r < right.len() {
        if let (Some(element), Some(next)) = (left.get(l), right.get(r)) {
            if element == next {
                done.insert(next);
                out.extend(both(next));
                shared.pop_front();
                (l, r) = (l + 1, r + 1);
                continue;
            }
            // An item that both have, but whose turn it is not: it comes with the right side's order.
            if right_items.contains_key(element.as_str()) && shared.front().is_some_and(|next| next != element) {
                l += 1;
                continue;
            }
        }
        if let Some(element) = left.get(l) {
            if !right_items.contains_key(element.as_str()) {
                out.push(old[l].clone());
                l += 1;
                continue;
            }
            if done.contains(element.as_str()) {
                l += 1;
            }
        }
        if let Some(element) = right.get(r) {
            done.insert(element);
            out.extend(both(element));
            if shared.front() == Some(&element.as_str()) {
                shared.pop_front();
            }
            r += 1;
        }
    }
    out
}

/// Items by element; a repeated one has no value to merge with.
fn unique<'a>(elements: &'a [String], items: &'a [Value]) -> BTreeMap<&'a str, Option<&'a Value>> {
    let mut map = BTreeMap::new();
    for (element, item) in elements.iter().zip(items) {
        map.entry(element.as_str()).and_modify(|v| *v = None).or_insert(Some(item));
    }
    map
}

/// The object without the members of a set; none if nothing is left of it.
pub(super) fn remove(ty: &Type, value: &Value, set: &FieldSet) -> Option<Value> {
    match view(ty, value) {
        View::Leaf => Some(value.clone()),
        View::List(list) => {
            let items = items(Some(value));
            let kept = list.elements(items).into_iter().zip(items);
            let kept: Vec<Value> =
                kept.filter_map(|(element, item)| remove_one(list.ty, item, set, &element)).collect();
            (items.is_empty() || !kept.is_empty()).then_some(Value::Array(kept))
        }
        View::Map(ty) => {
            let map = entries(Some(value))?;
            let mut kept = Map::new();
            for (key, value) in map {
                if let Some(value) = remove_one(entry(ty, key).0, value, set, &field(key)) {
                    kept.insert(key.clone(), value);
                }
            }
            (map.is_empty() || !kept.is_empty()).then_some(Value::Object(kept))
        }
    }
}

fn remove_one(ty: &Type, value: &Value, set: &FieldSet, element: &str) -> Option<Value> {
    match set.nodes.get(element) {
        None => Some(value.clone()),
        Some(Node { member: true, .. }) => None,
        Some(Node { children, .. }) => remove(ty, value, children),
    }
}

/// The set with every declared field that leads to a member made a member too.
pub(super) fn with_named_fields(ty: &Type, set: &FieldSet) -> FieldSet {
    let mut result = FieldSet::default();
    for (element, node) in &set.nodes {
        let known = element.strip_prefix("f:").and_then(|name| ty.field(name));
        let below = match (known, element.strip_prefix("f:")) {
            (Some(field), _) => Some(&*field.ty),
            (None, Some(name)) => ty.child(name),
            (None, None) => match &ty.shape {
                Shape::List { item, .. } => Some(&**item),
                _ => None,
            },
        };
        let children = match below {
            Some(ty) => with_named_fields(ty, &node.children),
            None => node.children.clone(),
        };
        let member = node.member || (known.is_some() && !children.is_empty());
        result.put(element.clone(), Node { member, children });
    }
    result
}

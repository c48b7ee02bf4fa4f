//! Sets of fields, and their JSON form `fieldsV1`.
//!
//! A set is a tree. Each edge is an *element*, the text that `fieldsV1` uses as a key:
//!
//! | element | what it leads to |
//! |---|---|
//! | `f:NAME` | a field of an object or an entry of a map |
//! | `k:{"KEY":VALUE,..}` | the list item with these key fields |
//! | `v:VALUE` | this value of a set |
//! | `i:N` | the item at that place |

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt::Write as _;

use serde_json::{Map, Value};

/// A set of fields.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldSet {
    pub(super) nodes: BTreeMap<String, Node>,
}

/// One element of a set: whether it is a member itself, and what below it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Node {
    pub member: bool,
    pub children: FieldSet,
}

impl Node {
    pub fn is_empty(&self) -> bool {
        !self.member && self.children.is_empty()
    }
}

/// The element of a field.
pub(super) fn field(name: &str) -> String {
    format!("f:{name}")
}

impl FieldSet {
    /// Whether nothing is in the set.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// The set with one field, by the names that lead to it.
    pub(super) fn of_field(names: &[&str]) -> Self {
        let mut set = Self::default();
        if let Some((first, rest)) = names.split_first() {
            let node = Node { member: rest.is_empty(), children: Self::of_field(rest) };
            set.nodes.insert(field(first), node);
        }
        set
    }

    pub(super) fn put(&mut self, element: String, node: Node) {
        if !node.is_empty() {
            self.nodes.insert(element, node);
        }
    }

    /// Everything in either.
    pub fn union(mut self, other: Self) -> Self {
        if self.is_empty() {
            return other;
        }
        for (element, theirs) in other.nodes {
            match self.nodes.entry(element) {
                Entry::Vacant(entry) => drop(entry.insert(theirs)),
                Entry::Occupied(mut entry) => {
                    let mine = entry.get_mut();
                    mine.member |= theirs.member;
                    mine.children = std::mem::take(&mut mine.children).union(theirs.children);
                }
            }
        }
        self
    }

    /// What is in `self` and not in `other`.
    pub fn difference(mut self, other: &Self) -> Self {
        self.subtract(other);
        self
    }

    /// Takes out what is in `other`.
    pub(super) fn subtract(&mut self, other: &Self) {
        self.refine(other, &|mine, theirs| {
            mine.member &= !theirs.member;
            mine.children.subtract(&theirs.children);
        });
    }

    /// Takes out what is in `other` or below one of its members.
    pub(super) fn subtract_trees(&mut self, other: &Self) {
        self.refine(other, &|mine, theirs| match theirs.member {
            true => *mine = Node::default(),
            false => mine.children.subtract_trees(&theirs.children),
        });
    }

    /// Changes the nodes that `other` has too, and drops those that become empty.
    fn refine(&mut self, other: &Self, change: &dyn Fn(&mut Node, &Node)) {
        if self.is_empty() || other.is_empty() {
            return;
        }
        self.nodes.retain(|element, mine| match other.nodes.get(element) {
            None => true,
            Some(theirs) => {
                change(mine, theirs);
                !mine.is_empty()
            }
        });
    }

    /// What is in both.
    pub fn intersection(&self, other: &Self) -> Self {
        let mut result = Self::default();
        for (element, mine) in &self.nodes {
            if let Some(theirs) = other.nodes.get(element) {
                let children = mine.children.intersection(&theirs.children);
                let node = Node { member: mine.member && theirs.member, children };
                if !node.is_empty() {
                    result.nodes.insert(element.clone(), node);
                }
            }
        }
        result
    }

    /// The paths of all members, as messages show them: `.spec.containers[name="web"].image`.
    pub fn paths(&self) -> Vec<String> {
        let mut found = Vec::new();
        self.collect_paths("", &mut found);
        found
    }

    fn collect_paths(&self, prefix: &str, found: &mut Vec<String>) {
        for (element, node) in &self.nodes {
            let path = format!("{prefix}{}", display(element));
            if node.member {
                found.push(path.clone());
            }
            node.children.collect_paths(&path, found);
        }
    }

    /// The `fieldsV1` form.
    pub fn into_fields_v1(self) -> Value {
        let entries = self.nodes.into_iter().map(|(element, node)| {
            let mut value = node.children.into_fields_v1();
            if let Value::Object(children) = &mut value
                && node.member
                && !children.is_empty()
            {
                children.insert(".".to_owned(), Value::Object(Map::new()));
            }
            (element, value)
        });
        Value::Object(entries.collect())
    }

    /// Reads the `fieldsV1` form; none if it is not one.
    pub fn from_fields_v1(value: &Value) -> Option<Self> {
        Self::read(value, &canonical)
    }

    /// Reads what [`Self::into_fields_v1`] wrote.
    pub(super) fn from_own_fields_v1(value: &Value) -> Option<Self> {
        Self::read(value, &|element| Some(element.to_owned()))
    }

    fn read(value: &Value, name: &dyn Fn(&str) -> Option<String>) -> Option<Self> {
        let mut set = Self::default();
        for (element, value) in value.as_object()?.iter().filter(|(element, _)| *element != ".") {
            let children = Self::read(value, name)?;
            let member = children.is_empty() || value.get(".").is_some();
            set.nodes.insert(name(element)?, Node { member, children });
        }
        Some(set)
    }
}

/// An element from outside in the form that this module writes.
fn canonical(element: &str) -> Option<String> {
    let (kind, rest) = element.split_once(':')?;
    match kind {
        "f" => Some(element.to_owned()),
        "i" => rest.parse::<i64>().ok().map(|index| format!("i:{index}")),
        "v" => serde_json::from_str::<Value>(rest).ok().map(|value| format!("v:{value}")),
        "k" => serde_json::from_str::<Map<String, Value>>(rest).ok().map(|keys| format!("k:{}", Value::Object(keys))),
        _ => None,
    }
}

/// An element as messages show it.
pub(super) fn display(element: &str) -> String {
    let Some((kind, rest)) = element.split_once(':') else { return element.to_owned() };
    match kind {
        "f" => format!(".{rest}"),
        "v" => format!("[={rest}]"),
        "k" => {
            let keys: Map<String, Value> = serde_json::from_str(rest).unwrap_or_default();
            let mut text = String::from("[");
            for (i, (key, value)) in keys.iter().enumerate() {
                let comma = if i == 0 { "" } else { "," };
                // Writing to a string cannot fail.
                let _ = write!(text, "{comma}{key}={value}");
            }
            text.push(']');
            text
        }
        _ => format!("[{rest}]"),
    }
}

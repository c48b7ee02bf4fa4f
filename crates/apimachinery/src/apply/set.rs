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
    pub fn union(mut self, other: &Self) -> Self {
        for (element, node) in &other.nodes {
            let mine = self.nodes.entry(element.clone()).or_default();
            mine.member |= node.member;
            mine.children = std::mem::take(&mut mine.children).union(&node.children);
        }
        self
    }

    /// What is in `self` and not in `other`.
    pub fn difference(&self, other: &Self) -> Self {
        self.combine(|element, node| {
            let theirs = other.nodes.get(element);
            let children = theirs.map_or_else(|| node.children.clone(), |t| node.children.difference(&t.children));
            Node { member: node.member && !theirs.is_some_and(|t| t.member), children }
        })
    }

    /// What is in `self`, and neither in `other` nor below one of its members.
    pub fn recursive_difference(&self, other: &Self) -> Self {
        self.combine(|element, node| match other.nodes.get(element) {
            None => node.clone(),
            Some(theirs) if theirs.member => Node::default(),
            Some(theirs) => {
                Node { member: node.member, children: node.children.recursive_difference(&theirs.children) }
            }
        })
    }

    /// What is in both.
    pub fn intersection(&self, other: &Self) -> Self {
        self.combine(|element, node| match other.nodes.get(element) {
            None => Node::default(),
            Some(theirs) => {
                Node { member: node.member && theirs.member, children: node.children.intersection(&theirs.children) }
            }
        })
    }

    fn combine(&self, choose: impl Fn(&String, &Node) -> Node) -> Self {
        let mut result = Self::default();
        for (element, node) in &self.nodes {
            result.put(element.clone(), choose(element, node));
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
    pub fn to_fields_v1(&self) -> Value {
        let mut map = Map::new();
        for (element, node) in &self.nodes {
            let mut value = node.children.to_fields_v1();
            if let Value::Object(children) = &mut value
                && node.member
                && !children.is_empty()
            {
                children.insert(".".to_owned(), Value::Object(Map::new()));
            }
            map.insert(element.clone(), value);
        }
        Value::Object(map)
    }

    /// Reads the `fieldsV1` form; none if it is not one.
    pub fn from_fields_v1(value: &Value) -> Option<Self> {
        let mut set = Self::default();
        for (element, value) in value.as_object()?.iter().filter(|(element, _)| *element != ".") {
            let children = Self::from_fields_v1(value)?;
            let member = children.is_empty() || value.get(".").is_some();
            set.put(canonical(element)?, Node { member, children });
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

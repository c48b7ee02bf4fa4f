//! Who owns whom, over all kinds, and what must go because of it.
//!
//! Only the little that decides is kept per object, so that watching everything stays cheap.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use serde::Deserialize;

use crate::stream::Item;

/// The finalizer that keeps an owner until its dependents are gone.
pub const FOREGROUND: &str = "foregroundDeletion";
/// The finalizer that keeps an owner until its dependents are let go.
pub const ORPHAN: &str = "orphan";

/// The metadata that matters, as it comes over the wire.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Partial {
    /// Metadata.
    #[serde(default)]
    pub metadata: Metadata,
}

/// See [`Partial`].
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Metadata {
    /// Identity.
    pub uid: String,
    /// Namespace, or empty.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Revision.
    pub resource_version: String,
    /// Set while being deleted.
    pub deletion_timestamp: Option<String>,
    /// What holds up the deletion.
    pub finalizers: Option<Vec<String>>,
    /// Owners.
    pub owner_references: Option<Vec<OwnerReference>>,
}

impl Item for Partial {
    fn revision(&self) -> u64 {
        self.metadata.resource_version.parse().unwrap_or(0)
    }
}

/// An object and what it says of its owners.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Node {
    /// Which kind, by its number.
    pub kind: u32,
    /// Namespace, or empty.
    pub namespace: Box<str>,
    /// Name.
    pub name: Box<str>,
    /// Owners.
    pub owners: Box<[OwnerReference]>,
    /// Being deleted.
    pub deleting: bool,
    /// Kept until dependents are gone.
    pub foreground: bool,
    /// Kept until dependents are let go.
    pub orphan: bool,
}

impl Node {
    /// From metadata.
    pub fn new(kind: u32, meta: Metadata) -> Self {
        let has = |name: &str| meta.finalizers.iter().flatten().any(|finalizer| finalizer == name);
        Self {
            kind,
            deleting: meta.deletion_timestamp.is_some(),
            foreground: has(FOREGROUND),
            orphan: has(ORPHAN),
            namespace: meta.namespace.into(),
            name: meta.name.into(),
            owners: meta.owner_references.unwrap_or_default().into(),
        }
    }

    /// Waits for its dependents to go.
    fn waits(&self) -> bool {
        self.deleting && self.foreground
    }
}

/// What becomes of an object.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Delete it.
    Delete {
        /// Its own dependents go first.
        foreground: bool,
        /// Owners that must be confirmed to be absent.
        absent: Vec<OwnerReference>,
    },
    /// Drop references to owners that are going or gone, because another one stays.
    Disown {
        /// The owners.
        uids: BTreeSet<String>,
        /// Those of them that must be confirmed to be absent.
        absent: Vec<OwnerReference>,
    },
    /// Take a finalizer off it.
    Release(&'static str),
    /// Make these dependents forget it, then take the finalizer off.
    Orphan(Vec<String>),
}

/// All objects of all kinds.
#[derive(Default)]
pub struct Graph {
    nodes: BTreeMap<Box<str>, Node>,
    dependents: BTreeMap<Box<str>, BTreeSet<Box<str>>>,
}

impl Graph {
    /// An object.
    pub fn get(&self, uid: &str) -> Option<&Node> {
        self.nodes.get(uid)
    }

    /// An object was added or changed. Returns whom to look at.
    pub fn put(&mut self, uid: &str, node: Node) -> BTreeSet<String> {
        let mut look = BTreeSet::new();
        if self.nodes.get(uid) == Some(&node) {
            return look;
        }
        let before = self.nodes.remove(uid);
        if let Some(before) = &before {
            self.unlink(uid, before, &mut look);
        }
        for owner in &node.owners {
            self.dependents.entry(owner.uid.as_str().into()).or_default().insert(uid.into());
            self.consider_owner(&owner.uid, &mut look);
        }
        if !node.owners.is_empty() || node.deleting {
            look.insert(uid.to_owned());
        }
        if node.waits() && !before.is_some_and(|before| before.waits()) {
            look.extend(self.dependents_of(uid).map(str::to_owned));
        }
        self.nodes.insert(uid.into(), node);
        look
    }

    /// An object is gone. Returns whom to look at.
    pub fn remove(&mut self, uid: &str) -> BTreeSet<String> {
        let mut look: BTreeSet<String> = self.dependents_of(uid).map(str::to_owned).collect();
        if let Some(node) = self.nodes.remove(uid) {
            self.unlink(uid, &node, &mut look);
        }
        look
    }

    fn unlink(&mut self, uid: &str, node: &Node, look: &mut BTreeSet<String>) {
        for owner in &node.owners {
            if let Some(set) = self.dependents.get_mut(owner.uid.as_str()) {
                set.remove(uid);
                if set.is_empty() {
                    self.dependents.remove(owner.uid.as_str());
                }
            }
            self.consider_owner(&owner.uid, look);
        }
    }

    fn consider_owner(&self, uid: &str, look: &mut BTreeSet<String>) {
        if self.nodes.get(uid).is_some_and(|owner| owner.deleting && (owner.foreground || owner.orphan)) {
            look.insert(uid.to_owned());
        }
    }

    /// The objects that name this one as an owner.
    pub fn dependents_of(&self, uid: &str) -> impl Iterator<Item = &str> {
        self.dependents.get(uid).into_iter().flatten().map(AsRef::as_ref)
    }

    /// The objects of one kind.
    pub fn of_kind(&self, kind: u32) -> Vec<String> {
        self.nodes.iter().filter(|(_, node)| node.kind == kind).map(|(uid, _)| uid.to_string()).collect()
    }

    /// Everything that may need work.
    pub fn candidates(&self) -> Vec<String> {
        let open = self.nodes.iter().filter(|(_, node)| !node.owners.is_empty() || node.deleting);
        open.map(|(uid, _)| uid.to_string()).collect()
    }

    /// What becomes of one object.
    pub fn plan(&self, uid: &str) -> Option<Action> {
        let node = self.nodes.get(uid)?;
        if node.deleting {
            return self.plan_deleting(uid, node);
        }
        let mut solid = false;
        let mut absent = Vec::new();
        let mut waiting = BTreeSet::new();
        for owner in &node.owners {
            match self.nodes.get(owner.uid.as_str()) {
                None => absent.push(owner.clone()),
                Some(held) if held.waits() => {
                    waiting.insert(owner.uid.clone());
                }
                Some(_) => solid = true,
            }
        }
        if absent.is_empty() && waiting.is_empty() {
            return None;
        }
        if solid {
            let uids = absent.iter().map(|owner| owner.uid.clone()).chain(waiting).collect();
            return Some(Action::Disown { uids, absent });
        }
        let has_dependents = self.dependents_of(uid).next().is_some();
        Some(Action::Delete { foreground: !waiting.is_empty() && has_dependents, absent })
    }

    fn plan_deleting(&self, uid: &str, node: &Node) -> Option<Action> {
        if node.orphan {
            return Some(Action::Orphan(self.dependents_of(uid).map(str::to_owned).collect()));
        }
        let blocks = |dependent: &&str| {
            let owners = self.nodes.get(*dependent).map(|node| &node.owners);
            owners.is_some_and(|list| list.iter().any(|o| o.uid == uid && o.block_owner_deletion == Some(true)))
        };
        let blocked = self.dependents_of(uid).any(|dependent| blocks(&dependent) && !self.waits_for(dependent, uid));
        (node.foreground && !blocked).then_some(Action::Release(FOREGROUND))
    }

    /// Whether an object waits, through its dependents, for `other`: who waits for it in turn would wait for ever.
    fn waits_for(&self, uid: &str, other: &str) -> bool {
        let (mut seen, mut open) = (BTreeSet::new(), vec![uid]);
        while let Some(uid) = open.pop() {
            if uid == other {
                return true;
            }
            if seen.insert(uid) && self.nodes.get(uid).is_some_and(Node::waits) {
                open.extend(self.dependents_of(uid));
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(uid: &str, block: bool) -> OwnerReference {
        OwnerReference { uid: uid.into(), name: uid.into(), block_owner_deletion: Some(block), ..Default::default() }
    }

    fn node(owners: &[&str]) -> Node {
        Node { name: "n".into(), owners: owners.iter().map(|uid| owner(uid, true)).collect(), ..Node::default() }
    }

    #[test]
    fn what_has_lost_every_owner_goes() {
        let mut graph = Graph::default();
        graph.put("a", node(&[]));
        graph.put("b", node(&[]));
        graph.put("c", node(&["a", "b"]));
        assert_eq!(graph.plan("c"), None);
        assert_eq!(graph.remove("a"), BTreeSet::from(["c".to_owned()]));
        assert!(matches!(graph.plan("c"), Some(Action::Disown { uids, .. }) if uids.contains("a")));
        graph.remove("b");
        assert!(matches!(graph.plan("c"), Some(Action::Delete { foreground: false, absent }) if absent.len() == 2));
    }

    #[test]
    fn foreground_deletion_goes_from_the_leaves_up() {
        let mut graph = Graph::default();
        let mut root = node(&[]);
        graph.put("root", root.clone());
        graph.put("middle", node(&["root"]));
        graph.put("leaf", node(&["middle"]));
        (root.deleting, root.foreground) = (true, true);
        assert!(graph.put("root", root).contains("middle"));
        assert_eq!(graph.plan("root"), None, "the middle still blocks it");
        assert_eq!(graph.plan("middle"), Some(Action::Delete { foreground: true, absent: Vec::new() }));
        let mut middle = node(&["root"]);
        (middle.deleting, middle.foreground) = (true, true);
        assert!(graph.put("middle", middle).contains("leaf"));
        assert_eq!(graph.plan("leaf"), Some(Action::Delete { foreground: false, absent: Vec::new() }));
        assert!(graph.remove("leaf").contains("middle"));
        assert_eq!(graph.plan("middle"), Some(Action::Release(FOREGROUND)));
        assert!(graph.remove("middle").contains("root"));
        assert_eq!(graph.plan("root"), Some(Action::Release(FOREGROUND)));
    }

    #[test]
    fn those_who_own_each_other_do_not_wait_for_each_other() {
        let mut graph = Graph::default();
        let circle = [("a", "c"), ("b", "a"), ("c", "b")];
        for (uid, owner) in circle {
            graph.put(uid, node(&[owner]));
        }
        let waiting = |owner| Node { deleting: true, foreground: true, ..node(&[owner]) };
        graph.put("a", waiting("c"));
        graph.put("b", waiting("a"));
        assert_eq!(graph.plan("a"), None, "c does not know yet");
        assert_eq!(graph.plan("c"), Some(Action::Delete { foreground: true, absent: Vec::new() }));
        assert!(graph.put("c", waiting("b")).contains("a"));
        for (uid, _) in circle {
            assert_eq!(graph.plan(uid), Some(Action::Release(FOREGROUND)));
        }
    }

    #[test]
    fn orphans_are_named_before_the_owner_goes() {
        let mut graph = Graph::default();
        graph.put("child", node(&["parent"]));
        graph.put("parent", Node { deleting: true, orphan: true, ..node(&[]) });
        assert_eq!(graph.plan("parent"), Some(Action::Orphan(vec!["child".into()])));
    }
}

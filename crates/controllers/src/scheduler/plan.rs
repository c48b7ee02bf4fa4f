//! Where pods go: filters and scores over the nodes, with all sums kept up to date as pods come and go.
//!
//! A [`Board`] is fed nodes, pods and namespaces as they change, and asked where a pod should run. It does no I/O and has no
//! clock, so its answers depend only on what it was fed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node as ApiNode, Pod, Taint};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;

use super::around::Surroundings;
use super::budgets::Budget;
use super::census::{Census, Namespaces};
use super::node::Node;
use super::pod::PodInfo;
use super::storage::Storage;
use super::why::{Reason, Unfit};
use crate::cache::Key;
use crate::objects::{is_terminal, node_name};

/// Small clusters are searched whole.
const ENOUGH: usize = 100;

/// A pod on the board.
pub(super) struct Entry {
    pub(super) info: Arc<PodInfo>,
    /// The node it was placed on, by us or by whoever bound it.
    node: Option<String>,
    /// Placed by us, and the API does not show it yet.
    assumed: bool,
    /// On its way out.
    pub(super) deleting: bool,
    /// What its claims demand.
    pub(super) storage: Arc<Storage>,
}

/// All nodes and pods.
#[derive(Default)]
pub struct Board {
    pub(super) nodes: Vec<Option<Node>>,
    slots: BTreeMap<String, usize>,
    pub(super) pods: BTreeMap<Key, Entry>,
    pub(super) on_node: BTreeMap<String, BTreeSet<Key>>,
    pub(super) namespaces: Namespaces,
    pub(super) census: Census,
    soft_taints: usize,
    /// Nodes on which room is being made for pods.
    pub(super) nominated: BTreeMap<Key, String>,
    /// What must not be disrupted if it can be helped.
    pub(super) budgets: Vec<Budget>,
    /// Where the next search begins, so that equally good nodes take turns.
    start: usize,
}

impl Board {
    /// A node was added or changed. Tells whether pods may fit now that did not before.
    pub fn set_node(&mut self, node: &ApiNode) -> bool {
        let mut described = Node::default();
        described.describe(node);
        let slot = match self.slots.get(&described.name) {
            Some(slot) => *slot,
            None => self.new_slot(&described.name),
        };
        let held = self.nodes[slot].get_or_insert_default();
        let offers = |node: &Node| (node.offers.clone(), node.pod_limit);
        let manners = |node: &Node| (node.unschedulable, node.hard_taints.clone(), node.soft_taints.clone());
        let relabelled = held.labels != described.labels || held.name.is_empty();
        if !relabelled && offers(held) == offers(&described) && manners(held) == manners(&described) {
            return false;
        }
        let fresh = held.name.is_empty();
        self.soft_taints += described.soft_taints.len();
        self.soft_taints -= held.soft_taints.len();
        held.describe(node);
        if relabelled {
            self.census.node(slot, Some(&described.labels));
        }
        if fresh {
            let keys = self.on_node.get(&described.name).cloned().unwrap_or_default();
            keys.iter().for_each(|key| self.account(key, slot, 1));
        }
        true
    }

    fn new_slot(&mut self, name: &str) -> usize {
        let slot = self.nodes.iter().position(Option::is_none).unwrap_or(self.nodes.len());
        if slot == self.nodes.len() {
            self.nodes.push(None);
        }
        self.slots.insert(name.to_owned(), slot);
        slot
    }

    /// A node is gone.
    pub fn remove_node(&mut self, name: &str) {
        let Some(slot) = self.slots.remove(name) else { return };
        let keys = self.on_node.get(name).cloned().unwrap_or_default();
        keys.iter().for_each(|key| self.account(key, slot, -1));
        self.census.node(slot, None);
        let node = self.nodes[slot].take();
        self.soft_taints -= node.map_or(0, |node| node.soft_taints.len());
    }

    fn account(&mut self, key: &Key, slot: usize, step: i64) {
        let Some(info) = self.pods.get(key).map(|entry| entry.info.clone()) else { return };
        if let Some(node) = &mut self.nodes[slot] {
            if step > 0 { node.add(&info) } else { node.remove(&info) }
        }
        self.census.moved(&info, slot, step, &self.namespaces);
    }

    /// A namespace was added or its labels changed.
    pub fn set_namespace(&mut self, name: &str, labels: &BTreeMap<String, String>) -> bool {
        if self.namespaces.get(name) == Some(labels) {
            return false;
        }
        self.namespaces.insert(name.to_owned(), labels.clone());
        if self.census.is_empty() {
            return false;
        }
        self.recount();
        true
    }

    /// Counts everything anew.
    fn recount(&mut self) {
        self.census = Census::default();
        for entry in self.pods.values() {
            self.census.learn(&entry.info, &self.nodes, std::iter::empty(), &self.namespaces);
        }
        for entry in self.pods.values() {
            if let Some(slot) = entry.node.as_ref().and_then(|node| self.slots.get(node)) {
                self.census.moved(&entry.info, *slot, 1, &self.namespaces);
            }
        }
    }

    /// A pod was added or changed. Tells whether room was made.
    pub fn set_pod(&mut self, pod: &Pod) -> bool {
        let key = Key::of(pod);
        if is_terminal(pod) {
            return self.remove_pod(&key);
        }
        let info = PodInfo::new(pod);
        let deleting = pod.metadata.deletion_timestamp.is_some();
        let bound = node_name(pod).map(str::to_owned);
        let Some(held) = self.pods.get_mut(&key) else {
            self.insert(key.clone(), info, bound);
            self.mark(&key, false, deleting);
            return false;
        };
        held.deleting = deleting;
        held.assumed &= bound.is_none() && held.info.uid == info.uid;
        let node = bound.or_else(|| if held.assumed { held.node.clone() } else { None });
        if node == held.node && *held.info == info {
            return false;
        }
        let assumed = held.assumed;
        let freed = self.remove_pod(&key);
        self.insert(key.clone(), info, node);
        self.mark(&key, assumed, deleting);
        freed
    }

    fn mark(&mut self, key: &Key, assumed: bool, deleting: bool) {
        if let Some(entry) = self.pods.get_mut(key) {
            (entry.assumed, entry.deleting) = (assumed, deleting);
        }
    }

    fn insert(&mut self, key: Key, info: PodInfo, node: Option<String>) {
        let (slots, pods) = (&self.slots, &self.pods);
        let placed = pods.values().filter_map(|entry| {
            let slot = slots.get(entry.node.as_ref()?)?;
            Some((*slot, entry.info.as_ref()))
        });
        self.census.learn(&info, &self.nodes, placed, &self.namespaces);
        self.pods.insert(
            key.clone(),
            Entry { info: Arc::new(info), node: None, assumed: false, deleting: false, storage: Arc::default() },
        );
        if let Some(node) = node {
            self.put_on(&key, &node);
        }
    }

    pub(super) fn put_on(&mut self, key: &Key, node: &str) {
        if let Some(entry) = self.pods.get_mut(key) {
            entry.node = Some(node.to_owned());
        }
        self.on_node.entry(node.to_owned()).or_default().insert(key.clone());
        if let Some(&slot) = self.slots.get(node) {
            self.account(key, slot, 1);
        }
    }

    pub(super) fn take_off(&mut self, key: &Key) -> bool {
        let Some(node) = self.pods.get_mut(key).and_then(|entry| entry.node.take()) else { return false };
        if let Some(keys) = self.on_node.get_mut(&node) {
            keys.remove(key);
            if keys.is_empty() {
                self.on_node.remove(&node);
            }
        }
        if let Some(&slot) = self.slots.get(&node) {
            self.account(key, slot, -1);
        }
        true
    }

    /// A pod is gone or has ended. Tells whether room was made.
    pub fn remove_pod(&mut self, key: &Key) -> bool {
        let freed = self.take_off(key);
        self.nominated.remove(key);
        if let Some(entry) = self.pods.remove(key) {
            self.census.unlearn(&entry.info);
        }
        freed
    }

    /// Counts a pod on a node before the API shows it there.
    pub fn assume(&mut self, key: &Key, node: &str) {
        if let Some(entry) = self.pods.get_mut(key) {
            entry.assumed = true;
            self.nominated.remove(key);
            self.put_on(key, node);
        }
    }

    /// Takes back an assumption that did not come true. Tells whether room was made.
    pub fn forget(&mut self, key: &Key) -> bool {
        match self.pods.get_mut(key) {
            Some(entry) if entry.assumed => {
                entry.assumed = false;
                self.take_off(key)
            }
            _ => false,
        }
    }

    /// What the claims of a pod demand of a node.
    pub fn set_storage(&mut self, key: &Key, storage: &Arc<Storage>) {
        if let Some(entry) = self.pods.get_mut(key) {
            entry.storage = storage.clone();
        }
    }

    /// What must not be disrupted if it can be helped.
    pub fn set_budgets(&mut self, budgets: &[Arc<PodDisruptionBudget>]) {
        self.budgets = budgets.iter().filter_map(Budget::new).collect();
    }

    /// How many nodes there are.
    pub fn size(&self) -> usize {
        self.slots.len()
    }

    /// A node as the scheduler sees it.
    pub(super) fn node(&self, name: &str) -> Option<&Node> {
        self.slots.get(name).and_then(|slot| self.nodes[*slot].as_ref())
    }

    /// Whether the pod is known and on no node.
    pub fn is_waiting(&self, key: &Key) -> bool {
        self.pods.get(key).is_some_and(|entry| entry.node.is_none())
    }

    /// Whether where other pods run matters to this one.
    pub fn minds_pods(&self, key: &Key) -> bool {
        self.pods.get(key).is_some_and(|entry| entry.info.minds_pods())
    }

    /// The node for a pod, or why there is none.
    pub fn place(&mut self, key: &Key) -> Result<String, Unfit> {
        let found = self.pods.get(key).map(|entry| (entry.info.clone(), entry.storage.clone()));
        let Some((info, storage)) = found else { return Err(Unfit::default()) };
        let around = Surroundings::new(&info, &self.census, &self.nodes, &self.namespaces);
        let wanted = self.sample();
        let mut feasible = Vec::with_capacity(wanted.min(self.nodes.len()));
        let mut seen = 0;
        for offset in 0..self.nodes.len() {
            let slot = (self.start + offset) % self.nodes.len();
            seen = offset + 1;
            if let Some(node) = &self.nodes[slot]
                && suits(&info, &storage, node, slot, &around)
            {
                feasible.push(slot);
                if feasible.len() >= wanted {
                    break;
                }
            }
        }
        let best = super::score::best(&info, &self.nodes, &feasible, &around, self.soft_taints > 0);
        let Some(best) = best else { return Err(self.explain(&info, &storage, &around)) };
        let name = self.nodes[best].as_ref().map(|node| node.name.clone()).unwrap_or_default();
        self.start = (self.start + seen) % self.nodes.len();
        Ok(name)
    }

    /// How many suitable nodes are enough to choose from: all of a small cluster, a shrinking share of a large one.
    fn sample(&self) -> usize {
        let total = self.slots.len();
        if total <= ENOUGH {
            return total.max(1);
        }
        let percent = 50_usize.saturating_sub(total / 125).max(5);
        (total * percent / 100).max(ENOUGH)
    }

    fn explain(&self, info: &PodInfo, storage: &Storage, around: &Surroundings<'_>) -> Unfit {
        let mut unfit = Unfit::of(self.slots.len());
        for (slot, node) in self.nodes.iter().enumerate() {
            if let Some(node) = node {
                unfit.add(&objections(info, storage, node, slot, around));
            }
        }
        unfit
    }
}

fn cordoned(info: &PodInfo, node: &Node) -> bool {
    if !node.unschedulable {
        return false;
    }
    let (key, effect) = ("node.kubernetes.io/unschedulable".to_owned(), "NoSchedule".to_owned());
    !info.tolerates(&Taint { key, effect, ..Taint::default() })
}

fn port_taken(info: &PodInfo, node: &Node) -> bool {
    info.ports.iter().any(|port| node.ports.iter().any(|held| held.clashes(port)))
}

/// Whether nothing speaks against the node.
pub(super) fn suits(info: &PodInfo, storage: &Storage, node: &Node, slot: usize, around: &Surroundings<'_>) -> bool {
    !cordoned(info, node)
        && node.hard_taints.iter().all(|taint| info.tolerates(taint))
        && info.allows(node)
        && !port_taken(info, node)
        && node.fits(info, |_| {})
        && storage.objection(node).is_none()
        && around.bars(slot).is_none()
}

/// What speaks against the node: the first kind of objection, with all its reasons.
pub(super) fn objections(
    info: &PodInfo,
    storage: &Storage,
    node: &Node,
    slot: usize,
    around: &Surroundings<'_>,
) -> Vec<Reason> {
    if cordoned(info, node) {
        return vec![Reason::Unschedulable];
    }
    if !node.hard_taints.iter().all(|taint| info.tolerates(taint)) {
        return vec![Reason::Taint];
    }
    if !info.allows(node) {
        return vec![Reason::NodeAffinity];
    }
    if port_taken(info, node) {
        return vec![Reason::Ports];
    }
    let mut short = Vec::new();
    node.fits(info, |shortage| short.push(Reason::Short(shortage)));
    if !short.is_empty() {
        return short;
    }
    storage.objection(node).or_else(|| around.bars(slot)).into_iter().collect()
}

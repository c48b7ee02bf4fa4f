//! Who is where: counts of pods per node for every group of pods that some affinity or spread constraint names.
//!
//! The counts are kept up to date as pods come and go, so that placing a pod costs one pass over the nodes, however
//! many pods there are.

use std::collections::BTreeMap;

use super::node::Node;
use super::pod::{Group, PodInfo, Term};

/// The domain of a node that lacks the label.
pub const NOWHERE: u32 = u32::MAX;

/// How one node label divides the nodes.
#[derive(Clone, Debug, Default)]
pub struct Domains {
    of_node: Vec<u32>,
    values: BTreeMap<String, u32>,
}

impl Domains {
    /// The domain of the node in a slot.
    pub fn of(&self, slot: usize) -> u32 {
        self.of_node.get(slot).copied().unwrap_or(NOWHERE)
    }

    /// How many numbers domains have.
    pub fn len(&self) -> usize {
        self.values.len()
    }

    fn set(&mut self, slot: usize, value: Option<&String>) {
        if self.of_node.len() <= slot {
            self.of_node.resize(slot + 1, NOWHERE);
        }
        self.of_node[slot] = value.map_or(NOWHERE, |value| {
            let next = u32::try_from(self.values.len()).unwrap_or(NOWHERE);
            *self.values.entry(value.clone()).or_insert(next)
        });
    }

    /// Sums what is known per node by domain.
    pub fn sum<T: Copy + Into<i64>>(&self, per_node: &[T]) -> Vec<i64> {
        let mut sums = vec![0; self.values.len()];
        for (slot, amount) in per_node.iter().enumerate() {
            if let Some(sum) = sums.get_mut(self.of(slot) as usize) {
                *sum += (*amount).into();
            }
        }
        sums
    }
}

#[derive(Clone, Debug, Default)]
struct Count {
    users: usize,
    per_node: Vec<u32>,
}

/// What placed pods say about others, per node they are on.
#[derive(Clone, Debug, Default)]
pub struct Held {
    holders: usize,
    /// How many refuse the pods of the term.
    pub refuse: Vec<u32>,
    /// How much they like them.
    pub like: Vec<i64>,
}

/// Labels of namespaces.
pub type Namespaces = BTreeMap<String, BTreeMap<String, String>>;

/// The counts.
#[derive(Clone, Debug, Default)]
pub struct Census {
    counts: BTreeMap<Group, Count>,
    held: BTreeMap<Term, Held>,
    domains: BTreeMap<String, (usize, Domains)>,
}

fn at<T: Default + Clone>(list: &mut Vec<T>, slot: usize) -> &mut T {
    if list.len() <= slot {
        list.resize(slot + 1, T::default());
    }
    &mut list[slot]
}

fn labels_of<'a>(namespaces: &'a Namespaces, pod: &PodInfo) -> &'a BTreeMap<String, String> {
    static NONE: BTreeMap<String, String> = BTreeMap::new();
    namespaces.get(&pod.namespace).unwrap_or(&NONE)
}

fn terms(pod: &PodInfo) -> impl Iterator<Item = &Term> {
    let liked = pod.terms.liked.iter().map(|(term, _)| term);
    let spread = pod.spread.iter().map(|spread| &spread.term);
    pod.terms.near.iter().chain(&pod.terms.away).chain(liked).chain(spread)
}

impl Census {
    /// Whether nobody says anything about anybody.
    pub fn is_empty(&self) -> bool {
        self.counts.is_empty()
    }

    /// Starts counting for the terms of a pod. `placed` are the pods on nodes, with their slots.
    pub fn learn<'a>(
        &mut self,
        pod: &PodInfo,
        nodes: &[Option<Node>],
        placed: impl Iterator<Item = (usize, &'a PodInfo)> + Clone,
        namespaces: &Namespaces,
    ) {
        for term in terms(pod) {
            let (users, domains) = self.domains.entry(term.topology_key.clone()).or_default();
            *users += 1;
            if *users == 1 {
                for (slot, node) in nodes.iter().enumerate() {
                    domains.set(slot, node.as_ref().and_then(|node| node.labels.get(&term.topology_key)));
                }
            }
            let count = self.counts.entry(term.group.clone()).or_default();
            count.users += 1;
            if count.users == 1 {
                for (slot, other) in placed.clone() {
                    if term.group.counts(other, labels_of(namespaces, other)) {
                        *at(&mut count.per_node, slot) += 1;
                    }
                }
            }
        }
    }

    /// Stops counting for the terms of a pod.
    pub fn unlearn(&mut self, pod: &PodInfo) {
        for term in terms(pod) {
            if let Some((users, _)) = self.domains.get_mut(&term.topology_key) {
                *users -= 1;
                if *users == 0 {
                    self.domains.remove(&term.topology_key);
                }
            }
            if let Some(count) = self.counts.get_mut(&term.group) {
                count.users -= 1;
                if count.users == 0 {
                    self.counts.remove(&term.group);
                }
            }
        }
    }

    /// Takes note of a node's labels; none when it is gone.
    pub fn node(&mut self, slot: usize, labels: Option<&BTreeMap<String, String>>) {
        for (key, (_, domains)) in &mut self.domains {
            domains.set(slot, labels.and_then(|labels| labels.get(key)));
        }
    }

    /// A pod was placed (`step` 1) or left (`step` -1).
    pub fn moved(&mut self, pod: &PodInfo, slot: usize, step: i64, namespaces: &Namespaces) {
        let labels = labels_of(namespaces, pod);
        for (group, count) in &mut self.counts {
            if group.counts(pod, labels) {
                let place = at(&mut count.per_node, slot);
                *place = if step > 0 { *place + 1 } else { place.saturating_sub(1) };
            }
        }
        for term in &pod.terms.away {
            self.hold(term, step, |held| {
                let place = at(&mut held.refuse, slot);
                *place = if step > 0 { *place + 1 } else { place.saturating_sub(1) };
            });
        }
        // A pod that must be near others is glad of them: the weight Kubernetes gives this by default.
        let near = pod.terms.near.iter().map(|term| (term, 1));
        for (term, weight) in near.chain(pod.terms.liked.iter().map(|(term, weight)| (term, *weight))) {
            self.hold(term, step, |held| *at(&mut held.like, slot) += weight * step);
        }
    }

    fn hold(&mut self, term: &Term, step: i64, change: impl FnOnce(&mut Held)) {
        let held = self.held.entry(term.clone()).or_default();
        held.holders = if step > 0 { held.holders + 1 } else { held.holders.saturating_sub(1) };
        change(held);
        if held.holders == 0 {
            self.held.remove(term);
        }
    }

    /// Pods of a group per node.
    pub fn count(&self, group: &Group) -> &[u32] {
        self.counts.get(group).map_or(&[], |count| &count.per_node)
    }

    /// How a label divides the nodes.
    pub fn domains(&self, key: &str) -> Option<&Domains> {
        self.domains.get(key).map(|(_, domains)| domains)
    }

    /// What placed pods say about this one.
    pub fn held_about<'a>(
        &'a self,
        pod: &'a PodInfo,
        namespaces: &'a Namespaces,
    ) -> impl Iterator<Item = (&'a Term, &'a Held)> {
        let labels = labels_of(namespaces, pod);
        self.held.iter().filter(move |(term, _)| term.group.counts(pod, labels))
    }

    /// Whether a pod is in a group.
    pub fn counts(&self, group: &Group, pod: &PodInfo, namespaces: &Namespaces) -> bool {
        group.counts(pod, labels_of(namespaces, pod))
    }
}

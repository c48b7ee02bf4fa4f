//! Making room for an important pod at the cost of less important ones.
//!
//! For each node where that could help, the less important pods are taken off the board, and put back one by one, the most
//! first, as long as the pod still fits. Those that could not be put back are the victims. Pods that a PodDisruptionBudget
//! protects are put back before all others.

use super::around::Surroundings;
use super::budgets::violations;
use super::plan::{Board, objections, suits};
use super::why::Reason;
use crate::cache::Key;

/// At most this many nodes are examined.
const CANDIDATES: usize = 100;

/// How a pod gets a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Preemption {
    /// The node.
    pub node: String,
    /// Pods that must leave it.
    pub victims: Vec<Key>,
}

/// What a choice of victims costs; the least is best: how many a budget protects, the importance of the most important one,
/// of all together, and how many.
type Cost = (usize, i32, i64, usize);

impl Board {
    /// Finds the node where the least is lost. The text says why there is none.
    pub fn preempt(&mut self, key: &Key) -> Result<Preemption, &'static str> {
        let found = self.pods.get(key).map(|entry| (entry.info.clone(), entry.storage.clone()));
        let Some((info, storage)) = found else { return Err("") };
        if info.never_preempts {
            return Err("not eligible due to preemptionPolicy=Never.");
        }
        if self.waits_for_victims(key) {
            return Err("not eligible due to a terminating pod on the nominated node.");
        }
        let around = Surroundings::new(&info, &self.census, &self.nodes, &self.namespaces);
        let curable = |slot: &usize| {
            self.nodes[*slot].as_ref().is_some_and(|node| {
                let objections = objections(&info, &storage, node, *slot, &around);
                !objections.is_empty() && objections.iter().all(Reason::is_curable)
            })
        };
        let slots: Vec<usize> = (0..self.nodes.len()).filter(curable).take(CANDIDATES).collect();
        drop(around);
        let mut best: Option<(Cost, Preemption)> = None;
        for slot in slots {
            let Some((cost, found)) = self.victims(key, slot) else { continue };
            if best.as_ref().is_none_or(|(least, _)| cost < *least) {
                best = Some((cost, found));
            }
        }
        let (_, found) = best.ok_or("")?;
        self.nominated.insert(key.clone(), found.node.clone());
        Ok(found)
    }

    /// Whether the pod's earlier victims have not left yet.
    fn waits_for_victims(&self, key: &Key) -> bool {
        let Some(priority) = self.pods.get(key).map(|entry| entry.info.priority) else { return false };
        let leaving =
            |other: &Key| self.pods.get(other).is_some_and(|entry| entry.deleting && entry.info.priority < priority);
        self.nominated.get(key).and_then(|node| self.on_node.get(node)).is_some_and(|keys| keys.iter().any(leaving))
    }

    fn fits_on(&self, key: &Key, slot: usize) -> bool {
        let (Some(entry), Some(node)) = (self.pods.get(key), &self.nodes[slot]) else { return false };
        let around = Surroundings::new(&entry.info, &self.census, &self.nodes, &self.namespaces);
        suits(&entry.info, &entry.storage, node, slot, &around)
    }

    fn victims(&mut self, key: &Key, slot: usize) -> Option<(Cost, Preemption)> {
        let name = self.nodes[slot].as_ref()?.name.clone();
        let priority = self.pods.get(key)?.info.priority;
        let of = |board: &Self, key: &Key| board.pods.get(key).map_or(0, |entry| entry.info.priority);
        let mut lesser: Vec<Key> = self.on_node.get(&name).into_iter().flatten().cloned().collect();
        lesser.retain(|other| of(self, other) < priority);
        if lesser.is_empty() {
            return None;
        }
        lesser.sort_by_key(|other| {
            let created = self.pods.get(other).and_then(|entry| entry.info.created);
            (std::cmp::Reverse(of(self, other)), created)
        });
        let infos: Vec<_> = lesser.iter().filter_map(|other| Some(self.pods.get(other)?.info.clone())).collect();
        let protected = violations(&self.budgets, infos.iter().map(std::convert::AsRef::as_ref));
        let mut lesser: Vec<(bool, Key)> = protected.into_iter().zip(lesser).collect();
        lesser.sort_by_key(|(protected, _)| !protected);
        for (_, other) in &lesser {
            self.take_off(other);
        }
        if !self.fits_on(key, slot) {
            lesser.iter().for_each(|(_, other)| self.put_on(other, &name));
            return None;
        }
        let (mut victims, mut broken) = (Vec::new(), 0);
        for (protected, other) in &lesser {
            self.put_on(other, &name);
            if !self.fits_on(key, slot) {
                self.take_off(other);
                victims.push(other.clone());
                broken += usize::from(*protected);
            }
        }
        victims.iter().for_each(|other| self.put_on(other, &name));
        let highest = victims.iter().map(|other| of(self, other)).max().unwrap_or(i32::MIN);
        let sum = victims.iter().map(|other| i64::from(of(self, other)) - i64::from(i32::MIN)).sum();
        Some(((broken, highest, sum, victims.len()), Preemption { node: name, victims }))
    }
}

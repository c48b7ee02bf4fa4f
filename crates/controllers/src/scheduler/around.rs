//! Affinity between pods, and spreading, worked out once per pod for all nodes.

use super::census::{Census, Domains, NOWHERE, Namespaces};
use super::node::Node;
use super::pod::{PodInfo, Spread, Term};
use super::why::Reason;

/// An amount per domain of a label.
struct ByDomain<'a> {
    domains: &'a Domains,
    sums: Vec<i64>,
}

impl ByDomain<'_> {
    /// The amount in the domain of a node; none if the node is in none.
    fn at(&self, slot: usize) -> Option<i64> {
        self.sums.get(self.domains.of(slot) as usize).copied()
    }
}

struct Limit<'a> {
    counts: ByDomain<'a>,
    least: i64,
    own: i64,
    max_skew: i64,
}

/// What the pods already placed mean for one more.
pub struct Surroundings<'a> {
    near: Vec<ByDomain<'a>>,
    /// The pod may be the first of a group that wants to be together.
    may_start: bool,
    away: Vec<ByDomain<'a>>,
    refused: Vec<ByDomain<'a>>,
    limits: Vec<Limit<'a>>,
    liked: Vec<(ByDomain<'a>, i64)>,
    soft: Vec<(&'a Spread, ByDomain<'a>)>,
}

impl<'a> Surroundings<'a> {
    /// Works them out.
    pub fn new(pod: &'a PodInfo, census: &'a Census, nodes: &[Option<Node>], namespaces: &'a Namespaces) -> Self {
        let counted = |term: &Term| {
            let domains = census.domains(&term.topology_key)?;
            Some(ByDomain { sums: domains.sum(census.count(&term.group)), domains })
        };
        let near: Vec<_> = pod.terms.near.iter().filter_map(counted).collect();
        let nobody = near.iter().all(|term| term.sums.iter().all(|sum| *sum == 0));
        let self_match = pod.terms.near.iter().all(|term| census.counts(&term.group, pod, namespaces));
        let mut liked: Vec<_> =
            pod.terms.liked.iter().filter_map(|(term, weight)| Some((counted(term)?, *weight))).collect();
        let mut refused = Vec::new();
        for (term, held) in census.held_about(pod, namespaces) {
            let Some(domains) = census.domains(&term.topology_key) else { continue };
            if !held.refuse.is_empty() {
                refused.push(ByDomain { sums: domains.sum(&held.refuse), domains });
            }
            if !held.like.is_empty() {
                liked.push((ByDomain { sums: domains.sum(&held.like), domains }, 1));
            }
        }
        let mut all = Self {
            near,
            may_start: nobody && self_match,
            away: pod.terms.away.iter().filter_map(counted).collect(),
            refused,
            limits: Vec::new(),
            liked,
            soft: Vec::new(),
        };
        all.count_spread(pod, census, nodes, namespaces);
        all
    }

    fn count_spread(
        &mut self,
        pod: &'a PodInfo,
        census: &'a Census,
        nodes: &[Option<Node>],
        namespaces: &'a Namespaces,
    ) {
        for spread in &pod.spread {
            let Some(domains) = census.domains(&spread.term.topology_key) else { continue };
            let eligible = |slot: usize, node: &Node| {
                let keyed = pod.spread.iter().filter(|other| other.required == spread.required);
                let keyed = keyed.filter_map(|other| census.domains(&other.term.topology_key));
                keyed.into_iter().all(|domains| domains.of(slot) != NOWHERE)
                    && (!spread.honor_affinity || pod.allows(node))
                    && (!spread.honor_taints || node.hard_taints.iter().all(|taint| pod.tolerates(taint)))
            };
            let counts = census.count(&spread.term.group);
            let mut sums = vec![0; domains.len()];
            let mut present = vec![false; domains.len()];
            for (slot, node) in nodes.iter().enumerate() {
                let Some(node) = node else { continue };
                if eligible(slot, node) {
                    let domain = domains.of(slot) as usize;
                    sums[domain] += i64::from(counts.get(slot).copied().unwrap_or(0));
                    present[domain] = true;
                }
            }
            let found = present.iter().filter(|there| **there).count();
            let least = sums.iter().zip(&present).filter(|(_, there)| **there).map(|(sum, _)| *sum).min().unwrap_or(0);
            let few = found < usize::try_from(spread.min_domains).unwrap_or(0);
            let counts = ByDomain { domains, sums };
            if spread.required {
                self.limits.push(Limit {
                    counts,
                    least: if few { 0 } else { least },
                    own: i64::from(census.counts(&spread.term.group, pod, namespaces)),
                    max_skew: spread.max_skew.into(),
                });
            } else {
                self.soft.push((spread, counts));
            }
        }
    }

    /// Why the pod cannot go to the node in this slot, if it cannot.
    pub fn bars(&self, slot: usize) -> Option<Reason> {
        for limit in &self.limits {
            match limit.counts.at(slot) {
                None => return Some(Reason::SpreadLabel),
                Some(count) if count + limit.own - limit.least > limit.max_skew => return Some(Reason::Spread),
                Some(_) => {}
            }
        }
        if !self.near_others(slot) {
            return Some(Reason::Affinity);
        }
        if self.away.iter().any(|term| term.at(slot).is_some_and(|count| count > 0)) {
            return Some(Reason::AntiAffinity);
        }
        let refused = self.refused.iter().any(|term| term.at(slot).is_some_and(|count| count > 0));
        refused.then_some(Reason::ExistingAntiAffinity)
    }

    fn near_others(&self, slot: usize) -> bool {
        let mut together = true;
        for term in &self.near {
            match term.at(slot) {
                None => return false,
                Some(count) => together &= count > 0,
            }
        }
        together || self.may_start
    }

    /// Whether any of this tells nodes apart beyond barring some.
    pub fn has_preferences(&self) -> bool {
        !self.liked.is_empty() || !self.soft.is_empty()
    }

    /// How well liked the node is for the pods around it.
    pub fn liking(&self, slot: usize) -> i64 {
        self.liked.iter().map(|(term, weight)| term.at(slot).unwrap_or(0) * weight).sum()
    }

    /// How crowded the node's domains are; none if it lacks a label. Lower is better.
    pub fn crowding(&self, slot: usize) -> Option<i64> {
        let mut total = 0.0;
        for (spread, counts) in &self.soft {
            let count = counts.at(slot)?;
            // Domain and pod counts are far below the precision of a double.
            #[allow(clippy::cast_precision_loss)]
            let (count, size) = (count as f64, counts.sums.len() as f64);
            total += count * (size + 2.0).ln() + f64::from(spread.max_skew - 1);
        }
        #[allow(clippy::cast_possible_truncation)]
        let rounded = total.round() as i64;
        Some(rounded)
    }

    /// Whether the pod asks to be spread where possible.
    pub fn prefers_spread(&self) -> bool {
        !self.soft.is_empty()
    }
}

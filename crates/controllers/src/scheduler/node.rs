//! A node as the scheduler sees it, with what its pods take up.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Node as ApiNode, Taint};

use super::pod::{HostPort, PodInfo};
use super::resources::{Resources, amount_of};
use crate::objects::labels;

/// A node and the sums over its pods.
#[derive(Clone, Debug, Default)]
pub struct Node {
    /// Name.
    pub name: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Cordoned.
    pub unschedulable: bool,
    /// Taints that keep new pods away.
    pub hard_taints: Vec<Taint>,
    /// Taints that new pods had better avoid.
    pub soft_taints: Vec<Taint>,
    /// What it offers.
    pub offers: Resources,
    /// How many pods it takes.
    pub pod_limit: i64,
    /// What its pods ask for.
    pub used: Resources,
    /// The same with assumptions: cpu and memory.
    pub assumed: (i64, i64),
    /// How many pods it has.
    pub pods: i64,
    /// Ports its pods occupy.
    pub ports: Vec<HostPort>,
}

impl Node {
    /// Takes over what the API says of the node; the sums stay.
    pub fn describe(&mut self, node: &ApiNode) {
        let spec = node.spec.clone().unwrap_or_default();
        let offers = node.status.as_ref().and_then(|status| status.allocatable.as_ref());
        let (soft, hard) = spec.taints.unwrap_or_default().into_iter().partition(|t| t.effect == "PreferNoSchedule");
        self.name = node.metadata.name.clone().unwrap_or_default();
        self.labels = labels(&node.metadata).clone();
        self.unschedulable = spec.unschedulable.unwrap_or(false);
        self.soft_taints = soft;
        self.hard_taints = hard;
        self.offers = offers.map(Resources::from_list).unwrap_or_default();
        self.pod_limit = offers.and_then(|list| list.get("pods")).map_or(0, |amount| amount_of("pods", amount));
    }

    /// Accounts for a pod.
    pub fn add(&mut self, pod: &PodInfo) {
        self.used.add(&pod.requests);
        self.assumed = (self.assumed.0 + pod.assumed.0, self.assumed.1 + pod.assumed.1);
        self.pods += 1;
        self.ports.extend(pod.ports.iter().cloned());
    }

    /// Accounts for a pod's leaving.
    pub fn remove(&mut self, pod: &PodInfo) {
        self.used.subtract(&pod.requests);
        self.assumed = (self.assumed.0 - pod.assumed.0, self.assumed.1 - pod.assumed.1);
        self.pods -= 1;
        for port in &pod.ports {
            if let Some(index) = self.ports.iter().position(|held| held == port) {
                self.ports.swap_remove(index);
            }
        }
    }

    /// Whether every resource the pod asks for is there; calls `missing` for each that is not.
    pub fn fits(&self, pod: &PodInfo, mut missing: impl FnMut(Shortage)) -> bool {
        let mut fits = true;
        let mut lacks = |shortage| {
            fits = false;
            missing(shortage);
        };
        if self.pods + 1 > self.pod_limit {
            lacks(Shortage::Pods);
        }
        let (wants, offers, used) = (&pod.requests, &self.offers, &self.used);
        if wants.cpu_milli > 0 && wants.cpu_milli > offers.cpu_milli - used.cpu_milli {
            lacks(Shortage::Resource("cpu".into()));
        }
        if wants.memory > 0 && wants.memory > offers.memory - used.memory {
            lacks(Shortage::Resource("memory".into()));
        }
        if wants.storage > 0 && wants.storage > offers.storage - used.storage {
            lacks(Shortage::Resource("ephemeral-storage".into()));
        }
        for (name, want) in wants.extended.iter().filter(|(_, want)| **want > 0) {
            let amount = |of: &Resources| of.extended.get(name).copied().unwrap_or(0);
            if *want > amount(offers) - amount(used) {
                lacks(Shortage::Resource(name.clone()));
            }
        }
        fits
    }
}

/// What a node has too little of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Shortage {
    /// Room for one more pod.
    Pods,
    /// A resource.
    Resource(String),
}

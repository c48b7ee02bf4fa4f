//! PodDisruptionBudgets, as far as preemption respects them: it breaks one only if nothing else makes room.

use std::sync::Arc;

use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use mycelium_api::selector::Selector;

use super::pod::PodInfo;

/// A budget that some pods fall under.
#[derive(Clone, Debug)]
pub struct Budget {
    namespace: String,
    selector: Selector,
    allowed: i32,
    /// Pods whose end is counted already.
    disrupted: Vec<String>,
}

impl Budget {
    /// Reads a budget; none if it selects nothing.
    pub fn new(budget: &Arc<PodDisruptionBudget>) -> Option<Self> {
        let selector = serde_json::to_value(budget.spec.as_ref()?.selector.as_ref()?).ok()?;
        let selector = Selector::from_value(&selector).ok().filter(|selector| !selector.is_empty())?;
        let status = budget.status.as_ref();
        let disrupted = status.and_then(|status| status.disrupted_pods.as_ref());
        Some(Self {
            namespace: budget.metadata.namespace.clone().unwrap_or_default(),
            selector,
            allowed: status.map_or(0, |status| status.disruptions_allowed),
            disrupted: disrupted.map(|pods| pods.keys().cloned().collect()).unwrap_or_default(),
        })
    }

    fn counts(&self, pod: &PodInfo) -> bool {
        self.namespace == pod.namespace && self.selector.matches(&pod.labels) && !self.disrupted.contains(&pod.name)
    }
}

/// Of pods that would go in this order, those whose end some budget does not allow.
pub fn violations<'a>(budgets: &[Budget], pods: impl Iterator<Item = &'a PodInfo>) -> Vec<bool> {
    let mut left: Vec<i32> = budgets.iter().map(|budget| budget.allowed).collect();
    let mut spend = |pod: &PodInfo| {
        let mut violates = false;
        for (_, left) in budgets.iter().zip(&mut left).filter(|(budget, _)| budget.counts(pod)) {
            *left -= 1;
            violates |= *left < 0;
        }
        violates
    };
    pods.map(&mut spend).collect()
}

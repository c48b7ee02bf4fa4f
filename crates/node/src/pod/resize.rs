//! Changing what a running pod may use, without restarting it: pure decisions, and the node's book of what it has promised.
//!
//! ```text
//!  spec (wanted) --does the node have that much?--> allocated (promised) --cgroups written--> the run's record (actual)
//!                         |                                |
//!                         +--> PodResizePending            +--> PodResizeInProgress until both are equal
//!                              (Deferred, Infeasible)
//! ```

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use mycelium_linux::cgroup::{Hierarchies, Limits};
use serde::{Deserialize, Serialize};

use super::model::{View, all_containers};
use crate::spec::resources::{container_limits, pod_limits, requests_of_pod};

/// What a container may use, as the API writes it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Amounts {
    /// What it is sure to get.
    pub requests: BTreeMap<String, String>,
    /// What it gets at most.
    pub limits: BTreeMap<String, String>,
}

impl Amounts {
    /// Those of a container.
    pub fn of(resources: Option<&ResourceRequirements>) -> Self {
        let texts = |map: Option<&BTreeMap<String, Quantity>>| {
            map.into_iter().flatten().map(|(name, amount)| (name.clone(), amount.0.clone())).collect()
        };
        Self {
            requests: texts(resources.and_then(|r| r.requests.as_ref())),
            limits: texts(resources.and_then(|r| r.limits.as_ref())),
        }
    }

    /// Makes them those of a container.
    pub fn set(&self, container: &mut Container) {
        if *self == Self::of(container.resources.as_ref()) {
            return;
        }
        let amounts = |map: &BTreeMap<String, String>| {
            Some(map.iter().map(|(name, amount)| (name.clone(), Quantity(amount.clone()))).collect())
                .filter(|map: &BTreeMap<String, Quantity>| !map.is_empty())
        };
        let resources = container.resources.get_or_insert_default();
        resources.requests = amounts(&self.requests);
        resources.limits = amounts(&self.limits);
    }

    /// Whether cpu or memory, `name`, differs.
    fn differs(&self, other: &Self, name: &str) -> bool {
        self.requests.get(name) != other.requests.get(name) || self.limits.get(name) != other.limits.get(name)
    }
}

/// What each container has been promised, by name.
pub type Allocated = BTreeMap<String, Amounts>;

/// Why a pod does not get what it wants now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Not as long as others need it.
    Deferred(String),
    /// Never on this node.
    Infeasible(String),
}

impl Refusal {
    /// Reason and message of the condition.
    pub fn condition(&self) -> (&'static str, &str) {
        match self {
            Self::Deferred(message) => ("Deferred", message),
            Self::Infeasible(message) => ("Infeasible", message),
        }
    }
}

/// How far a pod's resize has come.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resizing {
    /// What has been promised.
    pub allocated: Allocated,
    /// Why what is wanted has not been.
    pub refused: Option<Refusal>,
    /// Why what is promised has not come true.
    pub failed: Option<String>,
}

/// What a pod's containers want.
pub fn wanted(spec: &PodSpec) -> Allocated {
    all_containers(spec).map(|c| (c.name.clone(), Amounts::of(c.resources.as_ref()))).collect()
}

/// The pod with these resources instead of what its spec wants.
pub fn with(pod: &Arc<Pod>, allocated: &Allocated) -> Arc<Pod> {
    let Some(spec) = pod.spec.as_ref().filter(|spec| wanted(spec) != *allocated) else { return pod.clone() };
    let mut spec = spec.clone();
    for container in spec.containers.iter_mut().chain(spec.init_containers.iter_mut().flatten()) {
        if let Some(amounts) = allocated.get(&container.name) {
            amounts.set(container);
        }
    }
    Arc::new(Pod { metadata: pod.metadata.clone(), spec: Some(spec), status: pod.status.clone() })
}

/// The running containers that do not have yet what was promised: name, what they have, what they get.
pub fn unequal<'a>(
    containers: &'a BTreeMap<String, View>,
    allocated: &'a Allocated,
) -> Vec<(&'a str, &'a Amounts, &'a Amounts)> {
    let pairs = containers.iter().filter_map(|(name, view)| {
        let run = view.current.as_ref().filter(|run| run.running().is_some())?;
        let (has, gets) = (run.record.resources.as_ref()?, allocated.get(name)?);
        (has != gets).then_some((name.as_str(), has, gets))
    });
    pairs.collect()
}

/// Whether a container wants to be restarted for this change.
pub fn needs_restart(container: &Container, has: &Amounts, gets: &Amounts) -> bool {
    let policies = container.resize_policy.iter().flatten().filter(|p| p.restart_policy == "RestartContainer");
    policies.into_iter().any(|policy| has.differs(gets, &policy.resource_name))
}

/// Thousandths of processors, and bytes of memory.
pub type Need = [i64; 2];
const NAMES: [&str; 2] = ["cpu", "memory"];

/// What the pods of a node have been promised.
#[derive(Default)]
pub struct Ledger(Mutex<BTreeMap<String, Need>>);

impl Ledger {
    /// Notes what a pod has.
    pub fn set(&self, uid: &str, need: Need) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(uid.to_owned(), need);
    }

    /// A pod needs nothing any more.
    pub fn remove(&self, uid: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(uid);
    }

    /// Promises a pod what it wants of a node that has `offers`, if that much is left.
    pub fn ask(&self, uid: &str, need: Need, offers: Need) -> Result<(), Refusal> {
        let mut pods = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let others = |at: usize| pods.iter().filter(|(other, _)| *other != uid).map(|(_, need)| need[at]).sum::<i64>();
        // Where both are too much, Kubernetes names memory.
        for at in [1, 0] {
            let (name, need, offers) = (NAMES[at], need[at], offers[at]);
            if need > offers {
                let message =
                    format!("Node didn't have enough capacity: {name}, requested: {need}, capacity: {offers}");
                return Err(Refusal::Infeasible(message));
            }
        }
        for at in 0..2 {
            let (name, need, used, offers) = (NAMES[at], need[at], others(at), offers[at]);
            if used + need > offers {
                let message = format!(
                    "Node didn't have enough resource: {name}, requested: {need}, used: {used}, capacity: {offers}"
                );
                return Err(Refusal::Deferred(message));
            }
        }
        pods.insert(uid.to_owned(), need);
        Ok(())
    }
}

/// What a pod needs.
pub fn need(pod: &Pod) -> Need {
    pod.spec.as_ref().map_or([0, 0], |spec| NAMES.map(|name| requests_of_pod(spec, name)))
}

/// A running container's cgroup and what it is to get.
pub struct Change {
    /// The container.
    pub name: String,
    /// Its run.
    pub run: String,
    /// What it gets.
    pub gets: Amounts,
    /// The container with that.
    pub container: Container,
}

/// Writes the limits of running containers and their pod. What was done is told also when something else failed.
pub fn apply(
    group: &str,
    before: &PodSpec,
    after: &PodSpec,
    changes: Vec<Change>,
) -> (Vec<Change>, Result<(), String>) {
    let (from, to) = (pod_limits(before), pod_limits(after));
    // What grows does so from the outside in, what shrinks from the inside out: no part may exceed the whole.
    if let Err(text) = write(group, &grown(&from, &to)) {
        return (Vec::new(), Err(text));
    }
    let mut done = Vec::new();
    for change in changes {
        let limits = container_limits(change.container.resources.as_ref());
        if let Err(text) = write(&format!("{group}/{}", change.run), &limits) {
            return (done, Err(format!("container {}: {text}", change.name)));
        }
        done.push(change);
    }
    (done, write(group, &to))
}

fn grown(from: &Limits, to: &Limits) -> Limits {
    Limits {
        cpu_shares: to.cpu_shares,
        cpu_quota_us: to.cpu_quota_us.filter(|quota| from.cpu_quota_us.is_some_and(|old| old < *quota)),
        memory_bytes: to.memory_bytes.filter(|bytes| from.memory_bytes.is_some_and(|old| old < *bytes)),
    }
}

fn write(group: &str, limits: &Limits) -> Result<(), String> {
    let groups = Hierarchies::get();
    let used = groups.usage(group).map_or(0, |usage| usage.working_set_bytes);
    if let Some(bytes) = limits.memory_bytes.filter(|bytes| *bytes < used) {
        return Err(format!("attempting to set memory limit ({bytes}) below current usage ({used})"));
    }
    groups.set(group, limits).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_node_promises_what_it_has() {
        let ledger = Ledger::default();
        let node = [1000, 1000];
        assert_eq!(ledger.ask("a", [600, 100], node), Ok(()));
        let full = "Node didn't have enough resource: cpu, requested: 600, used: 600, capacity: 1000";
        assert_eq!(ledger.ask("b", [600, 100], node), Err(Refusal::Deferred(full.into())));
        let much = "Node didn't have enough capacity: memory, requested: 1001, capacity: 1000";
        assert_eq!(ledger.ask("b", [2000, 1001], node), Err(Refusal::Infeasible(much.into())));
        assert_eq!(ledger.ask("a", [400, 100], node), Ok(()), "its own is not in its way");
        assert_eq!(ledger.ask("b", [600, 100], node), Ok(()));
        ledger.remove("a");
        assert_eq!(ledger.ask("b", [1000, 1000], node), Ok(()));
    }

    #[test]
    fn policies_decide_about_a_restart() {
        let container: Container = serde_json::from_value(json!({"name": "c",
            "resizePolicy": [{"resourceName": "memory", "restartPolicy": "RestartContainer"},
                             {"resourceName": "cpu", "restartPolicy": "NotRequired"}]}))
        .expect("a container");
        let amounts = |cpu: &str, memory: &str| Amounts {
            limits: [("cpu".to_owned(), cpu.to_owned()), ("memory".to_owned(), memory.to_owned())].into(),
            ..Amounts::default()
        };
        assert!(!needs_restart(&container, &amounts("1", "1Gi"), &amounts("2", "1Gi")));
        assert!(needs_restart(&container, &amounts("1", "1Gi"), &amounts("2", "2Gi")));
    }

    #[test]
    fn what_grows_is_written_before_the_parts() {
        let limits = |quota, bytes| Limits { cpu_shares: Some(2), cpu_quota_us: quota, memory_bytes: bytes };
        assert_eq!(grown(&limits(Some(1), Some(5)), &limits(Some(2), Some(4))), limits(Some(2), None));
        assert_eq!(grown(&limits(None, None), &limits(Some(2), Some(4))), limits(None, None));
    }

    #[test]
    fn a_pod_shows_with_what_it_was_promised() {
        let pod: Pod = serde_json::from_value(json!({"spec": {"containers": [
            {"name": "a", "resources": {"requests": {"cpu": "2"}, "limits": {"memory": "1Gi"}}}, {"name": "b"}]}}))
        .expect("a pod");
        let pod = Arc::new(pod);
        let mut allocated = wanted(pod.spec.as_ref().expect("a spec"));
        assert!(Arc::ptr_eq(&with(&pod, &allocated), &pod));
        allocated.insert("a".into(), Amounts { requests: [("cpu".into(), "1".into())].into(), ..Amounts::default() });
        let shown = with(&pod, &allocated);
        assert_eq!(need(&shown), [1000, 0]);
        assert_eq!(need(&pod), [2000, 1 << 30]);
    }
}

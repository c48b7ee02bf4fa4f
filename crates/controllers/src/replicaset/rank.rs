//! Which pods go first when a ReplicaSet shrinks.

use std::cmp::{Ordering, Reverse};
use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};

use crate::objects::{annotation, is_active, node_name, phase, ready_since};

/// The annotation that makes a pod dearer or cheaper to lose.
const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";

/// What decides about a pod, most important first; the smallest goes first.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Rank<'a> {
    scheduled: bool,
    phase: u8,
    ready: bool,
    cost: i32,
    /// Related active pods on the same node.
    neighbours: Reverse<usize>,
    /// Ready pods by how long they have been ready, on a logarithmic scale.
    ready_age: Option<u32>,
    restarts: Option<(Reverse<i32>, Reverse<i32>)>,
    age: u32,
    uid: &'a str,
}

/// The `count` pods to delete out of `pods`; `related` are all pods of the same Deployment.
pub fn victims(pods: &[Arc<Pod>], related: &[Arc<Pod>], count: usize, now: Timestamp) -> Vec<Arc<Pod>> {
    let mut per_node: BTreeMap<&str, usize> = BTreeMap::new();
    for node in related.iter().filter(|pod| is_active(pod)).filter_map(|pod| node_name(pod)) {
        *per_node.entry(node).or_default() += 1;
    }
    let mut ranked: Vec<_> = pods.iter().map(|pod| (rank(pod, &per_node, now), pod)).collect();
    ranked.sort_by(|(a, _), (b, _)| a.partial_cmp(b).unwrap_or(Ordering::Equal));
    ranked.into_iter().take(count).map(|(_, pod)| pod.clone()).collect()
}

fn rank<'a>(pod: &'a Pod, per_node: &BTreeMap<&str, usize>, now: Timestamp) -> Rank<'a> {
    let ready = ready_since(pod);
    Rank {
        scheduled: node_name(pod).is_some(),
        phase: match phase(pod) {
            "Pending" => 0,
            "Unknown" => 1,
            _ => 2,
        },
        ready: ready.is_some(),
        cost: annotation(&pod.metadata, DELETION_COST).and_then(|text| text.parse().ok()).unwrap_or(0),
        neighbours: Reverse(node_name(pod).and_then(|node| per_node.get(node)).copied().unwrap_or(0)),
        ready_age: ready.map(|since| magnitude(since, now)),
        restarts: ready.is_none().then(|| restarts(pod)),
        age: magnitude(pod.metadata.creation_timestamp.as_ref().map(|time| time.0), now),
        uid: pod.metadata.uid.as_deref().unwrap_or_default(),
    }
}

/// The power of two below the age in nanoseconds, so that pods of about the same age count as equally old.
fn magnitude(since: Option<Timestamp>, now: Timestamp) -> u32 {
    let age = since.map_or(0, |since| now.as_nanosecond() - since.as_nanosecond());
    if age <= 0 { 0 } else { age.ilog2() + 1 }
}

fn restarts(pod: &Pod) -> (Reverse<i32>, Reverse<i32>) {
    let most = |list: &Option<Vec<ContainerStatus>>, names: Option<Vec<&str>>| {
        let counted = list.iter().flatten();
        let counted = counted.filter(|status| names.as_ref().is_none_or(|names| names.contains(&status.name.as_str())));
        counted.map(|status| status.restart_count).max().unwrap_or(0)
    };
    let Some(status) = &pod.status else { return (Reverse(0), Reverse(0)) };
    let init = pod.spec.iter().flat_map(|spec| spec.init_containers.iter().flatten());
    let sidecars = init.filter(|c| c.restart_policy.as_deref() == Some("Always")).map(|c| c.name.as_str()).collect();
    (Reverse(most(&status.container_statuses, None)), Reverse(most(&status.init_container_statuses, Some(sidecars))))
}

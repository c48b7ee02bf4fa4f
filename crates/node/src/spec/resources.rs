//! Requests and limits as numbers for control groups, and a pod's quality of service.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, PodSpec, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;
use mycelium_api::quantity::Quantity;
use mycelium_linux::cgroup::Limits;
use serde_json::{Value, json};

const CPU_PERIOD_US: i64 = 100_000;
const SHARES_MIN: i64 = 2;
const SHARES_MAX: i64 = 262_144;
const QUOTA_US_MIN: i64 = 1000;

type Amounts = BTreeMap<String, Text>;

/// `cpu` in thousandths, anything else in units.
fn amount(map: Option<&Amounts>, name: &str) -> Option<i64> {
    let quantity: Quantity = map?.get(name)?.0.parse().ok()?;
    let value = if name == "cpu" { quantity.milli_value() } else { quantity.value() };
    i64::try_from(value).ok()
}

/// A container's limit: thousandths for `cpu`, units for anything else.
pub fn limit(resources: Option<&ResourceRequirements>, name: &str) -> Option<i64> {
    amount(resources?.limits.as_ref(), name)
}

/// A container's request, which falls back to its limit.
pub fn request(resources: Option<&ResourceRequirements>, name: &str) -> Option<i64> {
    amount(resources?.requests.as_ref(), name).or_else(|| limit(resources, name))
}

fn shares(milli: i64) -> i64 {
    (milli * 1024 / 1000).clamp(SHARES_MIN, SHARES_MAX)
}

fn quota_us(milli: i64) -> i64 {
    (milli * CPU_PERIOD_US / 1000).max(QUOTA_US_MIN)
}

/// `linux.resources` of an OCI runtime specification.
pub fn to_oci(resources: Option<&ResourceRequirements>, privileged: bool) -> Value {
    let mut cpu = json!({"shares": shares(request(resources, "cpu").unwrap_or(0))});
    if let Some(milli) = limit(resources, "cpu").filter(|m| *m > 0) {
        cpu["quota"] = quota_us(milli).into();
        cpu["period"] = CPU_PERIOD_US.into();
    }
    let mut out = json!({"cpu": cpu, "devices": [{"allow": privileged, "access": "rwm"}]});
    if let Some(bytes) = limit(resources, "memory").filter(|b| *b > 0) {
        out["memory"] = json!({"limit": bytes});
    }
    out
}

/// A quality-of-service class.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Qos {
    /// Every container has equal requests and limits for processor and memory.
    Guaranteed,
    /// Some container requests something.
    Burstable,
    /// None does.
    BestEffort,
}

impl Qos {
    /// As the API writes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Guaranteed => "Guaranteed",
            Self::Burstable => "Burstable",
            Self::BestEffort => "BestEffort",
        }
    }

    /// As the cgroup path has it.
    pub fn folder(self) -> &'static str {
        match self {
            Self::Guaranteed => "guaranteed",
            Self::Burstable => "burstable",
            Self::BestEffort => "besteffort",
        }
    }
}

fn all_containers(spec: &PodSpec) -> impl Iterator<Item = &Container> {
    spec.containers.iter().chain(spec.init_containers.iter().flatten())
}

/// The class of a pod.
pub fn qos(spec: &PodSpec) -> Qos {
    let mut any = false;
    let mut all = true;
    for container in all_containers(spec) {
        let resources = container.resources.as_ref();
        for name in ["cpu", "memory"] {
            let (request, limit) = (request(resources, name), limit(resources, name));
            any |= request.is_some_and(|r| r > 0) || limit.is_some_and(|l| l > 0);
            all &= limit.is_some_and(|l| l > 0) && request == limit;
        }
    }
    match (any, all) {
        (false, _) => Qos::BestEffort,
        (true, true) => Qos::Guaranteed,
        (true, false) => Qos::Burstable,
    }
}

/// What the containers of a pod request together at most at any time, and its overhead: thousandths for `cpu`.
pub fn requests_of_pod(spec: &PodSpec, name: &str) -> i64 {
    let of = |container: &Container| request(container.resources.as_ref(), name).unwrap_or(0);
    let (mut sidecars, mut most) = (0, 0);
    for container in spec.init_containers.iter().flatten() {
        if container.restart_policy.as_deref() == Some("Always") {
            sidecars += of(container);
            most = most.max(sidecars);
        } else {
            most = most.max(sidecars + of(container));
        }
    }
    let together = sidecars + spec.containers.iter().map(of).sum::<i64>();
    together.max(most) + amount(spec.overhead.as_ref(), name).unwrap_or(0)
}

/// Limits of a container's group.
pub fn container_limits(resources: Option<&ResourceRequirements>) -> Limits {
    Limits {
        cpu_shares: Some(shares(request(resources, "cpu").unwrap_or(0)) as u64),
        cpu_quota_us: limit(resources, "cpu").filter(|milli| *milli > 0).map(quota_us),
        memory_bytes: limit(resources, "memory").filter(|bytes| *bytes > 0).map(|bytes| bytes as u64),
    }
}

/// Limits of the pod's own group: what its containers may use together.
pub fn pod_limits(spec: &PodSpec) -> Limits {
    let sum = |name: &str, of: fn(Option<&ResourceRequirements>, &str) -> Option<i64>| {
        spec.containers.iter().map(|c| of(c.resources.as_ref(), name)).sum::<Option<i64>>()
    };
    let requested: i64 = spec.containers.iter().filter_map(|c| request(c.resources.as_ref(), "cpu")).sum();
    // A limit of the pod exists only when every container, those for initialisation included, has one.
    let bounded = |name: &str| all_containers(spec).all(|c| limit(c.resources.as_ref(), name).is_some_and(|l| l > 0));
    let greatest = |name: &str| {
        let init = spec.init_containers.iter().flatten().filter_map(|c| limit(c.resources.as_ref(), name)).sum::<i64>();
        sum(name, limit).map(|s| s + init)
    };
    Limits {
        cpu_shares: Some(shares(requested) as u64),
        cpu_quota_us: bounded("cpu").then(|| greatest("cpu")).flatten().map(quota_us),
        memory_bytes: bounded("memory").then(|| greatest("memory")).flatten().map(|b| b as u64),
    }
}

/// How eagerly the kernel kills the container when memory runs out, as the kubelet computes it.
pub fn oom_score_adj(qos: Qos, resources: Option<&ResourceRequirements>, node_memory: i64) -> i32 {
    match qos {
        Qos::Guaranteed => -997,
        Qos::BestEffort => 1000,
        Qos::Burstable => {
            let requested = request(resources, "memory").unwrap_or(0);
            let score = 1000 - (1000 * requested) / node_memory.max(1);
            score.clamp(3, 999) as i32
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(json: Value) -> PodSpec {
        serde_json::from_value(json).expect("a pod spec")
    }

    #[test]
    fn classes_and_numbers_follow_the_kubelet() {
        let pod = |resources: Value| spec(json!({"containers": [{"name": "a", "resources": resources}]}));
        assert_eq!(qos(&pod(json!({}))), Qos::BestEffort);
        assert_eq!(qos(&pod(json!({"requests": {"cpu": "1"}}))), Qos::Burstable);
        let guaranteed = pod(json!({"limits": {"cpu": "500m", "memory": "64Mi"}}));
        assert_eq!(qos(&guaranteed), Qos::Guaranteed);
        assert_eq!(
            pod_limits(&guaranteed),
            Limits { cpu_shares: Some(512), cpu_quota_us: Some(50_000), memory_bytes: Some(64 << 20) }
        );
        assert_eq!(
            to_oci(guaranteed.containers[0].resources.as_ref(), false),
            json!({"cpu": {"shares": 512, "quota": 50_000, "period": 100_000}, "memory": {"limit": 64 << 20},
                   "devices": [{"allow": false, "access": "rwm"}]})
        );
        assert_eq!(oom_score_adj(Qos::Burstable, None, 1 << 30), 999);
    }
}

//! Ports of the host that the pods of a node have. Who is put on a node past the scheduler may want one that is taken.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use k8s_openapi::api::core::v1::{ContainerPort, Pod};

/// Why a pod is refused, in Kubernetes' words.
pub const REFUSAL: &str = "Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports";

/// A port of the host: its protocol, number and address; an empty address is every address.
type HostPort = (String, i32, String);

/// Which pod has which ports.
#[derive(Default)]
pub struct HostPorts(Mutex<BTreeMap<String, Vec<HostPort>>>);

impl HostPorts {
    /// Gives a pod the ports it wants. One that runs already has them in any case; any other only if none is taken.
    pub fn take(&self, uid: &str, pod: &Pod, runs: bool) -> bool {
        let wanted = wanted(pod);
        if wanted.is_empty() {
            return true;
        }
        let mut pods = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut others = pods.iter().filter(|(other, _)| *other != uid).flat_map(|(_, ports)| ports);
        if !runs && others.any(|taken| wanted.iter().any(|port| collide(port, taken))) {
            return false;
        }
        pods.insert(uid.to_owned(), wanted);
        true
    }

    /// A pod needs its ports no more.
    pub fn release(&self, uid: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(uid);
    }
}

fn wanted(pod: &Pod) -> Vec<HostPort> {
    let Some(spec) = &pod.spec else { return Vec::new() };
    let sidecars = spec.init_containers.iter().flatten().filter(|c| c.restart_policy.as_deref() == Some("Always"));
    let ports = spec.containers.iter().chain(sidecars).flat_map(|container| container.ports.iter().flatten());
    ports.filter_map(host_port).collect()
}

fn host_port(port: &ContainerPort) -> Option<HostPort> {
    let number = port.host_port.filter(|number| *number > 0)?;
    let address = port.host_ip.clone().filter(|address| address != "0.0.0.0" && address != "::").unwrap_or_default();
    Some((port.protocol.clone().unwrap_or_else(|| "TCP".to_owned()), number, address))
}

fn collide(a: &HostPort, b: &HostPort) -> bool {
    (&a.0, a.1) == (&b.0, b.1) && (a.2 == b.2 || a.2.is_empty() || b.2.is_empty())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(port: serde_json::Value) -> Pod {
        let spec = json!({"containers": [{"name": "main", "ports": [port]}]});
        serde_json::from_value(json!({ "spec": spec })).expect("a pod")
    }

    #[test]
    fn a_port_belongs_to_one_pod_at_a_time() {
        let ports = HostPorts::default();
        let web = pod(json!({"containerPort": 80, "hostPort": 80, "protocol": "TCP"}));
        assert!(ports.take("a", &web, false) && ports.take("a", &web, false));
        assert!(!ports.take("b", &web, false));
        assert!(!ports.take("b", &pod(json!({"containerPort": 8080, "hostPort": 80, "hostIP": "127.0.0.1"})), false));
        assert!(ports.take("c", &pod(json!({"containerPort": 80, "hostPort": 80, "protocol": "UDP"})), false));
        assert!(ports.take("d", &pod(json!({"containerPort": 80})), false));
        ports.release("a");
        assert!(ports.take("b", &web, false));
        assert!(ports.take("adopted", &web, true), "what runs, runs");
    }
}

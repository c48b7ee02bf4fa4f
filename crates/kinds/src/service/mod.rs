//! Services: defaults, what may change, validation, and the allocation of addresses and ports.
//!
//! A write goes through these steps, in this order: [`fill_defaults`], [`prepare`], [`allocate::allocate`] (by the
//! API server, which knows what is taken), then validation.

pub mod addresses;
pub mod allocate;
pub mod validate;

use serde_json::{Value, json};

use crate::value::{at, each, fill, fill_zero, has, int, is_empty, list, same, text, within};

/// `clusterIP` of a Service without an address of its own.
pub const HEADLESS: &str = "None";

/// Whether a Service of this type has a cluster address.
pub fn needs_cluster_ip(service: &Value) -> bool {
    matches!(text(service, &["spec", "type"]), "ClusterIP" | "NodePort" | "LoadBalancer")
}

/// Whether the ports of this Service are also ports of every node.
pub fn needs_node_ports(service: &Value) -> bool {
    match text(service, &["spec", "type"]) {
        "NodePort" => true,
        "LoadBalancer" => at(service, &["spec", "allocateLoadBalancerNodePorts"]).as_bool() != Some(false),
        _ => false,
    }
}

/// Whether this Service has a port that tells load balancers whether the node has endpoints.
pub fn needs_health_check_port(service: &Value) -> bool {
    text(service, &["spec", "type"]) == "LoadBalancer" && text(service, &["spec", "externalTrafficPolicy"]) == "Local"
}

/// Whether this Service has no address of its own: its names lead to its pods.
pub fn is_headless(service: &Value) -> bool {
    at(service, &["spec", "clusterIPs"]).get(0).and_then(Value::as_str) == Some(HEADLESS)
        || text(service, &["spec", "clusterIP"]) == HEADLESS
}

/// Whether traffic from outside the cluster can reach this Service.
pub fn externally_accessible(service: &Value) -> bool {
    match text(service, &["spec", "type"]) {
        "LoadBalancer" | "NodePort" => true,
        "ClusterIP" => !list(service, &["spec", "externalIPs"]).is_empty(),
        _ => false,
    }
}

/// Fills in a Service.
pub fn fill_defaults(service: &mut Value) {
    crate::value::ensure_object(service, &["spec"]);
    within(service, &["spec"], |spec| {
        fill_zero(spec, "sessionAffinity", "None");
        fill_zero(spec, "type", "ClusterIP");
        default_affinity(spec);
        each(spec, &["ports"], |port| {
            fill_zero(port, "protocol", "TCP");
            if let Some(number) = int(port, &["port"]) {
                fill_zero(port, "targetPort", number);
            }
        });
    });
    let external = externally_accessible(service);
    within(service, &["spec"], |spec| {
        if external {
            fill_zero(spec, "externalTrafficPolicy", "Cluster");
        }
        if matches!(text(spec, &["type"]), "NodePort" | "LoadBalancer" | "ClusterIP") {
            fill(spec, "internalTrafficPolicy", "Cluster");
        }
        if text(spec, &["type"]) == "LoadBalancer" {
            fill(spec, "allocateLoadBalancerNodePorts", true);
        }
    });
    if text(service, &["spec", "type"]) == "LoadBalancer" {
        each(service, &["status", "loadBalancer", "ingress"], |ingress| {
            if !text(ingress, &["ip"]).is_empty() {
                fill(ingress, "ipMode", "VIP");
            }
        });
    }
}

fn default_affinity(spec: &mut Value) {
    let Some(affinity) = spec["sessionAffinity"].as_str().map(str::to_owned) else { return };
    let timeout = int(spec, &["sessionAffinityConfig", "clientIP", "timeoutSeconds"]);
    let Some(spec) = spec.as_object_mut() else { return };
    if affinity == "None" {
        spec.remove("sessionAffinityConfig");
    } else if affinity == "ClientIP" && timeout.is_none() {
        spec.insert("sessionAffinityConfig".to_owned(), json!({"clientIP": {"timeoutSeconds": 10800}}));
    }
}

/// A new Service that names its one address in the older field means it for the newer one too.
pub fn prepare_create(service: &mut Value) {
    let address = text(service, &["spec", "clusterIP"]).to_owned();
    if !address.is_empty() && list(service, &["spec", "clusterIPs"]).is_empty() {
        set(service, "clusterIPs", json!([address]));
    }
    if let Some(service) = service.as_object_mut() {
        service.insert("status".to_owned(), json!({"loadBalancer": {}}));
    }
}

/// Keeps what was allocated where the writer left it out, and drops what the new type has no use for.
pub fn prepare(new: &mut Value, old: &Value) {
    keep_allocated(new, old);
    align_addresses(new, old);
    drop_unneeded(new, old);
}

fn set(service: &mut Value, key: &str, value: Value) {
    if let Some(spec) = crate::value::ensure_object(service, &["spec"]) {
        if value.is_null() {
            spec.remove(key);
        } else {
            spec.insert(key.to_owned(), value);
        }
    }
}

fn keep_allocated(new: &mut Value, old: &Value) {
    if needs_cluster_ip(old) && needs_cluster_ip(new) {
        for key in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"] {
            if is_empty(at(new, &["spec", key])) {
                set(new, key, at(old, &["spec", key]).clone());
            }
        }
    }
    if needs_node_ports(old) && needs_node_ports(new) {
        keep_node_ports(new, old);
    }
    let both_checked = needs_health_check_port(old) && needs_health_check_port(new);
    if both_checked && int(new, &["spec", "healthCheckNodePort"]).unwrap_or_default() == 0 {
        set(new, "healthCheckNodePort", at(old, &["spec", "healthCheckNodePort"]).clone());
    }
}

/// Ports of the same name keep their node port, unless another port of the Service took it.
fn keep_node_ports(new: &mut Value, old: &Value) {
    let node_port = |port: &Value| int(port, &["nodePort"]).unwrap_or_default();
    let taken: Vec<i64> = list(new, &["spec", "ports"]).iter().map(node_port).filter(|port| *port != 0).collect();
    let before: Vec<(String, i64)> =
        list(old, &["spec", "ports"]).iter().map(|port| (text(port, &["name"]).to_owned(), node_port(port))).collect();
    each(new, &["spec", "ports"], |port| {
        let name = text(port, &["name"]).to_owned();
        let kept = before.iter().find(|(known, _)| *known == name).map_or(0, |(_, node_port)| *node_port);
        if node_port(port) == 0 && kept != 0 && !taken.contains(&kept) {
            fill_zero(port, "nodePort", kept);
        }
    });
}

/// The older field holds one address, the newer one a list that begins with it: a writer may know only one of them.
fn align_addresses(new: &mut Value, old: &Value) {
    let one = |service: &Value| text(service, &["spec", "clusterIP"]).to_owned();
    let same_list = same(at(new, &["spec", "clusterIPs"]), at(old, &["spec", "clusterIPs"]));
    if one(old) == one(new) || !same_list {
        return;
    }
    let changed = one(new);
    set(new, "clusterIPs", if changed.is_empty() { Value::Null } else { json!([changed]) });
}

/// Whether a field means anything for a Service.
type Applies = fn(&Value) -> bool;

fn drop_unneeded(new: &mut Value, old: &Value) {
    let unchanged = |new: &Value, key: &str| same(at(new, &["spec", key]), at(old, &["spec", key]));
    if needs_cluster_ip(old) && !needs_cluster_ip(new) {
        if unchanged(new, "clusterIPs") {
            set(new, "clusterIP", Value::Null);
            set(new, "clusterIPs", Value::Null);
        }
        for key in ["ipFamilies", "ipFamilyPolicy"] {
            if unchanged(new, key) {
                set(new, key, Value::Null);
            }
        }
    }
    if needs_node_ports(old) && !needs_node_ports(new) && same_node_ports(new, old) {
        each(new, &["spec", "ports"], |port| {
            if let Some(port) = port.as_object_mut() {
                port.remove("nodePort");
            }
        });
    }
    let balanced = |service: &Value| text(service, &["spec", "type"]) == "LoadBalancer";
    let conditional: [(&str, Applies); 4] = [
        ("healthCheckNodePort", needs_health_check_port),
        ("allocateLoadBalancerNodePorts", |service| text(service, &["spec", "type"]) == "LoadBalancer"),
        ("loadBalancerClass", |service| text(service, &["spec", "type"]) == "LoadBalancer"),
        ("externalTrafficPolicy", externally_accessible),
    ];
    for (key, applies) in conditional {
        if applies(old) && !applies(new) && unchanged(new, key) {
            set(new, key, Value::Null);
        }
    }
    if !balanced(new)
        && has(new, &["status", "loadBalancer"])
        && let Some(status) = crate::value::object_at(new, &["status"])
    {
        status.insert("loadBalancer".to_owned(), json!({}));
    }
}

fn same_node_ports(new: &Value, old: &Value) -> bool {
    let sorted = |service: &Value| {
        let mut ports: Vec<i64> =
            list(service, &["spec", "ports"]).iter().filter_map(|port| int(port, &["nodePort"])).collect();
        ports.retain(|port| *port != 0);
        ports.sort_unstable();
        ports
    };
    sorted(new) == sorted(old)
}

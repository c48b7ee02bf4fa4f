//! Services, with the addresses behind them.

use anyhow::Result;
use serde_json::Value;

use super::generic::head;
use super::pods::list;
use super::writer::{Writer, plain};
use crate::client::{Cluster, query, text};

/// The endpoint slices of a service.
pub(super) async fn endpoints(cluster: &Cluster, service: &Value) -> Result<Vec<Value>> {
    let query =
        query(&[("labelSelector", Some(format!("kubernetes.io/service-name={}", text(service, "/metadata/name"))))]);
    let namespace = text(service, "/metadata/namespace");
    let slices =
        cluster.get_opt(&format!("/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices{query}")).await?;
    Ok(slices.and_then(|slices| slices["items"].as_array().cloned()).unwrap_or_default())
}

/// A service.
pub(super) fn describe(out: &mut Writer, service: &Value, slices: &[Value]) {
    head(out, service);
    out.map("Selector", service.pointer("/spec/selector"), "=");
    out.field("Type", text(service, "/spec/type"));
    let texts = |at: &str| list(service, at).iter().map(plain).collect::<Vec<_>>().join(", ");
    out.field("IP Families", texts("/spec/ipFamilies"));
    out.field("IPs", texts("/spec/clusterIPs"));
    out.some("External Name", text(service, "/spec/externalName"));
    out.some("External IPs", texts("/spec/externalIPs"));
    let ingress: Vec<&str> = list(service, "/status/loadBalancer/ingress")
        .iter()
        .map(|address| if text(address, "/ip").is_empty() { text(address, "/hostname") } else { text(address, "/ip") })
        .collect();
    out.some("LoadBalancer Ingress", ingress.join(", "));
    for port in list(service, "/spec/ports") {
        let name = if text(port, "/name").is_empty() { "<unset>" } else { text(port, "/name") };
        let protocol = text(port, "/protocol");
        out.field("Port", format!("{name} {}/{protocol}", plain(&port["port"])));
        out.field("TargetPort", format!("{}/{protocol}", plain(&port["targetPort"])));
        out.some(
            "NodePort",
            port.get("nodePort").map(|number| format!("{}/{protocol}", plain(number))).unwrap_or_default(),
        );
        out.field("Endpoints", addresses(slices, text(port, "/name")).join(", "));
    }
    out.field("Session Affinity", text(service, "/spec/sessionAffinity"));
    out.some("External Traffic Policy", text(service, "/spec/externalTrafficPolicy"));
    out.some("Internal Traffic Policy", text(service, "/spec/internalTrafficPolicy"));
}

/// `address:port` of every endpoint that is ready, for the port of this name.
fn addresses(slices: &[Value], port_name: &str) -> Vec<String> {
    let mut found = Vec::new();
    for slice in slices {
        let Some(port) = list(slice, "/ports").iter().find(|port| text(port, "/name") == port_name) else { continue };
        for endpoint in
            list(slice, "/endpoints").iter().filter(|e| e.pointer("/conditions/ready") != Some(&false.into()))
        {
            found.extend(
                list(endpoint, "/addresses")
                    .iter()
                    .map(|address| format!("{}:{}", plain(address), plain(&port["port"]))),
            );
        }
    }
    found.sort();
    found
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_ready_endpoints_of_the_port_count() {
        let slices = [json!({"ports": [{"name": "http", "port": 8000}], "endpoints": [
            {"addresses": ["10.0.0.2"], "conditions": {"ready": true}}, {"addresses": ["10.0.0.3"], "conditions": {"ready": false}}]})];
        assert_eq!(addresses(&slices, "http"), ["10.0.0.2:8000"]);
        assert!(addresses(&slices, "other").is_empty());
    }
}

//! The objects that every cluster has: the services `kubernetes` and `kube-dns`, and where they lead.
//!
//! Written at every start, so that a changed address or port is corrected. Namespaces, roles and priority classes are
//! the API server's own.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::{Endpoints, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Api, Patch, PatchParams};
use mycelium_net::NetConfig;
use serde_json::{Value, json};

/// Field manager of the objects below.
const MANAGER: &str = "mycelium-bootstrap";

/// Applies the services; `api` is where pods reach the API server.
pub async fn apply(client: &kube::Client, network: &NetConfig, api: SocketAddr) -> Result<()> {
    let services: Api<Service> = Api::namespaced(client.clone(), "default");
    put(&services, "kubernetes", &kubernetes_service(network.kubernetes_ip(), api.port())).await?;
    let slices: Api<EndpointSlice> = Api::namespaced(client.clone(), "default");
    put(&slices, "kubernetes", &kubernetes_slice(api)).await?;
    let endpoints: Api<Endpoints> = Api::namespaced(client.clone(), "default");
    put(&endpoints, "kubernetes", &kubernetes_endpoints(api)).await?;
    let services: Api<Service> = Api::namespaced(client.clone(), "kube-system");
    put(&services, "kube-dns", &dns_service(network.dns())).await
}

async fn put<K>(api: &Api<K>, name: &str, object: &Value) -> Result<()>
where
    K: Clone + serde::de::DeserializeOwned + std::fmt::Debug,
{
    let parameters = PatchParams::apply(MANAGER).force();
    api.patch(name, &parameters, &Patch::Apply(object)).await.with_context(|| format!("writing {name}"))?;
    Ok(())
}

fn kubernetes_service(address: Ipv4Addr, port: u16) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "kubernetes", "labels": {"component": "apiserver", "provider": "kubernetes"}},
        "spec": {
            "type": "ClusterIP",
            "clusterIP": address.to_string(),
            "ports": [{"name": "https", "port": 443, "protocol": "TCP", "targetPort": port}],
        },
    })
}

/// The same in the older form, which some clients still read.
fn kubernetes_endpoints(api: SocketAddr) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Endpoints",
        "metadata": {"name": "kubernetes", "labels": {"endpointslice.kubernetes.io/skip-mirror": "true"}},
        "subsets": [{
            "addresses": [{"ip": api.ip().to_string()}],
            "ports": [{"name": "https", "port": api.port(), "protocol": "TCP"}],
        }],
    })
}

fn kubernetes_slice(api: SocketAddr) -> Value {
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": "kubernetes", "labels": {"kubernetes.io/service-name": "kubernetes"}},
        "addressType": "IPv4",
        "endpoints": [{"addresses": [api.ip().to_string()], "conditions": {"ready": true}}],
        "ports": [{"name": "https", "port": api.port(), "protocol": "TCP"}],
    })
}

/// Without a selector: the network part answers on this address itself.
fn dns_service(address: Ipv4Addr) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": "kube-dns",
            "labels": {"k8s-app": "kube-dns", "kubernetes.io/cluster-service": "true", "kubernetes.io/name": "CoreDNS"},
        },
        "spec": {
            "type": "ClusterIP",
            "clusterIP": address.to_string(),
            "ports": [
                {"name": "dns", "port": 53, "protocol": "UDP", "targetPort": 53},
                {"name": "dns-tcp", "port": 53, "protocol": "TCP", "targetPort": 53},
            ],
        },
    })
}

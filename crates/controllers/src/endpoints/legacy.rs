//! The Endpoints object of a Service: the older form of EndpointSlices, for clients that still read it.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{EndpointAddress, EndpointPort, EndpointSubset, Endpoints, Pod, Service};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::pods::{
    Port, address, counts, families, hostname, is_headless, ports, publishes_unready, service_ports, target,
};
use crate::objects::{is_ready, labels, node_name};

const HEADLESS: &str = "service.kubernetes.io/headless";
const MANAGED_BY: &str = "endpoints.kubernetes.io/managed-by";
const OVER_CAPACITY: &str = "endpoints.kubernetes.io/over-capacity";
/// More addresses than this are cut off; EndpointSlices have them all.
const MOST: usize = 1000;

/// The Endpoints a Service should have.
pub fn endpoints(service: &Service, pods: &[Arc<Pod>]) -> Endpoints {
    let mut groups: BTreeMap<Vec<Port>, EndpointSubset> = BTreeMap::new();
    let unready_too = publishes_unready(service);
    let mut left = MOST;
    let mut cut = false;
    let Some(family) = families(service).into_iter().next() else { return Endpoints::default() };
    let mut serving: Vec<_> = pods.iter().filter(|pod| counts(pod, unready_too)).collect();
    // Ready ones first, so that those are the last to be cut off.
    serving.sort_by_key(|pod| !is_ready(pod));
    for pod in serving {
        let Some(ip) = address(pod, family) else { continue };
        let ports = ports(service, pod);
        if ports.is_empty() && (service_ports(service).next().is_some() || !is_headless(service)) {
            continue;
        }
        if left == 0 {
            cut = true;
            break;
        }
        left -= 1;
        let address = EndpointAddress {
            ip: ip.to_owned(),
            hostname: hostname(service, pod),
            node_name: node_name(pod).map(str::to_owned),
            target_ref: Some(target(pod)),
        };
        let subset = groups.entry(ports).or_default();
        let list = if unready_too || is_ready(pod) { &mut subset.addresses } else { &mut subset.not_ready_addresses };
        list.get_or_insert_default().push(address);
    }
    assemble(service, groups, cut)
}

fn assemble(service: &Service, groups: BTreeMap<Vec<Port>, EndpointSubset>, cut: bool) -> Endpoints {
    let mut all = labels(&service.metadata).clone();
    all.insert(MANAGED_BY.into(), "endpoint-controller".into());
    if is_headless(service) {
        all.insert(HEADLESS.into(), String::new());
    }
    let port = |port: Port| EndpointPort {
        name: (!port.name.is_empty()).then_some(port.name),
        port: port.number,
        protocol: Some(port.protocol),
        app_protocol: port.app_protocol,
    };
    let subsets: Vec<EndpointSubset> = groups
        .into_iter()
        .map(|(ports, mut subset)| {
            for list in [&mut subset.addresses, &mut subset.not_ready_addresses].into_iter().flatten() {
                list.sort_by(|a, b| a.ip.cmp(&b.ip));
            }
            subset.ports = (!ports.is_empty()).then(|| ports.into_iter().map(port).collect());
            subset
        })
        .collect();
    Endpoints {
        metadata: ObjectMeta {
            name: service.metadata.name.clone(),
            namespace: service.metadata.namespace.clone(),
            labels: Some(all),
            annotations: cut.then(|| BTreeMap::from([(OVER_CAPACITY.to_owned(), "truncated".to_owned())])),
            ..ObjectMeta::default()
        },
        subsets: (!subsets.is_empty()).then_some(subsets),
    }
}

/// Whether this controller made the object.
pub fn is_managed(endpoints: &Endpoints) -> bool {
    labels(&endpoints.metadata).contains_key(MANAGED_BY)
}

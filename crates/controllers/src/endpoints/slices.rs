//! The EndpointSlices of a Service, as a pure function of it, its pods and the slices there are.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Pod, Service};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::pods::{Family, Port, address, counts, families, hostname, is_headless, ports, publishes_unready, target};
use crate::objects::{controller_reference, is_ready, labels, name, node_name};

/// The label that names a slice's Service.
pub const SERVICE_NAME: &str = "kubernetes.io/service-name";
const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
const MANAGER: &str = "endpointslice-controller.k8s.io";
const HEADLESS: &str = "service.kubernetes.io/headless";
const ZONE: &str = "topology.kubernetes.io/zone";
/// Endpoints per slice.
const FULL: usize = 100;

/// What to do about a Service's slices.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// Slices to create.
    pub create: Vec<EndpointSlice>,
    /// Slices to change: as they are and as they should be.
    pub update: Vec<(Arc<EndpointSlice>, EndpointSlice)>,
    /// Slices to delete.
    pub delete: Vec<Arc<EndpointSlice>>,
}

/// Endpoints that can share a slice.
type Group = (Family, Vec<Port>);

/// Whether this controller made the slice.
pub fn is_managed(slice: &EndpointSlice) -> bool {
    labels(&slice.metadata).get(MANAGED_BY).is_some_and(|manager| manager == MANAGER)
}

/// Plans the slices. `pods` are those the Service selects; `node` looks up nodes for their zone.
pub fn plan(
    service: &Service,
    pods: &[Arc<Pod>],
    slices: &[Arc<EndpointSlice>],
    node: impl Fn(&str) -> Option<Arc<Node>>,
) -> Plan {
    let mut wanted = wanted(service, pods, node);
    let mut plan = Plan::default();
    let mut spare = Vec::new();
    for slice in slices.iter().filter(|slice| is_managed(slice) && slice.metadata.deletion_timestamp.is_none()) {
        let group = group_of(slice);
        let pending = group.as_ref().and_then(|group| wanted.get_mut(group));
        let kept = pending.map(|pending| keep(slice, pending)).unwrap_or_default();
        spare.push((slice.clone(), group, kept));
    }
    for (slice, group, mut endpoints) in spare {
        if let Some(pending) = group.as_ref().and_then(|group| wanted.get_mut(group)) {
            fill(&mut endpoints, pending);
        }
        place(service, slice, endpoints, &mut plan);
    }
    for ((family, ports), pending) in &mut wanted {
        while !pending.is_empty() {
            let mut endpoints = Vec::new();
            fill(&mut endpoints, pending);
            plan.create.push(make(service, *family, ports, endpoints));
        }
    }
    leave_one(service, slices, &mut plan);
    plan
}

/// The endpoints there should be, by group and then by pod.
fn wanted(
    service: &Service,
    pods: &[Arc<Pod>],
    node: impl Fn(&str) -> Option<Arc<Node>>,
) -> BTreeMap<Group, BTreeMap<String, Endpoint>> {
    let mut wanted: BTreeMap<Group, BTreeMap<String, Endpoint>> = BTreeMap::new();
    for family in families(service) {
        for pod in pods.iter().filter(|pod| counts(pod, true)) {
            let Some(ip) = address(pod, family) else { continue };
            let endpoint = endpoint(service, pod, ip, &node);
            wanted.entry((family, ports(service, pod))).or_default().insert(identity(&endpoint), endpoint);
        }
    }
    wanted
}

fn identity(endpoint: &Endpoint) -> String {
    let uid = endpoint.target_ref.as_ref().and_then(|target| target.uid.as_deref()).unwrap_or_default();
    format!("{uid} {}", endpoint.addresses.join(" "))
}

fn endpoint(service: &Service, pod: &Pod, ip: &str, node: &impl Fn(&str) -> Option<Arc<Node>>) -> Endpoint {
    let (serving, terminating) = (is_ready(pod), pod.metadata.deletion_timestamp.is_some());
    let zone = node_name(pod).and_then(node).and_then(|node| labels(&node.metadata).get(ZONE).cloned());
    Endpoint {
        addresses: vec![ip.to_owned()],
        conditions: Some(EndpointConditions {
            ready: Some(publishes_unready(service) || (serving && !terminating)),
            serving: Some(serving),
            terminating: Some(terminating),
        }),
        hostname: hostname(service, pod),
        node_name: node_name(pod).map(str::to_owned),
        target_ref: Some(target(pod)),
        zone,
        ..Endpoint::default()
    }
}

fn group_of(slice: &EndpointSlice) -> Option<Group> {
    let family = match slice.address_type.as_str() {
        "IPv4" => Family::V4,
        "IPv6" => Family::V6,
        _ => return None,
    };
    let mut ports: Vec<Port> = (slice.ports.iter().flatten())
        .map(|port| Port {
            name: port.name.clone().unwrap_or_default(),
            protocol: port.protocol.clone().unwrap_or_else(|| "TCP".into()),
            number: port.port.unwrap_or(0),
            app_protocol: port.app_protocol.clone(),
        })
        .collect();
    ports.sort();
    Some((family, ports))
}

/// The slice's endpoints that are still wanted, as they should be now. They are taken out of `pending`.
fn keep(slice: &EndpointSlice, pending: &mut BTreeMap<String, Endpoint>) -> Vec<Endpoint> {
    slice.endpoints.iter().filter_map(|endpoint| pending.remove(&identity(endpoint))).collect()
}

fn fill(endpoints: &mut Vec<Endpoint>, pending: &mut BTreeMap<String, Endpoint>) {
    while endpoints.len() < FULL {
        let Some((_, endpoint)) = pending.pop_first() else { return };
        endpoints.push(endpoint);
    }
}

fn place(service: &Service, slice: Arc<EndpointSlice>, endpoints: Vec<Endpoint>, plan: &mut Plan) {
    if endpoints.is_empty() {
        plan.delete.push(slice);
        return;
    }
    let mut updated = slice.as_ref().clone();
    updated.endpoints = endpoints;
    updated.metadata.labels = Some(slice_labels(service));
    if updated != *slice {
        plan.update.push((slice, updated));
    }
}

fn slice_labels(service: &Service) -> BTreeMap<String, String> {
    let mut all = labels(&service.metadata).clone();
    all.remove(HEADLESS);
    all.insert(SERVICE_NAME.into(), name(&service.metadata).to_owned());
    all.insert(MANAGED_BY.into(), MANAGER.into());
    if is_headless(service) {
        all.insert(HEADLESS.into(), String::new());
    }
    all
}

fn make(service: &Service, family: Family, ports: &[Port], endpoints: Vec<Endpoint>) -> EndpointSlice {
    let port = |port: &Port| EndpointPort {
        name: Some(port.name.clone()),
        protocol: Some(port.protocol.clone()),
        port: Some(port.number),
        app_protocol: port.app_protocol.clone(),
    };
    EndpointSlice {
        metadata: ObjectMeta {
            generate_name: Some(format!("{}-", name(&service.metadata))),
            namespace: service.metadata.namespace.clone(),
            labels: Some(slice_labels(service)),
            owner_references: Some(vec![controller_reference(service)]),
            ..ObjectMeta::default()
        },
        address_type: family.address_type().into(),
        endpoints,
        ports: (!ports.is_empty()).then(|| ports.iter().map(port).collect()),
    }
}

/// A Service without endpoints still has one slice per family, so that readers can tell "none" from "not known yet".
fn leave_one(service: &Service, slices: &[Arc<EndpointSlice>], plan: &mut Plan) {
    for family in families(service) {
        let type_ = family.address_type();
        let lives = |slice: &&Arc<EndpointSlice>| {
            is_managed(slice)
                && slice.address_type == type_
                && slice.metadata.deletion_timestamp.is_none()
                && !plan.delete.iter().any(|doomed| Arc::ptr_eq(doomed, slice))
        };
        if slices.iter().any(|slice| lives(&slice)) || plan.create.iter().any(|slice| slice.address_type == type_) {
            continue;
        }
        match plan.delete.iter().position(|slice| slice.address_type == type_) {
            Some(index) => {
                let slice = plan.delete.remove(index);
                let mut emptied = slice.as_ref().clone();
                emptied.endpoints = Vec::new();
                emptied.metadata.labels = Some(slice_labels(service));
                if emptied != *slice {
                    plan.update.push((slice, emptied));
                }
            }
            None => plan.create.push(make(service, family, &[], Vec::new())),
        }
    }
}

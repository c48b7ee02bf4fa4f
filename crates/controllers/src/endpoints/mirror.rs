//! Endpoints made by hand, for a Service without selector, as EndpointSlices: whoever routes reads only those.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{EndpointAddress, EndpointPort as OldPort, Endpoints, Service};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::slices::{Plan, SERVICE_NAME};
use crate::cache::Key;
use crate::context::Context;
use crate::objects::{annotation, controller_reference, labels, name};
use crate::queue::Queue;
use crate::write::Error;

const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
const MANAGER: &str = "endpointslicemirroring-controller.k8s.io";
const SKIP: &str = "endpointslice.kubernetes.io/skip-mirror";
/// The mark of an Endpoints object that only serves as a lock.
const LOCK: &str = "control-plane.alpha.kubernetes.io/leader";
/// Addresses per subset that are mirrored.
const MOST: usize = 1000;
const WORKERS: usize = 4;

/// Whether the Endpoints of this Service are to be mirrored.
fn is_wanted(endpoints: &Endpoints, service: Option<&Service>) -> bool {
    let own = service.is_some_and(|service| service.spec.as_ref().is_some_and(|spec| spec.selector.is_none()));
    let skipped = labels(&endpoints.metadata).get(SKIP).is_some_and(|value| value == "true");
    own && !skipped
        && annotation(&endpoints.metadata, LOCK).is_none()
        && endpoints.metadata.deletion_timestamp.is_none()
}

/// Plans the mirror slices of an Endpoints object.
pub fn plan(endpoints: Option<&Endpoints>, service: Option<&Service>, slices: &[Arc<EndpointSlice>]) -> Plan {
    let managed = |slice: &&Arc<EndpointSlice>| {
        labels(&slice.metadata).get(MANAGED_BY).is_some_and(|manager| manager == MANAGER)
            && slice.metadata.deletion_timestamp.is_none()
    };
    let mut held: Vec<Arc<EndpointSlice>> = slices.iter().filter(managed).cloned().collect();
    let mut plan = Plan::default();
    let wanted = endpoints.filter(|endpoints| is_wanted(endpoints, service)).map(mirrored).unwrap_or_default();
    for slice in wanted {
        let alike = held.iter().position(|old| old.address_type == slice.address_type && old.ports == slice.ports);
        let Some(index) = alike else {
            plan.create.push(slice);
            continue;
        };
        let old = held.remove(index);
        let mut updated = old.as_ref().clone();
        updated.endpoints = slice.endpoints;
        updated.metadata.labels = slice.metadata.labels;
        if updated != *old {
            plan.update.push((old, updated));
        }
    }
    plan.delete = held;
    plan
}

fn mirrored(endpoints: &Endpoints) -> Vec<EndpointSlice> {
    let mut slices = Vec::new();
    for subset in endpoints.subsets.iter().flatten() {
        let mut families: BTreeMap<&str, Vec<Endpoint>> = BTreeMap::new();
        let ready = subset.addresses.iter().flatten().map(|address| (address, true));
        let unready = subset.not_ready_addresses.iter().flatten().map(|address| (address, false));
        for (address, ready) in ready.chain(unready).take(MOST) {
            let family = if address.ip.contains(':') { "IPv6" } else { "IPv4" };
            families.entry(family).or_default().push(endpoint(address, ready));
        }
        let ports: Vec<EndpointPort> = subset.ports.iter().flatten().map(port).collect();
        for (family, list) in families {
            slices.push(make(endpoints, family, ports.clone(), list));
        }
    }
    slices
}

fn port(port: &OldPort) -> EndpointPort {
    EndpointPort {
        name: Some(port.name.clone().unwrap_or_default()),
        port: Some(port.port),
        protocol: Some(port.protocol.clone().unwrap_or_else(|| "TCP".into())),
        app_protocol: port.app_protocol.clone(),
    }
}

fn endpoint(address: &EndpointAddress, ready: bool) -> Endpoint {
    Endpoint {
        addresses: vec![address.ip.clone()],
        conditions: Some(EndpointConditions { ready: Some(ready), ..EndpointConditions::default() }),
        hostname: address.hostname.clone(),
        node_name: address.node_name.clone(),
        target_ref: address.target_ref.clone(),
        ..Endpoint::default()
    }
}

fn make(of: &Endpoints, family: &str, ports: Vec<EndpointPort>, endpoints: Vec<Endpoint>) -> EndpointSlice {
    let mut all = labels(&of.metadata).clone();
    all.insert(SERVICE_NAME.into(), name(&of.metadata).to_owned());
    all.insert(MANAGED_BY.into(), MANAGER.into());
    EndpointSlice {
        metadata: ObjectMeta {
            generate_name: Some(format!("{}-", name(&of.metadata))),
            namespace: of.metadata.namespace.clone(),
            labels: Some(all),
            owner_references: Some(vec![controller_reference(of)]),
            ..ObjectMeta::default()
        },
        address_type: family.to_owned(),
        endpoints,
        ports: (!ports.is_empty()).then_some(ports),
    }
}

/// Subscribes to Endpoints, and returns the controller's work.
pub fn start(context: &Context) -> impl Future<Output = ()> + Send + use<> {
    let queue = Queue::<Key>::default();
    let endpoints = context.caches.endpoints.clone();
    let added = queue.clone();
    endpoints.subscribe(move |change| added.add(change.key()));
    let added = queue.clone();
    context.caches.services.subscribe(move |change| added.add(change.key()));
    let added = queue.clone();
    context.caches.endpoint_slices.subscribe(move |change| super::of_slice(change, &added));
    let context = context.clone();
    async move {
        context.caches.synced().await;
        let work = |key| reconcile(context.clone(), key);
        queue.work("endpointslicemirroring-controller", WORKERS, || endpoints.keys(), work).await;
    }
}

async fn reconcile(context: Context, key: Key) -> Result<Option<Duration>, Error> {
    let held = context.caches.endpoint_slices.by_index(&format!("service:{key}"));
    let endpoints = context.caches.endpoints.get(&key);
    let service = context.caches.services.get(&key);
    let plan = plan(endpoints.as_deref(), service.as_deref(), &held);
    super::carry_out(&context, &key, &plan).await?;
    Ok(None)
}

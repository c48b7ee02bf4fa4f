//! Cluster addresses and node ports of Services.
//!
//! Each is a key of its own, written only if it is absent and in the transaction that writes the Service: two
//! Services can never get the same one, whoever races. For addresses the key is the `IPAddress` object that Kubernetes
//! shows too. Deleting the Service deletes the keys in the same transaction.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use bytes::Bytes;
use mycelium_kinds::service::allocate::{self, Pool};
use mycelium_store::{Expect, Op};
use serde_json::{Value, json};

use crate::codec;
use crate::error::ApiError;
use crate::route::Context;
use crate::server::Inner;

const ADDRESSES: &str = "/registry/networking.k8s.io/ipaddresses/";
const PORTS: &str = "/registry/ranges/nodeports/";

/// Something a Service has to itself.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Claim {
    Address(Ipv4Addr),
    Port(u16),
}

impl Claim {
    fn key(&self) -> String {
        match self {
            Self::Address(address) => format!("{ADDRESSES}{address}"),
            Self::Port(port) => format!("{PORTS}{port}"),
        }
    }
}

/// What writing a Service allocates and releases. Empty for other kinds.
#[derive(Default)]
pub struct Allocation {
    planned: Option<Planned>,
    gains: BTreeSet<Claim>,
    releases: BTreeSet<Claim>,
}

struct Planned {
    server: Arc<Inner>,
    owner: Value,
    old: Option<Value>,
}

impl Allocation {
    /// For a new Service, or for a changed one: what it has and still wants, it keeps.
    pub fn plan(cx: &Context<'_>, object: &Value, old: Option<&Value>) -> Self {
        if !cx.resource.is_core("services") || cx.subresource().is_some() {
            return Self::default();
        }
        let name = &object["metadata"]["name"];
        let owner = json!({"group": "", "resource": "services", "namespace": cx.path.namespace, "name": name});
        let planned = Planned { server: cx.server.clone(), owner, old: old.cloned() };
        Self { planned: Some(planned), ..Self::default() }
    }

    /// Whether something has to be allocated.
    pub fn is_planned(&self) -> bool {
        self.planned.is_some()
    }

    /// Chooses what the Service leaves open, and writes it into the Service.
    pub fn assign(&mut self, object: &mut Value) -> Result<(), ApiError> {
        let Some(planned) = &self.planned else { return Ok(()) };
        let server = &planned.server;
        let had = planned.old.as_ref().map(claims).unwrap_or_default();
        let taken = |claim: Claim| !had.contains(&claim) && server.store.get(&claim.key()).is_some();
        let pool = Pool {
            cidr: server.service_cidr.into(),
            ports: server.node_ports.0..=server.node_ports.1,
            ip_taken: &|address| matches!(address, IpAddr::V4(address) if taken(Claim::Address(address))),
            port_taken: &|port, _| taken(Claim::Port(port)),
        };
        let outcome = allocate::allocate(object, planned.old.as_ref(), &pool, &mut || server.env.random());
        if let Err(errors) = outcome {
            let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
            return Err(ApiError::Invalid { group: String::new(), kind: "Service".into(), name, errors });
        }
        let has = claims(object);
        self.gains = has.difference(&had).cloned().collect();
        self.releases = had.difference(&has).cloned().collect();
        Ok(())
    }

    /// The writes that belong to the Service's transaction.
    pub fn ops(&self) -> Vec<Op> {
        let Some(planned) = &self.planned else { return Vec::new() };
        let put = |claim: &Claim| Op::Put { key: claim.key(), value: planned.record(claim), expect: Expect::Absent };
        let gains = self.gains.iter().map(put);
        gains.chain(self.releases.iter().map(delete)).collect()
    }

    /// Whether a conflict on a key is about one of these claims: then [`Allocation::assign`] on the Service as the
    /// client sent it chooses another, or says that this very one is taken.
    pub fn owns(&self, key: &str) -> bool {
        self.gains.iter().any(|claim| claim.key() == key)
    }
}

impl Planned {
    fn record(&self, claim: &Claim) -> Bytes {
        let Claim::Address(address) = claim else { return codec::encode(&json!({"metadata": self.owner})) };
        codec::encode(&json!({"apiVersion": "networking.k8s.io/v1", "kind": "IPAddress",
            "metadata": {"name": address.to_string(), "uid": self.server.env.uuid(),
                "creationTimestamp": self.server.env.now_rfc3339(),
                "labels": {"ipaddress.kubernetes.io/ip-family": "IPv4",
                    "ipaddress.kubernetes.io/managed-by": "ipallocator.k8s.io"}},
            "spec": {"parentRef": self.owner}}))
    }
}

fn delete(claim: &Claim) -> Op {
    Op::Delete { key: claim.key(), expect: Expect::Any }
}

/// What a Service holds.
fn claims(service: &Value) -> BTreeSet<Claim> {
    let spec = &service["spec"];
    let mut claims = BTreeSet::new();
    if spec["type"] != "ExternalName"
        && let Some(address) = spec["clusterIP"].as_str().and_then(|ip| ip.parse().ok())
    {
        claims.insert(Claim::Address(address));
    }
    let ports = spec["ports"].as_array().map(Vec::as_slice).unwrap_or_default();
    let numbers = ports.iter().map(|port| &port["nodePort"]).chain([&spec["healthCheckNodePort"]]);
    claims.extend(numbers.filter_map(|n| u16::try_from(n.as_u64()?).ok()).filter(|n| *n > 0).map(Claim::Port));
    claims
}

/// What deleting a Service gives back.
pub fn release(service: &Value) -> Vec<Op> {
    claims(service).iter().map(delete).collect()
}

//! One file per kind; [`ALL`] is the list of them.

mod config_map;
mod coordination;
mod deployment;
mod endpoint_slice;
mod endpoints;
mod event;
mod namespace;
mod node;
mod pod;
mod pod_disruption_budget;
mod priority_class;
mod replica_set;
mod replication_controller;
mod secret;
mod service;
mod service_account;
mod workload;

use crate::Kind;

/// Every kind with rules of its own.
pub static ALL: &[&Kind] = &[
    &namespace::NAMESPACE,
    &pod::POD,
    &pod::POD_TEMPLATE,
    &deployment::DEPLOYMENT,
    &replica_set::REPLICA_SET,
    &replication_controller::REPLICATION_CONTROLLER,
    &service::SERVICE,
    &config_map::CONFIG_MAP,
    &secret::SECRET,
    &service_account::SERVICE_ACCOUNT,
    &node::NODE,
    &endpoints::ENDPOINTS,
    &endpoint_slice::ENDPOINT_SLICE,
    &event::CORE_EVENT,
    &event::EVENT,
    &coordination::LEASE,
    &coordination::LEASE_CANDIDATE,
    &priority_class::PRIORITY_CLASS,
    &pod_disruption_budget::POD_DISRUPTION_BUDGET,
];

/// Defaults of the spec of a PersistentVolumeClaim, also inside of pods.
pub(crate) fn claim_spec_defaults(_spec: &mut serde_json::Value) {}

/// The priority of a class that comes with the system.
pub(crate) fn system_priority(name: &str) -> Option<i64> {
    priority_class::SYSTEM.iter().find(|(known, _)| *known == name).map(|(_, value)| *value)
}

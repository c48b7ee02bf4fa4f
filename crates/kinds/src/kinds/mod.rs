//! One file per kind; [`ALL`] is the list of them.

mod addresses;
mod autoscaling;
mod batch;
mod cluster;
mod config_map;
mod coordination;
mod daemon_set;
mod deployment;
mod endpoint_slice;
mod endpoints;
mod event;
mod ingress;
mod limits;
mod namespace;
mod network_policy;
mod node;
mod pod;
mod pod_disruption_budget;
mod priority_class;
mod rbac;
mod replica_set;
mod replication_controller;
mod secret;
mod service;
mod service_account;
mod stateful_set;
mod storage;
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
    &stateful_set::STATEFUL_SET,
    &stateful_set::CONTROLLER_REVISION,
    &daemon_set::DAEMON_SET,
    &batch::JOB,
    &batch::CRON_JOB,
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
    &autoscaling::HORIZONTAL_POD_AUTOSCALER,
    &autoscaling::SCALE,
    &ingress::INGRESS,
    &ingress::INGRESS_CLASS,
    &network_policy::NETWORK_POLICY,
    &addresses::SERVICE_CIDR,
    &addresses::IP_ADDRESS,
    &storage::PERSISTENT_VOLUME,
    &storage::PERSISTENT_VOLUME_CLAIM,
    &storage::STORAGE_CLASS,
    &storage::VOLUME_ATTACHMENT,
    &storage::CSI_NODE,
    &storage::CSI_DRIVER,
    &storage::CSI_STORAGE_CAPACITY,
    &storage::VOLUME_ATTRIBUTES_CLASS,
    &rbac::ROLE,
    &rbac::CLUSTER_ROLE,
    &rbac::ROLE_BINDING,
    &rbac::CLUSTER_ROLE_BINDING,
    &limits::LIMIT_RANGE,
    &limits::RESOURCE_QUOTA,
    &cluster::CUSTOM_RESOURCE_DEFINITION,
    &cluster::API_SERVICE,
    &cluster::CERTIFICATE_SIGNING_REQUEST,
    &cluster::RUNTIME_CLASS,
    &cluster::MUTATING_WEBHOOK_CONFIGURATION,
    &cluster::VALIDATING_WEBHOOK_CONFIGURATION,
    &cluster::VALIDATING_ADMISSION_POLICY,
    &cluster::VALIDATING_ADMISSION_POLICY_BINDING,
    &cluster::MUTATING_ADMISSION_POLICY,
    &cluster::MUTATING_ADMISSION_POLICY_BINDING,
    &cluster::FLOW_SCHEMA,
    &cluster::PRIORITY_LEVEL_CONFIGURATION,
    &cluster::COMPONENT_STATUS,
    &cluster::DEVICE_CLASS,
    &cluster::RESOURCE_CLAIM,
    &cluster::RESOURCE_CLAIM_TEMPLATE,
    &cluster::RESOURCE_SLICE,
];

pub(crate) use storage::{check_claim_spec, claim_spec_defaults};

/// The priority of a class that comes with the system.
pub(crate) fn system_priority(name: &str) -> Option<i64> {
    priority_class::SYSTEM.iter().find(|(known, _)| *known == name).map(|(_, value)| *value)
}

//! The two kinds that keep a number of equal pods.

use std::borrow::Cow;

use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetCondition, ReplicaSetSpec, ReplicaSetStatus};
use k8s_openapi::api::core::v1::{ReplicationController, ReplicationControllerCondition, ReplicationControllerStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use serde::Serialize;

use crate::cache::{Cache, Object};
use crate::context::Caches;
use crate::objects::controller_of;

/// A kind that keeps a number of equal pods.
pub trait Replicated: Object + Serialize {
    /// Who tells, in events.
    const COMPONENT: &'static str;

    /// Where its objects are.
    fn cache(caches: &Caches) -> &Cache<Self>;

    /// The object as a ReplicaSet.
    fn as_set(&self) -> Cow<'_, ReplicaSet>;

    /// The object with another status.
    fn with_status(&self, status: ReplicaSetStatus) -> Self;

    /// Whether two objects have the same status.
    fn same_status(&self, other: &Self) -> bool;

    /// The uids of all that serve the same purpose, this one among them.
    fn siblings(&self, _caches: &Caches) -> Vec<String> {
        self.meta().uid.clone().into_iter().collect()
    }
}

impl Replicated for ReplicaSet {
    const COMPONENT: &'static str = "replicaset-controller";

    fn cache(caches: &Caches) -> &Cache<Self> {
        &caches.replica_sets
    }

    fn as_set(&self) -> Cow<'_, ReplicaSet> {
        Cow::Borrowed(self)
    }

    fn with_status(&self, status: ReplicaSetStatus) -> Self {
        Self { status: Some(status), ..self.clone() }
    }

    fn same_status(&self, other: &Self) -> bool {
        self.status == other.status
    }

    fn siblings(&self, caches: &Caches) -> Vec<String> {
        let manager = controller_of(&self.metadata).map(|owner| owner.uid.clone());
        let all = caches.replica_sets.namespace(self.metadata.namespace.as_deref().unwrap_or_default());
        let same = |other: &Self| {
            other.metadata.uid == self.metadata.uid
                || manager.is_some() && controller_of(&other.metadata).map(|owner| &owner.uid) == manager.as_ref()
        };
        all.iter().filter(|other| same(other)).filter_map(|other| other.metadata.uid.clone()).collect()
    }
}

impl Replicated for ReplicationController {
    const COMPONENT: &'static str = "replication-controller";

    fn cache(caches: &Caches) -> &Cache<Self> {
        &caches.replication_controllers
    }

    fn as_set(&self) -> Cow<'_, ReplicaSet> {
        let spec = self.spec.clone().unwrap_or_default();
        let selector = LabelSelector { match_labels: spec.selector, ..LabelSelector::default() };
        let conditions = self.status.as_ref().and_then(|status| status.conditions.clone());
        let conditions = conditions.map(|all| all.into_iter().map(to_set_condition).collect());
        Cow::Owned(ReplicaSet {
            metadata: self.metadata.clone(),
            spec: Some(ReplicaSetSpec {
                replicas: spec.replicas,
                min_ready_seconds: spec.min_ready_seconds,
                selector,
                template: spec.template,
            }),
            status: Some(ReplicaSetStatus { conditions, ..ReplicaSetStatus::default() }),
        })
    }

    fn with_status(&self, status: ReplicaSetStatus) -> Self {
        let status = ReplicationControllerStatus {
            replicas: status.replicas,
            fully_labeled_replicas: status.fully_labeled_replicas,
            ready_replicas: status.ready_replicas,
            available_replicas: status.available_replicas,
            observed_generation: status.observed_generation,
            conditions: status.conditions.map(|all| all.into_iter().map(from_set_condition).collect()),
        };
        Self { status: Some(status), ..self.clone() }
    }

    fn same_status(&self, other: &Self) -> bool {
        self.status == other.status
    }
}

fn to_set_condition(held: ReplicationControllerCondition) -> ReplicaSetCondition {
    ReplicaSetCondition {
        type_: held.type_,
        status: held.status,
        reason: held.reason,
        message: held.message,
        last_transition_time: held.last_transition_time,
    }
}

fn from_set_condition(held: ReplicaSetCondition) -> ReplicationControllerCondition {
    ReplicationControllerCondition {
        type_: held.type_,
        status: held.status,
        reason: held.reason,
        message: held.message,
        last_transition_time: held.last_transition_time,
    }
}

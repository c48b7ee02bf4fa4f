//! What every controller gets: the caches, a writer, the clock and the event recorder.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet, Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::batch::v1::{CronJob, Job};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{
    ConfigMap, Endpoints, Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod, ReplicationController,
    Service, ServiceAccount,
};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::storage::v1::StorageClass;
use kube::{Client, Resource};
use mycelium_api::env::Env;
use tokio::task::JoinSet;

use crate::cache::{Cache, Object};
use crate::events::{Events, Note, Type};
use crate::labels::Matcher;
use crate::objects::{controller_of, labels, node_name, reference};
use crate::write::Writer;

/// The ConfigMap that every namespace gets, with the certificate of the cluster's authority.
pub const ROOT_CA: &str = "kube-root-ca.crt";

/// One watch per kind.
#[derive(Clone)]
pub struct Caches {
    /// Pods, also by `owner:<uid>`, `orphan:<namespace>`, `node:<name>`, `claim:<namespace>/<name>` and
    /// `label:<namespace>/<key>=<value>`.
    pub pods: Cache<Pod>,
    /// Nodes.
    pub nodes: Cache<Node>,
    /// ReplicaSets.
    pub replica_sets: Cache<ReplicaSet>,
    /// Deployments.
    pub deployments: Cache<Deployment>,
    /// Services.
    pub services: Cache<Service>,
    /// EndpointSlices, also by `service:<namespace>/<name>`.
    pub endpoint_slices: Cache<EndpointSlice>,
    /// Endpoints.
    pub endpoints: Cache<Endpoints>,
    /// Namespaces.
    pub namespaces: Cache<Namespace>,
    /// Service accounts.
    pub service_accounts: Cache<ServiceAccount>,
    /// Only the ConfigMaps with the root certificate.
    pub root_certificates: Cache<ConfigMap>,
    /// Only the leases of nodes.
    pub leases: Cache<Lease>,
    /// StatefulSets.
    pub stateful_sets: Cache<StatefulSet>,
    /// DaemonSets.
    pub daemon_sets: Cache<DaemonSet>,
    /// ControllerRevisions, also by `owner:<uid>` and `orphan:<namespace>`.
    pub revisions: Cache<ControllerRevision>,
    /// Jobs, also by `owner:<uid>` and `orphan:<namespace>`.
    pub jobs: Cache<Job>,
    /// CronJobs.
    pub cron_jobs: Cache<CronJob>,
    /// ReplicationControllers.
    pub replication_controllers: Cache<ReplicationController>,
    /// Claims for storage.
    pub claims: Cache<PersistentVolumeClaim>,
    /// Volumes.
    pub volumes: Cache<PersistentVolume>,
    /// Storage classes.
    pub classes: Cache<StorageClass>,
    /// PodDisruptionBudgets.
    pub budgets: Cache<PodDisruptionBudget>,
    /// HorizontalPodAutoscalers.
    pub autoscalers: Cache<HorizontalPodAutoscaler>,
}

impl Default for Caches {
    fn default() -> Self {
        Self {
            pods: Cache::new(Some(pod_terms)),
            nodes: Cache::default(),
            replica_sets: Cache::default(),
            deployments: Cache::default(),
            services: Cache::default(),
            endpoint_slices: Cache::new(Some(slice_terms)),
            endpoints: Cache::default(),
            namespaces: Cache::default(),
            service_accounts: Cache::default(),
            root_certificates: Cache::default().with_fields(&format!("metadata.name={ROOT_CA}")),
            leases: Cache::default().in_namespace("kube-node-lease"),
            stateful_sets: Cache::default(),
            daemon_sets: Cache::default(),
            revisions: Cache::new(Some(owner_terms)),
            jobs: Cache::new(Some(owner_terms)),
            cron_jobs: Cache::default(),
            replication_controllers: Cache::default(),
            claims: Cache::default(),
            volumes: Cache::default(),
            classes: Cache::default(),
            budgets: Cache::default(),
            autoscalers: Cache::default(),
        }
    }
}

fn owner_terms(object: &impl Resource) -> Vec<String> {
    vec![match controller_of(object.meta()) {
        Some(owner) => format!("owner:{}", owner.uid),
        None => format!("orphan:{}", object.meta().namespace.as_deref().unwrap_or_default()),
    }]
}

fn pod_terms(pod: &Pod) -> Vec<String> {
    let mut terms = owner_terms(pod);
    terms.extend(node_name(pod).map(|node| format!("node:{node}")));
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    terms.extend(crate::volumes::claims_of(pod).map(|(_, claim)| format!("claim:{namespace}/{claim}")));
    terms.extend(labels(&pod.metadata).iter().map(|(key, value)| label_term(namespace, key, value)));
    terms
}

fn label_term(namespace: &str, key: &str, value: &str) -> String {
    format!("label:{namespace}/{key}={value}")
}

fn slice_terms(slice: &EndpointSlice) -> Vec<String> {
    let service = slice.metadata.labels.as_ref().and_then(|labels| labels.get("kubernetes.io/service-name"));
    let namespace = slice.metadata.namespace.as_deref().unwrap_or_default();
    service.map(|service| format!("service:{namespace}/{service}")).into_iter().collect()
}

impl Caches {
    /// The pods of a namespace that a selector matches, by name.
    pub fn selected_pods(&self, namespace: &str, selector: &Matcher) -> Vec<Arc<Pod>> {
        let candidates = match selector.exact_label() {
            Some((key, value)) => self.pods.by_index(&label_term(namespace, key, value)),
            None => self.pods.namespace(namespace),
        };
        candidates.into_iter().filter(|pod| selector.matches(labels(&pod.metadata))).collect()
    }

    /// Starts every watch.
    pub fn start(&self, client: &Client, tasks: &mut JoinSet<()>) {
        fn follow<K: Object>(cache: &Cache<K>, client: &Client, tasks: &mut JoinSet<()>) {
            tasks.spawn(cache.clone().follow(client.clone()));
        }
        follow(&self.pods, client, tasks);
        follow(&self.nodes, client, tasks);
        follow(&self.replica_sets, client, tasks);
        follow(&self.deployments, client, tasks);
        follow(&self.services, client, tasks);
        follow(&self.endpoint_slices, client, tasks);
        follow(&self.endpoints, client, tasks);
        follow(&self.namespaces, client, tasks);
        follow(&self.service_accounts, client, tasks);
        follow(&self.root_certificates, client, tasks);
        follow(&self.leases, client, tasks);
        follow(&self.stateful_sets, client, tasks);
        follow(&self.daemon_sets, client, tasks);
        follow(&self.revisions, client, tasks);
        follow(&self.jobs, client, tasks);
        follow(&self.cron_jobs, client, tasks);
        follow(&self.replication_controllers, client, tasks);
        follow(&self.claims, client, tasks);
        follow(&self.volumes, client, tasks);
        follow(&self.classes, client, tasks);
        follow(&self.budgets, client, tasks);
        follow(&self.autoscalers, client, tasks);
    }

    /// Waits until every kind has been listed once.
    pub async fn synced(&self) {
        self.pods.synced().await;
        self.nodes.synced().await;
        self.replica_sets.synced().await;
        self.deployments.synced().await;
        self.services.synced().await;
        self.endpoint_slices.synced().await;
        self.endpoints.synced().await;
        self.namespaces.synced().await;
        self.service_accounts.synced().await;
        self.root_certificates.synced().await;
        self.leases.synced().await;
        self.stateful_sets.synced().await;
        self.daemon_sets.synced().await;
        self.revisions.synced().await;
        self.jobs.synced().await;
        self.cron_jobs.synced().await;
        self.replication_controllers.synced().await;
        self.claims.synced().await;
        self.volumes.synced().await;
        self.classes.synced().await;
        self.budgets.synced().await;
        self.autoscalers.synced().await;
    }
}

/// What a controller works with. Cheap to clone.
#[derive(Clone)]
pub struct Context {
    /// The shared copies of all kinds.
    pub caches: Caches,
    /// The way to change things.
    pub writer: Writer,
    /// Clock and randomness.
    pub env: Env,
    /// The event recorder.
    pub events: Events,
}

impl Context {
    /// Records an event about an object.
    pub fn tell<K>(&self, about: &K, type_: Type, reason: &str, message: String, component: &'static str)
    where
        K: Resource<DynamicType = ()>,
    {
        self.events.send(Note { about: reference(about), type_, reason: reason.to_owned(), message, component });
    }
}

//! The loop that keeps rules, policies, load balancer addresses and DNS answers in step with the cluster.
//!
//! ```text
//!  watches ─► tracker ─► (at most every 10 ms) compile ─► diff ─► nft ─► forget stale UDP flows
//!                │                                                  └─► write status.loadBalancer
//!                └─► DNS reads the same picture
//! ```

use std::future::pending;
use std::io::ErrorKind;
use std::sync::{Arc, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use futures::future::join_all;
use futures::stream::{BoxStream, SelectAll, select_all};
use futures::{FutureExt, StreamExt};
use k8s_openapi::api::core::v1::{Namespace, Pod, Service as ApiService};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::api::{Patch, PatchParams};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client};
use serde_json::json;
use tokio::time::{Instant, sleep, sleep_until};

use crate::cluster::{Cluster, ObjectName};
use crate::compile::load_balancers;
use crate::dns;
use crate::error::NetError;
use crate::guard::{Guard, Guarding};
use crate::host;
use crate::network::{Network, blocking};
use crate::programmer::Programmer;
use crate::tracker::{Tracker, Update};

/// Shortest rest between two changes of the rules: what comes in between goes together.
const BURST: Duration = Duration::from_millis(10);
/// And the longest. In between a rest is twice as long as the change before it took beyond [`QUICK`], so that the rules of
/// a large cluster in motion take a third of a processor or little more.
const REST_MAX: Duration = Duration::from_secs(1);
/// A change that takes no longer is followed by the shortest rest: a policy is not to wait for what came just before it.
const QUICK: Duration = Duration::from_millis(30);
/// How often the rules in the kernel are compared with ours.
const RESYNC: Duration = Duration::from_secs(120);
/// How often a port 53 that somebody else has is tried again.
const DNS_RETRY: Duration = Duration::from_secs(10);
const RETRY_MIN: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(30);

/// The picture of the cluster that rules and DNS share.
pub(crate) type Shared = Arc<RwLock<Arc<Cluster>>>;

impl Network {
    /// Follows the cluster until the future is dropped: programs services, host ports and policies, answers DNS, gives load balancer
    /// services their address. Fails only if the DNS address is gone: the network was torn down.
    pub async fn run(&self, client: Client) -> Result<(), NetError> {
        let cluster = Shared::default();
        let mut answering = std::pin::pin!(self.answer(cluster.clone()));
        let _guard = Guarding::begin(&self.inner.guard);
        let mut following = std::pin::pin!(follow(self.clone(), client, cluster));
        tokio::select! {
            biased;
            () = &mut following => Ok(()),
            result = &mut answering => result,
        }
    }

    /// Answers DNS, as soon as nobody else does at that address.
    async fn answer(&self, cluster: Shared) -> Result<(), NetError> {
        loop {
            match dns::Server::bind(self.dns_ip(), self.inner.config.host_resolv_conf.clone()).await {
                Ok(server) => server.run(dns::Zone::new(&self.inner.config), cluster.clone()).await,
                Err(NetError::Io { source, what }) if source.kind() == ErrorKind::AddrInUse => {
                    tracing::error!(error = &source as &dyn std::error::Error, "{what}");
                    sleep(DNS_RETRY).await;
                }
                Err(e) => return Err(e),
            }
        }
    }
}

impl Network {
    /// Brings this node's rules in line with the cluster.
    async fn program(self, cluster: Arc<Cluster>, guard: Guard) -> Result<(), NetError> {
        let (site, network) = (self.site(), self.clone());
        blocking(move || network.inside(|| network.programmer().program(&site, &cluster))).await?;
        self.inner.guard.send_replace(guard);
        Ok(())
    }

    /// Whether the kernel holds the rules that we put there. If not, they will all be set anew.
    fn is_intact(&self) -> bool {
        let mut programmer = self.programmer();
        let intact = programmer.intact().unwrap_or(false);
        if !intact {
            programmer.forget();
        }
        intact
    }

    fn programmer(&self) -> MutexGuard<'_, Programmer> {
        self.inner.programmer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn watches(client: &Client) -> SelectAll<BoxStream<'static, Result<Update, watcher::Error>>> {
    let config = || watcher::Config::default();
    let services = watcher(Api::<ApiService>::all(client.clone()), config()).default_backoff();
    let slices = watcher(Api::<EndpointSlice>::all(client.clone()), config()).default_backoff();
    let pods = watcher(Api::<Pod>::all(client.clone()), config()).default_backoff();
    let policies = watcher(Api::<NetworkPolicy>::all(client.clone()), config()).default_backoff();
    let namespaces = watcher(Api::<Namespace>::all(client.clone()), config()).default_backoff();
    select_all([
        services.map(|event| event.map(Update::Service)).boxed(),
        slices.map(|event| event.map(Update::Slice)).boxed(),
        pods.map(|event| event.map(Update::Pod)).boxed(),
        policies.map(|event| event.map(Update::Policy)).boxed(),
        namespaces.map(|event| event.map(Update::Namespace)).boxed(),
    ])
}

struct Loop {
    network: Network,
    client: Client,
    shared: Shared,
    tracker: Tracker,
    /// When to program next.
    due: Option<Instant>,
    /// Not before.
    rested: Instant,
    retry: Duration,
}

async fn follow(network: Network, client: Client, shared: Shared) {
    let mut updates = watches(&client);
    let mut state = Loop {
        network,
        client,
        shared,
        tracker: Tracker::default(),
        due: None,
        rested: Instant::now(),
        retry: RETRY_MIN,
    };
    let mut resync = Instant::now();
    loop {
        tokio::select! {
            biased;
            Some(update) = updates.next() => {
                state.take(update);
                while let Some(Some(update)) = updates.next().now_or_never() {
                    state.take(update);
                }
            }
            () = state.network.inner.changed.notified() => state.want(),
            () = at(state.due) => state.program().await,
            () = sleep_until(resync) => {
                // The first time at once, for the firewalls that are there.
                resync = Instant::now() + RESYNC;
                state.check().await;
            }
        }
    }
}

async fn at(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => pending().await,
    }
}

impl Loop {
    fn take(&mut self, update: Result<Update, watcher::Error>) {
        match update {
            Ok(update) => {
                if self.tracker.update(update) {
                    self.want();
                }
            }
            Err(e) => tracing::debug!(error = &e as &dyn std::error::Error, "a watch of the network was interrupted"),
        }
    }

    fn want(&mut self) {
        if self.tracker.complete() && self.due.is_none() {
            self.due = Some(Instant::now().max(self.rested));
        }
    }

    /// Brings rules, answers and statuses in line with the picture.
    async fn program(&mut self) {
        self.due = None;
        let begun = Instant::now();
        let networks = self.network.all();
        let mut cluster = self.tracker.cluster.clone();
        if !cluster.policies.is_empty() {
            let assigned = networks.iter().flat_map(Network::pods).collect();
            let ranges: Vec<_> = networks.iter().map(|network| network.inner.config.pod_cidr).collect();
            cluster.place(&ranges, &assigned);
        }
        let guard = Guard::of(&cluster);
        let cluster = Arc::new(cluster);
        *self.shared.write().unwrap_or_else(PoisonError::into_inner) = cluster.clone();
        let wanted = load_balancers(&self.network.site(), &cluster.services);
        let all = networks.into_iter().map(|network| network.program(cluster.clone(), guard.clone()));
        let result = join_all(all).await.into_iter().collect::<Result<(), NetError>>();
        self.rested = Instant::now() + (begun.elapsed().saturating_sub(QUICK) * 2).clamp(BURST, REST_MAX);
        self.settle(result);
        self.publish(&wanted.into_keys().collect::<Vec<_>>()).await;
    }

    fn settle(&mut self, result: Result<(), NetError>) {
        match result {
            Ok(()) => self.retry = RETRY_MIN,
            Err(e) => {
                tracing::warn!(
                    error = &e as &dyn std::error::Error,
                    "the service rules could not be changed; trying again"
                );
                self.due = Some(Instant::now() + self.retry);
                self.retry = (self.retry * 2).min(RETRY_MAX);
            }
        }
    }

    /// Compares the kernel's rules with ours, and forwarding with what we need, and repairs.
    async fn check(&mut self) {
        let names = self.network.inner.names.clone();
        if let Err(e) = blocking(move || host::repair(&names)).await {
            tracing::warn!(error = &e as &dyn std::error::Error, "forwarding for pods could not be checked");
        }
        // Before the cluster is known, an earlier run's rules are in force.
        if !self.tracker.complete() {
            return;
        }
        for network in self.network.all() {
            let name = network.inner.config.node.clone();
            let intact = blocking(move || network.inside(|| Ok(network.is_intact()))).await;
            if matches!(intact, Ok(false)) {
                tracing::warn!(node = name, "the service rules were changed by something else; setting them anew");
                self.want();
            }
        }
    }

    /// Shows load balancer services the address they have, and takes back what is no longer true.
    async fn publish(&mut self, balanced: &[ObjectName]) {
        let mut failed = false;
        let address = self.network.node_ip().to_string();
        for (name, service) in &self.tracker.cluster.services {
            let wanted: &[String] = if balanced.contains(name) { std::slice::from_ref(&address) } else { &[] };
            let foreign = service.foreign_balancer;
            if foreign || service.ingress == wanted {
                continue;
            }
            let ingress: Vec<_> = wanted.iter().map(|ip| json!({"ip": ip, "ipMode": "VIP"})).collect();
            let status = json!({"status": {"loadBalancer": {"ingress": ingress}}});
            let api = Api::<ApiService>::namespaced(self.client.clone(), &name.0);
            if let Err(e) = api.patch_status(&name.1, &PatchParams::default(), &Patch::Merge(status)).await {
                let error = &e as &dyn std::error::Error;
                tracing::warn!(
                    error,
                    namespace = name.0,
                    service = name.1,
                    "the load balancer address could not be written"
                );
                failed = true;
            }
        }
        if failed && self.due.is_none() {
            self.due = Some(Instant::now() + RETRY_MAX);
        }
    }
}

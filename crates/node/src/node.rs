//! The node agent as a whole: registers the node, follows its pods, adopts what an earlier engine left.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::future::Future;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::{Stream, StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret};
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, ResourceExt};
use mycelium_api::env::Env;
use mycelium_linux::cgroup::Hierarchies;
use tokio::task::{AbortHandle, JoinSet};

use crate::client::{Shim, ShimCommand};
use crate::context::{Context, cgroup_of, cgroup_of_node};
use crate::events::Events;
use crate::image::ImageSource;
use crate::machine;
use crate::network::PodNetwork;
use crate::pod::handle::{Handle, Message, images_of};
use crate::pod::host_ports::HostPorts;
use crate::pod::resize::Ledger;
use crate::pod::sandbox;
use crate::pod::status::Host;
use crate::pod::worker;
use crate::pressure::{self, keeper::Pressure};
use crate::register::{Inventory, Registrar};
use crate::service::Looks;
use crate::shim::protocol::{PID, Request};
use crate::volumes::ObjectKind;

/// The folder of a node's pods.
const PODS: &str = "pods";
/// The folder of all nodes' folders but the first's.
const NODES: &str = "nodes";
/// The most pods of a node.
const PODS_MAX: u32 = 250;
/// How often images nobody uses are looked for.
const IMAGES_EVERY: Duration = Duration::from_secs(300);

/// What a node is made of.
pub struct NodeConfig {
    /// The API.
    pub client: Client,
    /// Clock and randomness.
    pub env: Env,
    /// The image store.
    pub images: Arc<dyn ImageSource>,
    /// The pod network.
    pub network: Arc<dyn PodNetwork>,
    /// Where the engine keeps its data.
    pub data_dir: PathBuf,
    /// Where the folders of volumes are: one place for all nodes of a machine.
    pub volumes: PathBuf,
    /// Where profiles of `seccompProfile.localhostProfile` are: one place too.
    pub seccomp: PathBuf,
    /// The engine's id on this machine.
    pub instance: String,
    /// The node's number on this machine, from 1. The first also does what is to be done once for all nodes.
    pub number: u32,
    /// The node's name.
    pub name: String,
    /// Labels besides those that every node has. What a user has made of them stays.
    pub labels: BTreeMap<String, String>,
    /// How often the node says that it lives.
    pub renew: Duration,
    /// The node's addresses.
    pub ips: Vec<String>,
    /// The range of the pods' addresses.
    pub pod_cidr: Option<String>,
    /// The domain of the cluster's DNS.
    pub cluster_domain: String,
    /// When the node is short of something.
    pub pressure: pressure::Config,
    /// How shims are started: this program and the word `shim`, usually.
    pub shim: ShimCommand,
}

impl NodeConfig {
    /// The usual shim: this very program, even if its file has been replaced since it started.
    pub fn own_shim() -> ShimCommand {
        Arc::from(["/proc/self/exe".into(), "shim".into()])
    }
}

/// Why a node does not start.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// A folder.
    #[error("cannot use {path}")]
    Folder {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The node's own object.
    #[error("cannot register the node")]
    Register(#[source] kube::Error),
}

/// Workers by the uid of their pod.
pub type Workers = Arc<Mutex<BTreeMap<String, Handle>>>;

/// The node agent. Cheap to clone; all clones are one node.
#[derive(Clone)]
pub struct Node {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) ctx: Arc<Context>,
    pub(crate) workers: Workers,
    inventory: Arc<Inventory>,
    name: String,
    renew: Duration,
    pub(crate) looks: Looks,
}

impl Node {
    /// A node; nothing happens before [`Node::run`], but its service answers.
    pub fn new(config: NodeConfig) -> Result<Self, NodeError> {
        let pods = config.data_dir.join(PODS);
        // Logs, volumes and control sockets are nobody else's business.
        let private = fs::create_dir_all(&pods)
            .and_then(|()| fs::set_permissions(&pods, std::os::unix::fs::PermissionsExt::from_mode(0o700)));
        private.map_err(|source| NodeError::Folder { path: pods.clone(), source })?;
        let memory = crate::register::meminfo("MemTotal");
        let inventory = Arc::new(Inventory {
            name: config.name.clone(),
            ips: config.ips.clone(),
            pod_cidr: config.pod_cidr,
            labels: config.labels,
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            memory_bytes: memory,
            disk_bytes: crate::register::disk(&config.data_dir).0,
            pods: PODS_MAX,
        });
        let workers = Workers::default();
        let events = Events::new(config.client.clone(), config.env.clone(), config.name.clone());
        let ctx = Context {
            watch_objects: watch_objects(config.client.clone(), workers.clone()),
            client: config.client,
            env: config.env,
            images: config.images,
            network: config.network,
            pods,
            volumes: config.volumes,
            seccomp: config.seccomp,
            instance: config.instance,
            number: config.number,
            shim: config.shim,
            host: Host { ips: config.ips },
            cluster_domain: config.cluster_domain,
            machine: machine::look(),
            memory_bytes: i64::try_from(memory).unwrap_or(i64::MAX),
            allocatable: inventory.resources(),
            ledger: Ledger::default(),
            host_ports: HostPorts::default(),
            pressure: Pressure::new(config.pressure, &config.data_dir),
            events,
        };
        let (name, looks) = (config.name, Looks::default());
        let inner = Inner { ctx: Arc::new(ctx), workers, inventory, name, renew: config.renew, looks };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Registers the node, then runs pods until `shutdown`. The pods run on after that.
    pub async fn run(&self, shutdown: impl Future<Output = ()>) -> Result<(), NodeError> {
        let inner = &self.inner;
        let ctx = inner.ctx.clone();
        let mut registrar =
            Registrar::new(ctx.client.clone(), ctx.env.clone(), inner.inventory.clone(), ctx.pressure.conditions());
        let node = registrar.register().await.map_err(NodeError::Register)?;
        tracing::info!(node = inner.name, "the node is ready");
        let mut tasks = JoinSet::new();
        tasks.spawn(registrar.keep(node, inner.renew));
        tasks.spawn(follow(inner.clone()));
        tasks.spawn(pressure::keeper::run(inner.clone()));
        if ctx.number == 1 {
            tasks.spawn(collect_images(inner.clone()));
            tasks.spawn(crate::volumes::reclaim::run(ctx));
        }
        tokio::select! {
            biased;
            () = shutdown => {}
            _ = tasks.join_next() => tracing::error!("a task of the node has ended unexpectedly"),
        }
        tasks.shutdown().await;
        self.abandon();
        Ok(())
    }

    /// Every image that some container of its pods uses.
    pub fn images_in_use(&self) -> Vec<String> {
        self.inner.workers().values().flat_map(|handle| images_of(&handle.shared.borrow())).collect()
    }

    /// Ends all work on pods, which run on.
    pub fn abandon(&self) {
        let mut workers = self.inner.workers();
        workers.values().for_each(Handle::abandon);
        workers.clear();
    }
}

impl Inner {
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn workers(&self) -> MutexGuard<'_, BTreeMap<String, Handle>> {
        self.workers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The worker of a pod, by namespace and name.
    pub(crate) fn find(&self, namespace: &str, name: &str, uid: Option<&str>) -> Option<Handle> {
        let fits = |handle: &&Handle| {
            let shared = handle.shared.borrow();
            let meta = &shared.pod.metadata;
            meta.namespace.as_deref() == Some(namespace)
                && meta.name.as_deref() == Some(name)
                && uid.is_none_or(|uid| uid.is_empty() || meta.uid.as_deref() == Some(uid))
        };
        let workers = self.workers();
        // A pod and its successor of the same name may overlap: the younger one is meant.
        workers.values().filter(fits).max_by_key(|h| h.shared.borrow().pod.creation_timestamp().map(|t| t.0)).cloned()
    }

    fn seen(&self, mut pod: Pod) {
        let Some(uid) = pod.metadata.uid.clone() else { return };
        // Nothing here asks who owns which field, and that takes as much memory as the rest.
        pod.metadata.managed_fields = None;
        let pod = Arc::new(pod);
        let mut workers = self.workers();
        if let Some(handle) = workers.get(&uid) {
            let _ = handle.tell.send(Message::Pod(pod));
            return;
        }
        let list = Arc::downgrade(&self.workers);
        let finished = move |uid: &str| {
            if let Some(list) = list.upgrade() {
                list.lock().unwrap_or_else(PoisonError::into_inner).remove(uid);
            }
        };
        let handle = worker::spawn(self.ctx.clone(), pod, finished);
        workers.insert(uid, handle);
    }

    fn gone(&self, uid: &str) {
        // Before its successor, which may want the same ports, is looked at.
        self.ctx.host_ports.release(uid);
        if let Some(handle) = self.workers().get(uid) {
            let _ = handle.tell.send(Message::Gone);
        }
    }
}

/// Follows the pods of this node.
async fn follow(inner: Arc<Inner>) {
    let api: Api<Pod> = Api::all(inner.ctx.client.clone());
    let config = watcher::Config::default().fields(&format!("spec.nodeName={}", inner.name));
    let mut events = std::pin::pin!(watcher(api, config));
    let mut listed: BTreeSet<String> = BTreeSet::new();
    loop {
        match events.try_next().await {
            Ok(Some(Event::Init)) => listed.clear(),
            Ok(Some(Event::InitApply(pod))) => {
                listed.extend(pod.metadata.uid.clone());
                inner.seen(pod);
            }
            Ok(Some(Event::InitDone)) => sweep(&inner, &listed),
            Ok(Some(Event::Apply(pod))) => inner.seen(pod),
            Ok(Some(Event::Delete(pod))) => inner.gone(pod.metadata.uid.as_deref().unwrap_or_default()),
            Ok(None) => return,
            Err(error) => {
                tracing::warn!(%error, "cannot watch the node's pods; trying again");
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
    }
}

/// Everything that the list does not name is to go: workers whose pod was deleted, and folders nobody owns.
fn sweep(inner: &Arc<Inner>, listed: &BTreeSet<String>) {
    let known: Vec<String> = inner.workers().keys().cloned().collect();
    for uid in known.iter().filter(|uid| !listed.contains(*uid)) {
        inner.gone(uid);
    }
    for entry in fs::read_dir(&inner.ctx.pods).into_iter().flatten().flatten() {
        let uid = entry.file_name().to_string_lossy().into_owned();
        if listed.contains(&uid) || known.contains(&uid) {
            continue;
        }
        let (ctx, dir) = (inner.ctx.clone(), entry.path());
        tokio::spawn(async move {
            tracing::info!(uid, "removing a pod that was deleted while no engine ran");
            let cgroup = sandbox::read(&dir).map(|s| s.cgroup).unwrap_or_default();
            match sandbox::stop(&ctx, &dir, &uid, &cgroup).await {
                Ok(()) => drop(fs::remove_dir_all(&dir)),
                Err(error) => tracing::warn!(uid, error, "cannot remove it"),
            }
        });
    }
}

async fn collect_images(inner: Arc<Inner>) {
    loop {
        tokio::time::sleep(IMAGES_EVERY).await;
        let used = Node { inner: inner.clone() }.images_in_use();
        inner.ctx.images.collect(&used, inner.ctx.pressure.images()).await;
    }
}

/// Starts, at its first call, the watches that tell workers of changed config maps and secrets.
fn watch_objects(client: Client, workers: Workers) -> Box<dyn Fn() + Send + Sync> {
    let begun = AtomicBool::new(false);
    let tasks: Mutex<Vec<Guard>> = Mutex::default();
    Box::new(move || {
        if begun.swap(true, Ordering::Relaxed) {
            return;
        }
        let weak = Arc::downgrade(&workers);
        let tell = move |kind: ObjectKind, namespace: &str, name: &str| {
            let Some(workers) = weak.upgrade() else { return };
            for handle in workers.lock().unwrap_or_else(PoisonError::into_inner).values() {
                if handle.shared.borrow().pod.metadata.namespace.as_deref() == Some(namespace) {
                    let _ = handle.tell.send(Message::Changed(kind, name.to_owned()));
                }
            }
        };
        let maps = watcher(Api::<ConfigMap>::all(client.clone()), watcher::Config::default());
        let secrets = watcher(Api::<Secret>::all(client.clone()), watcher::Config::default());
        let also = tell.clone();
        let mut tasks = tasks.lock().unwrap_or_else(PoisonError::into_inner);
        tasks.push(Guard(
            tokio::spawn(news(maps, move |ns, name| tell(ObjectKind::ConfigMap, ns, name))).abort_handle(),
        ));
        tasks.push(Guard(
            tokio::spawn(news(secrets, move |ns, name| also(ObjectKind::Secret, ns, name))).abort_handle(),
        ));
    })
}

/// A task that ends with its owner.
struct Guard(AbortHandle);

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn news<K: kube::Resource>(
    events: impl Stream<Item = Result<Event<K>, watcher::Error>>,
    tell: impl Fn(&str, &str),
) {
    let mut events = std::pin::pin!(events);
    while let Some(event) = events.next().await {
        match event {
            // What was there before is what pods were started with; their regular look covers the gap.
            Ok(Event::Apply(object) | Event::Delete(object)) => {
                tell(object.meta().namespace.as_deref().unwrap_or_default(), &object.name_any());
            }
            Ok(_) => {}
            Err(_) => tokio::time::sleep(Duration::from_secs(1)).await,
        }
    }
}

/// The folder of a node's data, below the engine's.
pub fn folder_of(data_dir: &Path, number: u32) -> PathBuf {
    if number == 1 { data_dir.to_owned() } else { data_dir.join(NODES).join(number.to_string()) }
}

/// What is in a folder, if it is there.
fn entries(dir: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path())
}

/// The folders of the pods of all nodes of an engine.
pub fn pod_folders(data_dir: &Path) -> Vec<PathBuf> {
    let nodes = std::iter::once(data_dir.to_owned()).chain(entries(&data_dir.join(NODES)));
    nodes.flat_map(|node| entries(&node.join(PODS))).collect()
}

/// Ends every pod of an engine that does not run, and removes what is left of them on the machine.
pub async fn teardown(data_dir: &Path, instance: &str) -> Result<(), NodeError> {
    let mut ends = JoinSet::new();
    for folder in pod_folders(data_dir) {
        ends.spawn(end_pod(folder));
    }
    while ends.join_next().await.is_some() {}
    let group = cgroup_of(instance);
    let removed = tokio::task::spawn_blocking(move || {
        Hierarchies::get().kill(&group);
        Hierarchies::get().remove(&group).map_err(|source| NodeError::Folder { path: group.into(), source })
    });
    let failed = |path: &Path, source| NodeError::Folder { path: path.to_owned(), source };
    removed.await.unwrap_or_else(|e| Err(failed(data_dir, std::io::Error::other(e))))?;
    for path in [data_dir.join(PODS), data_dir.join(NODES)] {
        match fs::remove_dir_all(&path) {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => return Err(failed(&path, source)),
            _ => {}
        }
    }
    Ok(())
}

/// Kills all that runs on a node whose agent does not run, at once and without a word to anybody: its power is cut. What
/// is on its disk stays. Blocking.
pub fn cut_power(data_dir: &Path, instance: &str, number: u32) -> std::io::Result<()> {
    for folder in entries(&data_dir.join(PODS)) {
        if let Some(pid) = shim_of(&folder) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }
    let all = cgroup_of_node(instance, number);
    // The first node's group also holds those of the others.
    let groups: Vec<String> =
        ["guaranteed", "burstable", "besteffort"].iter().map(|qos| format!("{all}/{qos}")).collect();
    for group in &groups {
        Hierarchies::get().kill(group);
    }
    groups.iter().try_for_each(|group| Hierarchies::get().remove(group))
}

/// The network namespace of a node, if one of its pods keeps it alive.
pub fn held_network(data_dir: &Path) -> Option<OwnedFd> {
    let shims = entries(&data_dir.join(PODS)).filter_map(|folder| shim_of(&folder));
    shims.filter_map(|pid| u32::try_from(pid.as_raw_nonzero().get()).ok()).find_map(mycelium_linux::netns::held_by)
}

/// The shim of a pod's folder, if it lives.
fn shim_of(dir: &Path) -> Option<rustix::process::Pid> {
    let pid = fs::read_to_string(dir.join(PID)).ok().and_then(|text| text.trim().parse().ok());
    pid.and_then(rustix::process::Pid::from_raw).filter(|pid| is_shim_of(*pid, dir))
}

async fn end_pod(dir: PathBuf) {
    /// A shim that takes longer than this to end its pod is killed.
    const PATIENCE: Duration = Duration::from_secs(10);
    let pid = fs::read_to_string(dir.join(PID)).ok().and_then(|text| text.trim().parse().ok());
    let asked = tokio::time::timeout(PATIENCE, Shim::at(&dir).ask(&Request::Shutdown)).await;
    let Some(pid) = pid.and_then(rustix::process::Pid::from_raw) else { return };
    if !matches!(asked, Ok(Ok(()))) && is_shim_of(pid, &dir) {
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
    // It has answered before its last step; wait until it is gone, so that nothing is left when we return.
    for _ in 0..500 {
        if !is_shim_of(pid, &dir) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

fn is_shim_of(pid: rustix::process::Pid, dir: &Path) -> bool {
    let line = fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero())).unwrap_or_default();
    line.split(|b| *b == 0).any(|word| word == dir.as_os_str().as_encoded_bytes())
}

//! The nodes of one engine: which there are, and which of them have power.
//!
//! The first node is the machine itself. Each further one has a network namespace, a part of the pod range and a folder of
//! its own; all share the machine's kernel, images and volumes. A node is switched by an annotation of its object, so that
//! the switch is state like any other: it is kept, watched, and only who may change nodes may use it.
//!
//! ```text
//!            annotation "on", or none                            annotation "off"
//!  ┌─────┐ ── adopt or make the network, start the agent ─► ┌─────────┐
//!  │ off │                                                   │ running │
//!  └─────┘ ◄─ end the agent, kill all, cut the link ──────── └─────────┘
//! ```

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use futures::StreamExt;
use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::Node as NodeObject;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, ResourceExt};
use mycelium_api::env::Env;
use mycelium_image::Images;
use mycelium_linux::netns;
use mycelium_net::{NetConfig, Network};
use mycelium_node::image::{Collect, ImageError, ImageSource, PodImage, PullSecret};
use mycelium_node::{Node, NodeConfig};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet, spawn_blocking};

use super::config::Config;
use super::instance::Instance;

/// The annotation that switches a node: `off`, or anything else.
pub const POWER: &str = "mycelium.network/power";
/// Its value for a node that is to be dead.
pub const OFF: &str = "off";
/// A cloud's regions mostly have so many zones; the nodes take turns.
const ZONES: u32 = 3;
const REGION: &str = "local";
/// A node that cannot be switched is tried again after this long.
const RETRY: Duration = Duration::from_secs(5);

/// The name of a node: the first has the name given, the others that and their number.
pub fn name(first: &str, number: u32) -> String {
    if number == 1 { first.to_owned() } else { format!("{first}-{number}") }
}

/// What nodes are made of.
struct Parts {
    client: kube::Client,
    env: Env,
    images: Images,
    machine: Network,
    data_dir: PathBuf,
    instance: String,
    renew: Duration,
    pressure: mycelium_node::pressure::Config,
}

/// A node that there is, whether it runs or not.
struct Seat {
    number: u32,
    net: NetConfig,
    /// Held while it is being switched.
    switch: tokio::sync::Mutex<()>,
    running: Mutex<Option<Running>>,
}

/// A node with power.
struct Running {
    node: Node,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

/// The nodes of one engine. Cheap to clone.
#[derive(Clone)]
pub struct Fleet {
    parts: Arc<Parts>,
    seats: Arc<BTreeMap<String, Seat>>,
}

impl Fleet {
    /// The nodes of a configuration; none runs yet.
    pub fn new(
        config: &Config,
        instance: &Instance,
        env: &Env,
        machine: &Network,
        client: kube::Client,
    ) -> Result<Self> {
        let first = config.network(&instance.id());
        let seats = (1..=config.nodes).map(|number| -> Result<(String, Seat)> {
            let name = name(&config.node_name, number);
            let net = first.of_node(number, &name);
            let net = net.with_context(|| format!("--pod-cidr {} has no room for node {number}", config.pod_cidr))?;
            Ok((name, Seat { number, net, switch: tokio::sync::Mutex::default(), running: Mutex::default() }))
        });
        let parts = Parts {
            client,
            env: env.clone(),
            images: Images::open(instance.path("images"))?,
            machine: machine.clone(),
            data_dir: instance.dir().to_owned(),
            instance: instance.id(),
            renew: mycelium_node::register::RENEW.min(config.node_grace / 4),
            pressure: config.eviction.pressure()?,
        };
        Ok(Self { parts: Arc::new(parts), seats: Arc::new(seats.collect::<Result<_>>()?) })
    }

    /// Gives power to every node that is not switched off, at the same time. Returns their names.
    pub async fn start(&self) -> Result<Vec<String>> {
        let off = self.switched_off().await?;
        let mut starting = JoinSet::new();
        for name in self.seats.keys().filter(|name| !off.contains(name)) {
            let (fleet, name) = (self.clone(), name.clone());
            starting.spawn(async move { fleet.switch(&name, true).await.map(|()| name) });
        }
        let mut started = Vec::new();
        while let Some(outcome) = starting.join_next().await {
            started.push(outcome??);
        }
        started.sort();
        Ok(started)
    }

    async fn switched_off(&self) -> Result<Vec<String>> {
        let api: Api<NodeObject> = Api::all(self.parts.client.clone());
        let nodes = api.list(&kube::api::ListParams::default()).await.context("asking which nodes are switched off")?;
        Ok(nodes.items.iter().filter(|node| is_off(node)).map(ResourceExt::name_any).collect())
    }

    /// Follows the switches until told to stop; then ends the agents, whose pods run on.
    pub async fn keep(self, mut stopped: watch::Receiver<bool>) {
        tokio::select! {
            biased;
            // An error means that the engine is gone, and so are we.
            _ = stopped.wait_for(|stopped| *stopped) => {}
            () = self.follow() => {}
        }
        for seat in self.seats.values() {
            let running = seat.running().take();
            if let Some(running) = running {
                running.stop.send_replace(true);
                // It was ended before, or has panicked, which it has told itself.
                let _ = running.task.await;
            }
        }
    }

    async fn follow(&self) {
        let api: Api<NodeObject> = Api::all(self.parts.client.clone());
        let mut events = std::pin::pin!(watcher(api, watcher::Config::default()).default_backoff());
        let mut wanted: BTreeMap<String, bool> = BTreeMap::new();
        loop {
            tokio::select! {
                event = events.next() => match event {
                    Some(Ok(watcher::Event::Apply(node) | watcher::Event::InitApply(node))) => {
                        wanted.insert(node.name_any(), !is_off(&node));
                    }
                    Some(Ok(_)) => {}
                    Some(Err(error)) => tracing::debug!(%error, "the watch of the nodes was interrupted"),
                    None => return,
                },
                () = tokio::time::sleep(RETRY), if !wanted.is_empty() => {}
            }
            let mut left = BTreeMap::new();
            for (name, on) in std::mem::take(&mut wanted) {
                if let Err(error) = self.switch(&name, on).await {
                    tracing::error!(
                        node = name,
                        error = format!("{error:#}"),
                        "the node cannot be switched; trying again"
                    );
                    left.insert(name, on);
                }
            }
            wanted = left;
        }
    }

    /// Makes a node run or not; nothing for one that is not ours.
    async fn switch(&self, name: &str, on: bool) -> Result<()> {
        let Some(seat) = self.seats.get(name) else { return Ok(()) };
        let _switching = seat.switch.lock().await;
        let runs = seat.running().is_some();
        match (runs, on) {
            (false, true) => self.power_on(name, seat).await.with_context(|| format!("starting the node {name}")),
            (true, false) => self.power_off(name, seat).await.with_context(|| format!("stopping the node {name}")),
            _ => Ok(()),
        }
    }

    async fn power_on(&self, name: &str, seat: &Seat) -> Result<()> {
        let parts = &self.parts;
        let folder = mycelium_node::folder_of(&parts.data_dir, seat.number);
        let network = match seat.number {
            1 => parts.machine.clone(),
            _ => {
                let held = folder.clone();
                let namespace =
                    spawn_blocking(move || mycelium_node::held_network(&held).map_or_else(netns::create, Ok)).await??;
                parts.machine.join(seat.net.clone(), namespace).await?
            }
        };
        let node = Node::new(NodeConfig {
            client: parts.client.clone(),
            env: parts.env.clone(),
            images: Arc::new(Shared(self.clone())),
            data_dir: folder,
            volumes: parts.data_dir.join("volumes"),
            seccomp: parts.data_dir.join("seccomp"),
            instance: parts.instance.clone(),
            number: seat.number,
            labels: if self.seats.len() > 1 { labels(seat.number) } else { BTreeMap::new() },
            renew: parts.renew,
            name: name.to_owned(),
            ips: vec![network.node_ip().to_string()],
            pod_cidr: Some(seat.net.pod_cidr.to_string()),
            cluster_domain: seat.net.cluster_domain.clone(),
            network: Arc::new(network),
            pressure: parts.pressure.clone(),
            shim: NodeConfig::own_shim(),
        })?;
        let (stop, mut stopped) = watch::channel(false);
        let (agent, name) = (node.clone(), name.to_owned());
        let task = tokio::spawn(async move {
            let shutdown = async move {
                // An error means that nobody can stop it any more: the engine ends.
                let _ = stopped.wait_for(|stopped| *stopped).await;
            };
            if let Err(error) = agent.run(shutdown).await {
                tracing::error!(error = format!("{:#}", anyhow::Error::new(error)), node = name, "the node stopped");
            }
        });
        *seat.running() = Some(Running { node, stop, task });
        Ok(())
    }

    /// The loss of power: the agent says nothing more, and then all that runs is killed.
    async fn power_off(&self, name: &str, seat: &Seat) -> Result<()> {
        let running = seat.running().take();
        if let Some(running) = running {
            running.stop.send_replace(true);
            let _ = running.task.await;
        }
        let parts = &self.parts;
        let (folder, instance) = (mycelium_node::folder_of(&parts.data_dir, seat.number), parts.instance.clone());
        let number = seat.number;
        let killed = spawn_blocking(move || mycelium_node::cut_power(&folder, &instance, number));
        if number == 1 {
            killed.await??;
            for (uid, _) in parts.machine.pods() {
                parts.machine.detach_pod(&uid).await?;
            }
            return Ok(());
        }
        parts.machine.part(name).await?;
        Ok(killed.await??)
    }

    fn running(&self) -> impl Iterator<Item = (&str, Node)> {
        let seats = self.seats.iter();
        seats.filter_map(|(name, seat)| Some((name.as_str(), seat.running().as_ref()?.node.clone())))
    }

    /// A node that runs.
    pub fn node(&self, name: &str) -> Option<Node> {
        self.seats.get(name)?.running().as_ref().map(|running| running.node.clone())
    }

    /// Whether there is such a node.
    pub fn has(&self, name: &str) -> bool {
        self.seats.contains_key(name)
    }

    /// The nodes that run, by name.
    pub fn nodes(&self) -> Vec<(String, Node)> {
        self.running().map(|(name, node)| (name.to_owned(), node)).collect()
    }
}

impl Seat {
    fn running(&self) -> MutexGuard<'_, Option<Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_off(node: &NodeObject) -> bool {
    node.annotations().get(POWER).is_some_and(|power| power == OFF)
}

/// Where a node is. A single one is nowhere in particular.
fn labels(number: u32) -> BTreeMap<String, String> {
    let zone = format!("zone-{}", (number - 1) % ZONES + 1);
    BTreeMap::from([
        ("topology.kubernetes.io/zone".to_owned(), zone),
        ("topology.kubernetes.io/region".to_owned(), REGION.to_owned()),
    ])
}

/// The machine's images, as one of several nodes sees them: those that another node uses are kept.
struct Shared(Fleet);

impl ImageSource for Shared {
    fn resolve<'a>(&'a self, reference: &'a str) -> BoxFuture<'a, Result<Option<PodImage>, ImageError>> {
        ImageSource::resolve(&self.0.parts.images, reference)
    }

    fn pull<'a>(
        &'a self,
        reference: &'a str,
        secrets: &'a [PullSecret],
    ) -> BoxFuture<'a, Result<PodImage, ImageError>> {
        ImageSource::pull(&self.0.parts.images, reference, secrets)
    }

    fn collect<'a>(&'a self, used: &'a [String], how: Collect) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            let others = self.0.running().flat_map(|(_, node)| node.images_in_use());
            let used: Vec<String> = used.iter().cloned().chain(others).collect();
            ImageSource::collect(&self.0.parts.images, &used, how).await;
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_take_turns_in_three_zones() {
        let zone = |number| labels(number)["topology.kubernetes.io/zone"].clone();
        assert_eq!([1, 2, 3, 4].map(zone), ["zone-1", "zone-2", "zone-3", "zone-1"]);
        assert_eq!([1, 2].map(|number| name("host", number)), ["host", "host-2"]);
    }
}

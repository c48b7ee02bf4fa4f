//! The network of one node: set up once, pods come and go.
//!
//! The first node's is the machine's own. Every other node has a network namespace, set up in the same way from inside and
//! joined to the machine's by a link (`uplink`). The namespace lives as long as somebody holds it: this engine, and the
//! shim of each of its pods; nothing on disk or in a mount table names it.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use k8s_openapi::api::core::v1::PodDNSConfig;
use mycelium_linux::netns;
use tokio::sync::{Notify, watch};

use crate::cluster::Cluster;
use crate::compile::{Site, compile};
use crate::config::{Names, NetConfig};
use crate::error::NetError;
use crate::guard::{self, Guard};
use crate::host::{self, Host};
use crate::ipam::Ipam;
use crate::nft;
use crate::pod::{self, Wiring};
use crate::programmer::Programmer;
use crate::resolv::{self, Resolver};
use crate::uplink;

/// A pod's place on the network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodNet {
    /// Its address.
    pub ip: Ipv4Addr,
    /// The host's end of its pair of interfaces.
    pub interface: String,
}

/// The network of one node. Cheap to clone.
#[derive(Clone)]
pub struct Network {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) config: NetConfig,
    pub(crate) names: Names,
    mtu: u32,
    pub(crate) api: Mutex<Option<SocketAddrV4>>,
    ipam: Mutex<Ipam>,
    /// Told when something that the rules depend on, but no watch shows, has changed.
    pub(crate) changed: Arc<Notify>,
    /// Which pods the rules in force know.
    pub(crate) guard: watch::Sender<Guard>,
    /// The node's network namespace, where that is not the machine's.
    namespace: Option<Arc<OwnedFd>>,
    /// What is in the kernel.
    pub(crate) programmer: Mutex<Programmer>,
    /// The machine's address towards the world, for a node that has another.
    machine_ip: Option<Ipv4Addr>,
    /// The other nodes, for the machine.
    others: Mutex<BTreeMap<String, Network>>,
}

impl Network {
    /// Makes the anchor interface, the ranges' routes and the basic rules, or adopts those of an earlier run together with
    /// the pods that are still connected. Rules of an earlier run stay in force until [`Network::run`] knows the cluster.
    pub async fn setup(config: NetConfig) -> Result<Self, NetError> {
        blocking(move || {
            config.validate()?;
            let names = config.names();
            // `nft` works while the interfaces are made: together they take no longer than the slower one.
            let rules = if host::is_set_up(&names)? { None } else { Some(start_rules(&config, &names)?) };
            let host = host::setup(&config, &names);
            if let Some(rules) = rules {
                rules.finish()?;
                if host.is_err() {
                    nft::apply(&format!("delete table ip {}\n", names.table))?;
                }
            }
            Ok(Self::new(config, host?, Arc::default(), None, None))
        })
        .await
    }

    fn new(
        config: NetConfig,
        host: Host,
        changed: Arc<Notify>,
        namespace: Option<Arc<OwnedFd>>,
        machine_ip: Option<Ipv4Addr>,
    ) -> Self {
        let names = config.names();
        let inner = Inner {
            mtu: host.mtu,
            api: Mutex::new(config.api),
            ipam: Mutex::new(Ipam::new(config.pod_cidr, host.pods)),
            changed,
            guard: watch::Sender::default(),
            namespace,
            programmer: Mutex::new(Programmer::new(names.table.clone())),
            machine_ip,
            others: Mutex::default(),
            names,
            config,
        };
        Self { inner: Arc::new(inner) }
    }

    /// Sets up the network of another node, this being the machine's: joins the namespace to this one, or adopts it with
    /// all that an earlier run made there. From then on [`Network::run`] cares for it too.
    pub async fn join(&self, config: NetConfig, namespace: OwnedFd) -> Result<Self, NetError> {
        let changed = self.inner.changed.clone();
        let (mtu, machine_ip, name) = (self.inner.mtu, self.node_ip(), config.node.clone());
        let joined = blocking(move || {
            let Some(uplink) = config.uplink else { return Err(NetError::NoUplink(config.node)) };
            uplink::connect(&config, uplink, &namespace, mtu)?;
            let set_up = || {
                let host = host::setup(&config, &config.names())?;
                uplink::route_inside(&config, uplink)?;
                Ok(Host { mtu, ..host })
            };
            let host = inside(Some(&namespace), set_up)?;
            uplink::route_outside(&config, uplink)?;
            Ok(Self::new(config, host, changed, Some(Arc::new(namespace)), Some(machine_ip)))
        })
        .await?;
        *joined.api() = *self.api();
        joined.inner.guard.send_replace(Guard::Learning);
        self.others().insert(name, joined.clone());
        self.inner.changed.notify_one();
        Ok(joined)
    }

    /// Cuts another node off, this being the machine's network. Its namespace is gone when nobody is in it any more.
    pub async fn part(&self, name: &str) -> Result<(), NetError> {
        let Some(gone) = self.others().remove(name) else { return Ok(()) };
        let Some(uplink) = gone.inner.config.uplink else { return Ok(()) };
        self.inner.changed.notify_one();
        blocking(move || pod::detach(&gone.inner.names.link(uplink.number))).await
    }

    /// This network and those of the other nodes, if this is the machine's.
    pub(crate) fn all(&self) -> Vec<Self> {
        std::iter::once(self.clone()).chain(self.others().values().cloned()).collect()
    }

    /// The node's network namespace, where that is not the machine's.
    pub fn namespace(&self) -> Option<Arc<OwnedFd>> {
        self.inner.namespace.clone()
    }

    /// Does what reads or changes the node's interfaces and rules.
    pub(crate) fn inside<T: Send>(&self, work: impl FnOnce() -> Result<T, NetError> + Send) -> Result<T, NetError> {
        inside(self.inner.namespace.as_deref(), work)
    }

    /// Connects the network namespace of a pod and gives it an address. Repeating it for the same pod keeps the address
    /// and makes the connection anew. Returns when the policies that select the pod are in force.
    pub async fn attach_pod(&self, namespace: OwnedFd, uid: &str) -> Result<PodNet, NetError> {
        let (network, owned) = (self.clone(), uid.to_owned());
        let net = blocking(move || network.inside(|| network.attach(&namespace, &owned))).await?;
        if self.inner.guard.borrow().is_open_to(uid) {
            self.inner.changed.notify_one();
            guard::wait(&self.inner.guard, uid).await;
        }
        Ok(net)
    }

    fn attach(&self, namespace: &OwnedFd, uid: &str) -> Result<PodNet, NetError> {
        let (address, offset) = {
            let mut ipam = self.ipam();
            let offset = ipam.allocate(uid)?;
            (ipam.address(offset), offset)
        };
        let interface = self.inner.names.pod(offset);
        let gateway = self.inner.config.gateway();
        let wiring =
            Wiring { uid, interface: &interface, group: self.inner.names.group, address, mtu: self.inner.mtu, gateway };
        if let Err(e) = pod::attach(&wiring, namespace.as_fd()) {
            self.ipam().release(uid);
            return Err(e);
        }
        Ok(PodNet { ip: address, interface })
    }

    /// Takes a pod off the network and frees its address. Fine when it is not there.
    pub async fn detach_pod(&self, uid: &str) -> Result<(), NetError> {
        let (network, uid) = (self.clone(), uid.to_owned());
        blocking(move || {
            let Some(offset) = network.ipam().find(&uid) else { return Ok(()) };
            network.inside(|| pod::detach(&network.inner.names.pod(offset)))?;
            network.ipam().release(&uid);
            Ok(())
        })
        .await
    }

    /// The address of a pod that is connected, also from before a restart.
    pub fn pod_ip(&self, uid: &str) -> Option<Ipv4Addr> {
        let ipam = self.ipam();
        ipam.find(uid).map(|offset| ipam.address(offset))
    }

    /// The uids and addresses of all connected pods.
    pub fn pods(&self) -> Vec<(String, Ipv4Addr)> {
        self.ipam().iter().map(|(uid, address)| (uid.to_owned(), address)).collect()
    }

    /// The node's address on the pod network; the API server listens there for pods.
    pub fn gateway(&self) -> Ipv4Addr {
        self.inner.config.gateway()
    }

    /// The node's address towards the world, or else on the pod network.
    pub fn node_ip(&self) -> Ipv4Addr {
        if self.inner.namespace.is_some() {
            return self.gateway();
        }
        self.inner.config.node_ip.or_else(host::node_ip).unwrap_or_else(|| self.gateway())
    }

    /// The cluster DNS address.
    pub fn dns_ip(&self) -> Ipv4Addr {
        self.inner.config.dns()
    }

    /// Says where the API server listens for pods, once that is known.
    pub fn set_api(&self, api: SocketAddrV4) {
        for network in self.all() {
            *network.api() = Some(api);
        }
        self.inner.changed.notify_one();
    }

    /// The `/etc/resolv.conf` of a pod.
    pub fn resolv_conf(
        &self,
        namespace: &str,
        host_network: bool,
        dns_policy: Option<&str>,
        dns_config: Option<&PodDNSConfig>,
    ) -> String {
        let host = resolv::Host::read(&self.inner.config.host_resolv_conf);
        // The machine's own servers may have an address that only the machine has.
        let elsewhere = host_network && self.inner.namespace.is_some();
        let dns_policy =
            if elsewhere && dns_policy.is_none_or(|p| p == "ClusterFirst") { Some("Default") } else { dns_policy };
        let resolver = Resolver { dns: self.dns_ip(), domain: &self.inner.config.cluster_domain, host: &host };
        resolver.resolv_conf(namespace, host_network, dns_policy, dns_config)
    }

    pub(crate) fn site(&self) -> Site {
        let mut site = Site::new(&self.inner.config, self.node_ip());
        site.api = *self.api();
        site.balancer_ip = self.inner.machine_ip.unwrap_or(site.node_ip);
        site
    }

    fn api(&self) -> MutexGuard<'_, Option<SocketAddrV4>> {
        self.inner.api.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn others(&self) -> MutexGuard<'_, BTreeMap<String, Self>> {
        self.inner.others.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ipam(&self) -> MutexGuard<'_, Ipam> {
        self.inner.ipam.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Removes every interface, route, rule and setting of an instance, whatever state it is in.
pub async fn teardown(instance: &str) -> Result<(), NetError> {
    let instance = instance.to_owned();
    blocking(move || host::teardown(&instance)).await
}

/// Begins to put the rules of an empty cluster in force.
fn start_rules(config: &NetConfig, names: &Names) -> Result<nft::Running, NetError> {
    let node_ip = config.node_ip.or_else(host::node_ip).unwrap_or_else(|| config.gateway());
    let site = Site::new(config, node_ip);
    Ok(nft::start(&compile(&site, &Cluster::default(), None).rules.render_replacing(&names.table))?)
}

fn inside<T: Send>(
    namespace: Option<&OwnedFd>,
    work: impl FnOnce() -> Result<T, NetError> + Send,
) -> Result<T, NetError> {
    match namespace {
        None => work(),
        Some(namespace) => {
            netns::run_in(namespace, || Ok(work())).map_err(NetError::io("enter the node's network namespace"))?
        }
    }
}

pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, NetError> + Send + 'static,
) -> Result<T, NetError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(e) => match e.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(e) => Err(NetError::io("wait for a network change")(std::io::Error::other(e))),
        },
    }
}

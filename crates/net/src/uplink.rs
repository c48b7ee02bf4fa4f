//! The link between the machine and a node with a network namespace of its own. Blocking.
//!
//! ```text
//!  node                                        machine
//!  my<id>up                                    my<id>nNN    forwarding, rp_filter=1
//!  default via the machine's address  ◄────►   the node's pod range via the node's address
//!  DNS address via the machine's address
//! ```
//!
//! Both addresses are on the pod network (the first of each part of the range) and belong to the anchors; the link itself
//! has none. Each end knows the other's Ethernet address for good. Both names are among the instance's own, so that rules
//! treat what comes through here as the pods' traffic that it is.

use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};

use ipnet::Ipv4Net;
use mycelium_linux::netlink::{Message, Socket};
use mycelium_linux::netns;

use crate::config::{NetConfig, Uplink};
use crate::error::NetError;
use crate::host::{self, mac};
use crate::link::{self, End, Setting, Via};

/// What is needed to reach the other end's address, before any route that leads there.
fn neighbour(index: u32, other: Ipv4Addr, source: Ipv4Addr) -> [Message; 2] {
    let via = Via { index, gateway: None, source: Some(source) };
    [link::neighbour(index, other, mac(other)), link::route(Ipv4Net::from(other), via)]
}

fn index(socket: &mut Socket, name: &str) -> Result<u32, NetError> {
    let found = link::find(socket, name).map_err(NetError::io(format!("look for {name}")))?;
    let missing = || NetError::io(format!("find {name}"))(std::io::ErrorKind::NotFound.into());
    found.map(|link| link.index).ok_or_else(missing)
}

/// Makes the link, or keeps the one that is there, and brings both ends up.
pub fn connect(config: &NetConfig, uplink: Uplink, namespace: &OwnedFd, mtu: u32) -> Result<(), NetError> {
    let names = config.names();
    let (outside, inside) = (names.link(uplink.number), names.uplink());
    let failed = || NetError::netlink(format!("make the link {outside} to the node {}", config.node));
    let there = netns::run_in(namespace, || Ok(host::open().map(|mut socket| link::find(&mut socket, &inside))))
        .map_err(NetError::io("enter the node's network namespace"))??
        .map_err(NetError::io(format!("look for {inside}")))?;
    let mut socket = host::open()?;
    if there.is_none() {
        // What is left of a namespace that is about to vanish.
        crate::pod::detach(&outside)?;
        let ends = (
            End { name: &outside, mac: mac(uplink.machine), group: names.group },
            End { name: &inside, mac: mac(config.gateway()), group: 0 },
        );
        socket.batch(&[link::create_pair(&ends.0, &ends.1, namespace.as_raw_fd(), mtu)]).map_err(failed())?;
    }
    let settings = [(Setting::Forwarding, 1), (Setting::RpFilter, 1), (Setting::RouteLocalnet, 1)];
    socket.batch(&[link::configure(&outside, None, &settings), link::up(&outside)]).map_err(failed())?;
    let settings = [(Setting::Forwarding, 1), (Setting::RouteLocalnet, 1)];
    let up = move || {
        let mut socket = host::open()?;
        let requests = [link::up("lo"), link::configure(&inside, None, &settings), link::up(&inside)];
        socket.batch(&requests).map_err(NetError::netlink("bring the node's link up"))
    };
    netns::run_in(namespace, || Ok(up())).map_err(NetError::io("enter the node's network namespace"))?
}

/// The node's routes through the link; its anchor must be there. To be called in its namespace.
pub fn route_inside(config: &NetConfig, uplink: Uplink) -> Result<(), NetError> {
    let mut socket = host::open()?;
    let index = index(&mut socket, &config.names().uplink())?;
    let via = Via { index, gateway: Some(uplink.machine), source: Some(config.gateway()) };
    let [known, near] = neighbour(index, uplink.machine, config.gateway());
    let far = [link::route(Ipv4Net::default(), via), link::route(Ipv4Net::from(config.dns()), via)];
    let requests: Vec<Message> = [known, near].into_iter().chain(far).collect();
    socket.batch(&requests).map_err(NetError::netlink("set the node's routes"))
}

/// The machine's routes through the link.
pub fn route_outside(config: &NetConfig, uplink: Uplink) -> Result<(), NetError> {
    let mut socket = host::open()?;
    let index = index(&mut socket, &config.names().link(uplink.number))?;
    let via = Via { index, gateway: Some(config.gateway()), source: Some(uplink.machine) };
    let [known, near] = neighbour(index, config.gateway(), uplink.machine);
    socket
        .batch(&[known, near, link::route(config.pod_cidr, via)])
        .map_err(NetError::netlink(format!("set the routes to the node {}", config.node)))
}

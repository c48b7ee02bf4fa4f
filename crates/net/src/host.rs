//! The host's side of the network: the anchor interface, forwarding, and taking it all down. Blocking.
//!
//! The anchor is a bridge without ports. It carries the node's address on the pod network and the cluster DNS address,
//! and the routes of both ranges end at it: what is routed to it had no pod and no service, and is rejected there.

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, UdpSocket};

use ipnet::Ipv4Net;
use mycelium_linux::netlink::{Family, Socket};

use crate::config::{Names, NetConfig};
use crate::conflict;
use crate::error::NetError;
use crate::firewall;
use crate::forwarding;
use crate::link::{self, Link, Mac, Route, Setting, Via};
use crate::nft;

/// A bridge without ports has no carrier.
const ANCHOR_SETTINGS: [(Setting, u32); 2] = [(Setting::Forwarding, 1), (Setting::IgnoreRoutesWithLinkdown, 0)];

/// What was found and made.
pub struct Host {
    /// Pods with an interface, by position of their address.
    pub pods: BTreeMap<u32, String>,
    /// Largest packet towards the world.
    pub mtu: u32,
}

/// An Ethernet address of ours; locally administered.
pub fn mac(address: Ipv4Addr) -> Mac {
    let [a, b, c, d] = address.octets();
    [0x02, 0x6d, a, b, c, d]
}

/// Opens a socket to the kernel's routing tables.
pub fn open() -> Result<Socket, NetError> {
    Socket::open(Family::Route).map_err(NetError::io("open a netlink socket"))
}

/// Whether an earlier run's anchor is there, so that its rules are in force.
pub fn is_set_up(names: &Names) -> Result<bool, NetError> {
    link::find(&mut open()?, &names.anchor)
        .map(|link| link.is_some())
        .map_err(NetError::io("look for the anchor interface"))
}

/// Makes the anchor, or adopts the one an earlier run left.
pub fn setup(config: &NetConfig, names: &Names) -> Result<Host, NetError> {
    let mut socket = open()?;
    let links = link::links(&mut socket).map_err(NetError::io("list the network interfaces"))?;
    let routes = link::routes(&mut socket).map_err(NetError::io("list the routes"))?;
    let pods = adopt(names, &links);
    // In a network namespace of our own nobody else has routes, and we have switched forwarding on ourselves.
    if config.uplink.is_none() {
        conflict::find(config, names, &links, &routes)?;
        forwarding::enable(&links).map_err(NetError::io("switch forwarding on"))?;
    }
    make_anchor(config, names, &mut socket, &links, &pods)?;
    Ok(Host { pods, mtu: mtu(&links, &routes) })
}

/// Switches forwarding on for interfaces that came up since, and gets pods through firewalls that did.
pub fn repair(names: &Names) -> Result<(), NetError> {
    firewall::open(names)?;
    let links = link::links(&mut open()?).map_err(NetError::io("list the network interfaces"))?;
    forwarding::enable(&links).map_err(NetError::io("switch forwarding on"))
}

/// The pods that have an interface: it carries the pod's uid as its description.
fn adopt(names: &Names, links: &[Link]) -> BTreeMap<u32, String> {
    let pods = links.iter().filter(|link| !link.alias.is_empty());
    pods.filter_map(|link| Some((names.pod_offset(&link.name)?, link.alias.clone()))).collect()
}

fn describe(config: &NetConfig) -> String {
    format!("--pod-cidr {} --service-cidr {} dns {}", config.cluster_cidr, config.service_cidr, config.dns())
}

fn make_anchor(
    config: &NetConfig,
    names: &Names,
    socket: &mut Socket,
    links: &[Link],
    pods: &BTreeMap<u32, String>,
) -> Result<(), NetError> {
    let wanted = describe(config);
    let found = links.iter().find(|link| link.name == names.anchor);
    match found {
        Some(link) if link.alias == wanted => {}
        Some(link) if !pods.is_empty() && !link.alias.is_empty() => {
            return Err(NetError::RangeInUse { running: link.alias.clone(), wanted });
        }
        Some(link) => {
            socket.batch(&[link::delete(link.index)]).map_err(NetError::netlink("delete the old anchor interface"))?
        }
        None => {}
    }
    let adopted = found.is_some_and(|link| link.alias == wanted);
    if !adopted {
        let create = link::create_bridge(&names.anchor, mac(config.gateway()), names.group);
        socket.batch(&[create]).map_err(NetError::netlink(format!("create the bridge {}", names.anchor)))?;
    }
    // All of this is idempotent: an earlier run may have stopped anywhere.
    let failed = || NetError::netlink(format!("configure the bridge {}", names.anchor));
    socket
        .batch(&[link::configure(&names.anchor, None, &ANCHOR_SETTINGS), link::up(&names.anchor)])
        .map_err(failed())?;
    let index = link::find(socket, &names.anchor)
        .and_then(|link| link.map(|link| link.index).ok_or_else(|| io::Error::from(io::ErrorKind::NotFound)))
        .map_err(NetError::io(format!("find the bridge {}", names.anchor)))?;
    let via = Via { index, gateway: None, source: Some(config.gateway()) };
    let mut requests = vec![
        link::address(index, config.gateway()),
        link::route(if config.uplink.is_some() { config.pod_cidr } else { config.cluster_cidr }, via),
        link::route(config.service_cidr, via),
    ];
    if config.uplink.is_none() {
        // The machine answers DNS for all nodes.
        requests.push(link::address(index, config.dns()));
    }
    requests.push(link::configure(&names.anchor, Some(&wanted), &[]));
    socket.batch(&requests).map_err(failed())
}

/// The largest packet of the interface that the default route uses.
fn mtu(links: &[Link], routes: &[Route]) -> u32 {
    let default = routes.iter().find(|route| route.to.prefix_len() == 0);
    let link = default.and_then(|route| links.iter().find(|link| link.index == route.index));
    link.map_or(1500, |link| link.mtu)
}

/// The address from which this machine speaks to the world, if it can.
pub fn node_ip() -> Option<Ipv4Addr> {
    // Connecting a datagram socket sends nothing; it only looks the route up. The address is one for documentation.
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    socket.connect((Ipv4Addr::new(203, 0, 113, 1), 9)).ok()?;
    match socket.local_addr().ok()?.ip() {
        std::net::IpAddr::V4(address) if !address.is_loopback() => Some(address),
        _ => None,
    }
}

/// Removes everything an instance has on the machine; fine when there is nothing, or half of it.
pub fn teardown(instance: &str) -> Result<(), NetError> {
    let names = Names::new(instance);
    let delete_table = format!("add table ip {0}\ndelete table ip {0}\n", names.table);
    let rules = nft::start(&delete_table);
    firewall::close(&names);
    let mut socket = open()?;
    // Refused when the group is empty; what it does not hold is deleted one by one below.
    let _ = socket.batch(&[link::delete_group(names.group)]);
    let links = link::links(&mut socket).map_err(NetError::io("list the network interfaces"))?;
    let (ours, others): (Vec<Link>, Vec<Link>) = links.into_iter().partition(|link| names.owns(&link.name));
    for (result, link) in socket
        .try_each(&ours.iter().map(|link| link::delete(link.index)).collect::<Vec<_>>())
        .map_err(NetError::io("delete the network interfaces"))?
        .into_iter()
        .zip(&ours)
    {
        match result {
            Err(e) if e.raw_os_error() != Some(link::nodev()) => {
                return Err(NetError::io(format!("delete the network interface {}", link.name))(e));
            }
            _ => {}
        }
    }
    if !others.iter().any(|link| Names::instance_of_anchor(&link.name).is_some()) {
        forwarding::restore().map_err(NetError::io("switch forwarding off"))?;
    }
    match rules.and_then(nft::Running::finish) {
        // Without `nft` there never was a table.
        Ok(()) | Err(nft::NftError::Missing(_)) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

/// Parses a range given by a user.
pub fn parse_range(flag: &str, text: &str) -> Result<Ipv4Net, String> {
    text.parse::<Ipv4Net>()
        .map(|range| range.trunc())
        .map_err(|_| format!("{flag} wants an IPv4 range such as 10.244.0.0/16, not {text:?}"))
}

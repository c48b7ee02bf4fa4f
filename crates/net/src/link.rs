//! Interfaces, addresses, routes and neighbours, as requests to the kernel.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::RawFd;
use std::path::Path;

use ipnet::Ipv4Net;
use mycelium_linux::netlink::{self, Answer, CREATE, DUMP, EXCL, Message, REPLACE, Socket, attr};

const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
const RTM_NEWADDR: u16 = 20;
const RTM_NEWROUTE: u16 = 24;
const RTM_GETROUTE: u16 = 26;
const RTM_NEWNEIGH: u16 = 28;

const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_LINKINFO: u16 = 18;
const IFLA_IFALIAS: u16 = 20;
const IFLA_AF_SPEC: u16 = 26;
const IFLA_GROUP: u16 = 27;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const VETH_INFO_PEER: u16 = 1;
const IFLA_INET_CONF: u16 = 1;
const IFLA_INET6_ADDR_GEN_MODE: u16 = 8;
const ADDR_GEN_MODE_NONE: u8 = 1;

const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PREFSRC: u16 = 7;
const RTA_TABLE: u16 = 15;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;

const AF_INET: u8 = 2;
const AF_INET6: u16 = 10;
const IFF_UP: u32 = 1;
const NUD_PERMANENT: u16 = 0x80;
const RT_TABLE_MAIN: u8 = 254;
const RTPROT_STATIC: u8 = 4;
const RTN_UNICAST: u8 = 1;
const SCOPE_UNIVERSE: u8 = 0;
const SCOPE_LINK: u8 = 253;

const LINK_HEADER: usize = 16;
const ROUTE_HEADER: usize = 12;

/// Per-interface IPv4 settings, by the kernel's numbers (`IPV4_DEVCONF_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Setting {
    /// Forward packets that come in here.
    Forwarding = 1,
    /// Answer ARP for addresses that are reached through other interfaces.
    ProxyArp = 3,
    /// Drop packets whose source is not routed back through here.
    RpFilter = 8,
    /// Treat 127.0.0.0/8 as routable here.
    RouteLocalnet = 26,
    /// Do not use routes while there is no carrier.
    IgnoreRoutesWithLinkdown = 29,
}

/// An Ethernet address.
pub type Mac = [u8; 6];

fn link_header(index: u32, flags: u32, change: u32) -> [u8; LINK_HEADER] {
    let mut header = [0; LINK_HEADER];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[8..12].copy_from_slice(&flags.to_ne_bytes());
    header[12..16].copy_from_slice(&change.to_ne_bytes());
    header
}

/// Creates a bridge.
pub fn create_bridge(name: &str, mac: Mac, group: u32) -> Message {
    Message::new(RTM_NEWLINK, CREATE | EXCL, &link_header(0, 0, 0))
        .attr_str(IFLA_IFNAME, name)
        .attr(IFLA_ADDRESS, &mac)
        .attr_u32(IFLA_GROUP, group)
        .nest(IFLA_LINKINFO, |info| netlink::put(info, IFLA_INFO_KIND, b"bridge"))
}

/// Creates a pair with names and addresses of the kernel's choice for the other end.
pub fn create_plain_pair(name: &str) -> Message {
    Message::new(RTM_NEWLINK, CREATE | EXCL, &link_header(0, 0, 0))
        .attr_str(IFLA_IFNAME, name)
        .nest(IFLA_LINKINFO, |info| netlink::put(info, IFLA_INFO_KIND, b"veth"))
}

/// One end of a pair of interfaces.
pub struct End<'a> {
    /// Interface name.
    pub name: &'a str,
    /// Ethernet address.
    pub mac: Mac,
    /// Group, for the host's end.
    pub group: u32,
}

/// Creates a pair, its `inside` end straight in another network namespace.
pub fn create_pair(outside: &End<'_>, inside: &End<'_>, namespace: RawFd, mtu: u32) -> Message {
    Message::new(RTM_NEWLINK, CREATE | EXCL, &link_header(0, 0, 0))
        .attr_str(IFLA_IFNAME, outside.name)
        .attr(IFLA_ADDRESS, &outside.mac)
        .attr_u32(IFLA_GROUP, outside.group)
        .attr_u32(IFLA_MTU, mtu)
        .nest(IFLA_LINKINFO, |info| {
            netlink::put(info, IFLA_INFO_KIND, b"veth");
            netlink::nest(info, IFLA_INFO_DATA, |data| {
                netlink::nest(data, VETH_INFO_PEER, |peer| {
                    peer.extend_from_slice(&link_header(0, 0, 0));
                    let mut name = inside.name.as_bytes().to_vec();
                    name.push(0);
                    netlink::put(peer, IFLA_IFNAME, &name);
                    netlink::put(peer, IFLA_ADDRESS, &inside.mac);
                    netlink::put(peer, IFLA_MTU, &mtu.to_ne_bytes());
                    netlink::put(peer, IFLA_NET_NS_FD, &namespace.to_ne_bytes());
                });
            });
        })
}

/// Changes settings, and with `alias` the description, of the interface of this name.
pub fn configure(name: &str, alias: Option<&str>, settings: &[(Setting, u32)]) -> Message {
    let ipv6 = Path::new("/proc/net/if_inet6").exists();
    let message = Message::new(RTM_NEWLINK, 0, &link_header(0, 0, 0)).attr_str(IFLA_IFNAME, name).nest(
        IFLA_AF_SPEC,
        |families| {
            netlink::nest(families, u16::from(AF_INET), |inet| {
                netlink::nest(inet, IFLA_INET_CONF, |conf| {
                    for (setting, value) in settings {
                        netlink::put(conf, *setting as u16, &value.to_ne_bytes());
                    }
                });
            });
            if ipv6 {
                // No link-local address: nothing here speaks IPv6, and its start-up chatter wakes every pod.
                netlink::nest(families, AF_INET6, |inet6| {
                    netlink::put(inet6, IFLA_INET6_ADDR_GEN_MODE, &[ADDR_GEN_MODE_NONE]);
                });
            }
        },
    );
    match alias {
        Some(alias) => message.attr(IFLA_IFALIAS, alias.as_bytes()),
        None => message,
    }
}

/// Brings the interface of this name up.
pub fn up(name: &str) -> Message {
    Message::new(RTM_NEWLINK, 0, &link_header(0, IFF_UP, IFF_UP)).attr_str(IFLA_IFNAME, name)
}

/// Deletes an interface.
pub fn delete(index: u32) -> Message {
    Message::new(RTM_DELLINK, 0, &link_header(index, 0, 0))
}

/// Deletes all interfaces of a group, which takes no longer than one.
pub fn delete_group(group: u32) -> Message {
    Message::new(RTM_DELLINK, 0, &link_header(0, 0, 0)).attr_u32(IFLA_GROUP, group)
}

/// Gives an interface a single address.
pub fn address(index: u32, address: Ipv4Addr) -> Message {
    let mut header = [AF_INET, 32, 0, SCOPE_UNIVERSE, 0, 0, 0, 0];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    Message::new(RTM_NEWADDR, CREATE | REPLACE, &header)
        .attr(IFA_LOCAL, &address.octets())
        .attr(IFA_ADDRESS, &address.octets())
}

/// Where a route leads.
#[derive(Clone, Copy, Debug)]
pub struct Via {
    /// The interface.
    pub index: u32,
    /// The next hop, for destinations not on the link itself.
    pub gateway: Option<Ipv4Addr>,
    /// The source address to use.
    pub source: Option<Ipv4Addr>,
}

/// Adds or replaces a route.
pub fn route(to: Ipv4Net, via: Via) -> Message {
    let scope = if via.gateway.is_some() { SCOPE_UNIVERSE } else { SCOPE_LINK };
    let header = [AF_INET, to.prefix_len(), 0, 0, RT_TABLE_MAIN, RTPROT_STATIC, scope, RTN_UNICAST, 0, 0, 0, 0];
    let mut message = Message::new(RTM_NEWROUTE, CREATE | REPLACE, &header).attr_u32(RTA_OIF, via.index);
    if to.prefix_len() > 0 {
        message = message.attr(RTA_DST, &to.network().octets());
    }
    if let Some(gateway) = via.gateway {
        message = message.attr(RTA_GATEWAY, &gateway.octets());
    }
    match via.source {
        Some(source) => message.attr(RTA_PREFSRC, &source.octets()),
        None => message,
    }
}

/// States a neighbour's Ethernet address for good, so that nobody has to ask.
pub fn neighbour(index: u32, address: Ipv4Addr, mac: Mac) -> Message {
    let mut header = [0; 12];
    header[0] = AF_INET;
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[8..10].copy_from_slice(&NUD_PERMANENT.to_ne_bytes());
    Message::new(RTM_NEWNEIGH, CREATE | REPLACE, &header).attr(NDA_DST, &address.octets()).attr(NDA_LLADDR, &mac)
}

/// An interface that exists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its number.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its description.
    pub alias: String,
    /// Largest packet.
    pub mtu: u32,
    /// Forwards IPv4 packets that come in.
    pub forwarding: bool,
}

fn parse_link(answer: &Answer) -> Option<Link> {
    let attributes = answer.body.get(LINK_HEADER..)?;
    Some(Link {
        index: netlink::number(answer.body.get(4..)?)?,
        name: netlink::text(attr(attributes, IFLA_IFNAME)?),
        alias: attr(attributes, IFLA_IFALIAS).map(netlink::text).unwrap_or_default(),
        mtu: attr(attributes, IFLA_MTU).and_then(netlink::number).unwrap_or(1500),
        forwarding: setting(attributes, Setting::Forwarding) == Some(1),
    })
}

/// The value of an IPv4 setting among a link's attributes.
fn setting(attributes: &[u8], setting: Setting) -> Option<u32> {
    let all = attr(attr(attr(attributes, IFLA_AF_SPEC)?, u16::from(AF_INET))?, IFLA_INET_CONF)?;
    netlink::number(all.get((setting as usize - 1) * 4..)?)
}

/// All interfaces.
pub fn links(socket: &mut Socket) -> io::Result<Vec<Link>> {
    let answers = socket.get(&Message::new(RTM_GETLINK, DUMP, &link_header(0, 0, 0)))?;
    Ok(answers.iter().filter_map(parse_link).collect())
}

/// The interface of this name.
pub fn find(socket: &mut Socket, name: &str) -> io::Result<Option<Link>> {
    match socket.get(&Message::new(RTM_GETLINK, 0, &link_header(0, 0, 0)).attr_str(IFLA_IFNAME, name)) {
        Ok(answers) => Ok(answers.iter().find_map(parse_link)),
        Err(e) if e.raw_os_error() == Some(nodev()) => Ok(None),
        Err(e) => Err(e),
    }
}

/// `ENODEV`.
pub fn nodev() -> i32 {
    19
}

/// A route of the main table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// Destination.
    pub to: Ipv4Net,
    /// Interface.
    pub index: u32,
}

/// The IPv4 routes of the main table.
pub fn routes(socket: &mut Socket) -> io::Result<Vec<Route>> {
    let mut header = [0; ROUTE_HEADER];
    header[0] = AF_INET;
    let answers = socket.get(&Message::new(RTM_GETROUTE, DUMP, &header))?;
    Ok(answers.iter().filter_map(parse_route).collect())
}

fn parse_route(answer: &Answer) -> Option<Route> {
    let (family, length, table) = (*answer.body.first()?, *answer.body.get(1)?, *answer.body.get(4)?);
    let attributes = answer.body.get(ROUTE_HEADER..)?;
    let table = attr(attributes, RTA_TABLE).and_then(netlink::number).unwrap_or(u32::from(table));
    if family != AF_INET || table != u32::from(RT_TABLE_MAIN) {
        return None;
    }
    let to = attr(attributes, RTA_DST).map_or(Some(Ipv4Addr::UNSPECIFIED), ipv4)?;
    let index = attr(attributes, RTA_OIF).and_then(netlink::number).unwrap_or(0);
    Some(Route { to: Ipv4Net::new(to, length).ok()?, index })
}

fn ipv4(value: &[u8]) -> Option<Ipv4Addr> {
    Some(Ipv4Addr::from(<[u8; 4]>::try_from(value.get(..4)?).ok()?))
}

//! A pod's pair of interfaces. Blocking.
//!
//! ```text
//!  pod                                   host
//!  eth0  IP/32                           my<id>NNNN   forwarding, proxy_arp, rp_filter=1, route_localnet
//!  169.254.1.1 dev eth0 (link)   ◄────►  IP/32 dev my<id>NNNN
//!  default via 169.254.1.1
//! ```
//!
//! Both ends know the other's Ethernet address for good, so that not even the first packet waits for an answer.
//! `rp_filter` drops what a pod sends under another's address. `route_localnet` lets node ports answer on 127.0.0.1;
//! a rule keeps pods from reaching the node's own 127.0.0.0/8 that way.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, BorrowedFd};

use ipnet::Ipv4Net;
use mycelium_linux::netlink::{BatchError, Family, Socket};
use mycelium_linux::netns;

use crate::error::NetError;
use crate::host::{self, mac};
use crate::link::{self, End, Mac, Setting, Via};

/// The next hop of every pod; it exists only as a static neighbour.
const NEXT_HOP: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
const HOST_MAC: Mac = [0x02, 0x6d, 169, 254, 1, 1];
const INSIDE: &str = "eth0";

/// What to connect.
pub struct Wiring<'a> {
    /// The pod's uid, which the interface keeps as its description.
    pub uid: &'a str,
    /// Name of the host's end.
    pub interface: &'a str,
    /// The group of the instance's interfaces.
    pub group: u32,
    /// The pod's address.
    pub address: Ipv4Addr,
    /// Largest packet.
    pub mtu: u32,
    /// The node's address on the pod network, from which it speaks to the pod.
    pub gateway: Ipv4Addr,
}

/// Connects a network namespace; a pair of the same name from before is replaced.
pub fn attach(wiring: &Wiring<'_>, namespace: BorrowedFd<'_>) -> Result<(), NetError> {
    let mut socket = host::open()?;
    let result = try_attach(wiring, namespace, &mut socket);
    if result.is_err() {
        // The reason of the failure is the better error than one of the cleaning up.
        let _ = remove(&mut socket, wiring.interface);
    }
    result
}

fn try_attach(wiring: &Wiring<'_>, namespace: BorrowedFd<'_>, socket: &mut Socket) -> Result<(), NetError> {
    let failed = || NetError::netlink(format!("connect the pod's network through {}", wiring.interface));
    let outside = End { name: wiring.interface, mac: HOST_MAC, group: wiring.group };
    let inside = End { name: INSIDE, mac: mac(wiring.address), group: 0 };
    let create = [
        link::create_pair(&outside, &inside, namespace.as_raw_fd(), wiring.mtu),
        link::configure(
            wiring.interface,
            Some(wiring.uid),
            &[(Setting::Forwarding, 1), (Setting::ProxyArp, 1), (Setting::RpFilter, 1), (Setting::RouteLocalnet, 1)],
        ),
        link::up(wiring.interface),
    ];
    if let Err(e) = socket.batch(&create) {
        if !is_left_over(&e) {
            return Err(failed()(e));
        }
        remove(socket, wiring.interface)?;
        socket.batch(&create).map_err(failed())?;
    }
    netns::run_in(namespace, || configure_inside(wiring.address))
        .map_err(NetError::io(format!("configure the pod's end of {}", wiring.interface)))?;
    let index = index_of(socket, wiring.interface).map_err(NetError::io(format!("find {}", wiring.interface)))?;
    let to = Ipv4Net::from(wiring.address);
    let via = Via { index, gateway: None, source: Some(wiring.gateway) };
    socket.batch(&[link::neighbour(index, wiring.address, mac(wiring.address)), link::route(to, via)]).map_err(failed())
}

/// `EEXIST` for the pair itself: a crash left one.
fn is_left_over(error: &BatchError) -> bool {
    const EEXIST: i32 = 17;
    error.index == 0 && error.errno() == Some(EEXIST)
}

fn index_of(socket: &mut Socket, name: &str) -> io::Result<u32> {
    link::find(socket, name)?.map(|link| link.index).ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
}

fn configure_inside(address: Ipv4Addr) -> io::Result<()> {
    let mut socket = Socket::open(Family::Route)?;
    let index = index_of(&mut socket, INSIDE)?;
    let route = |to: Ipv4Net, gateway, source| link::route(to, Via { index, gateway, source });
    let result = socket.batch(&[
        link::up("lo"),
        link::configure(INSIDE, None, &[]),
        link::up(INSIDE),
        link::address(index, address),
        link::neighbour(index, NEXT_HOP, HOST_MAC),
        route(Ipv4Net::from(NEXT_HOP), None, None),
        route(Ipv4Net::default(), Some(NEXT_HOP), Some(address)),
    ]);
    result.map_err(|e| e.source)
}

/// Removes the host's end and with it the pair; fine when it is gone.
pub fn detach(interface: &str) -> Result<(), NetError> {
    remove(&mut host::open()?, interface)
}

fn remove(socket: &mut Socket, interface: &str) -> Result<(), NetError> {
    let failed = || format!("delete the network interface {interface}");
    let Some(link) = link::find(socket, interface).map_err(NetError::io(failed()))? else { return Ok(()) };
    match socket.batch(&[link::delete(link.index)]) {
        Err(e) if e.errno() != Some(link::nodev()) => Err(NetError::netlink(failed())(e)),
        _ => Ok(()),
    }
}

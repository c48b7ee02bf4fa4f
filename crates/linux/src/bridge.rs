//! Bridges and their ports, by netlink.

use std::io;

use crate::netlink::{self, Answer, CREATE, EXCL, Message, Socket, attr};

const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_INFO_KIND: u16 = 1;
const IFF_UP: u32 = 1;
const LINK_HEADER: usize = 16;

/// An interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its number.
    pub index: u32,
    /// Largest packet.
    pub mtu: u32,
    /// Its kind: `bridge`, `veth`, `tun` (also for a tap), or nothing for hardware.
    pub kind: String,
    /// Number of the bridge it is a port of.
    pub master: Option<u32>,
    /// Whether it is switched on.
    pub up: bool,
}

fn header(flags: u32, change: u32) -> [u8; LINK_HEADER] {
    let mut header = [0; LINK_HEADER];
    header[8..12].copy_from_slice(&flags.to_ne_bytes());
    header[12..16].copy_from_slice(&change.to_ne_bytes());
    header
}

fn change(socket: &mut Socket, message: Message) -> io::Result<()> {
    socket.batch(&[message]).map_err(|error| error.source)
}

/// Creates a bridge and switches it on.
pub fn create(socket: &mut Socket, name: &str) -> io::Result<()> {
    let message = Message::new(RTM_NEWLINK, CREATE | EXCL, &header(IFF_UP, IFF_UP))
        .attr_str(IFLA_IFNAME, name)
        .nest(IFLA_LINKINFO, |info| netlink::put(info, IFLA_INFO_KIND, b"bridge"));
    change(socket, message)
}

/// The interface of this name. `ENODEV` when there is none.
pub fn find(socket: &mut Socket, name: &str) -> io::Result<Link> {
    let answers = socket.get(&Message::new(RTM_GETLINK, 0, &header(0, 0)).attr_str(IFLA_IFNAME, name))?;
    answers.iter().find_map(parse).ok_or_else(|| io::Error::from_raw_os_error(libc::ENODEV))
}

fn parse(answer: &Answer) -> Option<Link> {
    let attributes = answer.body.get(LINK_HEADER..)?;
    let kind = attr(attributes, IFLA_LINKINFO).and_then(|info| attr(info, IFLA_INFO_KIND));
    Some(Link {
        index: netlink::number(answer.body.get(4..)?)?,
        mtu: attr(attributes, IFLA_MTU).and_then(netlink::number).unwrap_or(1500),
        kind: kind.map(netlink::text).unwrap_or_default(),
        master: attr(attributes, IFLA_MASTER).and_then(netlink::number).filter(|index| *index != 0),
        up: netlink::number(answer.body.get(8..)?)? & IFF_UP != 0,
    })
}

/// Makes `port` a port of `bridge`, after giving it the bridge's largest packet: a port with a smaller one would
/// lower the bridge's, and with it that of everything behind it.
pub fn attach(socket: &mut Socket, port: &str, bridge: &str) -> io::Result<()> {
    let found = find(socket, bridge)?;
    if found.kind != "bridge" {
        let kind = if found.kind.is_empty() { "a network card" } else { &found.kind };
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{bridge} is not a bridge but {kind}")));
    }
    if find(socket, port)?.mtu != found.mtu {
        set_mtu(socket, port, found.mtu)?;
    }
    let message = Message::new(RTM_NEWLINK, 0, &header(0, 0)).attr_str(IFLA_IFNAME, port);
    change(socket, message.attr_u32(IFLA_MASTER, found.index))
}

/// Sets the largest packet of an interface.
pub fn set_mtu(socket: &mut Socket, name: &str, mtu: u32) -> io::Result<()> {
    change(socket, Message::new(RTM_NEWLINK, 0, &header(0, 0)).attr_str(IFLA_IFNAME, name).attr_u32(IFLA_MTU, mtu))
}

/// Switches an interface on or off.
pub fn set_up(socket: &mut Socket, name: &str, up: bool) -> io::Result<()> {
    let flags = if up { IFF_UP } else { 0 };
    change(socket, Message::new(RTM_NEWLINK, 0, &header(flags, IFF_UP)).attr_str(IFLA_IFNAME, name))
}

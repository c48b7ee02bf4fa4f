//! Which addresses the guest uses, from what it says about itself: ARP for IPv4, neighbour discovery for IPv6.
//!
//! Only its own statements count. The source of an ordinary packet is no proof: a guest that routes for others would
//! have us announce their addresses.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use mycelium_api::endophyte::Mac;
use serde::{Deserialize, Serialize};

/// More addresses than this are not remembered; the one that was heard from least recently goes.
const MAX: usize = 64;

const ETHERTYPE_ARP: u16 = 0x0806;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const ETHERTYPE_VLAN: u16 = 0x8100;
const ICMPV6: u8 = 58;
const NEIGHBOUR_SOLICITATION: u8 = 135;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;

/// An address of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LearnedAddress {
    /// The Ethernet address that it is reached at.
    pub mac: Mac,
    /// The address.
    pub ip: IpAddr,
    /// The virtual network it is in, where the guest tags its frames.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vlan: Option<u16>,
}

/// The addresses of the guest, the most recently heard last. It travels with every epoch, so that whoever takes over
/// can announce them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Learned {
    addresses: Vec<LearnedAddress>,
}

impl Learned {
    /// The addresses.
    pub fn addresses(&self) -> &[LearnedAddress] {
        &self.addresses
    }

    /// As bytes, for the `network` part of an epoch.
    pub fn to_bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// From what [`Self::to_bytes`] made; no bytes are no addresses.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, serde_json::Error> {
        if bytes.is_empty() { Ok(Self::default()) } else { serde_json::from_slice(bytes) }
    }

    /// Looks at a frame that the guest sends. True when it told something new.
    pub fn observe(&mut self, frame: &[u8]) -> bool {
        let Some(address) = stated(frame) else { return false };
        let known = self.addresses.iter().position(|a| a.ip == address.ip && a.vlan == address.vlan);
        let news = known.is_none_or(|at| self.addresses[at].mac != address.mac);
        if let Some(at) = known {
            self.addresses.remove(at);
        } else if self.addresses.len() >= MAX {
            self.addresses.remove(0);
        }
        self.addresses.push(address);
        news
    }
}

/// The address of itself that a frame states.
fn stated(frame: &[u8]) -> Option<LearnedAddress> {
    let (ethertype, vlan, body) = match (half(frame, 12)?, frame.get(14..)?) {
        (ETHERTYPE_VLAN, rest) => (half(rest, 2)?, Some(half(rest, 0)? & 0x0fff), rest.get(4..)?),
        (ethertype, rest) => (ethertype, None, rest),
    };
    let source = Mac(*frame.get(6..)?.first_chunk()?);
    let (mac, ip) = match ethertype {
        ETHERTYPE_ARP => arp(body)?,
        ETHERTYPE_IPV6 => (source, neighbour(body)?),
        _ => return None,
    };
    (mac == source && !mac.is_group()).then_some(LearnedAddress { mac, ip, vlan })
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|b| u16::from_be_bytes(*b))
}

/// The sender of an ARP packet for IPv4 over Ethernet.
fn arp(body: &[u8]) -> Option<(Mac, IpAddr)> {
    if body.get(..6)? != [0, 1, 8, 0, 6, 4] {
        return None;
    }
    let ip = Ipv4Addr::from(*body.get(14..)?.first_chunk::<4>()?);
    let usable = !ip.is_unspecified() && !ip.is_multicast() && !ip.is_broadcast();
    usable.then_some((Mac(*body.get(8..)?.first_chunk()?), IpAddr::V4(ip)))
}

/// The source of a neighbour solicitation, or the target of an advertisement: what its sender calls its own.
fn neighbour(body: &[u8]) -> Option<IpAddr> {
    // Hop limit 255: it comes from this link.
    if *body.get(6)? != ICMPV6 || *body.get(7)? != 255 {
        return None;
    }
    let address = |at: usize| body.get(at..)?.first_chunk::<16>().map(|b| Ipv6Addr::from(*b));
    let ip = match *body.get(40)? {
        NEIGHBOUR_SOLICITATION => address(8)?,
        NEIGHBOUR_ADVERTISEMENT => address(48)?,
        _ => return None,
    };
    (!ip.is_unspecified() && !ip.is_multicast()).then_some(IpAddr::V6(ip))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::announce;
    use super::*;

    proptest! {
        #[test]
        fn any_bytes_are_looked_at_and_what_is_announced_is_learned(
            noise in prop::collection::vec(any::<u8>(), 0..120),
            v4 in any::<[u8; 4]>(),
            v6 in any::<[u8; 16]>(),
            vlan in prop::option::of(0_u16..4096),
        ) {
            let mut learned = Learned::default();
            learned.observe(&noise);
            let mac = Mac([0x52, 0x54, 0, 1, 2, 3]);
            for ip in [IpAddr::from(v4), IpAddr::from(v6)] {
                let address = LearnedAddress { mac, ip, vlan };
                let mut learned = Learned::default();
                for frame in announce::address(&address) {
                    learned.observe(&frame);
                }
                if !ip.is_unspecified() && !ip.is_multicast() && ip != IpAddr::from([255; 4]) {
                    prop_assert_eq!(learned.addresses(), &[address]);
                    prop_assert_eq!(Learned::from_bytes(&learned.to_bytes()).unwrap(), learned);
                }
            }
        }
    }

    #[test]
    fn a_table_is_bounded_and_keeps_the_latest() {
        let mut learned = Learned::default();
        for n in 0..200_u8 {
            let ip = IpAddr::from([10, 0, 0, n]);
            let address = LearnedAddress { mac: Mac([2, 0, 0, 0, 0, n]), ip, vlan: None };
            announce::address(&address).iter().for_each(|frame| {
                learned.observe(frame);
            });
        }
        assert_eq!(learned.addresses().len(), MAX);
        assert_eq!(learned.addresses().last().map(|a| a.ip), Some(IpAddr::from([10, 0, 0, 199])));
    }
}

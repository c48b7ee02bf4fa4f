//! Frames that tell the network where the guest is now: switches by RARP, neighbours by gratuitous ARP (as a request
//! and as a reply: each is ignored by some) and by unsolicited neighbour advertisements.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use mycelium_api::endophyte::Mac;

use super::learned::LearnedAddress;

const BROADCAST: Mac = Mac([0xff; 6]);
const ALL_NODES_MAC: Mac = Mac([0x33, 0x33, 0, 0, 0, 1]);
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
/// The shortest Ethernet frame, without its checksum.
const FRAME_MIN: usize = 60;
const REQUEST: u16 = 1;
const REPLY: u16 = 2;
const REVERSE_REQUEST: u16 = 3;

/// A frame that needs no address: every switch learns from its source where the guest is.
pub(super) fn rarp(mac: Mac) -> Vec<u8> {
    let mut frame = ethernet(BROADCAST, mac, None, 0x8035);
    arp_body(&mut frame, REVERSE_REQUEST, mac, Ipv4Addr::UNSPECIFIED, mac, Ipv4Addr::UNSPECIFIED);
    padded(frame)
}

/// The frames that announce one address.
pub(super) fn address(address: &LearnedAddress) -> Vec<Vec<u8>> {
    let LearnedAddress { mac, ip, vlan } = *address;
    match ip {
        IpAddr::V4(ip) => [(REQUEST, Mac([0; 6])), (REPLY, BROADCAST)]
            .into_iter()
            .map(|(operation, target)| {
                let mut frame = ethernet(BROADCAST, mac, vlan, 0x0806);
                arp_body(&mut frame, operation, mac, ip, target, ip);
                padded(frame)
            })
            .collect(),
        IpAddr::V6(ip) => vec![advertisement(mac, ip, vlan)],
    }
}

fn ethernet(to: Mac, from: Mac, vlan: Option<u16>, ethertype: u16) -> Vec<u8> {
    let mut frame = Vec::with_capacity(96);
    frame.extend_from_slice(&to.0);
    frame.extend_from_slice(&from.0);
    if let Some(vlan) = vlan {
        frame.extend_from_slice(&0x8100_u16.to_be_bytes());
        frame.extend_from_slice(&vlan.to_be_bytes());
    }
    frame.extend_from_slice(&ethertype.to_be_bytes());
    frame
}

fn arp_body(frame: &mut Vec<u8>, operation: u16, from: Mac, from_ip: Ipv4Addr, to: Mac, to_ip: Ipv4Addr) {
    // Ethernet, IPv4, and the lengths of their addresses.
    frame.extend_from_slice(&[0, 1, 8, 0, 6, 4]);
    frame.extend_from_slice(&operation.to_be_bytes());
    frame.extend_from_slice(&from.0);
    frame.extend_from_slice(&from_ip.octets());
    frame.extend_from_slice(&to.0);
    frame.extend_from_slice(&to_ip.octets());
}

/// RFC 4861, section 7.2.6: not solicited, overriding what is known, with our link-layer address.
fn advertisement(mac: Mac, ip: Ipv6Addr, vlan: Option<u16>) -> Vec<u8> {
    let mut message = vec![136, 0, 0, 0, 0x20, 0, 0, 0];
    message.extend_from_slice(&ip.octets());
    message.extend_from_slice(&[2, 1]);
    message.extend_from_slice(&mac.0);
    let sum = checksum(ip, ALL_NODES, &message);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    let mut frame = ethernet(ALL_NODES_MAC, mac, vlan, 0x86dd);
    frame.extend_from_slice(&[0x60, 0, 0, 0]);
    frame.extend_from_slice(&(message.len() as u16).to_be_bytes());
    frame.extend_from_slice(&[58, 255]);
    frame.extend_from_slice(&ip.octets());
    frame.extend_from_slice(&ALL_NODES.octets());
    frame.extend_from_slice(&message);
    padded(frame)
}

/// The checksum of ICMPv6 (RFC 4443, section 2.3), for a message of even length.
fn checksum(from: Ipv6Addr, to: Ipv6Addr, message: &[u8]) -> u16 {
    let words = |bytes: &[u8]| bytes.chunks_exact(2).map(|w| u32::from(u16::from_be_bytes([w[0], w[1]]))).sum::<u32>();
    let mut sum = words(&from.octets()) + words(&to.octets()) + words(message) + message.len() as u32 + 58;
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

fn padded(mut frame: Vec<u8>) -> Vec<u8> {
    if frame.len() < FRAME_MIN {
        frame.resize(FRAME_MIN, 0);
    }
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_advertisement_is_correct_to_the_checksum() {
        let mac = Mac([0x52, 0x54, 0, 0x12, 0x34, 0x56]);
        let frame = advertisement(mac, "fe80::5054:ff:fe12:3456".parse().expect("an address"), None);
        assert_eq!(frame.len(), 14 + 40 + 32);
        let message = &frame[54..];
        let zero = checksum("fe80::5054:ff:fe12:3456".parse().expect("an address"), ALL_NODES, message);
        assert_eq!(zero, 0, "a checksum over itself");
    }
}

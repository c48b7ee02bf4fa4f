//! Forgetting translated UDP flows whose backend is gone.
//!
//! A flow keeps its backend for as long as packets come. TCP clients notice a lost backend; a UDP client would speak
//! into the void for ever.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::Ipv4Addr;

use mycelium_linux::netlink::{DUMP, Family, Message, Socket, attr};

use crate::compile::Backend;
use crate::ruleset::Key;

const CT_GET: u16 = 0x0101;
const CT_DELETE: u16 = 0x0102;
const NFGEN_HEADER: [u8; 4] = [2, 0, 0, 0]; // AF_INET
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V4_DST: u16 = 2;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_SRC_PORT: u16 = 2;
const CTA_PROTO_DST_PORT: u16 = 3;
const IPPROTO_UDP: u8 = 17;

/// Backends of UDP frontends.
pub type Targets = BTreeMap<Key, BTreeSet<Backend>>;

/// What each frontend has lost.
pub fn removed(old: &Targets, new: &Targets) -> Targets {
    let lost = |key: &Key, backends: &BTreeSet<Backend>| -> BTreeSet<Backend> {
        new.get(key).map_or_else(|| backends.clone(), |now| backends - now)
    };
    let all = old.iter().map(|(key, backends)| (*key, lost(key, backends)));
    all.filter(|(_, backends)| !backends.is_empty()).collect()
}

/// Deletes the flows to removed backends; says how many there were.
pub fn flush(removed: &Targets) -> io::Result<usize> {
    if removed.is_empty() {
        return Ok(0);
    }
    let mut socket = Socket::open(Family::Netfilter)?;
    let flows = socket.get(&Message::new(CT_GET, DUMP, &NFGEN_HEADER))?;
    let stale = flows.iter().filter_map(|flow| stale(flow.body.get(4..)?, removed));
    let requests: Vec<Message> =
        stale.map(|tuple| Message::new(CT_DELETE, 0, &NFGEN_HEADER).attr(CTA_TUPLE_ORIG | NESTED, tuple)).collect();
    // A flow that has just ended by itself is as good.
    Ok(socket.try_each(&requests)?.iter().filter(|result| result.is_ok()).count())
}

const NESTED: u16 = 0x8000;

/// The original tuple of a flow that goes to a removed backend.
fn stale<'a>(flow: &'a [u8], removed: &Targets) -> Option<&'a [u8]> {
    let original = attr(flow, CTA_TUPLE_ORIG)?;
    let (to, from) = (tuple(original)?, tuple(attr(flow, CTA_TUPLE_REPLY)?)?);
    let frontends = [
        Key::Frontend(to.destination.0, crate::ruleset::Protocol::Udp, to.destination.1),
        Key::NodePort(crate::ruleset::Protocol::Udp, to.destination.1),
    ];
    let gone = frontends.iter().filter_map(|key| removed.get(key)).any(|backends| backends.contains(&from.source));
    (gone && to.destination != from.source).then_some(original)
}

struct Tuple {
    source: Backend,
    destination: Backend,
}

fn tuple(bytes: &[u8]) -> Option<Tuple> {
    let (addresses, protocol) = (attr(bytes, CTA_TUPLE_IP)?, attr(bytes, CTA_TUPLE_PROTO)?);
    if attr(protocol, CTA_PROTO_NUM)? != [IPPROTO_UDP] {
        return None;
    }
    let address = |kind| Some(Ipv4Addr::from(<[u8; 4]>::try_from(attr(addresses, kind)?).ok()?));
    let port = |kind| Some(u16::from_be_bytes(attr(protocol, kind)?.try_into().ok()?));
    Some(Tuple {
        source: (address(CTA_IP_V4_SRC)?, port(CTA_PROTO_SRC_PORT)?),
        destination: (address(CTA_IP_V4_DST)?, port(CTA_PROTO_DST_PORT)?),
    })
}

#[cfg(test)]
mod tests {
    use mycelium_linux::netlink;

    use super::*;
    use crate::ruleset::Protocol;

    #[test]
    fn only_lost_backends_are_removed() {
        let backend = |n| (Ipv4Addr::new(10, 0, 0, n), 53);
        let key = |port| Key::NodePort(Protocol::Udp, port);
        let old =
            Targets::from([(key(1), BTreeSet::from([backend(1), backend(2)])), (key(2), BTreeSet::from([backend(3)]))]);
        let new = Targets::from([(key(1), BTreeSet::from([backend(2), backend(4)]))]);
        let expected = Targets::from([(key(1), BTreeSet::from([backend(1)])), (key(2), BTreeSet::from([backend(3)]))]);
        assert_eq!(removed(&old, &new), expected);
        assert_eq!(removed(&new, &new), Targets::new());
    }

    #[test]
    fn garbage_is_no_flow() {
        assert!(stale(&[], &Targets::new()).is_none());
        let mut bytes = Vec::new();
        netlink::nest(&mut bytes, CTA_TUPLE_ORIG, |inner| netlink::put(inner, CTA_TUPLE_IP, &[1, 2]));
        assert!(stale(&bytes, &Targets::new()).is_none());
    }
}

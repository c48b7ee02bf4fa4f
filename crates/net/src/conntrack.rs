//! Forgetting translated UDP flows whose backend is gone.
//!
//! A flow keeps its backend for as long as packets come. TCP clients notice a lost backend; a UDP client would speak
//! into the void for ever.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::Ipv4Addr;

use mycelium_linux::netlink::{DUMP, Family, Message, Socket, attr};

use crate::compile::Backend;
use crate::ruleset::{Key, Protocol};

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
const NESTED: u16 = 0x8000;
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

/// Deletes the flows to removed backends.
pub fn flush(removed: &Targets) -> io::Result<()> {
    if removed.is_empty() {
        Ok(())
    } else {
        flush_where(&|key, to| removed.get(key).is_some_and(|gone| gone.contains(&to)))
    }
}

/// Deletes the flows of our frontends to what is none of their backends: left from before a restart.
pub fn flush_strays(current: &Targets) -> io::Result<()> {
    if current.is_empty() {
        Ok(())
    } else {
        flush_where(&|key, to| current.get(key).is_some_and(|known| !known.contains(&to)))
    }
}

type Test<'a> = &'a dyn Fn(&Key, Backend) -> bool;

fn flush_where(gone: Test<'_>) -> io::Result<()> {
    let mut socket = Socket::open(Family::Netfilter)?;
    let flows = socket.get(&Message::new(CT_GET, DUMP, &NFGEN_HEADER))?;
    let stale = flows.iter().filter_map(|flow| stale(flow.body.get(4..)?, gone));
    let request = |tuple| Message::new(CT_DELETE, 0, &NFGEN_HEADER).attr(CTA_TUPLE_ORIG | NESTED, tuple);
    // A flow that has just ended by itself is as good as deleted.
    socket.try_each(&stale.map(request).collect::<Vec<_>>())?;
    Ok(())
}

/// The original tuple of a translated flow that goes to a backend that is gone.
fn stale<'a>(flow: &'a [u8], gone: Test<'_>) -> Option<&'a [u8]> {
    let original = attr(flow, CTA_TUPLE_ORIG)?;
    let (to, from) = (tuple(original)?, tuple(attr(flow, CTA_TUPLE_REPLY)?)?);
    let (address, port) = to.destination;
    let frontends = [Key::Frontend(address, Protocol::Udp, port), Key::NodePort(Protocol::Udp, port)];
    let translated = to.destination != from.source;
    (translated && frontends.iter().any(|key| gone(key, from.source))).then_some(original)
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
        assert!(stale(&[], &|_, _| true).is_none());
        let mut bytes = Vec::new();
        netlink::nest(&mut bytes, CTA_TUPLE_ORIG, |inner| netlink::put(inner, CTA_TUPLE_IP, &[1, 2]));
        assert!(stale(&bytes, &|_, _| true).is_none());
    }
}

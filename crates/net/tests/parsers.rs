//! Decoders of bytes from outside take anything.

use std::net::Ipv4Addr;

use mycelium_linux::netlink::{attr, attrs, nest, put};
use mycelium_net::resolv::{Host, Resolver};
use proptest::prelude::*;

proptest! {
    #[test]
    fn netlink_attributes_end_where_they_are_malformed(bytes in prop::collection::vec(any::<u8>(), 0..256)) {
        let total: usize = attrs(&bytes).map(|(_, value)| value.len() + 4).sum();
        prop_assert!(total <= bytes.len() + 4);
    }

    #[test]
    fn netlink_attributes_come_back_as_written(values in prop::collection::vec((1u16..0x3fff, prop::collection::vec(any::<u8>(), 0..40)), 0..8)) {
        let mut bytes = Vec::new();
        nest(&mut bytes, 7, |inner| values.iter().for_each(|(kind, value)| put(inner, *kind, value)));
        let found: Vec<(u16, Vec<u8>)> = attrs(attr(&bytes, 7).unwrap_or_default()).map(|(kind, value)| (kind, value.to_vec())).collect();
        prop_assert_eq!(found, values);
    }

    /// What a pod is given says the same when it is read again.
    #[test]
    fn resolver_settings_take_any_text(text in "(nameserver|search|options|#|;| |\t|\n|\\.|[a-z0-9:%]{1,12}){0,40}", policy in "(ClusterFirst|Default|None|x)") {
        let host = Host::parse(&text);
        let resolver = Resolver { dns: Ipv4Addr::new(10, 96, 0, 10), domain: "cluster.local", host: &host };
        let written = resolver.resolv_conf("shop", false, Some(&policy), None);
        let again = Host::parse(&written);
        prop_assert!(again.nameservers.len() <= 3);
        if policy == "ClusterFirst" {
            prop_assert_eq!(&again.searches[..3], ["shop.svc.cluster.local", "svc.cluster.local", "cluster.local"]);
        }
    }
}

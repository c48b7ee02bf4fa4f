//! Finding out that a range is already in use on the machine.

use std::collections::BTreeMap;

use ipnet::Ipv4Net;

use crate::config::{Names, NetConfig, overlaps};
use crate::link::{Link, Route};

/// A range overlaps a route that is not ours.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the {what} range {range} overlaps {to}, which {owner}: choose another with {flag}")]
pub struct Conflict {
    what: &'static str,
    range: Ipv4Net,
    to: Ipv4Net,
    owner: String,
    flag: &'static str,
}

/// The first route of somebody else that overlaps one of our ranges.
pub fn find(config: &NetConfig, names: &Names, links: &[Link], routes: &[Route]) -> Result<(), Conflict> {
    let by_index: BTreeMap<u32, &str> = links.iter().map(|link| (link.index, link.name.as_str())).collect();
    let ranges = [("pod", config.cluster_cidr, "--pod-cidr"), ("service", config.service_cidr, "--service-cidr")];
    for route in routes.iter().filter(|route| route.to.prefix_len() > 0) {
        let interface = by_index.get(&route.index).copied().unwrap_or("");
        if names.owns(interface) {
            continue;
        }
        for (what, range, flag) in ranges {
            if overlaps(range, route.to) {
                return Err(Conflict { what, range, to: route.to, owner: owner(interface), flag });
            }
        }
    }
    Ok(())
}

fn owner(interface: &str) -> String {
    match Names::instance_of_anchor(interface) {
        Some(instance) => format!("belongs to the Mycelium instance {instance}"),
        None if interface.is_empty() => "this machine has a route for".to_owned(),
        None => format!("this machine reaches through {interface}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conflict(route: &str, interface: &str) -> Option<String> {
        let config = NetConfig::new("a1b2c3", "10.244.0.0/16".parse().unwrap(), "10.96.0.0/12".parse().unwrap());
        let links = [Link { index: 7, name: interface.to_owned(), alias: String::new(), mtu: 1500, forwarding: false }];
        let routes = [Route { to: route.parse().unwrap(), index: 7 }];
        find(&config, &config.names(), &links, &routes).err().map(|e| e.to_string())
    }

    #[test]
    fn foreign_routes_inside_and_around_a_range_are_named() {
        assert_eq!(conflict("0.0.0.0/0", "eth0"), None);
        assert_eq!(conflict("192.168.0.0/16", "eth0"), None);
        assert_eq!(conflict("10.244.3.0/24", "mya1b2c3gw"), None);
        let inside = conflict("10.244.3.0/24", "cni0").unwrap();
        assert!(inside.contains("cni0") && inside.contains("--pod-cidr"), "{inside}");
        let around = conflict("10.96.0.0/11", "wg0").unwrap();
        assert!(around.contains("--service-cidr"), "{around}");
        assert!(conflict("10.96.0.0/12", "myffffffgw").unwrap().contains("instance ffffff"));
    }
}

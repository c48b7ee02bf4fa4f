//! Addresses and node ports of Services. Pure: the caller knows what is taken and brings the randomness.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;

use ipnet::IpNet;
use mycelium_api::field::{FieldError, Path};
use serde_json::{Value, json};

use super::{is_headless, needs_cluster_ip, needs_health_check_port, needs_node_ports};
use crate::Errors;
use crate::value::{at, fill_zero, has, int, is_empty, list, object_at, text, texts};

/// What Services can get, and what is taken.
pub struct Pool<'a> {
    /// Addresses for Services.
    pub cidr: IpNet,
    /// Ports for Services on every node.
    pub ports: RangeInclusive<u16>,
    /// Whether another Service has this address.
    pub ip_taken: &'a dyn Fn(IpAddr) -> bool,
    /// Whether another Service has this node port for this protocol.
    pub port_taken: &'a dyn Fn(u16, &str) -> bool,
}

/// A free address: the search starts at a random place in the upper part of the range, which leaves the lower part
/// to addresses chosen by hand, and takes from that part only when the upper one is full.
pub fn next_free_ip(cidr: IpNet, taken: impl Fn(IpAddr) -> bool, random: u64) -> Option<IpAddr> {
    let hosts = host_count(cidr);
    let reserved = reserved_for_hand(hosts);
    let upper = search(reserved..hosts, random, |index| !taken(host(cidr, index)));
    upper.or_else(|| search(0..reserved, random, |index| !taken(host(cidr, index)))).map(|index| host(cidr, index))
}

/// A free node port: the search starts at a random place in the upper part of the range.
pub fn next_free_port(range: RangeInclusive<u16>, taken: impl Fn(u16) -> bool, random: u64) -> Option<u16> {
    let first = u128::from(*range.start());
    let count = u128::from(*range.end()).saturating_sub(first) + 1;
    let reserved = if count < 32 { 0 } else { (count / 32).clamp(16, 128) };
    let port = |index: u128| u16::try_from(first + index).unwrap_or(u16::MAX);
    let upper = search(reserved..count, random, |index| !taken(port(index)));
    upper.or_else(|| search(0..reserved, random, |index| !taken(port(index)))).map(port)
}

/// The first index from a random place on, around the end, that is free. Gives up after 2^20 places.
fn search(range: std::ops::Range<u128>, random: u64, free: impl Fn(u128) -> bool) -> Option<u128> {
    let count = range.end.saturating_sub(range.start);
    let tries = count.min(1 << 20);
    (0..tries).map(|step| range.start + (u128::from(random) + step) % count).find(|index| free(*index))
}

fn reserved_for_hand(hosts: u128) -> u128 {
    if hosts < 16 { 0 } else { (hosts / 16).clamp(16, 256).min(hosts) }
}

/// How many addresses of the range a Service can have: not the network's own and, for IPv4, not the broadcast one.
fn host_count(cidr: IpNet) -> u128 {
    let bits = cidr.max_prefix_len() - cidr.prefix_len();
    let all = 1u128.checked_shl(u32::from(bits)).unwrap_or(u128::MAX);
    let unusable = if cidr.network().is_ipv4() { 2 } else { 1 };
    all.saturating_sub(unusable)
}

fn host(cidr: IpNet, index: u128) -> IpAddr {
    match cidr.network() {
        IpAddr::V4(first) => {
            let offset = u32::try_from(index + 1).unwrap_or(u32::MAX);
            Ipv4Addr::from(u32::from(first).wrapping_add(offset)).into()
        }
        IpAddr::V6(first) => Ipv6Addr::from(u128::from(first).wrapping_add(index + 1)).into(),
    }
}

/// Gives a Service what its type needs and it does not have yet, or says why what it asks for cannot be had.
/// `old` is the Service before an update: what it already has is its own.
pub fn allocate(
    service: &mut Value,
    old: Option<&Value>,
    pool: &Pool<'_>,
    random: &mut dyn FnMut() -> u64,
) -> Result<(), Errors> {
    if !needs_cluster_ip(service) {
        return Ok(());
    }
    let mut errors = Errors::new();
    families(service, pool, &mut errors);
    if errors.is_empty() && !is_headless(service) {
        address(service, old, pool, random, &mut errors);
    }
    if needs_node_ports(service) || has_node_ports(service) {
        node_ports(service, old, pool, random, &mut errors);
    }
    if needs_health_check_port(service) && int(service, &["spec", "healthCheckNodePort"]).unwrap_or_default() == 0 {
        let free = next_free_port(pool.ports.clone(), |port| (pool.port_taken)(port, "TCP"), random());
        if let (Some(port), Some(spec)) = (free, object_at(service, &["spec"])) {
            spec.insert("healthCheckNodePort".to_owned(), port.into());
        }
    }
    if errors.is_empty() { Ok(()) } else { Err(errors) }
}

fn has_node_ports(service: &Value) -> bool {
    text(service, &["spec", "type"]) == "LoadBalancer"
        && list(service, &["spec", "ports"]).iter().any(|port| int(port, &["nodePort"]).unwrap_or_default() != 0)
}

/// Address families: one family is configured, so that there is little to choose.
fn families(service: &mut Value, pool: &Pool<'_>, errors: &mut Errors) {
    let own = if pool.cidr.network().is_ipv4() { "IPv4" } else { "IPv6" };
    let other = if own == "IPv4" { "IPv6" } else { "IPv4" };
    let selectorless = is_headless(service) && is_empty(at(service, &["spec", "selector"]));
    let path = Path::new("spec");
    if let Some(spec) = object_at(service, &["spec"]) {
        let policy = if selectorless { "RequireDualStack" } else { "SingleStack" };
        crate::value::fill_in(spec, "ipFamilyPolicy", policy);
    }
    let policy = text(service, &["spec", "ipFamilyPolicy"]).to_owned();
    let mut chosen: Vec<String> = texts(service, &["spec", "ipFamilies"]).map(str::to_owned).collect();
    if selectorless {
        if chosen.is_empty() {
            chosen.push(own.to_owned());
        }
        if chosen.len() < 2 && policy != "SingleStack" {
            chosen.push(if chosen[0] == own { other.to_owned() } else { own.to_owned() });
        }
    } else {
        if policy == "RequireDualStack" {
            let detail = "this cluster is not configured for dual-stack services";
            errors.push(FieldError::invalid(&path.child("ipFamilyPolicy"), policy, detail));
        }
        for (index, family) in chosen.iter().enumerate().filter(|(_, family)| *family != own) {
            let path = path.child("ipFamilies").index(index);
            errors.push(FieldError::invalid(&path, family.as_str(), "not configured on this cluster"));
        }
        if chosen.is_empty() {
            chosen.push(own.to_owned());
        }
    }
    if let Some(spec) = object_at(service, &["spec"]) {
        spec.insert("ipFamilies".to_owned(), chosen.into());
    }
}

fn address(
    service: &mut Value,
    old: Option<&Value>,
    pool: &Pool<'_>,
    random: &mut dyn FnMut() -> u64,
    errors: &mut Errors,
) {
    let path = Path::new("spec").child("clusterIPs");
    let wanted = texts(service, &["spec", "clusterIPs"]).next().unwrap_or_default().to_owned();
    if wanted.is_empty() {
        match next_free_ip(pool.cidr, pool.ip_taken, random()) {
            Some(ip) => {
                if let Some(spec) = object_at(service, &["spec"]) {
                    spec.insert("clusterIP".to_owned(), ip.to_string().into());
                    spec.insert("clusterIPs".to_owned(), json!([ip.to_string()]));
                }
            }
            None => errors.push(FieldError::invalid(&path, json!([]), "failed to allocate a serviceIP: range is full")),
        }
        return;
    }
    if old.is_some_and(|old| text(old, &["spec", "clusterIP"]) == wanted) {
        return;
    }
    let shown = at(service, &["spec", "clusterIPs"]).clone();
    let Some(ip) = super::addresses::parse_ip(&wanted) else { return };
    if !pool.cidr.contains(&ip) || ip == pool.cidr.network() || ip == pool.cidr.broadcast() {
        let range = pool.cidr;
        let detail = format!(
            "failed to allocate IP {wanted}: the provided network does not match the current range: provided IP is not in the valid range. The range of valid IPs is {range}"
        );
        errors.push(FieldError::invalid(&path, shown, detail));
    } else if (pool.ip_taken)(ip) {
        let detail = format!("failed to allocate IP {wanted}: provided IP is already allocated");
        errors.push(FieldError::invalid(&path, shown, detail));
    }
}

fn node_ports(
    service: &mut Value,
    old: Option<&Value>,
    pool: &Pool<'_>,
    random: &mut dyn FnMut() -> u64,
    errors: &mut Errors,
) {
    let kept: Vec<(u16, String)> = old.map(assigned).unwrap_or_default();
    let mut mine: Vec<(u16, String)> = assigned(service);
    for index in 0..list(service, &["spec", "ports"]).len() {
        let port = &list(service, &["spec", "ports"])[index];
        let protocol = text(port, &["protocol"]).to_owned();
        let wanted = int(port, &["nodePort"]).unwrap_or_default();
        let path = Path::new("spec").child("ports").index(index).child("nodePort");
        if wanted != 0 {
            let Ok(number) = u16::try_from(wanted) else {
                errors.push(out_of_range(&path, wanted, &pool.ports));
                continue;
            };
            if kept.iter().any(|(known, _)| *known == number) {
                continue;
            }
            if !pool.ports.contains(&number) {
                errors.push(out_of_range(&path, wanted, &pool.ports));
            } else if (pool.port_taken)(number, &protocol) {
                errors.push(FieldError::invalid(&path, wanted, "provided port is already allocated"));
            }
            continue;
        }
        if !needs_node_ports(service) {
            continue;
        }
        // One number serves TCP and UDP of the same port: DNS servers need it so.
        let service_port = int(port, &["port"]);
        let shared = list(service, &["spec", "ports"]).iter().find_map(|other| {
            let number = u16::try_from(int(other, &["nodePort"])?).ok().filter(|number| *number != 0)?;
            let same_port = int(other, &["port"]) == service_port && text(other, &["protocol"]) != protocol;
            let free = !(pool.port_taken)(number, &protocol) && !mine.contains(&(number, protocol.clone()));
            (same_port && free).then_some(number)
        });
        let taken = |number: u16| {
            ["TCP", "UDP", "SCTP"].iter().any(|protocol| (pool.port_taken)(number, protocol))
                || mine.iter().any(|(known, _)| *known == number)
        };
        let Some(number) = shared.or_else(|| next_free_port(pool.ports.clone(), taken, random())) else {
            errors.push(FieldError::invalid(&path, 0, "failed to allocate a nodePort: range is full"));
            continue;
        };
        mine.push((number, protocol));
        let slot = object_at(service, &["spec"]).and_then(|spec| spec.get_mut("ports")?.get_mut(index));
        if let Some(port) = slot {
            fill_zero(port, "nodePort", number);
        }
    }
}

fn assigned(service: &Value) -> Vec<(u16, String)> {
    if !has(service, &["spec", "ports"]) {
        return Vec::new();
    }
    list(service, &["spec", "ports"])
        .iter()
        .filter_map(|port| {
            let number = u16::try_from(int(port, &["nodePort"])?).ok().filter(|number| *number != 0)?;
            Some((number, text(port, &["protocol"]).to_owned()))
        })
        .collect()
}

fn out_of_range(path: &Path, wanted: i64, range: &RangeInclusive<u16>) -> FieldError {
    let (first, last) = (range.start(), range.end());
    let detail = format!("provided port is not in the valid range. The range of valid ports is {first}-{last}");
    FieldError::invalid(path, wanted, detail)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cidr(text: &str) -> IpNet {
        text.parse().expect("valid")
    }

    #[test]
    fn every_address_of_a_small_range_is_found_once() {
        let mut taken = Vec::new();
        while let Some(ip) = next_free_ip(cidr("10.0.0.0/27"), |ip| taken.contains(&ip), 7 * taken.len() as u64) {
            taken.push(ip);
        }
        taken.sort_unstable();
        taken.dedup();
        assert_eq!(taken.len(), 30);
        assert_eq!(taken[0].to_string(), "10.0.0.1");
        assert_eq!(taken[29].to_string(), "10.0.0.30");
    }

    #[test]
    fn a_load_balancer_gets_address_and_ports() {
        let mut service = json!({"spec": {"type": "LoadBalancer", "selector": {"a": "b"}, "ports": [
            {"name": "dns", "port": 53, "protocol": "UDP"},
            {"name": "dns-tcp", "port": 53, "protocol": "TCP"},
            {"name": "http", "port": 80, "protocol": "TCP"},
        ]}});
        let pool =
            Pool { cidr: cidr("10.96.0.0/16"), ports: 30000..=32767, ip_taken: &|_| false, port_taken: &|_, _| false };
        allocate(&mut service, None, &pool, &mut || 5).expect("free");
        let ports: Vec<i64> = list(&service, &["spec", "ports"]).iter().filter_map(|p| int(p, &["nodePort"])).collect();
        assert_eq!(ports[0], ports[1], "TCP and UDP share a number");
        assert_ne!(ports[0], ports[2]);
        assert_eq!(service["spec"]["ipFamilies"], json!(["IPv4"]));
        assert_eq!(service["spec"]["clusterIP"], service["spec"]["clusterIPs"][0]);
    }

    #[test]
    fn what_cannot_be_had_is_refused() {
        let pool =
            Pool { cidr: cidr("10.96.0.0/16"), ports: 30000..=32767, ip_taken: &|_| true, port_taken: &|_, _| true };
        let mut service = json!({"spec": {"type": "NodePort", "clusterIP": "10.96.0.9", "clusterIPs": ["10.96.0.9"],
            "ports": [{"port": 1, "protocol": "TCP", "nodePort": 80}, {"port": 2, "protocol": "TCP", "nodePort": 30001}]}});
        let errors = allocate(&mut service, None, &pool, &mut || 0).expect_err("taken");
        let texts: Vec<String> = errors.iter().map(ToString::to_string).collect();
        assert_eq!(
            texts,
            [
                "spec.clusterIPs: Invalid value: [\"10.96.0.9\"]: failed to allocate IP 10.96.0.9: provided IP is already allocated",
                "spec.ports[0].nodePort: Invalid value: 80: provided port is not in the valid range. The range of valid ports is 30000-32767",
                "spec.ports[1].nodePort: Invalid value: 30001: provided port is already allocated",
            ]
        );
    }
}

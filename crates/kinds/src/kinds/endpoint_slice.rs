//! EndpointSlice.

use mycelium_api::field::{ErrorKind, FieldError, Path};
use serde_json::Value;

use super::workload::check_immutable;
use crate::service::addresses::check_endpoint_ip;
use crate::table::{AGE_COLUMN, Column, NAME, age, name, some_of, text_or};
use crate::value::{each, fill, int, list, text, texts};
use crate::{Errors, Generation, Kind};

pub static ENDPOINT_SLICE: Kind = Kind {
    has_status: false,
    generation: Generation::Spec,
    defaults: |_, slice| {
        each(slice, &["ports"], |port| {
            fill(port, "name", "");
            fill(port, "protocol", "TCP");
        });
    },
    check,
    check_update: |new, old, _, errors| {
        check_immutable(new, old, &["addressType"], errors);
        check(new, errors);
    },
    columns: &[
        NAME,
        Column::text("AddressType", "IPv4, IPv6 or FQDN."),
        Column::text("Ports", "Ports of every endpoint, the first three."),
        Column::text("Endpoints", "Addresses, the first three."),
        AGE_COLUMN,
    ],
    cells: |slice, now| {
        let ports: Vec<String> = list(slice, &["ports"])
            .iter()
            .map(|port| match int(port, &["port"]) {
                Some(number) => number.to_string(),
                None if port["name"].is_string() => text(port, &["name"]).to_owned(),
                None => "*".to_owned(),
            })
            .collect();
        let addresses: Vec<String> =
            list(slice, &["endpoints"]).iter().flat_map(|e| texts(e, &["addresses"])).map(str::to_owned).collect();
        vec![
            name(slice),
            text_or(slice, &["addressType"], ""),
            some_of(&ports, "<unset>"),
            some_of(&addresses, "<unset>"),
            age(slice, now),
        ]
    },
    ..Kind::new("discovery.k8s.io", "EndpointSlice", true)
};

fn check(slice: &Value, errors: &mut Errors) {
    const TYPES: &[&str] = &["FQDN", "IPv4", "IPv6"];
    let kind = text(slice, &["addressType"]);
    let path = Path::new("addressType");
    match kind {
        "" => errors.push(FieldError::required(&path, "")),
        kind if !TYPES.contains(&kind) => errors.push(FieldError::not_supported(&path, kind, TYPES)),
        _ => {}
    }
    for (index, endpoint) in list(slice, &["endpoints"]).iter().enumerate() {
        let path = Path::new("endpoints").index(index).child("addresses");
        let addresses = list(endpoint, &["addresses"]);
        if addresses.is_empty() {
            errors.push(FieldError::required(&path, "must contain at least 1 address"));
        } else if addresses.len() > 100 {
            errors.push(FieldError::new(ErrorKind::TooMany, &path, Value::Null, "must have at most 100 items"));
        }
        for (index, address) in addresses.iter().enumerate() {
            let address = address.as_str().unwrap_or_default();
            check_address(kind, address, &path.index(index), errors);
        }
    }
    check_ports(slice, errors);
}

fn check_address(kind: &str, address: &str, path: &Path, errors: &mut Errors) {
    match kind {
        "IPv4" | "IPv6" => {
            let fits = |ip: std::net::IpAddr| ip.is_ipv4() == (kind == "IPv4");
            match address.parse::<std::net::IpAddr>() {
                Ok(ip) if !fits(ip) => {
                    errors.push(FieldError::invalid(path, address, format!("must be an {kind} address")));
                }
                _ => check_endpoint_ip(address, path, errors),
            }
        }
        "FQDN" => {
            for wrong in mycelium_api::names::is_dns1123_subdomain(address.trim_end_matches('.')) {
                errors.push(FieldError::invalid(path, address, wrong));
            }
        }
        _ => {}
    }
}

fn check_ports(slice: &Value, errors: &mut Errors) {
    let mut names = std::collections::BTreeSet::new();
    for (index, port) in list(slice, &["ports"]).iter().enumerate() {
        let path = Path::new("ports").index(index);
        let name = text(port, &["name"]);
        if !name.is_empty() {
            for wrong in mycelium_api::names::is_dns1123_label(name) {
                errors.push(FieldError::invalid(&path.child("name"), name, wrong));
            }
        }
        if !names.insert(name) {
            errors.push(FieldError::duplicate(&path.child("name"), name));
        }
        let protocol = text(port, &["protocol"]);
        if !matches!(protocol, "TCP" | "UDP" | "SCTP") {
            errors.push(FieldError::not_supported(&path.child("protocol"), protocol, &["SCTP", "TCP", "UDP"]));
        }
    }
}

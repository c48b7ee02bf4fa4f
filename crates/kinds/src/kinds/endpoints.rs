//! Endpoints: the addresses behind a Service, in the older form.

use mycelium_api::field::{FieldError, Path};
use serde_json::Value;

use crate::service::addresses::check_endpoint_ip;
use crate::table::{AGE_COLUMN, Column, NAME, age, name};
use crate::value::{each, fill_zero, int, list, text};
use crate::{Errors, Kind};

pub static ENDPOINTS: Kind = Kind {
    has_status: false,
    defaults: |_, endpoints| {
        each(endpoints, &["subsets"], |subset| each(subset, &["ports"], |port| fill_zero(port, "protocol", "TCP")));
    },
    check,
    check_update: |new, _, _, errors| check(new, errors),
    columns: &[NAME, Column::text("Endpoints", "Addresses and ports, the first three."), AGE_COLUMN],
    cells: |endpoints, now| vec![name(endpoints), shown(endpoints).into(), age(endpoints, now)],
    ..Kind::new("", "Endpoints", true)
};

fn shown(endpoints: &Value) -> String {
    const SHOWN: usize = 3;
    let mut items = Vec::new();
    for subset in list(endpoints, &["subsets"]) {
        let ips: Vec<&str> = list(subset, &["addresses"]).iter().map(|address| text(address, &["ip"])).collect();
        let ports = list(subset, &["ports"]);
        if ports.is_empty() {
            items.extend(ips.iter().map(|ip| (*ip).to_owned()));
        }
        for port in ports {
            let port = int(port, &["port"]).unwrap_or_default();
            items.extend(ips.iter().map(|ip| match ip.contains(':') {
                true => format!("[{ip}]:{port}"),
                false => format!("{ip}:{port}"),
            }));
        }
    }
    if list(endpoints, &["subsets"]).is_empty() {
        return "<none>".to_owned();
    }
    match items.len() {
        count if count > SHOWN => format!("{} + {} more...", items[..SHOWN].join(","), count - SHOWN),
        _ => items.join(","),
    }
}

fn check(endpoints: &Value, errors: &mut Errors) {
    for (index, subset) in list(endpoints, &["subsets"]).iter().enumerate() {
        let path = Path::new("subsets").index(index);
        let lists = ["addresses", "notReadyAddresses"];
        if lists.iter().all(|key| list(subset, &[key]).is_empty()) {
            let detail = "must specify `addresses` or `notReadyAddresses`";
            errors.push(FieldError::required(&path, detail));
        }
        for key in lists {
            for (index, address) in list(subset, &[key]).iter().enumerate() {
                check_endpoint_ip(text(address, &["ip"]), &path.child(key).index(index).child("ip"), errors);
            }
        }
        let many = list(subset, &["ports"]).len() > 1;
        for (index, port) in list(subset, &["ports"]).iter().enumerate() {
            check_port(port, many, &path.child("ports").index(index), errors);
        }
    }
}

fn check_port(port: &Value, needs_name: bool, path: &Path, errors: &mut Errors) {
    let name = text(port, &["name"]);
    if needs_name && name.is_empty() {
        errors.push(FieldError::required(&path.child("name"), ""));
    } else if !name.is_empty() {
        for wrong in mycelium_api::names::is_dns1123_label(name) {
            errors.push(FieldError::invalid(&path.child("name"), name, wrong));
        }
    }
    let number = int(port, &["port"]).unwrap_or_default();
    for wrong in mycelium_api::names::is_port_number(number) {
        errors.push(FieldError::invalid(&path.child("port"), number, wrong));
    }
    match text(port, &["protocol"]) {
        "" => errors.push(FieldError::required(&path.child("protocol"), "")),
        "TCP" | "UDP" | "SCTP" => {}
        other => {
            errors.push(FieldError::not_supported(&path.child("protocol"), other, &["TCP", "UDP", "SCTP"]));
        }
    }
}

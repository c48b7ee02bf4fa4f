//! ServiceCIDR and IPAddress: where addresses of services come from, and which are taken.

use std::net::IpAddr;

use mycelium_api::field::{FieldError, Path};
use mycelium_api::names::{is_dns1123_subdomain, is_path_segment};
use serde_json::Value;

use super::workload::check_immutable;
use crate::check::refuse;
use crate::meta::IMMUTABLE;
use crate::service::addresses::check_cidr;
use crate::table::{AGE_COLUMN, Column, NAME, age, name};
use crate::value::{at, text, texts};
use crate::{Errors, Kind, Part};

pub static SERVICE_CIDR: Kind = Kind {
    check: check_ranges,
    check_update: |new, old, part, errors| {
        if part != Part::Status {
            check_range_change(new, old, errors);
        }
    },
    columns: &[NAME, Column::text("CIDRs", "Ranges for addresses of services."), AGE_COLUMN],
    cells: |range, now| {
        let cidrs: Vec<&str> = texts(range, &["spec", "cidrs"]).collect();
        vec![name(range), cidrs.join(",").into(), age(range, now)]
    },
    ..Kind::new("networking.k8s.io", "ServiceCIDR", false)
};

pub static IP_ADDRESS: Kind = Kind {
    has_status: false,
    name_rule: is_ip,
    check: check_parent,
    check_update: |new, old, _, errors| check_immutable(new, old, &["spec", "parentRef"], errors),
    columns: &[NAME, Column::text("ParentRef", "Object that has the address."), AGE_COLUMN],
    cells: |address, now| {
        let parent = at(address, &["spec", "parentRef"]);
        let mut shown = text(parent, &["resource"]).to_lowercase();
        let group = text(parent, &["group"]);
        if !group.is_empty() {
            shown = format!("{shown}.{group}");
        }
        for key in ["namespace", "name"] {
            let part = text(parent, &[key]);
            if !part.is_empty() {
                shown = format!("{shown}/{part}");
            }
        }
        let shown = if parent.is_null() { "<none>".to_owned() } else { shown };
        vec![name(address), shown.into(), age(address, now)]
    },
    ..Kind::new("networking.k8s.io", "IPAddress", false)
};

/// The name of an address is the address, in its canonical form.
fn is_ip(name: &str) -> Vec<String> {
    match name.parse::<IpAddr>() {
        Err(_) => vec!["must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)".to_owned()],
        Ok(ip) if ip.to_string() != name => vec![format!("must be in canonical form ({:?})", ip.to_string())],
        Ok(_) => Vec::new(),
    }
}

fn check_parent(address: &Value, errors: &mut Errors) {
    let path = Path::new("spec").child("parentRef");
    let parent = at(address, &["spec", "parentRef"]);
    if parent.is_null() {
        errors.push(FieldError::required(&path, ""));
        return;
    }
    let group = text(parent, &["group"]);
    if !group.is_empty() {
        refuse(errors, &path.child("group"), group, is_dns1123_subdomain(group));
    }
    for (key, required) in [("resource", true), ("name", true), ("namespace", false)] {
        match text(parent, &[key]) {
            "" if required => errors.push(FieldError::required(&path.child(key), "")),
            part => refuse(errors, &path.child(key), part, is_path_segment(part)),
        }
    }
}

fn check_ranges(range: &Value, errors: &mut Errors) {
    let path = Path::new("spec").child("cidrs");
    let cidrs: Vec<&str> = texts(range, &["spec", "cidrs"]).collect();
    match cidrs.len() {
        0 => errors.push(FieldError::required(&path, "at least one CIDR required")),
        1 | 2 => {
            for (index, cidr) in cidrs.iter().enumerate() {
                check_cidr(cidr, &path.index(index), errors);
            }
            let v4: Vec<bool> = cidrs.iter().map(|cidr| !cidr.contains(':')).collect();
            if v4.len() == 2 && v4[0] == v4[1] {
                let detail = "may specify no more than one IP for each IP family, i.e 192.168.0.0/24 and 2001:db8::/64";
                errors.push(FieldError::invalid(&path, at(range, &["spec", "cidrs"]).clone(), detail));
            }
        }
        _ => errors.push(FieldError::invalid(&path, range["spec"].clone(), "may only hold up to 2 values")),
    }
}

/// A second range may be added; the first stays.
fn check_range_change(new: &Value, old: &Value, errors: &mut Errors) {
    let path = Path::new("spec").child("cidrs");
    let (now, before): (Vec<&str>, Vec<&str>) =
        (texts(new, &["spec", "cidrs"]).collect(), texts(old, &["spec", "cidrs"]).collect());
    match (before.len(), now.len()) {
        (was, is) if was == is || (was == 1 && is == 2) => {
            for (index, cidr) in now.iter().enumerate().take(was).filter(|(index, cidr)| before[*index] != **cidr) {
                errors.push(FieldError::invalid(&path.index(index), *cidr, IMMUTABLE));
            }
            if was != is {
                check_ranges(new, errors);
            }
        }
        _ => errors.push(FieldError::invalid(&path, at(new, &["spec", "cidrs"]).clone(), IMMUTABLE)),
    }
}

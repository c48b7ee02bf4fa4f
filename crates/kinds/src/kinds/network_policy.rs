//! NetworkPolicy.

use mycelium_api::field::{FieldError, Path};
use mycelium_api::names;
use serde_json::{Value, json};

use crate::check::refuse;
use crate::meta::check_selector;
use crate::service::addresses::check_cidr;
use crate::table::{AGE_COLUMN, Column, NAME, age, name, selector};
use crate::value::{each, ensure_object, fill, has, int, list, text, texts, within};
use crate::{Errors, Generation, Kind};

pub static NETWORK_POLICY: Kind = Kind {
    has_status: false,
    generation: Generation::Spec,
    defaults: |_, policy| {
        ensure_object(policy, &["spec"]);
        within(policy, &["spec"], |spec| {
            for direction in ["ingress", "egress"] {
                each(spec, &[direction], |rule| each(rule, &["ports"], |port| fill(port, "protocol", "TCP")));
            }
            if list(spec, &["policyTypes"]).is_empty() {
                let both = !list(spec, &["egress"]).is_empty();
                let types = if both { json!(["Ingress", "Egress"]) } else { json!(["Ingress"]) };
                fill(spec, "podSelector", json!({}));
                if let Some(spec) = spec.as_object_mut() {
                    spec.insert("policyTypes".to_owned(), types);
                }
            }
        });
    },
    check: check_policy,
    check_update: |new, _, _, errors| check_policy(new, errors),
    columns: &[NAME, Column::text("Pod-Selector", "Labels of the pods it applies to."), AGE_COLUMN],
    cells: |policy, now| vec![name(policy), selector(policy, &["spec", "podSelector"]), age(policy, now)],
    ..Kind::new("networking.k8s.io", "NetworkPolicy", true)
};

fn check_policy(policy: &Value, errors: &mut Errors) {
    let path = Path::new("spec");
    let spec = &policy["spec"];
    check_selector(&spec["podSelector"], &path.child("podSelector"), errors);
    for (direction, peers) in [("ingress", "from"), ("egress", "to")] {
        for (index, rule) in list(spec, &[direction]).iter().enumerate() {
            let path = path.child(direction).index(index);
            for (index, port) in list(rule, &["ports"]).iter().enumerate() {
                check_policy_port(port, &path.child("ports").index(index), errors);
            }
            for (index, peer) in list(rule, &[peers]).iter().enumerate() {
                check_peer(peer, &path.child(peers).index(index), errors);
            }
        }
    }
    for (index, kind) in texts(spec, &["policyTypes"]).enumerate() {
        if !matches!(kind, "Ingress" | "Egress") {
            let path = path.child("policyTypes").index(index);
            errors.push(FieldError::not_supported(&path, kind, &["Egress", "Ingress"]));
        }
    }
}

fn check_policy_port(port: &Value, path: &Path, errors: &mut Errors) {
    let protocol = text(port, &["protocol"]);
    if !matches!(protocol, "TCP" | "UDP" | "SCTP") {
        errors.push(FieldError::not_supported(&path.child("protocol"), protocol, &["SCTP", "TCP", "UDP"]));
    }
    if has(port, &["port"]) {
        crate::pod::validate::check_port_or_name(&port["port"], &path.child("port"), errors);
    }
    let Some(end) = int(port, &["endPort"]) else { return };
    let end_path = path.child("endPort");
    match int(port, &["port"]) {
        None if has(port, &["port"]) => {
            let detail = "may not be specified when `port` is non-numeric";
            errors.push(FieldError::invalid(&end_path, end, detail));
        }
        None => errors.push(FieldError::invalid(&end_path, end, "must be specified along with `port`")),
        Some(start) if end < start => {
            errors.push(FieldError::invalid(&end_path, end, "must be greater than or equal to `port`"));
        }
        Some(_) => refuse(errors, &end_path, end, names::is_port_number(end)),
    }
}

fn check_peer(peer: &Value, path: &Path, errors: &mut Errors) {
    let given: Vec<&str> =
        ["podSelector", "namespaceSelector", "ipBlock"].into_iter().filter(|key| has(peer, &[key])).collect();
    if given.is_empty() {
        errors.push(FieldError::required(path, "must specify a peer"));
    } else if given.len() > 1 && given.contains(&"ipBlock") {
        let detail = "may not specify both ipBlock and another peer";
        errors.push(FieldError::forbidden(path, detail));
    }
    for key in ["podSelector", "namespaceSelector"] {
        check_selector(&peer[key], &path.child(key), errors);
    }
    if has(peer, &["ipBlock"]) {
        let path = path.child("ipBlock");
        match text(peer, &["ipBlock", "cidr"]) {
            "" => errors.push(FieldError::required(&path.child("cidr"), "")),
            cidr => check_cidr(cidr, &path.child("cidr"), errors),
        }
        for (index, cidr) in texts(peer, &["ipBlock", "except"]).enumerate() {
            check_cidr(cidr, &path.child("except").index(index), errors);
        }
    }
}

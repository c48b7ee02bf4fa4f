//! Node.

use jiff::Timestamp;
use mycelium_api::field::{FieldError, Path};
use mycelium_api::quantity::Quantity;
use serde_json::Value;

use crate::pod::validate_scheduling::check_taints;
use crate::service::addresses::check_cidr;
use crate::table::{AGE_COLUMN, Column, NAME, age, condition, name, text_or};
use crate::value::{at, canonical_resources, ensure_object, entries, flag, has, list, same, text, texts};
use crate::{Errors, FieldLabels, Kind, Part, Refusal};

pub static NODE: Kind = Kind {
    born_with_status: true,
    defaults: |_, node| {
        canonical_resources(node, &["status", "capacity"]);
        canonical_resources(node, &["status", "allocatable"]);
        if has(node, &["status", "capacity"]) && !has(node, &["status", "allocatable"]) {
            let capacity = at(node, &["status", "capacity"]).clone();
            if let Some(status) = ensure_object(node, &["status"]) {
                status.insert("allocatable".to_owned(), capacity);
            }
        }
    },
    check,
    check_update,
    columns: &[
        NAME,
        Column::text("Status", "Whether the node is ready."),
        Column::text("Roles", "Roles of the node, from its labels."),
        AGE_COLUMN,
        Column::text("Version", "Version of the node agent."),
        Column::text("Internal-IP", "Address inside the cluster.").wide(),
        Column::text("External-IP", "Address from outside.").wide(),
        Column::text("OS-Image", "Operating system of the node.").wide(),
        Column::text("Kernel-Version", "Kernel of the node.").wide(),
        Column::text("Container-Runtime", "Container runtime of the node.").wide(),
    ],
    cells,
    labels: FieldLabels {
        paths: &["spec.unschedulable"],
        read: |node, _| Some(flag(node, &["spec", "unschedulable"]).to_string()),
        refusal: Refusal::Plain,
    },
    ..Kind::new("", "Node", false)
};

fn cells(node: &Value, now: Timestamp) -> Vec<Value> {
    let info = at(node, &["status", "nodeInfo"]);
    vec![
        name(node),
        status(node).into(),
        roles(node).into(),
        age(node, now),
        text_or(info, &["kubeletVersion"], ""),
        address(node, "InternalIP"),
        address(node, "ExternalIP"),
        text_or(info, &["osImage"], "<unknown>"),
        text_or(info, &["kernelVersion"], "<unknown>"),
        text_or(info, &["containerRuntimeVersion"], "<unknown>"),
    ]
}

fn status(node: &Value) -> String {
    let ready = match condition(node, "Ready").map(|ready| text(ready, &["status"])) {
        Some("True") => "Ready",
        Some(_) => "NotReady",
        None => "Unknown",
    };
    if flag(node, &["spec", "unschedulable"]) { format!("{ready},SchedulingDisabled") } else { ready.to_owned() }
}

fn roles(node: &Value) -> String {
    let mut roles: Vec<&str> = entries(node, &["metadata", "labels"])
        .filter_map(|(key, value)| match key.strip_prefix("node-role.kubernetes.io/") {
            Some(role) => Some(role),
            None if key == "kubernetes.io/role" => value.as_str(),
            None => None,
        })
        .filter(|role| !role.is_empty())
        .collect();
    roles.sort_unstable();
    roles.dedup();
    if roles.is_empty() { "<none>".to_owned() } else { roles.join(",") }
}

fn address(node: &Value, kind: &str) -> Value {
    let found = list(node, &["status", "addresses"]).iter().find(|address| text(address, &["type"]) == kind);
    found.map_or("<none>", |address| text(address, &["address"])).into()
}

fn check(node: &Value, errors: &mut Errors) {
    check_spec(node, errors);
    for (index, cidr) in texts(node, &["spec", "podCIDRs"]).enumerate() {
        check_cidr(cidr, &Path::new("spec").child("podCIDRs").index(index), errors);
    }
}

fn check_spec(node: &Value, errors: &mut Errors) {
    // Clients know this path, odd as it is: taints are in the spec.
    check_taints(&node["spec"], &Path::new("metadata").child("taints"), errors);
    for key in ["capacity", "allocatable"] {
        for (name, amount) in entries(node, &["status", key]) {
            let Ok(amount) = Quantity::from_json(amount) else { continue };
            if amount.is_negative() {
                let path = Path::new("status").child(key).key(name);
                let detail = "must be greater than or equal to 0";
                errors.push(FieldError::invalid(&path, amount.to_string(), detail));
            }
        }
    }
}

fn check_update(new: &Value, old: &Value, _: Part, errors: &mut Errors) {
    check_spec(new, errors);
    let path = Path::new("spec");
    let before = at(old, &["spec", "podCIDRs"]);
    if !list(before, &[]).is_empty() && !same(before, at(new, &["spec", "podCIDRs"])) {
        let detail = "node updates may not change podCIDR except from \"\" to valid";
        errors.push(FieldError::forbidden(&path.child("podCIDRs"), detail));
    }
    let provider = text(old, &["spec", "providerID"]);
    if !provider.is_empty() && provider != text(new, &["spec", "providerID"]) {
        let detail = "node updates may not change providerID except from \"\" to valid";
        errors.push(FieldError::forbidden(&path.child("providerID"), detail));
    }
    let addresses = list(new, &["status", "addresses"]);
    for (index, address) in addresses.iter().enumerate() {
        if addresses[..index].contains(address) {
            let path = Path::new("status").child("addresses").index(index);
            errors.push(FieldError::duplicate(&path, address.clone()));
        }
    }
}

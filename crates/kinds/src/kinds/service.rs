//! Service.

use jiff::Timestamp;
use mycelium_api::names::is_dns1035_label;
use serde_json::Value;

use crate::service::{fill_defaults, prepare, prepare_create, validate};
use crate::table::{AGE_COLUMN, Column, NAME, SELECTOR, age, labels, name, text_or};
use crate::value::{int, list, text, texts};
use crate::{FieldLabels, Kind, Part, Refusal, read_path};

pub static SERVICE: Kind = Kind {
    name_rule: is_dns1035_label,
    defaults: |_, service| fill_defaults(service),
    on_create: prepare_create,
    on_update: |new, old, part| {
        if part != Part::Status {
            prepare(new, old);
        }
    },
    check: validate::check,
    check_update: validate::check_update,
    columns: &[
        NAME,
        Column::text("Type", "How the service is reached."),
        Column::text("Cluster-IP", "Address inside the cluster."),
        Column::text("External-IP", "Addresses from outside."),
        Column::text("Port(s)", "Ports and node ports."),
        AGE_COLUMN,
        SELECTOR,
    ],
    cells,
    labels: FieldLabels { paths: &["spec.clusterIP", "spec.type"], read: read_path, refusal: Refusal::Plain },
    ..Kind::new("", "Service", true)
};

fn cells(service: &Value, now: Timestamp) -> Vec<Value> {
    let address =
        texts(service, &["spec", "clusterIPs"]).next().unwrap_or_else(|| text(service, &["spec", "clusterIP"]));
    vec![
        name(service),
        text_or(service, &["spec", "type"], ""),
        (if address.is_empty() { "<none>" } else { address }).into(),
        external(service).into(),
        ports(service).into(),
        age(service, now),
        labels(service, &["spec", "selector"]),
    ]
}

fn external(service: &Value) -> String {
    let fixed: Vec<&str> = texts(service, &["spec", "externalIPs"]).collect();
    match text(service, &["spec", "type"]) {
        "ClusterIP" | "NodePort" if fixed.is_empty() => "<none>".to_owned(),
        "ClusterIP" | "NodePort" => fixed.join(","),
        "LoadBalancer" => {
            let mut given: Vec<&str> = list(service, &["status", "loadBalancer", "ingress"])
                .iter()
                .map(|point| {
                    Some(text(point, &["ip"])).filter(|ip| !ip.is_empty()).unwrap_or(text(point, &["hostname"]))
                })
                .filter(|point| !point.is_empty())
                .collect();
            given.sort_unstable();
            given.dedup();
            given.extend(fixed);
            if given.is_empty() { "<pending>".to_owned() } else { given.join(",") }
        }
        "ExternalName" => text(service, &["spec", "externalName"]).to_owned(),
        _ => "<unknown>".to_owned(),
    }
}

fn ports(service: &Value) -> String {
    let pieces: Vec<String> = list(service, &["spec", "ports"])
        .iter()
        .map(|port| {
            let number = int(port, &["port"]).unwrap_or_default();
            let protocol = text(port, &["protocol"]);
            match int(port, &["nodePort"]).unwrap_or_default() {
                0 => format!("{number}/{protocol}"),
                node_port => format!("{number}:{node_port}/{protocol}"),
            }
        })
        .collect();
    if pieces.is_empty() { "<none>".to_owned() } else { pieces.join(",") }
}

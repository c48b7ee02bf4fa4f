//! Placement that the nodes at hand can never meet.

use std::collections::{BTreeMap, BTreeSet};

use mycelium_api::selector::{Op, Requirement, Selector};
use serde_json::Value;

use crate::finding::{Report, Severity};
use crate::set::Set;
use crate::value::{entries, int, list, text};
use crate::workload::Workload;

type Labels = BTreeMap<String, String>;

pub fn check(set: &Set, report: &mut Report) {
    for workload in set.workloads().iter().filter(|workload| workload.object.is_local()) {
        let nodes: Vec<&Labels> = set.context.nodes.iter().collect();
        if nodes.is_empty() {
            continue;
        }
        let fitting: Vec<&Labels> = nodes.iter().copied().filter(|node| fits(workload.spec(), node)).collect();
        if fitting.is_empty() {
            no_node(workload, &nodes, report);
            continue;
        }
        apart(set, workload, &fitting, report);
        spread(workload, &fitting, report);
    }
}

/// Whether a node has what `nodeSelector` and the required node affinity ask for.
fn fits(spec: &Value, node: &Labels) -> bool {
    let selected =
        entries(spec, "/nodeSelector").all(|(key, value)| node.get(key).map(String::as_str) == value.as_str());
    let terms = list(spec, "/affinity/nodeAffinity/requiredDuringSchedulingIgnoredDuringExecution/nodeSelectorTerms");
    selected && (terms.is_empty() || terms.iter().any(|term| term_fits(term, node)))
}

fn term_fits(term: &Value, node: &Labels) -> bool {
    list(term, "/matchExpressions").iter().all(|expression| {
        let op = match text(expression, "/operator") {
            "In" => Op::In,
            "NotIn" => Op::NotIn,
            "Exists" => Op::Exists,
            "DoesNotExist" => Op::DoesNotExist,
            "Gt" => Op::Gt,
            "Lt" => Op::Lt,
            _ => return true,
        };
        let values = list(expression, "/values").iter().filter_map(Value::as_str).map(str::to_owned).collect();
        let key = text(expression, "/key").to_owned();
        let label = node.get(&key).map(String::as_str);
        Requirement { key, op, values }.matches(label)
    })
}

fn no_node(workload: &Workload<'_>, nodes: &[&Labels], report: &mut Report) {
    let selector = entries(workload.spec(), "/nodeSelector")
        .find(|(key, value)| !nodes.iter().any(|node| node.get(*key).map(String::as_str) == value.as_str()));
    let (what, field) = match selector {
        Some((key, value)) => {
            let value = value.as_str().unwrap_or_default();
            (format!("a node with the label {key}={value}"), workload.path(&format!("spec.nodeSelector[{key}]")))
        }
        None => ("a node as its affinity describes".to_owned(), workload.path("spec.affinity.nodeAffinity")),
    };
    let none = if nodes.len() == 1 {
        "the only node is not one".to_owned()
    } else {
        format!("none of {} is one", nodes.len())
    };
    let message = format!("the pods need {what}, and {none}, so they stay Pending");
    let fix = "label a node, or leave the requirement out; preferredDuringScheduling... asks without insisting";
    report.object(Severity::Warning, "no-node-fits", workload.object, field, message, fix);
}

/// The places that nodes are in, by a label.
fn places<'n>(nodes: &[&'n Labels], key: &str) -> BTreeSet<&'n str> {
    nodes.iter().filter_map(|node| node.get(key)).map(String::as_str).collect()
}

/// Pods that must not share a node, zone or such with each other.
fn apart(set: &Set, workload: &Workload<'_>, nodes: &[&Labels], report: &mut Report) {
    const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
    let terms = list(workload.spec(), &format!("/affinity/podAntiAffinity/{REQUIRED}"));
    for (index, term) in terms.iter().enumerate() {
        let own = &term["labelSelector"];
        let fits = Selector::from_value(own).is_ok_and(|selector| selector.is_empty() || workload.matches(&selector));
        let Some(pods) = wanted(set, workload).filter(|_| own.is_object() && fits) else { continue };
        let key = text(term, "/topologyKey");
        // Where no node has the label, nothing is shared.
        let places = places(nodes, key).len();
        let without = nodes.iter().filter(|node| !node.contains_key(key)).count();
        if key.is_empty() || without > 0 || pods <= i64::try_from(places).unwrap_or(i64::MAX) {
            continue;
        }
        let message = format!(
            "{pods} pods must each have their own {}, and there {}, so {} of them stay Pending",
            place_name(key),
            if places == 1 { "is only 1".to_owned() } else { format!("are only {places}") },
            pods - i64::try_from(places).unwrap_or(0)
        );
        let field = workload.path(&format!("spec.affinity.podAntiAffinity.{REQUIRED}[{index}].topologyKey"));
        let fix =
            "use preferredDuringSchedulingIgnoredDuringExecution, fewer replicas, or more nodes (mycelium up --nodes)";
        report.object(Severity::Warning, "anti-affinity-never-met", workload.object, field, message, fix);
    }
    zones_missing(set, workload, nodes, report);
}

/// Required anti-affinity by a label that no node has keeps nothing apart.
fn zones_missing(set: &Set, workload: &Workload<'_>, nodes: &[&Labels], report: &mut Report) {
    for (kind, says) in [("podAntiAffinity", "keeps nothing apart"), ("podAffinity", "can never be met")] {
        let pointer = format!("/affinity/{kind}/requiredDuringSchedulingIgnoredDuringExecution");
        for (index, term) in list(workload.spec(), &pointer).iter().enumerate() {
            let key = text(term, "/topologyKey");
            if key.is_empty() || !places(nodes, key).is_empty() {
                continue;
            }
            let alone = kind == "podAntiAffinity" && wanted(set, workload).is_some_and(|pods| pods <= 1);
            if alone {
                continue;
            }
            let field = workload.path(&format!("spec{}[{index}].topologyKey", pointer.replace('/', ".")));
            let message = format!("no node has the label {key}, so the required {kind} {says}");
            let fix = format!("label the nodes with {key}, or use kubernetes.io/hostname");
            report.object(Severity::Warning, "topology-label-missing", workload.object, field, message, fix);
        }
    }
}

/// How many pods there are to be: what an autoscaler wants at least, or the replicas.
fn wanted(set: &Set, workload: &Workload<'_>) -> Option<i64> {
    let object = workload.object;
    let scaler = set.all().find(|scaler| {
        scaler.is("autoscaling", "HorizontalPodAutoscaler")
            && scaler.namespace == object.namespace
            && text(&scaler.value, "/spec/scaleTargetRef/kind") == object.kind
            && text(&scaler.value, "/spec/scaleTargetRef/name") == object.name
    });
    let least = scaler.map(|scaler| int(&scaler.value, "/spec/minReplicas").unwrap_or(1));
    match (least, workload.replicas()) {
        (Some(least), Some(replicas)) => Some(least.max(replicas)),
        (least, replicas) => least.or(replicas),
    }
}

fn place_name(key: &str) -> &str {
    match key {
        "kubernetes.io/hostname" => "node",
        "topology.kubernetes.io/zone" | "failure-domain.beta.kubernetes.io/zone" => "zone",
        "topology.kubernetes.io/region" => "region",
        key => key,
    }
}

/// Spreading that must be even, over places that no node is in.
fn spread(workload: &Workload<'_>, nodes: &[&Labels], report: &mut Report) {
    for (index, constraint) in list(workload.spec(), "/topologySpreadConstraints").iter().enumerate() {
        let key = text(constraint, "/topologyKey");
        let hard = matches!(text(constraint, "/whenUnsatisfiable"), "" | "DoNotSchedule");
        if !hard || key.is_empty() {
            continue;
        }
        let field = workload.path(&format!("spec.topologySpreadConstraints[{index}]"));
        let places = places(nodes, key).len();
        let fewest = int(constraint, "/minDomains").unwrap_or(1);
        let skew = int(constraint, "/maxSkew").unwrap_or(1);
        if places == 0 {
            let message = format!("pods must spread over {key}, a label that no node has, so they stay Pending");
            let fix = format!("label the nodes with {key}, or write whenUnsatisfiable: ScheduleAnyway");
            report.object(
                Severity::Warning,
                "topology-label-missing",
                workload.object,
                format!("{field}.topologyKey"),
                message,
                fix,
            );
        } else if fewest > i64::try_from(places).unwrap_or(i64::MAX)
            && workload.replicas().is_some_and(|pods| pods > skew.saturating_mul(i64::try_from(places).unwrap_or(1)))
        {
            let message = format!(
                "pods must spread over at least {fewest} places by {key}, and {places} {} there",
                if places == 1 { "is" } else { "are" }
            );
            let fix = "lower minDomains, or write whenUnsatisfiable: ScheduleAnyway";
            report.object(
                Severity::Warning,
                "spread-never-met",
                workload.object,
                format!("{field}.minDomains"),
                message,
                fix,
            );
        }
    }
}

//! Whether pods whose egress is limited may still ask for names.

use mycelium_api::selector::Selector;
use serde_json::Value;

use crate::finding::{Report, Severity};
use crate::set::{Object, Set};
use crate::value::{has, int, list, text};
use crate::workload::protocol;

const DNS: i64 = 53;
/// Labels of the cluster's DNS servers.
const SERVERS: &[(&str, &str)] = &[
    ("k8s-app", "kube-dns"),
    ("k8s-app", "coredns"),
    ("k8s-app", "node-local-dns"),
    ("app", "coredns"),
    ("app.kubernetes.io/name", "coredns"),
];

pub fn check(set: &Set, report: &mut Report) {
    let policies: Vec<&Object> =
        set.of("networking.k8s.io", "NetworkPolicy").filter(|policy| limits_egress(policy)).collect();
    let mut reported: Vec<&Object> = Vec::new();
    for workload in set.workloads() {
        if workload.host_network() || uses_other_dns(workload.spec()) {
            continue;
        }
        let applied: Vec<&Object> = policies
            .iter()
            .copied()
            .filter(|policy| policy.namespace == workload.object.namespace)
            .filter(|policy| {
                Selector::from_value(&policy.value["spec"]["podSelector"])
                    .is_ok_and(|selector| selector.is_empty() || workload.matches(&selector))
            })
            .collect();
        let rules = || applied.iter().flat_map(|policy| list(&policy.value, "/spec/egress"));
        // Nothing at all is allowed: that is meant. So is a policy of addresses only.
        if !rules().any(names_peers) {
            continue;
        }
        let (udp, tcp) = (rules().any(|rule| allows(set, rule, "UDP")), rules().any(|rule| allows(set, rule, "TCP")));
        let Some(policy) =
            applied.iter().copied().find(|policy| policy.is_local() && has(&policy.value, "/spec/egress/0"))
        else {
            continue;
        };
        if (udp && tcp) || reported.iter().any(|known| std::ptr::eq(*known, policy)) {
            continue;
        }
        reported.push(policy);
        let fix = "allow egress to port 53, UDP and TCP, of namespace kubernetes.io/metadata.name: kube-system";
        if udp {
            let message =
                format!("pods of {} may ask DNS by UDP but not by TCP, which long answers need", workload.object);
            report.object(Severity::Hint, "policy-dns-tcp", policy, dns_rule(policy), message, fix);
        } else {
            let message =
                format!("pods of {} can no longer look up names: no egress to port 53 is allowed", workload.object);
            report.object(Severity::Warning, "policy-blocks-dns", policy, "spec.egress", message, fix);
        }
    }
}

/// The field of the rule that has port 53.
fn dns_rule(policy: &Object) -> String {
    let rules = list(&policy.value, "/spec/egress");
    let found = rules.iter().position(|rule| list(rule, "/ports").iter().any(is_dns));
    found.map_or_else(|| "spec.egress".to_owned(), |index| format!("spec.egress[{index}].ports"))
}

fn limits_egress(policy: &Object) -> bool {
    let types = list(&policy.value, "/spec/policyTypes");
    types.iter().any(|kind| kind == "Egress") || types.is_empty() && has(&policy.value, "/spec/egress")
}

fn uses_other_dns(spec: &Value) -> bool {
    matches!(text(spec, "/dnsPolicy"), "None" | "Default")
}

/// Whether a rule lets out to something that has a name: not only to addresses.
fn names_peers(rule: &Value) -> bool {
    let peers = list(rule, "/to");
    peers.is_empty() || peers.iter().any(|peer| !has(peer, "/ipBlock"))
}

fn is_dns(port: &Value) -> bool {
    let first = int(port, "/port");
    match (first, int(port, "/endPort")) {
        (Some(first), Some(last)) => (first..=last).contains(&DNS),
        (Some(first), None) => first == DNS,
        (None, _) => !has(port, "/port") || matches!(text(port, "/port"), "dns" | "dns-tcp" | "domain"),
    }
}

fn allows(set: &Set, rule: &Value, by: &str) -> bool {
    let ports = list(rule, "/ports");
    let peers = list(rule, "/to");
    (ports.is_empty() || ports.iter().any(|port| protocol(port) == by && is_dns(port)))
        && (peers.is_empty() || peers.iter().any(|peer| may_be_dns(set, peer)))
}

/// Whether the servers of the cluster may be meant. What other labels they have is not known.
fn may_be_dns(set: &Set, peer: &Value) -> bool {
    if has(peer, "/ipBlock") {
        return true;
    }
    let namespaces = &peer["namespaceSelector"];
    let system = set.namespace_labels("kube-system");
    let fits = |selector: &Value, labels: &std::collections::BTreeMap<String, String>| {
        Selector::from_value(selector).is_ok_and(|selector| selector.matches(labels))
    };
    let pods = &peer["podSelector"];
    let is_server = |(key, value): &(&str, &str)| {
        let labels = [((*key).to_owned(), (*value).to_owned())].into();
        fits(pods, &labels)
    };
    namespaces.is_object() && fits(namespaces, &system) && (!pods.is_object() || SERVERS.iter().any(is_server))
}

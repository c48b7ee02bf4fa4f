//! The roles that every cluster has, and the upkeep of aggregated ones.

use serde_json::{Value, json};

use super::rbac::PREFIX;
use super::{AUTHENTICATED, MASTERS, UNAUTHENTICATED};
use crate::codec;
use crate::error::ApiError;
use crate::server::Inner;
use mycelium_api::selector::Selector;
use mycelium_store::{CommitError, Entry, Expect, Op};

const RBAC: &str = "rbac.authorization.k8s.io";
const TABLE: &str = include_str!("../../data/roles.txt");
const TRIES: usize = 16;

fn frame(name: &str) -> Value {
    json!({"metadata": {"name": name, "labels": {"kubernetes.io/bootstrapping": "rbac-defaults"},
        "annotations": {"rbac.authorization.kubernetes.io/autoupdate": "true"}}})
}

/// The ClusterRoles of the table.
pub fn cluster_roles() -> Vec<Value> {
    let mut roles: Vec<Value> = Vec::new();
    for line in TABLE.lines().filter(|line| !line.starts_with('#') && !line.trim().is_empty()) {
        if let Some(head) = line.strip_prefix("role ") {
            roles.push(role(head));
        } else if let Some(rules) = roles.last_mut().and_then(|role| role["rules"].as_array_mut()) {
            rules.push(rule(line.trim()));
        }
    }
    roles
}

fn role(head: &str) -> Value {
    let mut words = head.split(' ');
    let mut role = frame(words.next().unwrap_or_default());
    role["rules"] = json!([]);
    for (key, target) in words.filter_map(|word| word.split_once('=')) {
        let label = format!("{RBAC}/aggregate-to-{target}");
        if key == "to" {
            role["metadata"]["labels"][label] = json!("true");
        } else {
            role["aggregationRule"] = json!({"clusterRoleSelectors": [{"matchLabels": {label: "true"}}]});
        }
    }
    role
}

fn rule(line: &str) -> Value {
    let words = |text: &str| -> Vec<String> { text.split_whitespace().map(str::to_owned).collect() };
    let verbs = |text: &str| -> Vec<String> {
        let expand = |word: &str| match word {
            "read" => vec!["get", "list", "watch"],
            "write" => vec!["create", "delete", "deletecollection", "patch", "update"],
            _ => Vec::new(),
        };
        let mut verbs: Vec<String> = words(text)
            .iter()
            .flat_map(|word| match expand(word) {
                known if known.is_empty() => vec![word.clone()],
                known => known.into_iter().map(str::to_owned).collect(),
            })
            .collect();
        verbs.sort();
        verbs
    };
    if let Some((verb, paths)) = line.split_once(" @ ") {
        return json!({"verbs": verbs(verb), "nonResourceURLs": words(paths)});
    }
    let parts: Vec<&str> = line.split(" : ").collect();
    let part = |at: usize| parts.get(at).copied().unwrap_or_default();
    let groups: Vec<String> =
        words(part(1)).into_iter().map(|group| if group == "core" { String::new() } else { group }).collect();
    let mut rule = json!({"verbs": verbs(part(0)), "apiGroups": groups, "resources": words(part(2))});
    if parts.len() > 3 {
        rule["resourceNames"] = json!(words(part(3)));
    }
    rule
}

/// The ClusterRoleBindings that every cluster has.
pub fn bindings() -> Vec<Value> {
    let bind = |name: &str, kind: &str, subjects: &[&str]| {
        let subjects: Vec<Value> =
            subjects.iter().map(|name| json!({"kind": kind, "apiGroup": RBAC, "name": name})).collect();
        let mut binding = frame(name);
        binding["roleRef"] = json!({"apiGroup": RBAC, "kind": "ClusterRole", "name": name});
        binding["subjects"] = json!(subjects);
        binding
    };
    let mut dns = frame("system:kube-dns");
    dns["roleRef"] = json!({"apiGroup": RBAC, "kind": "ClusterRole", "name": "system:kube-dns"});
    dns["subjects"] = json!([{"kind": "ServiceAccount", "name": "kube-dns", "namespace": "kube-system"}]);
    vec![
        bind("cluster-admin", "Group", &[MASTERS]),
        bind("system:monitoring", "Group", &["system:monitoring"]),
        bind("system:discovery", "Group", &[AUTHENTICATED]),
        bind("system:basic-user", "Group", &[AUTHENTICATED]),
        bind("system:public-info-viewer", "Group", &[AUTHENTICATED, UNAUTHENTICATED]),
        bind("system:node-proxier", "User", &["system:kube-proxy"]),
        bind("system:kube-controller-manager", "User", &["system:kube-controller-manager"]),
        bind("system:kube-scheduler", "User", &["system:kube-scheduler"]),
        bind("system:volume-scheduler", "User", &["system:kube-scheduler"]),
        bind("system:service-account-issuer-discovery", "Group", &["system:serviceaccounts"]),
        dns,
    ]
}

/// Brings a role of an older version up to date: what it lacks is added, unless its owner has forbidden that.
pub async fn reconcile(server: &Inner, entry: &Entry, wanted: &Value) -> Result<(), ApiError> {
    let mut role = codec::parse_entry(entry)?;
    if role["metadata"]["annotations"]["rbac.authorization.kubernetes.io/autoupdate"] != "true" {
        return Ok(());
    }
    let before = role.clone();
    for (key, value) in wanted["metadata"]["labels"].as_object().into_iter().flatten() {
        role["metadata"]["labels"][key] = value.clone();
    }
    if wanted["aggregationRule"].is_object() && role["aggregationRule"].is_null() {
        role["aggregationRule"] = wanted["aggregationRule"].clone();
    }
    let mut rules = role["rules"].as_array().cloned().unwrap_or_default();
    for rule in wanted["rules"].as_array().into_iter().flatten() {
        if !rules.contains(rule) {
            rules.push(rule.clone());
        }
    }
    if !rules.is_empty() {
        role["rules"] = json!(rules);
    }
    if role == before {
        return Ok(());
    }
    let expect = Expect::Revision(entry.mod_revision);
    match server.commit(vec![Op::Put { key: entry.key.to_string(), value: codec::encode(&role), expect }]).await {
        // Somebody writes it right now, and so knows better.
        Ok(_) | Err(CommitError::Conflict { .. }) => Ok(()),
        Err(error) => Err(ApiError::internal(error)),
    }
}

/// Writes into each aggregated ClusterRole the rules of the roles it selects. Called after a ClusterRole was written;
/// ends when nothing changes any more, since a selected role may be aggregated itself.
pub async fn aggregate(server: &Inner) {
    for _ in 0..TRIES {
        let changes = outdated(server);
        if changes.is_empty() {
            return;
        }
        match server.store.commit(changes).await {
            Ok(_) => server.rbac.invalidate(),
            // Somebody wrote one of them: look again.
            Err(CommitError::Conflict { .. }) => {}
            Err(error) => return tracing::warn!(%error, "aggregated roles could not be written"),
        }
    }
}

fn outdated(server: &Inner) -> Vec<Op> {
    let entries = server.store.range(&format!("{PREFIX}clusterroles/"), None, 0, None);
    let entries = entries.map(|page| page.entries).unwrap_or_default();
    let mut roles: Vec<Value> =
        entries.iter().map(|entry| serde_json::from_slice(&entry.value).unwrap_or_default()).collect();
    let mut ops = Vec::new();
    for (index, entry) in entries.iter().enumerate() {
        let Some(selectors) = roles[index]["aggregationRule"]["clusterRoleSelectors"].as_array() else { continue };
        let selectors: Vec<Selector> = selectors.iter().filter_map(|s| Selector::from_value(s).ok()).collect();
        let mut rules: Vec<Value> = Vec::new();
        let selected = |role: &&Value| selectors.iter().any(|s| s.matches_value(&role["metadata"]["labels"]));
        let others = roles.iter().enumerate().filter(|(at, _)| *at != index).map(|(_, role)| role);
        for rule in others.filter(selected).flat_map(|role| role["rules"].as_array().into_iter().flatten()) {
            if !rules.contains(rule) {
                rules.push(rule.clone());
            }
        }
        if roles[index]["rules"].as_array().map(Vec::as_slice).unwrap_or_default() == rules.as_slice() {
            continue;
        }
        roles[index]["rules"] = json!(rules);
        let expect = Expect::Revision(entry.mod_revision);
        ops.push(Op::Put { key: entry.key.to_string(), value: codec::encode(&roles[index]), expect });
    }
    ops
}

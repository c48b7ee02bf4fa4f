//! Nobody grants what they do not hold: a Role may contain, and a binding may refer to, only what its writer may do,
//! unless the writer has the verb `escalate` (for roles) or `bind` (for bindings).

use serde_json::{Value, json};

use super::Identity;
use super::rbac::{Attributes, Rules};
use crate::error::{ApiError, Subject};
use crate::route::Context;

/// Refuses a role or binding that grants more than its writer has. `old` is what an update replaces.
pub fn check(cx: &Context<'_>, object: &Value, old: Option<&Value>) -> Result<(), ApiError> {
    if cx.who.is_master() || cx.resource.group() != "rbac.authorization.k8s.io" {
        return Ok(());
    }
    let binding = cx.resource.name().ends_with("bindings");
    let part = if binding { "roleRef" } else { "rules" };
    let same = old.is_some_and(|old| old[part] == object[part] && old["aggregationRule"] == object["aggregationRule"]);
    let same_subjects = old.is_some_and(|old| old["subjects"] == object["subjects"]);
    if same && (!binding || same_subjects) {
        return Ok(());
    }
    let rules = cx.server.rbac.rules(&cx.server.store);
    let name = object["metadata"]["name"].as_str().unwrap_or_default();
    let namespace = cx.path.namespace.as_str();
    let granted = if binding { referred(cx, object) } else { object["rules"].clone() };
    let exempt = if binding { may_bind(cx, &rules, object) } else { may_escalate(cx, &rules, name) };
    let missing = missing(&rules, cx.who, namespace, &granted);
    if exempt || missing.is_empty() && (binding || object["aggregationRule"].is_null()) {
        return Ok(());
    }
    if missing.is_empty() {
        let why = "must have cluster-admin privileges to use the aggregationRule";
        return Err(ApiError::forbidden(Subject::new(cx.resource.group(), cx.resource.name(), name), why));
    }
    let groups = json!(cx.who.groups).to_string().replace("\",\"", "\" \"");
    let missing: Vec<String> = missing.iter().map(|rule| format!("\n{rule}")).collect();
    let text = format!(
        "user {:?} (groups={groups}) is attempting to grant RBAC permissions not currently held:{}",
        cx.who.user,
        missing.concat()
    );
    Err(ApiError::forbidden(Subject::new(cx.resource.group(), cx.resource.name(), name), text))
}

fn want(cx: &Context<'_>, verb: &str, resource: &str, name: &str) -> Attributes {
    Attributes {
        verb: verb.to_owned(),
        group: cx.resource.group().to_owned(),
        resource: resource.to_owned(),
        namespace: cx.path.namespace.clone(),
        name: name.to_owned(),
        ..Attributes::default()
    }
}

fn may_escalate(cx: &Context<'_>, rules: &Rules, name: &str) -> bool {
    rules.allows(cx.who, &want(cx, "escalate", cx.resource.name(), name))
}

fn may_bind(cx: &Context<'_>, rules: &Rules, binding: &Value) -> bool {
    let reference = &binding["roleRef"];
    let resource = if reference["kind"] == "Role" { "roles" } else { "clusterroles" };
    rules.allows(cx.who, &want(cx, "bind", resource, reference["name"].as_str().unwrap_or_default()))
}

/// The rules of the role a binding refers to.
fn referred(cx: &Context<'_>, binding: &Value) -> Value {
    let reference = &binding["roleRef"];
    let name = reference["name"].as_str().unwrap_or_default();
    let key = match reference["kind"].as_str() {
        Some("Role") => format!("/registry/rbac.authorization.k8s.io/roles/{}/{name}", cx.path.namespace),
        _ => format!("/registry/rbac.authorization.k8s.io/clusterroles/{name}"),
    };
    let entry = cx.server.store.get(&key);
    let role = entry.and_then(|entry| crate::codec::parse_entry(&entry).ok()).unwrap_or_default();
    role["rules"].clone()
}

/// The rules of which `who` lacks a part, as the refusal shows them.
fn missing(rules: &Rules, who: &Identity, namespace: &str, granted: &Value) -> Vec<String> {
    let granted = granted.as_array().map(Vec::as_slice).unwrap_or_default();
    granted.iter().filter(|rule| !holds(rules, who, namespace, rule)).map(show).collect()
}

fn texts<'a>(rule: &'a Value, field: &str) -> Vec<&'a str> {
    rule[field].as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}

/// Whether everything a rule allows is allowed already.
fn holds(rules: &Rules, who: &Identity, namespace: &str, rule: &Value) -> bool {
    let or_any = |list: Vec<&'static str>, given: Vec<&str>| -> Vec<String> {
        let given: Vec<String> = given.into_iter().map(str::to_owned).collect();
        if given.is_empty() { list.into_iter().map(str::to_owned).collect() } else { given }
    };
    let names = or_any(vec![""], texts(rule, "resourceNames"));
    let allowed = |want: Attributes| rules.allows(who, &want);
    texts(rule, "verbs").into_iter().all(|verb| {
        let paths = texts(rule, "nonResourceURLs").into_iter().all(|path| {
            allowed(Attributes { verb: verb.to_owned(), path: Some(path.to_owned()), ..Attributes::default() })
        });
        let resources = texts(rule, "resources").into_iter().all(|full| {
            let (resource, subresource) = full.split_once('/').unwrap_or((full, ""));
            texts(rule, "apiGroups").into_iter().all(|group| {
                names.iter().all(|name| {
                    allowed(Attributes {
                        verb: verb.to_owned(),
                        group: group.to_owned(),
                        resource: resource.to_owned(),
                        subresource: subresource.to_owned(),
                        namespace: namespace.to_owned(),
                        name: name.clone(),
                        path: None,
                    })
                })
            })
        });
        paths && resources
    })
}

/// A rule in the form of Kubernetes' message: `{APIGroups:[""], Resources:["pods"], Verbs:["get"]}`.
fn show(rule: &Value) -> String {
    let fields = [
        ("apiGroups", "APIGroups"),
        ("resources", "Resources"),
        ("resourceNames", "ResourceNames"),
        ("nonResourceURLs", "NonResourceURLs"),
        ("verbs", "Verbs"),
    ];
    let shown: Vec<String> = fields
        .iter()
        .filter(|(key, _)| !texts(rule, key).is_empty())
        .map(|(key, label)| {
            let items: Vec<String> = texts(rule, key).iter().map(|text| format!("{text:?}")).collect();
            format!("{label}:[{}]", items.join(" "))
        })
        .collect();
    format!("{{{}}}", shown.join(", "))
}

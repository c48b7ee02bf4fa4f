//! Which requests a webhook or a policy is about.

use std::sync::Arc;

use mycelium_api::selector::Selector;
use mycelium_cel::{Limits, Program, Value as Cel};
use serde_json::Value;

use super::Write;
use super::environment::Environment;

/// What all match conditions of one webhook or policy may cost together, and each.
const CONDITIONS_COST: u64 = 2_500_000;
const CALL_COST: u64 = 1_000_000;

fn texts<'a>(value: &'a Value, key: &str) -> impl Iterator<Item = &'a str> {
    value[key].as_array().into_iter().flatten().filter_map(Value::as_str)
}

fn names(rule: &Value, key: &str, wanted: &str) -> bool {
    texts(rule, key).any(|name| name == "*" || name == wanted)
}

/// Whether a rule is about a request. With `equivalent`, another version of the same resource will do.
fn rule_fits(rule: &Value, write: &Write<'_>, equivalent: bool) -> bool {
    let resource = write.cx.resource;
    let sub = write.cx.subresource().unwrap_or_default();
    let scope = rule["scope"].as_str().unwrap_or("*");
    let scope_fits = match scope {
        "Namespaced" => resource.namespaced(),
        "Cluster" => !resource.namespaced(),
        _ => true,
    };
    let named = texts(rule, "resourceNames").next().is_none() || names(rule, "resourceNames", &write.name);
    let version = names(rule, "apiVersions", resource.version())
        || equivalent && {
            let table = write.cx.server.table();
            texts(rule, "apiVersions").any(|v| table.get(resource.group(), v, resource.name()).is_some())
        };
    let resources = texts(rule, "resources").any(|pattern| {
        let (name, wanted) = pattern.split_once('/').unwrap_or((pattern, ""));
        let every = pattern == "*/*";
        (name == "*" || name == resource.name()) && (every || wanted == sub || wanted == "*" && !sub.is_empty())
    });
    names(rule, "operations", write.operation)
        && names(rule, "apiGroups", resource.group())
        && version
        && resources
        && scope_fits
        && named
}

/// Whether rules and selectors are about a request: those of a webhook, or of a policy's or binding's constraints.
pub fn fits(constraints: &Value, rules: &str, write: &Write<'_>) -> bool {
    let equivalent = constraints["matchPolicy"] != "Exact";
    let list = |key: &str| constraints[key].as_array().map(Vec::as_slice).unwrap_or_default();
    let included = list(rules).iter().any(|rule| rule_fits(rule, write, equivalent));
    let excluded = list("excludeResourceRules").iter().any(|rule| rule_fits(rule, write, equivalent));
    included && !excluded && selectors_fit(constraints, write)
}

/// Whether the selectors for namespaces and objects let a request pass.
pub fn selectors_fit(constraints: &Value, write: &Write<'_>) -> bool {
    namespace_fits(&constraints["namespaceSelector"], write) && object_fits(&constraints["objectSelector"], write)
}

fn selects(selector: &Value, labels: &Value) -> bool {
    Selector::from_value(selector).is_ok_and(|selector| selector.matches_value(labels))
}

fn is_open(selector: &Value) -> bool {
    selector.as_object().is_none_or(serde_json::Map::is_empty)
}

fn namespace_fits(selector: &Value, write: &Write<'_>) -> bool {
    if is_open(selector) {
        return true;
    }
    if write.cx.resource.is_core("namespaces") && write.cx.subresource().is_none() {
        let labels = if write.operation == "DELETE" { &write.old } else { &write.object };
        return selects(selector, &labels["metadata"]["labels"]);
    }
    if !write.cx.resource.namespaced() {
        return true;
    }
    namespace(write).is_some_and(|namespace| selects(selector, &namespace["metadata"]["labels"]))
}

/// The namespace of the object.
pub fn namespace(write: &Write<'_>) -> Option<Arc<Value>> {
    let cx = write.cx;
    let entry = cx.server.store.get(&format!("/registry/core/namespaces/{}", cx.path.namespace))?;
    cx.server.parsed.get(&entry.key, &entry.value, entry.mod_revision).ok()
}

fn object_fits(selector: &Value, write: &Write<'_>) -> bool {
    let chosen = |object: &Value| object.is_object() && selects(selector, &object["metadata"]["labels"]);
    is_open(selector) || chosen(&write.object) || chosen(&write.old)
}

/// Whether the match conditions hold. The first that does not decides; if none says no, a failure does.
pub fn conditions_hold(conditions: &Value, environment: &Environment) -> Result<bool, String> {
    let limits = Limits::new(CONDITIONS_COST, CALL_COST);
    let mut failures = Vec::new();
    for condition in conditions.as_array().into_iter().flatten() {
        let text = condition["expression"].as_str().unwrap_or_default();
        let Ok(program) = Program::parse(text) else { continue };
        match program.run(&environment.bindings(), &limits) {
            Ok(Cel::Bool(true)) => {}
            Ok(_) => return Ok(false),
            Err(why) => failures.push(format!("expression '{text}' resulted in error: {why}")),
        }
    }
    match failures.as_slice() {
        [] => Ok(true),
        [one] => Err(one.clone()),
        several => Err(format!("[{}]", several.join(", "))),
    }
}

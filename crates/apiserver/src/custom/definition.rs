//! CustomResourceDefinitions: what the server fills in, and what goes with them.

use mycelium_store::{Expect, Op, Store};
use serde_json::{Value, json};

/// Fills in names, and establishes the definition at once: nothing has to be prepared for it.
pub fn establish(definition: &mut Value, old: Option<&Value>, now: &str) {
    let names = &mut definition["spec"]["names"];
    let kind = names["kind"].as_str().unwrap_or_default().to_owned();
    for (field, value) in [("singular", kind.to_ascii_lowercase()), ("listKind", format!("{kind}List"))] {
        if names[field].as_str().unwrap_or_default().is_empty() {
            names[field] = json!(value);
        }
    }
    if definition["spec"]["conversion"].is_null() {
        definition["spec"]["conversion"] = json!({"strategy": "None"});
    }
    let names = definition["spec"]["names"].clone();
    let versions = definition["spec"]["versions"].as_array().map(Vec::as_slice).unwrap_or_default();
    let storage = versions.iter().find(|v| v["storage"] == true).map(|v| v["name"].clone()).unwrap_or_default();
    let mut stored =
        old.map_or_else(Vec::new, |o| o["status"]["storedVersions"].as_array().cloned().unwrap_or_default());
    if !stored.contains(&storage) {
        stored.push(storage);
    }
    let condition = |kind: &str, reason: &str, message: &str| json!({"type": kind, "status": "True", "reason": reason, "message": message, "lastTransitionTime": now});
    let mut conditions = old.map_or(Value::Null, |old| old["status"]["conditions"].clone());
    if !conditions.is_array() {
        conditions = json!([
            condition("NamesAccepted", "NoConflicts", "no conflicts found"),
            condition("Established", "InitialNamesAccepted", "the initial names have been accepted"),
        ]);
    }
    definition["status"] = json!({"acceptedNames": names, "storedVersions": stored, "conditions": conditions});
}

/// The deletion of every object of a definition, for the transaction that deletes it.
pub fn instances(store: &Store, definition: &Value) -> Vec<Op> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let (group, plural) = (text(&definition["spec"]["group"]), text(&definition["spec"]["names"]["plural"]));
    if group.is_empty() || plural.is_empty() {
        return Vec::new();
    }
    let page = store.range(&format!("/registry/{group}/{plural}/"), None, 0, None);
    let entries = page.map(|page| page.entries).unwrap_or_default();
    entries.iter().map(|entry| Op::Delete { key: entry.key.to_string(), expect: Expect::Any }).collect()
}

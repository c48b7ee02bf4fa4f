//! CustomResourceDefinitions: what the server fills in.

use std::collections::BTreeSet;

use mycelium_store::Store;
use serde_json::{Value, json};

use super::PREFIX;

/// Whether a definition is served.
pub fn is_established(definition: &Value) -> bool {
    let conditions = definition["status"]["conditions"].as_array();
    conditions.into_iter().flatten().any(|c| c["type"] == "Established" && c["status"] == "True")
}

/// Fills in names and status. A definition is established at once, for nothing has to be prepared, unless a name it
/// wants is another's.
pub fn establish(store: &Store, definition: &mut Value, old: Option<&Value>, now: &str) {
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
    // Read before it is written: an index into what is not there would make it.
    let conversion: &Value = &definition["spec"]["conversion"];
    if conversion["webhook"]["clientConfig"]["service"].is_object() {
        let service = &mut definition["spec"]["conversion"]["webhook"]["clientConfig"]["service"];
        if service["port"].is_null() {
            service["port"] = json!(443);
        }
    }
    let versions = definition["spec"]["versions"].as_array().map(Vec::as_slice).unwrap_or_default();
    let storage = versions.iter().find(|v| v["storage"] == true).map(|v| v["name"].clone()).unwrap_or_default();
    let mut stored =
        old.map_or_else(Vec::new, |o| o["status"]["storedVersions"].as_array().cloned().unwrap_or_default());
    if !stored.contains(&storage) {
        stored.push(storage);
    }
    let (accepted, conditions) = judge(store, definition, old, now);
    definition["status"] = json!({"acceptedNames": accepted, "storedVersions": stored, "conditions": conditions});
}

/// The names a definition gets, and its conditions.
fn judge(store: &Store, definition: &Value, old: Option<&Value>, now: &str) -> (Value, Value) {
    let names = &definition["spec"]["names"];
    let conflict = conflict(store, definition);
    let before = old.map_or(Value::Null, |old| old["status"]["conditions"].clone());
    let condition = |kind: &str, status: &str, reason: &str, message: &str| {
        let known = before.as_array().into_iter().flatten().find(|c| c["type"] == kind && c["status"] == status);
        let since = known.map_or_else(|| json!(now), |known| known["lastTransitionTime"].clone());
        json!({"type": kind, "status": status, "reason": reason, "message": message, "lastTransitionTime": since})
    };
    let established = old.is_some_and(is_established);
    let mut conditions = match &conflict {
        None => vec![
            condition("NamesAccepted", "True", "NoConflicts", "no conflicts found"),
            condition("Established", "True", "InitialNamesAccepted", "the initial names have been accepted"),
        ],
        Some((reason, message)) => vec![
            condition("NamesAccepted", "False", reason, message),
            match established {
                true => {
                    condition("Established", "True", "InitialNamesAccepted", "the initial names have been accepted")
                }
                false => condition("Established", "False", "NotAccepted", "not all names are accepted"),
            },
        ],
    };
    let others = before.as_array().into_iter().flatten();
    conditions.extend(others.filter(|c| c["type"] != "NamesAccepted" && c["type"] != "Established").cloned());
    let accepted = match (&conflict, old) {
        (None, _) => names.clone(),
        (Some(_), Some(old)) => old["status"]["acceptedNames"].clone(),
        (Some(_), None) => json!({"plural": "", "kind": ""}),
    };
    (accepted, json!(conditions))
}

/// A name that another definition of the group has already.
fn conflict(store: &Store, definition: &Value) -> Option<(&'static str, String)> {
    let mut resources = BTreeSet::new();
    let mut kinds = BTreeSet::new();
    let entries = store.range(PREFIX, None, 0, None).map(|page| page.entries).unwrap_or_default();
    for entry in entries {
        let Ok(other) = serde_json::from_slice::<Value>(&entry.value) else { continue };
        let same = other["metadata"]["name"] == definition["metadata"]["name"];
        if same || other["spec"]["group"] != definition["spec"]["group"] {
            continue;
        }
        let names = &other["status"]["acceptedNames"];
        let short = names["shortNames"].as_array().into_iter().flatten();
        resources
            .extend(short.chain([&names["plural"], &names["singular"]]).filter_map(Value::as_str).map(str::to_owned));
        kinds.extend([&names["kind"], &names["listKind"]].into_iter().filter_map(Value::as_str).map(str::to_owned));
    }
    let names = &definition["spec"]["names"];
    let taken =
        |known: &BTreeSet<String>, name: &Value| name.as_str().filter(|n| known.contains(*n)).map(str::to_owned);
    let text = |name: String| format!("{name:?} is already in use");
    let short = names["shortNames"].as_array().into_iter().flatten().find_map(|name| taken(&resources, name));
    // Of several conflicts, the last in this order is told.
    taken(&kinds, &names["listKind"])
        .map(|name| ("ListKindConflict", text(name)))
        .or_else(|| taken(&kinds, &names["kind"]).map(|name| ("KindConflict", text(name))))
        .or_else(|| short.map(|name| ("ShortNamesConflict", text(name))))
        .or_else(|| taken(&resources, &names["singular"]).map(|name| ("SingularConflict", text(name))))
        .or_else(|| taken(&resources, &names["plural"]).map(|name| ("PluralConflict", text(name))))
}

/// Says that the objects of a deleted definition are being deleted.
pub fn terminating(definition: &mut Value, now: &str) {
    let condition = json!({"type": "Terminating", "status": "True", "reason": "InstanceDeletionInProgress",
        "message": "CustomResource deletion is in progress", "lastTransitionTime": now});
    match definition["status"]["conditions"].as_array_mut() {
        Some(conditions) if conditions.iter().any(|c| c["type"] == "Terminating") => {}
        Some(conditions) => conditions.push(condition),
        None => definition["status"]["conditions"] = json!([condition]),
    }
}

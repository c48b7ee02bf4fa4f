//! Extensions in discovery: added to the documents that tell of our own groups.

use std::sync::Arc;

use serde_json::{Value, json};

use super::Extension;

/// Adds the groups of extensions to an `APIGroupList`.
pub fn add_groups(list: &mut Value, extensions: &[Extension]) {
    let Some(groups) = list["groups"].as_array_mut() else { return };
    for extension in extensions {
        match groups.iter_mut().find(|group| group["name"] == *extension.group) {
            Some(group) => add_version(group, extension),
            None => groups.push(group_of(extension)),
        }
    }
}

/// The document of one group that only extensions serve.
pub fn group(extensions: &[Extension], name: &str) -> Option<Value> {
    let mut of_group = extensions.iter().filter(|extension| extension.group == name);
    let mut group = group_of(of_group.next()?);
    of_group.for_each(|extension| add_version(&mut group, extension));
    group["kind"] = json!("APIGroup");
    group["apiVersion"] = json!("v1");
    Some(group)
}

fn version_of(extension: &Extension) -> Value {
    let Extension { group, version, .. } = extension;
    json!({"groupVersion": format!("{group}/{version}"), "version": version})
}

fn group_of(extension: &Extension) -> Value {
    let version = version_of(extension);
    json!({"name": extension.group, "preferredVersion": version, "versions": [version]})
}

fn add_version(group: &mut Value, extension: &Extension) {
    let known = |versions: &[Value]| versions.iter().any(|known| known["version"] == *extension.version);
    if let Some(versions) = group["versions"].as_array_mut().filter(|versions| !known(versions)) {
        versions.push(version_of(extension));
    }
}

/// Adds extensions, each with the list of its resources, to an `APIGroupDiscoveryList`. One that gave none is there, as
/// stale.
pub fn add_aggregated(list: &mut Value, extensions: &[Extension], lists: &[Option<Arc<Value>>]) {
    let Some(items) = list["items"].as_array_mut() else { return };
    for (extension, resources) in extensions.iter().zip(lists) {
        let version = match resources {
            Some(list) => {
                json!({"version": extension.version, "freshness": "Current", "resources": aggregated(extension, list)})
            }
            None => json!({"version": extension.version, "freshness": "Stale"}),
        };
        match items.iter_mut().find(|item| item["metadata"]["name"] == *extension.group) {
            Some(item) => {
                item["versions"].as_array_mut().into_iter().for_each(|versions| versions.push(version.clone()))
            }
            None => items.push(json!({"metadata": {"name": extension.group}, "versions": [version]})),
        }
    }
}

/// An `APIResourceList` in the form of aggregated discovery.
fn aggregated(extension: &Extension, list: &Value) -> Vec<Value> {
    let mut resources: Vec<Value> = Vec::new();
    for entry in list["resources"].as_array().into_iter().flatten() {
        let name = entry["name"].as_str().unwrap_or_default();
        let or = |key: &str, default: &str| {
            entry[key].as_str().filter(|text| !text.is_empty()).unwrap_or(default).to_owned()
        };
        let kind = json!({"group": or("group", &extension.group), "version": or("version", &extension.version),
            "kind": entry["kind"]});
        if let Some((parent, sub)) = name.split_once('/') {
            let parent = resources.iter_mut().find(|resource| resource["resource"] == parent);
            if let Some(parent) = parent {
                let subs = &mut parent["subresources"];
                if subs.is_null() {
                    *subs = json!([]);
                }
                let value = json!({"subresource": sub, "responseKind": kind, "verbs": entry["verbs"]});
                subs.as_array_mut().into_iter().for_each(|subs| subs.push(value.clone()));
            }
            continue;
        }
        let scope = if entry["namespaced"] == true { "Namespaced" } else { "Cluster" };
        let mut value = json!({"resource": name, "responseKind": kind, "scope": scope,
            "singularResource": or("singularName", ""), "verbs": entry["verbs"]});
        for key in ["shortNames", "categories"] {
            if entry[key].is_array() {
                value[key] = entry[key].clone();
            }
        }
        resources.push(value);
    }
    resources
}

/// Adds the documents of extensions to the index of OpenAPI v3.
pub fn add_openapi(index: &mut Value, extensions: &[Extension]) {
    for Extension { group, version, .. } in extensions {
        let path = format!("apis/{group}/{version}");
        if index["paths"][&path].is_null() {
            index["paths"][&path] = json!({"serverRelativeURL": format!("/openapi/v3/{path}")});
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extension(version: &str) -> Extension {
        let spec =
            json!({"group": "wardle.example.com", "version": version, "service": {"namespace": "n", "name": "s"}});
        Extension::parse(&json!({"spec": spec})).expect("names a service")
    }

    #[test]
    fn extensions_stand_beside_our_own_groups() {
        let (one, two) = (extension("v1"), extension("v1beta1"));
        let mut list = json!({"groups": [{"name": "apps", "versions": [{"version": "v1"}]}]});
        add_groups(&mut list, &[one.clone(), two.clone()]);
        assert_eq!(list["groups"][1]["versions"][1]["groupVersion"], "wardle.example.com/v1beta1");
        assert_eq!(
            group(std::slice::from_ref(&one), "wardle.example.com").expect("there")["preferredVersion"]["version"],
            "v1"
        );
        assert!(group(std::slice::from_ref(&one), "other").is_none());

        let resources = json!({"resources": [
            {"name": "flunders", "singularName": "flunder", "namespaced": true, "kind": "Flunder", "verbs": ["get"]},
            {"name": "flunders/status", "namespaced": true, "kind": "Flunder", "verbs": ["update"]},
        ]});
        let mut list = json!({"items": []});
        add_aggregated(&mut list, &[one, two], &[Some(Arc::new(resources)), None]);
        let versions = &list["items"][0]["versions"];
        assert_eq!(versions[0]["resources"][0]["subresources"][0]["subresource"], "status");
        assert_eq!(versions[0]["resources"][0]["responseKind"]["group"], "wardle.example.com");
        assert_eq!(versions[1]["freshness"], "Stale");
    }
}

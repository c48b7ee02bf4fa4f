//! Custom resources: what the CustomResourceDefinitions in the store add to the table of resources.
//!
//! | module | holds |
//! |---|---|
//! | [`columns`] | printer columns and the JSON paths they show |
//! | [`conversion`] | between versions, by a webhook |
//! | [`definition`] | what the server fills into a definition |
//! | [`ending`] | the end of a definition |
//! | [`rules`] | rules in CEL |
//! | [`structural`] | what must be right about a definition |
//! | [`validate`] | defaults and validation by an OpenAPI schema |

pub mod columns;
pub mod conversion;
pub mod definition;
pub mod ending;
pub mod rules;
pub mod structural;
pub mod validate;

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;

use mycelium_apimachinery::openapi;
use mycelium_apimachinery::schema::{self, Subresource};
use mycelium_store::Store;
use serde_json::Value;

use crate::resources::Resource;
use columns::PrinterColumn;

/// Below this prefix lie the definitions.
pub const PREFIX: &str = "/registry/apiextensions.k8s.io/customresourcedefinitions/";

const ALL: &[&str] = &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];
const PART: &[&str] = &["get", "patch", "update"];

/// What a version of a custom resource has besides what every resource has.
pub struct Custom {
    /// The `openAPIV3Schema`.
    pub schema: Option<Value>,
    /// Its patterns, compiled.
    pub patterns: validate::Patterns,
    /// Its rules in CEL.
    pub rules: Option<rules::Rules>,
    /// Where the webhook is that converts between versions, if one does.
    pub conversion: Option<Value>,
    /// Whether objects may lie in the store in another version than the one they are now stored in.
    pub mixed: bool,
    /// Fields that objects can be selected by.
    pub selectable: Vec<String>,
    /// Where the scale subresource finds what it shows: wanted replicas, replicas there are, selector.
    pub scale: [String; 3],
    /// Columns of `kubectl get`; none for name and age.
    pub columns: Vec<PrinterColumn>,
    list_kind: String,
}

/// Compiled definitions, by uid and generation: the parts of one live as long as the process, so each is made once.
#[derive(Default)]
pub struct Compiled(BTreeMap<(String, i64), Vec<Arc<Resource>>>);

impl Compiled {
    /// The resources of all definitions in the store.
    pub fn resources(&mut self, store: &Store) -> Vec<Arc<Resource>> {
        let entries = store.range(PREFIX, None, 0, None).map(|page| page.entries).unwrap_or_default();
        let mut all = Vec::new();
        for entry in entries {
            let Ok(definition) = serde_json::from_slice::<Value>(&entry.value) else { continue };
            if !definition::is_established(&definition) {
                continue;
            }
            let metadata = &definition["metadata"];
            let id = (text(&metadata["uid"]), metadata["generation"].as_i64().unwrap_or_default());
            all.extend(self.0.entry(id).or_insert_with(|| compile(&definition)).iter().cloned());
        }
        all
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn keep(text: &str) -> &'static str {
    Box::leak(text.to_owned().into_boxed_str())
}

fn keep_all(list: &Value) -> &'static [&'static str] {
    let list: Vec<&'static str> = list.as_array().into_iter().flatten().filter_map(Value::as_str).map(keep).collect();
    Box::leak(list.into_boxed_slice())
}

/// The resources of a definition, one for each version it serves.
fn compile(definition: &Value) -> Vec<Arc<Resource>> {
    let spec = &definition["spec"];
    let mut versions: Vec<&Value> = spec["versions"].as_array().into_iter().flatten().collect();
    let storage = versions.iter().find(|v| v["storage"] == true).map(|v| keep(v["name"].as_str().unwrap_or_default()));
    let Some(storage) = storage else { return Vec::new() };
    versions.retain(|v| v["served"] == true);
    versions.sort_by_key(|v| Reverse(version_rank(v["name"].as_str().unwrap_or_default())));
    let mixed = definition["status"]["storedVersions"].as_array().is_some_and(|stored| stored.len() > 1);
    let one = |(index, version): (usize, &&Value)| Arc::new(resource(spec, version, index == 0, storage, mixed));
    versions.iter().enumerate().map(one).collect()
}

fn resource(spec: &Value, version: &Value, preferred: bool, storage_version: &'static str, mixed: bool) -> Resource {
    let names = &spec["names"];
    let group = keep(spec["group"].as_str().unwrap_or_default());
    let name = keep(version["name"].as_str().unwrap_or_default());
    let kind = keep(names["kind"].as_str().unwrap_or_default());
    let lower = kind.to_ascii_lowercase();
    let has_status = version["subresources"]["status"].is_object();
    let mut subresources = Vec::new();
    if version["subresources"]["scale"].is_object() {
        subresources.push(Subresource {
            name: "scale",
            group: "autoscaling",
            version: "v1",
            kind: "Scale",
            verbs: PART,
        });
    }
    if has_status {
        subresources.push(Subresource { name: "status", group, version: name, kind, verbs: PART });
    }
    let facts = schema::Resource {
        group,
        version: name,
        resource: keep(names["plural"].as_str().unwrap_or_default()),
        singular: keep(names["singular"].as_str().unwrap_or(&lower)),
        kind,
        namespaced: spec["scope"] == "Namespaced",
        preferred,
        verbs: ALL,
        short_names: keep_all(&names["shortNames"]),
        categories: keep_all(&names["categories"]),
        subresources: Box::leak(subresources.into_boxed_slice()),
    };
    let document = version["schema"].get("openAPIV3Schema").cloned();
    let ty = schema::from_crd_schema(document.as_ref(), spec["preserveUnknownFields"] == true);
    let scale = &version["subresources"]["scale"];
    let custom = Custom {
        patterns: document.as_ref().map(validate::Patterns::of).unwrap_or_default(),
        rules: document.as_ref().and_then(rules::Rules::of),
        conversion: (spec["conversion"]["strategy"] == "Webhook")
            .then(|| spec["conversion"]["webhook"]["clientConfig"].clone()),
        mixed,
        selectable: version["selectableFields"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|field| text(&field["jsonPath"]).trim_start_matches('.').to_owned())
            .collect(),
        scale: ["specReplicasPath", "statusReplicasPath", "labelSelectorPath"].map(|key| text(&scale[key])),
        schema: document,
        columns: columns::from_version(version),
        list_kind: names["listKind"].as_str().map_or_else(|| format!("{kind}List"), str::to_owned),
    };
    let behaviour = mycelium_kinds::custom(has_status);
    Resource::custom(Box::leak(Box::new(facts)), storage_version, Box::leak(Box::new(ty)), behaviour, custom)
}

/// How Kubernetes ranks versions: stable before beta before alpha, then the higher number.
pub fn version_rank(version: &str) -> (u8, u32, u32) {
    let digits = |s: &str| s.parse().unwrap_or(0);
    let rest = version.strip_prefix('v').unwrap_or(version);
    if let Some((major, minor)) = rest.split_once("alpha") {
        (0, digits(major), digits(minor))
    } else if let Some((major, minor)) = rest.split_once("beta") {
        (1, digits(major), digits(minor))
    } else {
        (2, digits(rest), 0)
    }
}

/// A step of a simple path below an object: `.spec.replicas`.
fn steps(path: &str) -> impl Iterator<Item = &str> {
    path.split('.').filter(|step| !step.is_empty())
}

/// The `autoscaling/v1` Scale of a custom resource.
pub fn scale_of(custom: &Custom, object: &Value) -> Value {
    let find = |path: &str| steps(path).fold(object, |value, step| &value[step]).clone();
    let [wanted, there, selector] = &custom.scale;
    let mut shown = serde_json::json!({"kind": object["kind"], "metadata": object["metadata"],
        "spec": {"replicas": find(wanted)}, "status": {"replicas": find(there)}});
    shown = mycelium_kinds::scale::of(&shown);
    if let Some(selector) = find(selector).as_str().filter(|selector| !selector.is_empty()) {
        shown["status"]["selector"] = selector.into();
    }
    shown
}

/// Sets the replicas that a Scale asks of a custom resource.
pub fn apply_scale(custom: &Custom, scale: &Value, object: &mut Value) {
    let target = steps(&custom.scale[0]).fold(object, |value, step| &mut value[step]);
    *target = scale["spec"]["replicas"].as_i64().unwrap_or_default().into();
}

/// A custom resource as the OpenAPI documents see it.
pub fn described(resource: &Resource) -> Option<openapi::Custom<'_>> {
    let custom = resource.custom.as_ref()?;
    Some(openapi::Custom {
        group: resource.group(),
        version: resource.version(),
        kind: resource.kind(),
        list_kind: &custom.list_kind,
        plural: resource.name(),
        namespaced: resource.namespaced(),
        schema: custom.schema.as_ref(),
        status: resource.facts.subresource("status").is_some(),
        scale: resource.facts.subresource("scale").is_some(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_rank_as_in_kubernetes() {
        let mut versions = ["v1alpha1", "v1", "v2beta1", "v2", "v1beta2", "v1beta1"];
        versions.sort_by_key(|v| Reverse(version_rank(v)));
        assert_eq!(versions, ["v2", "v1", "v2beta1", "v1beta2", "v1beta1", "v1alpha1"]);
    }
}

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
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use mycelium_apimachinery::openapi;
use mycelium_apimachinery::schema::{self, Subresource};
use mycelium_store::Store;
use serde_json::{Value, json};

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

/// Compiled definitions, by uid, generation and whether versions are mixed: each is made once, and dropped when its
/// definition is another or gone.
#[derive(Default)]
pub struct Compiled(BTreeMap<(String, i64, bool), Vec<Arc<Resource>>>);

impl Compiled {
    /// The resources of all definitions in the store.
    pub fn resources(&mut self, store: &Store) -> Vec<Arc<Resource>> {
        let entries = store.range(PREFIX, None, 0, None).map(|page| page.entries).unwrap_or_default();
        let (mut all, mut before) = (Vec::new(), std::mem::take(&mut self.0));
        for entry in entries {
            let Ok(definition) = serde_json::from_slice::<Value>(&entry.value) else { continue };
            if !definition::is_established(&definition) {
                continue;
            }
            let metadata = &definition["metadata"];
            let generation = metadata["generation"].as_i64().unwrap_or_default();
            let id = (text(&metadata["uid"]), generation, is_mixed(&definition));
            let made = before.remove(&id).unwrap_or_else(|| compile(&definition));
            all.extend(made.iter().cloned());
            self.0.insert(id, made);
        }
        all
    }
}

/// Whether objects may lie in the store in several versions.
fn is_mixed(definition: &Value) -> bool {
    definition["status"]["storedVersions"].as_array().is_some_and(|stored| stored.len() > 1)
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// A word that lives as long as the process, and lies in memory once, however often it is kept.
fn keep(text: &str) -> &'static str {
    static WORDS: Mutex<BTreeSet<&'static str>> = Mutex::new(BTreeSet::new());
    let mut words = WORDS.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(word) = words.get(text) {
        return word;
    }
    let word = Box::leak(text.to_owned().into_boxed_str());
    words.insert(word);
    word
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
    let mixed = is_mixed(definition);
    let one = |(index, version): (usize, &&Value)| Arc::new(resource(spec, version, index == 0, storage, mixed));
    versions.iter().enumerate().map(one).collect()
}

/// The names, scope and subresources of a version. They live as long as the process, in memory once for all definitions
/// and generations that agree in them.
fn facts(spec: &Value, version: &Value, preferred: bool) -> &'static schema::Resource {
    static FACTS: Mutex<BTreeMap<String, &'static schema::Resource>> = Mutex::new(BTreeMap::new());
    let names = &spec["names"];
    let (scale, status) = (version["subresources"]["scale"].is_object(), version["subresources"]["status"].is_object());
    let id = json!([spec["group"], version["name"], names, spec["scope"], preferred, scale, status]).to_string();
    let mut kept = FACTS.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(facts) = kept.get(&id) {
        return facts;
    }
    let group = keep(spec["group"].as_str().unwrap_or_default());
    let name = keep(version["name"].as_str().unwrap_or_default());
    let kind = keep(names["kind"].as_str().unwrap_or_default());
    let lower = kind.to_ascii_lowercase();
    let mut subresources = Vec::new();
    if scale {
        subresources.push(Subresource {
            name: "scale",
            group: "autoscaling",
            version: "v1",
            kind: "Scale",
            verbs: PART,
        });
    }
    if status {
        subresources.push(Subresource { name: "status", group, version: name, kind, verbs: PART });
    }
    let facts: &'static schema::Resource = Box::leak(Box::new(schema::Resource {
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
    }));
    kept.insert(id, facts);
    facts
}

fn resource(spec: &Value, version: &Value, preferred: bool, storage_version: &'static str, mixed: bool) -> Resource {
    let facts = facts(spec, version, preferred);
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
        list_kind: spec["names"]["listKind"].as_str().map_or_else(|| format!("{}List", facts.kind), str::to_owned),
    };
    let behaviour = mycelium_kinds::custom(facts.subresource("status").is_some());
    Resource::custom(facts, storage_version, ty, behaviour, custom)
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
    let mut shown = json!({"kind": object["kind"], "metadata": object["metadata"],
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

//! Custom resources: what the CustomResourceDefinitions in the store add to the table of resources.
//!
//! | module | holds |
//! |---|---|
//! | [`columns`] | printer columns and the JSON paths they show |
//! | [`conversion`] | between what is stored and what requests see |
//! | [`definition`] | what the server fills into a definition |
//! | [`ending`] | the end of a definition |
//! | [`made`] | what a schema is made into when an object needs it |
//! | [`rules`] | rules in CEL |
//! | [`structural`] | what must be right about a definition |
//! | [`validate`] | defaults and validation by an OpenAPI schema |

pub mod columns;
pub mod conversion;
pub mod definition;
pub mod ending;
pub mod made;
pub mod rules;
pub mod structural;
pub mod validate;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use mycelium_apimachinery::openapi;
use mycelium_apimachinery::schema::{self, Subresource};
use mycelium_store::{Entry, Revision, Store};
use serde_json::{Value, json};

use crate::resources::Resource;
use columns::PrinterColumn;

/// Below this prefix lie the definitions.
pub const PREFIX: &str = "/registry/apiextensions.k8s.io/customresourcedefinitions/";

const ALL: &[&str] = &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];
const PART: &[&str] = &["get", "patch", "update"];

/// What a version of a custom resource has besides what every resource has.
pub struct Custom {
    /// The schema.
    pub schema: Arc<made::Schema>,
    /// Where the webhook is that converts between versions, if one does.
    pub conversion: Option<Value>,
    /// Whether objects may lie in the store in another version than the one they are now stored in.
    pub mixed: bool,
    /// Whether objects in the store may lack defaults of the schema, since they were written by another.
    pub late_defaults: bool,
    /// Fields that objects can be selected by.
    pub selectable: Vec<String>,
    /// Where the scale subresource finds what it shows: wanted replicas, replicas there are, selector.
    pub scale: [String; 3],
    /// Columns of `kubectl get`; none for name and age.
    pub columns: Vec<PrinterColumn>,
    list_kind: String,
}

/// Compiled definitions, by key: each is made once, and dropped when its definition is another or gone.
#[derive(Default)]
pub struct Compiled(BTreeMap<Arc<str>, Kept>);

struct Kept {
    /// Which state of the definition was looked at.
    revision: Revision,
    /// Its uid, generation and whether versions are mixed; nothing while it is not established.
    id: Option<(String, i64, bool)>,
    resources: Vec<Arc<Resource>>,
}

impl Compiled {
    /// The resources of all definitions in the store.
    pub fn resources(&mut self, store: &Store) -> Vec<Arc<Resource>> {
        let entries = store.range(PREFIX, None, 0, None).map(|page| page.entries).unwrap_or_default();
        let (mut all, mut before) = (Vec::new(), std::mem::take(&mut self.0));
        for entry in entries {
            let kept = match before.remove(&entry.key) {
                Some(kept) if kept.revision == entry.mod_revision => kept,
                other => Kept::of(&entry, other),
            };
            all.extend(kept.resources.iter().cloned());
            self.0.insert(entry.key, kept);
        }
        all
    }
}

impl Kept {
    /// What a definition makes; `before` is what an earlier state of it has made.
    fn of(entry: &Entry, before: Option<Self>) -> Self {
        let definition: Value = serde_json::from_slice(&entry.value).unwrap_or_default();
        let revision = entry.mod_revision;
        if !definition::is_established(&definition) {
            return Self { revision, id: None, resources: Vec::new() };
        }
        let metadata = &definition["metadata"];
        let generation = metadata["generation"].as_i64().unwrap_or_default();
        let id = Some((text(&metadata["uid"]), generation, is_mixed(&definition)));
        let resources = match before {
            Some(before) if before.id == id => before.resources,
            _ => compile(&definition, &entry.value),
        };
        Self { revision, id, resources }
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

/// How the objects of a definition lie in the store.
struct Stored {
    version: &'static str,
    mixed: bool,
    /// Whether they may have been written by another schema than the one that reads them.
    by_others: bool,
}

/// The resources of a definition, one for each version it serves with this text.
fn compile(definition: &Value, text: &Bytes) -> Vec<Arc<Resource>> {
    let spec = &definition["spec"];
    let mut versions: Vec<&Value> = spec["versions"].as_array().into_iter().flatten().collect();
    let storage = versions.iter().find(|v| v["storage"] == true).map(|v| keep(v["name"].as_str().unwrap_or_default()));
    let Some(storage) = storage else { return Vec::new() };
    versions.retain(|v| v["served"] == true);
    versions.sort_by_key(|v| Reverse(version_rank(v["name"].as_str().unwrap_or_default())));
    let stored = Stored {
        version: storage,
        mixed: is_mixed(definition),
        by_others: versions.len() > 1 || definition["metadata"]["generation"].as_i64() > Some(1),
    };
    let texts = made::texts(text);
    let one = |(index, version): (usize, &&Value)| {
        let text = version["name"].as_str().and_then(|name| texts.get(name)).cloned();
        Arc::new(resource(spec, version, text, index == 0, &stored))
    };
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

fn resource(
    spec: &Value,
    version: &Value,
    text_of_schema: Option<Bytes>,
    preferred: bool,
    stored: &Stored,
) -> Resource {
    let facts = facts(spec, version, preferred);
    let made = Arc::new(made::Schema::new(text_of_schema, spec["preserveUnknownFields"] == true));
    let scale = &version["subresources"]["scale"];
    let custom = Custom {
        schema: made.clone(),
        conversion: (spec["conversion"]["strategy"] == "Webhook")
            .then(|| spec["conversion"]["webhook"]["clientConfig"].clone()),
        mixed: stored.mixed,
        late_defaults: stored.by_others && validate::has_defaults(&version["schema"]["openAPIV3Schema"]),
        selectable: version["selectableFields"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|field| text(&field["jsonPath"]).trim_start_matches('.').to_owned())
            .collect(),
        scale: ["specReplicasPath", "statusReplicasPath", "labelSelectorPath"].map(|key| text(&scale[key])),
        columns: columns::from_version(version),
        list_kind: spec["names"]["listKind"].as_str().map_or_else(|| format!("{}List", facts.kind), str::to_owned),
    };
    let behaviour = mycelium_kinds::custom(facts.subresource("status").is_some());
    Resource::custom(facts, stored.version, made, behaviour, custom)
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
        schema: custom.schema.text(),
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

//! The table of resources the server knows, and where their objects lie in the store.

use std::collections::BTreeMap;
use std::ops::Deref;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use bytes::Bytes;
use jiff::Timestamp;
use mycelium_api::field::{FieldError, Path};
use mycelium_apimachinery::schema::{self, Group, Type, api_version};
use mycelium_kinds::Kind;
use mycelium_store::Store;
use serde_json::{Value, json};

use crate::custom::columns;
use crate::custom::{Compiled, Custom};
use crate::custom::{made, structural, validate};
use crate::dynamic::definitions;
use crate::measured;

/// The schema of a version.
pub enum Schema {
    /// Part of the program.
    Builtin(&'static Type),
    /// Made from a definition when it is first needed, and gone with it.
    Custom(Arc<made::Schema>),
}

impl Deref for Schema {
    type Target = Type;

    fn deref(&self) -> &Type {
        match self {
            Self::Builtin(ty) => ty,
            Self::Custom(schema) => &schema.made().ty,
        }
    }
}

/// One resource in one version.
pub struct Resource {
    /// What the schema says: names, scope, verbs, subresources.
    pub facts: &'static schema::Resource,
    /// The version in which objects are stored.
    pub storage_version: &'static str,
    /// Group part of the key.
    key_group: &'static str,
    /// The schema of this version.
    pub schema: Schema,
    /// Defaulting, validation, columns.
    pub behaviour: &'static Kind,
    /// What only a custom resource has.
    pub custom: Option<Custom>,
}

impl Resource {
    /// A version of a custom resource.
    pub fn custom(
        facts: &'static schema::Resource,
        storage_version: &'static str,
        schema: Arc<made::Schema>,
        behaviour: &'static Kind,
        custom: Custom,
    ) -> Self {
        let schema = Schema::Custom(schema);
        Self { facts, storage_version, key_group: facts.group, schema, behaviour, custom: Some(custom) }
    }

    /// A resource of which nothing is stored.
    pub fn answered(facts: &'static schema::Resource) -> Self {
        let behaviour = mycelium_kinds::kind(facts.group, facts.kind);
        let (storage_version, key_group) = (facts.version, facts.group);
        Self { facts, storage_version, key_group, schema: Schema::Builtin(&schema::ANY), behaviour, custom: None }
    }

    /// The columns of a table, as `columnDefinitions`.
    pub fn columns(&self) -> Vec<Value> {
        match self.custom.as_ref().filter(|custom| !custom.columns.is_empty()) {
            Some(custom) => columns::definitions(&custom.columns),
            None => self.behaviour.columns().iter().map(column).collect(),
        }
    }

    /// The cells of an object.
    pub fn cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        match self.custom.as_ref().filter(|custom| !custom.columns.is_empty()) {
            Some(custom) => columns::cells(&custom.columns, object, now),
            None => self.behaviour.row(object, now),
        }
    }

    /// Fills in defaults: those of the kind, or of the schema of a custom resource.
    pub fn fill_defaults(&self, object: &mut Value) {
        self.behaviour.default(self.version(), object);
        if let Some(schema) = self.custom.as_ref().and_then(|custom| custom.schema.made().document.as_ref()) {
            validate::fill_defaults(schema, object);
        }
    }

    /// What the schema of a custom resource finds wrong.
    pub fn schema_faults(&self, object: &Value, old: Option<&Value>) -> Vec<FieldError> {
        if self.kind() == "CustomResourceDefinition" && self.group() == "apiextensions.k8s.io" {
            return structural::check_definition(object, old);
        }
        if self.group() == "admissionregistration.k8s.io" {
            return definitions::faults(self.kind(), object);
        }
        let Some(custom) = &self.custom else { return Vec::new() };
        let made = custom.schema.made();
        let Some(schema) = &made.document else { return Vec::new() };
        let mut errors = validate::check(schema, &made.patterns, object, old);
        match (&made.rules, errors.is_empty()) {
            (Some(rules), true) => rules.check(object, old),
            (Some(_), false) => {
                let why = "some validation rules were not checked because the object was invalid; correct the existing \
                           errors to complete validation";
                errors.push(FieldError::invalid(&Path::new("<nil>"), Value::Null, why));
                errors
            }
            (None, _) => errors,
        }
    }

    /// API group; empty for core.
    pub fn group(&self) -> &'static str {
        self.facts.group
    }

    /// API version.
    pub fn version(&self) -> &'static str {
        self.facts.version
    }

    /// Plural name.
    pub fn name(&self) -> &'static str {
        self.facts.resource
    }

    /// Kind.
    pub fn kind(&self) -> &'static str {
        self.facts.kind
    }

    /// Whether objects live in namespaces.
    pub fn namespaced(&self) -> bool {
        self.facts.namespaced
    }

    /// `apps/v1`, or `v1` for core.
    pub fn api_version(&self) -> String {
        api_version(self.group(), self.version())
    }

    /// Whether requests see the stored bytes as they are.
    pub fn is_storage_version(&self) -> bool {
        let made_over = self.custom.as_ref().is_some_and(|custom| custom.mixed || custom.late_defaults);
        self.storage_version == self.version() && self.group() != "events.k8s.io" && !made_over
    }

    /// Whether this is the core resource `name`.
    pub fn is_core(&self, name: &str) -> bool {
        self.group().is_empty() && self.name() == name
    }

    /// Whether objects are kept, rather than answered on the spot.
    pub fn stored(&self) -> bool {
        self.facts.is_stored()
    }

    /// The key of one object.
    pub fn key(&self, namespace: &str, name: &str) -> String {
        format!("{}{name}", self.prefix(if self.namespaced() { namespace } else { "" }))
    }

    /// The prefix of all objects, or of those in a namespace.
    pub fn prefix(&self, namespace: &str) -> String {
        let resource = self.name();
        let group = self.key_group;
        if namespace.is_empty() || !self.namespaced() {
            format!("/registry/{group}/{resource}/")
        } else {
            format!("/registry/{group}/{resource}/{namespace}/")
        }
    }
}

fn column(c: &mycelium_kinds::Column) -> Value {
    json!({"name": c.name, "type": c.type_, "format": c.format, "description": c.description, "priority": c.priority})
}

fn key_group(group: &'static str) -> &'static str {
    // Both groups serve the same objects.
    if group.is_empty() || group == "events.k8s.io" { "core" } else { group }
}

/// Resources of one version, by plural name.
type ByName = BTreeMap<&'static str, Arc<Resource>>;

/// Every resource, by group, version and plural name.
pub struct Table {
    groups: BTreeMap<&'static str, BTreeMap<&'static str, ByName>>,
    /// What is not built in: the resources of definitions, and those that are only answered.
    customs: Vec<Arc<Resource>>,
    /// Aggregated discovery of the named groups and of the core group, once somebody asked.
    pub(crate) aggregated: [OnceLock<Bytes>; 2],
    /// The OpenAPI v2 document as protobuf, once somebody asked.
    pub(crate) openapi_v2: OnceLock<Bytes>,
    /// The same as JSON.
    pub(crate) openapi_v2_json: OnceLock<Bytes>,
}

impl Table {
    /// The built-in resources, and those of definitions.
    pub fn new(customs: Vec<Arc<Resource>>) -> Self {
        let all = schema::resources();
        let stored = |facts: &schema::Resource| {
            let preferred = all.iter().find(|r| r.group == facts.group && r.resource == facts.resource && r.preferred);
            preferred.map_or("v1", |r| r.version)
        };
        let builtin = all.iter().map(|facts| {
            Arc::new(Resource {
                facts,
                storage_version: stored(facts),
                key_group: key_group(facts.group),
                schema: Schema::Builtin(
                    schema::types().for_gvk(facts.group, facts.version, facts.kind).unwrap_or(&schema::ANY),
                ),
                behaviour: mycelium_kinds::kind(facts.group, facts.kind),
                custom: None,
            })
        });
        let mut groups: BTreeMap<_, BTreeMap<_, ByName>> = BTreeMap::new();
        for resource in builtin.chain(customs.iter().cloned()) {
            let names = groups.entry(resource.group()).or_default().entry(resource.version()).or_default();
            // A definition never replaces what is built in.
            names.entry(resource.name()).or_insert(resource);
        }
        Self {
            groups,
            customs,
            aggregated: Default::default(),
            openapi_v2: OnceLock::new(),
            openapi_v2_json: OnceLock::new(),
        }
    }

    /// The resource a path names.
    pub fn get(&self, group: &str, version: &str, resource: &str) -> Option<&Arc<Resource>> {
        self.groups.get(group)?.get(version)?.get(resource)
    }

    /// Every resource in every version.
    pub fn all(&self) -> impl Iterator<Item = &Arc<Resource>> {
        self.groups.values().flat_map(|versions| versions.values()).flat_map(|names| names.values())
    }

    /// Whether there is anything of a group and version.
    pub fn serves(&self, group: &str, version: &str) -> bool {
        self.groups.get(group).is_some_and(|versions| versions.contains_key(version))
    }

    /// The resources of definitions, and those that are only answered.
    pub fn customs(&self) -> &[Arc<Resource>] {
        &self.customs
    }

    /// The facts of all resources, groups in order of priority.
    pub fn facts(&self) -> impl Iterator<Item = &'static schema::Resource> {
        schema::resources().iter().chain(self.customs.iter().map(|r| r.facts))
    }

    /// The API groups in order of priority, the core group first; of each the versions, the preferred one first.
    pub fn versions(&self) -> Vec<Group> {
        let mut groups = schema::groups();
        for facts in self.customs.iter().map(|r| r.facts) {
            match groups.iter_mut().find(|g| g.name == facts.group) {
                None => groups.push(Group { name: facts.group, versions: vec![facts.version] }),
                Some(group) if group.versions.contains(&facts.version) => {}
                Some(group) => group.versions.push(facts.version),
            }
        }
        groups
    }
}

/// The table, made anew after definitions were written.
#[derive(Default)]
pub struct Tables {
    writes: AtomicU64,
    current: Mutex<Current>,
}

#[derive(Default)]
struct Current {
    /// The table, and how many writes it knows of.
    table: Option<(u64, Arc<Table>)>,
    compiled: Compiled,
}

impl Tables {
    /// Called after a definition was written.
    pub fn invalidate(&self) {
        self.writes.fetch_add(1, Ordering::Release);
    }

    /// The table as of now.
    pub fn get(&self, store: &Store) -> Arc<Table> {
        let writes = self.writes.load(Ordering::Acquire);
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((at, table)) = &current.table
            && *at == writes
        {
            return table.clone();
        }
        let beside = current.compiled.resources(store).into_iter().chain(measured::resources());
        let table = Arc::new(Table::new(beside.collect()));
        current.table = Some((writes, table.clone()));
        table
    }
}

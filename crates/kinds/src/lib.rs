//! What Kubernetes 1.35 does to each built-in kind: defaults, validation, update rules, table columns.
//!
//! Everything here is a pure function of JSON values. One file per kind under [`kinds`] fills in a [`Kind`]; kinds
//! that nothing acts on share a structural one. The shape of an object is checked elsewhere (by its schema), so a
//! function here that meets a wrong type leaves it alone.
//!
//! | module | holds |
//! |---|---|
//! | [`kinds`] | one file per kind |
//! | [`pod`] | what everything with a pod template shares: defaults and validation of pod specs |
//! | [`service`] | defaults, validation and allocation of Services |
//! | [`meta`] | rules for `metadata` of every kind |
//! | [`table`] | columns and cells of `kubectl get` |
//! | [`convert`] | kinds served in two versions or groups |
//! | [`scale`] | the scale subresource |
//! | [`admission`] | what admission adds to pods: service account, tolerations, priority |

pub mod admission;
mod check;
pub mod convert;
pub mod kinds;
pub mod meta;
pub mod pod;
pub mod scale;
pub mod service;
pub mod table;
mod value;

use std::collections::BTreeMap;
use std::sync::LazyLock;

use jiff::Timestamp;
use mycelium_api::field::FieldError;
use serde_json::Value;

pub use table::Column;

/// Which part of an object a request writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The object itself: everything but its status.
    Main,
    /// The status subresource.
    Status,
    /// The scale subresource.
    Scale,
    /// The resize subresource of pods.
    Resize,
    /// The ephemeralcontainers subresource of pods.
    EphemeralContainers,
    /// The binding subresource of pods.
    Binding,
    /// The finalize subresource of namespaces.
    Finalize,
    /// The approval subresource of certificate signing requests.
    Approval,
}

/// When `metadata.generation` counts up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Generation {
    /// Never: the kind has none.
    None,
    /// When anything but metadata and status changes.
    Spec,
    /// As [`Generation::Spec`], and also when annotations change.
    SpecAndAnnotations,
}

/// Says what is wrong with a name.
pub type NameRule = fn(&str) -> Vec<String>;

/// Collects validation errors.
pub type Errors = Vec<FieldError>;

/// What is particular about a kind.
pub struct Kind {
    /// The API group; empty for the core group.
    pub group: &'static str,
    /// The kind's name.
    pub kind: &'static str,
    /// Whether objects live in a namespace, if it is known here.
    pub namespaced: Option<bool>,
    /// Whether the kind has a status subresource.
    pub has_status: bool,
    /// Whether an object may be created with a status, as a node that registers itself is.
    pub born_with_status: bool,
    /// When the generation counts up.
    pub generation: Generation,
    name_rule: NameRule,
    defaults: fn(version: &str, object: &mut Value),
    on_create: fn(&mut Value),
    on_update: fn(new: &mut Value, old: &Value, part: Part),
    check: fn(&Value, &mut Errors),
    check_update: fn(new: &Value, old: &Value, part: Part, &mut Errors),
    advice: fn(&Value, &mut Vec<String>),
    columns: &'static [Column],
    cells: fn(&Value, Timestamp) -> Vec<Value>,
    labels: FieldLabels,
}

/// The fields by which objects of a kind can be selected, besides name and namespace.
struct FieldLabels {
    /// Paths, in the words of the query.
    paths: &'static [&'static str],
    /// How to read one, where it is not simply the field at the path.
    read: fn(&Value, &str) -> Option<String>,
    /// How an unknown path is refused.
    refusal: Refusal,
}

#[derive(Clone, Copy)]
enum Refusal {
    /// `"x" is not a known field selector: only "metadata.name", "metadata.namespace"`
    Listing,
    /// `field label not supported: x`
    Plain,
    /// `field label "x" not supported for Job`
    Named,
}

fn no_defaults(_: &str, _: &mut Value) {}
fn no_change(_: &mut Value) {}
fn no_update(_: &mut Value, _: &Value, _: Part) {}
fn no_check(_: &Value, _: &mut Errors) {}
fn no_advice(_: &Value, _: &mut Vec<String>) {}
fn no_update_check(_: &Value, _: &Value, _: Part, _: &mut Errors) {}

impl Kind {
    /// A kind with metadata rules only.
    const fn new(group: &'static str, kind: &'static str, namespaced: bool) -> Self {
        Self {
            group,
            kind,
            namespaced: Some(namespaced),
            has_status: true,
            born_with_status: false,
            generation: Generation::None,
            name_rule: mycelium_api::names::is_dns1123_subdomain,
            defaults: no_defaults,
            on_create: no_change,
            on_update: no_update,
            check: no_check,
            check_update: no_update_check,
            advice: no_advice,
            columns: table::CREATED_AT,
            cells: table::created_at,
            labels: FieldLabels { paths: &[], read: read_path, refusal: Refusal::Listing },
        }
    }

    /// Fills in what the writer left to the server. Idempotent.
    pub fn default(&self, version: &str, object: &mut Value) {
        if !self.holds_raw_json() {
            value::drop_nulls(object);
        }
        (self.defaults)(version, object);
    }

    /// Prepares an object that is about to be created: mostly no status, first generation, what the kind's storage adds.
    /// The caller sets uid and creation time.
    pub fn prepare_create(&self, object: &mut Value) {
        if self.has_status
            && !self.born_with_status
            && let Some(object) = object.as_object_mut()
        {
            object.remove("status");
            // Of a built-in kind, clients always see one, if an empty one.
            if !self.kind.is_empty() {
                object.insert("status".to_owned(), Value::Object(serde_json::Map::new()));
            }
        }
        if let Some(metadata) = value::ensure_object(object, &["metadata"]) {
            metadata.remove("generation");
            if self.generation != Generation::None {
                metadata.insert("generation".to_owned(), 1.into());
            }
        }
        (self.on_create)(object);
    }

    /// Prepares an update: what the part does not own is taken from the old object, and the generation counts up
    /// where Kubernetes lets it. Call it after defaulting the new object.
    pub fn prepare_update(&self, new: &mut Value, old: &Value, part: Part) {
        meta::carry_over(new, old);
        match part {
            Part::Status | Part::Approval => self.keep_all_but_status(new, old),
            _ if self.has_status => meta::keep(new, old, "status"),
            _ => {}
        }
        (self.on_update)(new, old, part);
        let generation = value::int(old, &["metadata", "generation"]).unwrap_or_default();
        if let Some(metadata) = value::ensure_object(new, &["metadata"]) {
            metadata.remove("generation");
        }
        if self.generation != Generation::None {
            let desired = !matches!(part, Part::Status | Part::Approval);
            let bump = i64::from(desired && self.desired_state_differs(new, old));
            if let Some(metadata) = value::ensure_object(new, &["metadata"]) {
                metadata.insert("generation".to_owned(), (generation.max(1 - bump) + bump).into());
            }
        }
    }

    /// Everything but metadata and status from the old object; labels too for kinds where Kubernetes does so.
    fn keep_all_but_status(&self, new: &mut Value, old: &Value) {
        let (Some(new_members), Some(old_members)) = (new.as_object_mut(), old.as_object()) else { return };
        new_members.retain(|key, _| matches!(key.as_str(), "metadata" | "status" | "apiVersion" | "kind"));
        for (key, member) in old_members {
            if !matches!(key.as_str(), "metadata" | "status" | "apiVersion" | "kind") {
                new_members.insert(key.clone(), member.clone());
            }
        }
        if self.is_custom() {
            let managed = value::at(new, &["metadata", "managedFields"]).clone();
            let version = value::at(new, &["metadata", "resourceVersion"]).clone();
            meta::keep(new, old, "metadata");
            if let Some(metadata) = value::ensure_object(new, &["metadata"]) {
                for (key, member) in [("managedFields", managed), ("resourceVersion", version)] {
                    if member.is_null() {
                        metadata.remove(key);
                    } else {
                        metadata.insert(key.to_owned(), member);
                    }
                }
            }
        } else if self.group == "apps" {
            meta::keep_in_metadata(new, old, "labels");
        }
    }

    fn desired_state_differs(&self, new: &Value, old: &Value) -> bool {
        let desired = |key: &str| match key {
            "metadata" | "apiVersion" | "kind" => false,
            "status" => !self.has_status,
            _ => true,
        };
        let members = |object: &Value| -> Vec<String> {
            value::entries(object, &[]).map(|(key, _)| key.clone()).filter(|key| desired(key)).collect()
        };
        let mut keys = members(new);
        keys.extend(members(old));
        let annotations = ["metadata", "annotations"];
        let noted = self.generation == Generation::SpecAndAnnotations
            && !value::same(value::at(new, &annotations), value::at(old, &annotations));
        // In custom resources a zero is a value like any other.
        let differs = |key: &String| match self.is_custom() {
            true => new[key] != old[key],
            false => !value::same(&new[key], &old[key]),
        };
        noted || keys.iter().any(differs)
    }

    /// What is wrong with a new object.
    pub fn validate_create(&self, object: &Value) -> Errors {
        let mut errors = meta::validate(object, self.namespaced, self.name_rule);
        (self.check)(object, &mut errors);
        once_each(errors)
    }

    /// What is wrong with an update of `old` to `new`.
    pub fn validate_update(&self, new: &Value, old: &Value, part: Part) -> Errors {
        let mut errors = meta::validate_update(new, old);
        (self.check_update)(new, old, part, &mut errors);
        once_each(errors)
    }

    /// What a client should know about a new object that is accepted all the same: the texts of its warnings.
    pub fn warnings(&self, object: &Value) -> Vec<String> {
        if self.is_custom() {
            return meta::warnings(object);
        }
        let mut warnings = Vec::new();
        (self.advice)(object, &mut warnings);
        warnings
    }

    /// The same of an update. Built-in kinds speak of their desired state when it changes, pods not at all: people
    /// seldom change them by hand.
    pub fn update_warnings(&self, new: &Value, old: &Value, part: Part) -> Vec<String> {
        let generation = |object| value::int(object, &["metadata", "generation"]);
        let quiet = !self.is_custom() && (self.kind == "Pod" || generation(new) == generation(old));
        if part != Part::Main || quiet { Vec::new() } else { self.warnings(new) }
    }

    /// What is wrong with a name (or, with `generate`, with the prefix of a generated one).
    pub fn check_name(&self, name: &str, generate: bool) -> Vec<String> {
        meta::check_name(self.name_rule, name, generate)
    }

    /// The columns of `kubectl get`; those with a priority above 0 show with `-o wide`.
    pub fn columns(&self) -> &'static [Column] {
        self.columns
    }

    /// The cells of an object, one for each of [`Kind::columns`].
    pub fn row(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        let mut cells = (self.cells)(object, now);
        cells.resize(self.columns.len(), Value::from(""));
        cells
    }

    /// The value of a field that objects can be selected by; `None` where the object has none.
    pub fn selectable_fields(&self, object: &Value, path: &str) -> Option<String> {
        match path {
            "metadata.name" | "metadata.namespace" => read_path(object, path),
            _ if self.labels.paths.contains(&path) => (self.labels.read)(object, path),
            _ => None,
        }
    }

    /// The message (of a 400) if objects of this kind cannot be selected by this field.
    pub fn field_label_error(&self, path: &str) -> Option<String> {
        if matches!(path, "metadata.name" | "metadata.namespace") || self.labels.paths.contains(&path) {
            return None;
        }
        Some(match self.labels.refusal {
            Refusal::Plain => format!("field label not supported: {path}"),
            Refusal::Named => format!("field label {path:?} not supported for {}", self.kind),
            Refusal::Listing => {
                format!("{path:?} is not a known field selector: only \"metadata.name\", \"metadata.namespace\"")
            }
        })
    }

    /// Whether null can mean something somewhere in objects of this kind.
    fn holds_raw_json(&self) -> bool {
        self.is_custom()
            || self.group == "resource.k8s.io"
            || matches!(self.kind, "ControllerRevision" | "CustomResourceDefinition")
    }

    /// Whether this is the structural kind that stands for all custom resources.
    pub fn is_custom(&self) -> bool {
        self.kind.is_empty()
    }
}

/// Rules overlap; clients hear of each fault once.
fn once_each(errors: Errors) -> Errors {
    let mut unique = Errors::with_capacity(errors.len());
    for error in errors {
        if !unique.contains(&error) {
            unique.push(error);
        }
    }
    unique
}

/// A field at a dotted path, as the text a field selector compares with.
fn read_path(object: &Value, path: &str) -> Option<String> {
    match path.split('.').fold(object, |value, key| &value[key]) {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(flag) => Some(flag.to_string()),
        _ => None,
    }
}

static CUSTOM: Kind = Kind {
    namespaced: None,
    generation: Generation::Spec,
    columns: table::AGE,
    cells: table::age_only,
    labels: FieldLabels { paths: &[], read: read_path, refusal: Refusal::Plain },
    ..Kind::new("", "", true)
};

static CUSTOM_WITHOUT_STATUS: Kind = Kind {
    namespaced: None,
    has_status: false,
    generation: Generation::Spec,
    columns: table::AGE,
    cells: table::age_only,
    labels: FieldLabels { paths: &[], read: read_path, refusal: Refusal::Plain },
    ..Kind::new("", "", true)
};

static KNOWN: LazyLock<BTreeMap<(&'static str, &'static str), &'static Kind>> =
    LazyLock::new(|| kinds::ALL.iter().map(|kind| ((kind.group, kind.kind), *kind)).collect());

/// The rules of a kind. Kinds that nothing here acts on, custom resources among them, share a structural one.
pub fn kind(group: &str, kind: &str) -> &'static Kind {
    KNOWN.get(&(group, kind)).copied().unwrap_or(&CUSTOM)
}

/// The rules of a custom resource: with a status subresource, status and the rest are written apart.
pub fn custom(has_status: bool) -> &'static Kind {
    if has_status { &CUSTOM } else { &CUSTOM_WITHOUT_STATUS }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_a_cell_for_each_column_and_is_listed_once() {
        for kind in kinds::ALL.iter().copied().chain([custom(true), custom(false)]) {
            let cells = (kind.cells)(&Value::Null, Timestamp::UNIX_EPOCH);
            assert_eq!(cells.len(), kind.columns.len(), "{}", kind.kind);
        }
        assert_eq!(KNOWN.len(), kinds::ALL.len());
    }
}

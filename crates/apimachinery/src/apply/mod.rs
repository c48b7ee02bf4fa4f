//! Server-side apply and the bookkeeping of who owns which field.
//!
//! An object's fields are a tree ([`FieldSet`]); each manager owns a part of it, written to
//! `metadata.managedFields`. The rules:
//!
//! - **Apply** merges a configuration into the object and owns exactly what the configuration sets. Changing a field
//!   that another manager owns is a conflict, unless forced, which takes the field from the other. Setting it to the
//!   value it has is no conflict: the field is shared. A field that the manager applied last time, does not apply
//!   now, and that nobody else owns is removed.
//! - **Update** (every other write) owns what it changed, and takes it from whoever had it.
//! - Some fields have no owner: `apiVersion`, `kind`, identity in `metadata`, and what a subresource does not write.

mod compare;
mod managed;
mod merge;
mod ownership;
mod set;
mod validate;
mod walk;

use jiff::Timestamp;
use mycelium_api::env::rfc3339_seconds;
use serde_json::{Value, json};

use crate::decode;
use crate::schema::Type;
use compare::{compare, fields_of};
use managed::{Kind, ManagerId, Managers, Owned};
pub use ownership::{Conflict, Conflicts};
use ownership::{Context, Taken};
pub use set::FieldSet;

/// The annotation in which `kubectl apply` (not server-side) keeps the configuration.
pub const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// Who owns what was there before the first tracked write.
const BEFORE_FIRST_APPLY: &str = "before-first-apply";

/// Writes to the object itself do not own the status, if that is a subresource.
pub const RESET_STATUS: &[&[&str]] = &[&["status"]];

/// Writes to the status do not own the rest.
pub const RESET_SPEC: &[&[&str]] = &[&["spec"]];

/// A write: who, when, to what.
#[derive(Clone, Copy, Debug)]
pub struct Operation<'a> {
    /// The field manager.
    pub manager: &'a str,
    /// Whether conflicts are overridden (apply only).
    pub force: bool,
    /// The time of the write.
    pub now: Timestamp,
    /// The subresource, or nothing.
    pub subresource: &'a str,
    /// Fields that this write does not own, such as [`RESET_STATUS`].
    pub reset: &'a [&'a [&'a str]],
}

/// Why a configuration was not applied.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ApplyError {
    /// Others own fields that it would change; the answer is 409.
    #[error(transparent)]
    Conflicts(#[from] Conflicts),
    /// The request is wrong; the answer is 400.
    #[error("{0}")]
    BadRequest(String),
    /// The configuration does not fit the type; Kubernetes answers 500 without a reason.
    #[error("{0}")]
    Typed(String),
}

/// Applies a configuration to an object, or makes the object from it. The result carries its managed fields; it
/// equals `live` if nothing changes.
pub fn apply(ty: &Type, live: Option<&Value>, config: &Value, operation: &Operation<'_>) -> Result<Value, ApplyError> {
    let config = checked(ty, live, config)?;
    let version = text(&config, "apiVersion");
    let context = Context::new(ty, operation.reset);
    let empty = json!({"apiVersion": version, "kind": text(&config, "kind")});
    let mut managers = live.and_then(managed::read_own).unwrap_or_default();
    let mut object = live.cloned().unwrap_or_else(|| empty.clone());
    managed::clear(&mut object);
    if live.is_some() && managers.is_empty() {
        let first = Operation { manager: BEFORE_FIRST_APPLY, ..*operation };
        record_update(&context, &empty, &object, &mut managers, &first, version);
    }
    let id = ManagerId::new(operation.manager, Kind::Apply, version, operation.subresource);
    let mut taken = context.apply(&object, &config, managers.clone(), &id, version, operation.force);
    if operation.manager == "kubectl"
        && let Err(conflicts) = &taken
    {
        let rest = conflicts.without(&last_applied_fields(&context, &object));
        taken = match rest {
            Some(rest) => Err(rest),
            None => context.apply(&object, &config, managers, &id, version, true),
        };
    }
    let Taken { object: mut result, mut managers } = taken?;
    decode::prune(ty, &mut result);
    if result != object
        && let Some(owned) = managers.get_mut(&id)
    {
        owned.time = Some(rfc3339_seconds(operation.now));
    }
    if operation.manager == "kubectl" {
        refresh_last_applied(&mut result, &config);
    }
    managed::write(&mut result, managers);
    Ok(result)
}

/// The configuration, if it can be applied to the object.
fn checked(ty: &Type, live: Option<&Value>, config: &Value) -> Result<Value, ApplyError> {
    let metadata = config.get("metadata");
    if metadata.and_then(|m| m.get("managedFields")).is_some_and(|m| !m.is_null()) {
        return Err(ApplyError::BadRequest("metadata.managedFields must be nil".to_owned()));
    }
    let version = text(config, "apiVersion");
    if let Some(expected) = live.map(|live| text(live, "apiVersion")).filter(|expected| *expected != version) {
        return Err(ApplyError::BadRequest(format!(
            "Incorrect version specified in apply patch. Specified patch version: {version}, expected: {expected}"
        )));
    }
    let faults = validate::faults(ty, config);
    if faults.is_empty() {
        let mut config = config.clone();
        // Generated manifests carry a null here; it says nothing.
        if let Some(Value::Object(metadata)) = config.get_mut("metadata")
            && metadata.get("creationTimestamp").is_some_and(Value::is_null)
        {
            metadata.remove("creationTimestamp");
        }
        return Ok(config);
    }
    let faults = match faults.as_slice() {
        [one] => one.clone(),
        many => format!("errors:\n{}", many.iter().map(|f| format!("  {f}\n")).collect::<String>()),
    };
    let metadata = |key: &str| metadata.and_then(|m| m.get(key)).and_then(Value::as_str).unwrap_or_default();
    let kind = text(config, "kind");
    let (namespace, name) = (metadata("namespace"), metadata("name"));
    Err(ApplyError::Typed(format!(
        "failed to create typed patch object ({namespace}/{name}; {version}, Kind={kind}): {faults}"
    )))
}

fn text<'a>(object: &'a Value, key: &str) -> &'a str {
    object.get(key).and_then(Value::as_str).unwrap_or_default()
}

/// Keeps `metadata.managedFields` of `new` up to date for a write other than apply. `old` is what was stored, nothing
/// for a create.
pub fn update_managed(ty: &Type, old: Option<&Value>, new: &mut Value, operation: &Operation<'_>) {
    let stored = || old.and_then(managed::read_own).unwrap_or_default();
    let unchanged = old.is_some_and(|old| managed::are_equal(old, new));
    let mut managers = if !operation.subresource.is_empty() || unchanged {
        stored()
    } else if managed::is_reset(new) {
        Managers::new()
    } else {
        managed::read(new).filter(|m| !m.is_empty()).unwrap_or_else(stored)
    };
    managed::clear(new);
    // Objects whose owners were forgotten stay without until the next apply.
    if old.is_some() && managers.is_empty() {
        return;
    }
    let version = text(new, "apiVersion").to_owned();
    let empty = json!({"apiVersion": version, "kind": text(new, "kind")});
    let context = Context::new(ty, operation.reset);
    record_update(&context, old.unwrap_or(&empty), new, &mut managers, operation, &version);
    managed::write(new, managers);
}

/// Gives the changed fields to the manager of the operation.
fn record_update(
    context: &Context<'_>,
    old: &Value,
    new: &Value,
    managers: &mut Managers,
    operation: &Operation<'_>,
    version: &str,
) {
    let id = ManagerId::new(operation.manager, Kind::Update, version, operation.subresource);
    let gained = context.update(old, new, managers);
    if !gained.is_empty() {
        let before = managers.remove(&id).map(|owned| owned.set).unwrap_or_default();
        let time = Some(rfc3339_seconds(operation.now));
        managers.insert(id, Owned { set: gained.union(before), api_version: version.to_owned(), time });
    }
    managed::cap_updaters(managers);
}

/// The fields of the client-side configuration that are in the object as configured: `kubectl` may take them over
/// without a conflict.
fn last_applied_fields(context: &Context<'_>, object: &Value) -> FieldSet {
    let Some(config) = last_applied(object).and_then(|text| serde_json::from_str::<Value>(text).ok()) else {
        return FieldSet::default();
    };
    let changes = compare(context.ty, object, &config);
    fields_of(context.ty, &config).difference(&changes.modified).difference(&changes.added).difference(&changes.removed)
}

fn last_applied(object: &Value) -> Option<&str> {
    object.get("metadata")?.get("annotations")?.get(LAST_APPLIED)?.as_str()
}

/// Keeps the annotation of client-side apply current, where there is one, so that people can go back to it.
fn refresh_last_applied(object: &mut Value, config: &Value) {
    if last_applied(object).is_none() || last_applied(config).is_some() {
        return;
    }
    let mut config = config.clone();
    managed::clear(&mut config);
    object["metadata"]["annotations"][LAST_APPLIED] = Value::String(format!("{config}\n"));
}

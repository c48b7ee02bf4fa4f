//! Updating objects: PUT, and the loop that all changes of existing objects go through.

use http::{Response, StatusCode};
use mycelium_api::field::{FieldError, Path};
use mycelium_kinds::Part;
use mycelium_store::{CommitError, Entry, Expect, Op};
use serde_json::Value;

use super::create::{self, to_storage};
use super::decode::{self, Expected};
use super::options::WriteOptions;
use super::services::Allocation;
use super::{admission, delete, validating};
use crate::body::Body;
use crate::codec;
use crate::custom::conversion;
use crate::dynamic::{self, webhooks};
use crate::error::ApiError;
use crate::media::{Accept, Shape};
use crate::quota::{self, ChargeError, Limits};
use crate::read::shape;
use crate::route::Context;

const TRIES: usize = 64;

/// How the fields of a change are owned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ownership {
    /// By the manager, as an update.
    Update,
    /// The change has set `managedFields` itself.
    Applied,
}

/// What a change makes of the current object, both in the request's version.
pub struct Change {
    /// The new object.
    pub object: Value,
    /// Who owns the fields.
    pub ownership: Ownership,
}

/// Answers a PUT of an object or a subresource.
pub async fn put(cx: &Context<'_>, body: &[u8]) -> Result<Response<Body>, ApiError> {
    let options = WriteOptions::parse(cx, "UpdateOptions")?;
    if cx.subresource() == Some("scale") {
        return put_scale(cx, body, &options).await;
    }
    let (object, warnings) = decode::object(cx, body, &Expected::of(cx), options.validation)?;
    cx.warnings.extend(warnings);
    check_url(cx, &object)?;
    let entry = modify(cx, &options, |_| Ok(Change { object: object.clone(), ownership: Ownership::Update })).await?;
    shape::answer(cx, StatusCode::OK, &entry).await
}

async fn put_scale(cx: &Context<'_>, body: &[u8], options: &WriteOptions) -> Result<Response<Body>, ApiError> {
    let expected = Expected::kind("autoscaling", "v1", "Scale");
    let (scale, warnings) = decode::object(cx, body, &expected, options.validation)?;
    cx.warnings.extend(warnings);
    check_url(cx, &scale)?;
    let entry =
        modify(cx, options, |old| Ok(Change { object: with_scale(cx, old, &scale)?, ownership: Ownership::Update }))
            .await?;
    scale_answer(cx, &entry).await
}

/// The object with the replicas, and the precondition, of a Scale.
pub fn with_scale(cx: &Context<'_>, old: &Value, scale: &Value) -> Result<Value, ApiError> {
    let errors = mycelium_kinds::scale::validate(scale);
    if !errors.is_empty() {
        let (group, kind) = ("autoscaling".into(), "Scale".into());
        return Err(ApiError::Invalid { group, kind, name: cx.path.name.clone(), errors });
    }
    let mut object = old.clone();
    match &cx.resource.custom {
        Some(custom) => crate::custom::apply_scale(custom, scale, &mut object),
        None => mycelium_kinds::scale::apply(scale, &mut object),
    }
    object["metadata"]["resourceVersion"] = scale["metadata"]["resourceVersion"].clone();
    if let Some(uid) = scale["metadata"]["uid"].as_str().filter(|uid| !uid.is_empty()) {
        object["metadata"]["uid"] = uid.into();
    }
    Ok(object)
}

/// The Scale of an object.
pub fn scale_of(cx: &Context<'_>, object: &Value) -> Value {
    match &cx.resource.custom {
        Some(custom) => crate::custom::scale_of(custom, object),
        None => mycelium_kinds::scale::of(object),
    }
}

/// Answers with the Scale of an object.
pub async fn scale_answer(cx: &Context<'_>, entry: &Entry) -> Result<Response<Body>, ApiError> {
    let object = conversion::to_request(cx.server, cx.resource, codec::parse_entry(entry)?).await?;
    let scale = scale_of(cx, &object);
    let plain = Context { accept: Accept { shape: Shape::Object, ..cx.accept }, ..*cx };
    shape::value(&plain, StatusCode::OK, &scale)
}

/// Name and namespace of a body must be those of the URL.
pub fn check_url(cx: &Context<'_>, object: &Value) -> Result<(), ApiError> {
    let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default().to_owned();
    let (name, namespace) = (text("name"), text("namespace"));
    if cx.resource.namespaced() && !namespace.is_empty() && namespace != cx.path.namespace {
        return Err(ApiError::bad(
            "the namespace of the provided object does not match the namespace sent on the request",
        ));
    }
    let given = &cx.path.name;
    if name.is_empty() {
        let why = "name must be provided";
        return Err(ApiError::bad(format!("the name of the object ({given} based on URL) was undeterminable: {why}")));
    }
    if name != *given {
        let why = format!("the name of the object ({name}) does not match the name on the URL ({given})");
        return Err(ApiError::BadRequest(why));
    }
    Ok(())
}

/// Which part of the object a request writes.
fn part(cx: &Context<'_>) -> Result<Part, ApiError> {
    Ok(match cx.subresource() {
        None => Part::Main,
        Some("status") => Part::Status,
        Some("scale") => Part::Scale,
        Some("resize") => Part::Resize,
        Some("ephemeralcontainers") => Part::EphemeralContainers,
        Some("binding") => Part::Binding,
        Some("finalize") => Part::Finalize,
        Some("approval") => Part::Approval,
        Some(_) => return Err(ApiError::MethodNotAllowed),
    })
}

/// Changes an existing object: reads, computes, writes if nothing changed meanwhile, and starts again otherwise.
pub async fn modify(
    cx: &Context<'_>,
    options: &WriteOptions,
    mut change: impl FnMut(&Value) -> Result<Change, ApiError>,
) -> Result<Entry, ApiError> {
    let key = cx.key();
    for _ in 0..TRIES {
        let entry = cx.server.store.get(&key).ok_or_else(|| ApiError::NotFound(cx.subject()))?;
        let old = codec::parse_entry(&entry)?;
        let old = if conversion::is_foreign(cx.resource) {
            conversion::to_request(cx.server, cx.resource, old).await?
        } else {
            old
        };
        let seen = shape::to_request_version(cx.resource, old.clone());
        let Change { object, ownership } = change(&seen)?;
        let named_revision = precondition(cx, &object, &old)?;
        let prepared = prepare(cx, options, &old, object, ownership).await?;
        validating::check(cx, &prepared.object, Some(&old))?;
        dynamic::validate(cx, "UPDATE", Some(&prepared.object), Some(&old), options.dry_run).await?;
        if prepared.is_noop(&old) {
            return Ok(entry);
        }
        match prepared.commit(cx, options, &entry).await? {
            Some(written) => return Ok(written),
            None if named_revision
                && cx.server.store.get(&key).is_none_or(|e| e.mod_revision != entry.mod_revision) =>
            {
                return Err(stale(cx));
            }
            None => {}
        }
    }
    Err(stale(cx))
}

/// An unmet precondition, in the words of Kubernetes' storage.
pub fn unmet(cx: &Context<'_>, what: &str) -> String {
    let place = if cx.resource.namespaced() { format!("{}/", cx.path.namespace) } else { String::new() };
    format!(
        "StorageError: invalid object, Code: 4, Key: /registry/{}/{place}{}, ResourceVersion: 0, AdditionalErrorMsg: \
         Precondition failed: {what}",
        cx.resource.name(),
        cx.path.name
    )
}

fn stale(cx: &Context<'_>) -> ApiError {
    let text = "the object has been modified; please apply your changes to the latest version and try again";
    ApiError::Conflict { subject: cx.subject(), message: text.to_owned() }
}

/// Whether the body names the revision it was made from, which then must be the current one.
fn precondition(cx: &Context<'_>, new: &Value, old: &Value) -> Result<bool, ApiError> {
    let (new, old) = (&new["metadata"], &old["metadata"]);
    if let Some(uid) = new["uid"].as_str().filter(|uid| !uid.is_empty())
        && Some(uid) != old["uid"].as_str()
    {
        let current = old["uid"].as_str().unwrap_or_default();
        return Err(ApiError::Conflict {
            subject: cx.subject(),
            message: unmet(cx, &format!("UID in precondition: {uid}, UID in object meta: {current}")),
        });
    }
    match new["resourceVersion"].as_str() {
        None | Some("" | "0") => Ok(false),
        Some(version) if Some(version) == old["resourceVersion"].as_str() => Ok(true),
        Some(version) if version.parse::<u64>().is_err() => {
            let path = Path::new("metadata").child("resourceVersion");
            let why = format!("strconv.ParseUint: parsing {version:?}: invalid syntax");
            Err(invalid(cx, vec![FieldError::invalid(&path, version, why)]))
        }
        Some(_) => Err(stale(cx)),
    }
}

fn invalid(cx: &Context<'_>, errors: Vec<FieldError>) -> ApiError {
    let (group, kind) = (cx.resource.group().to_owned(), cx.resource.kind().to_owned());
    ApiError::Invalid { group, kind, name: cx.path.name.clone(), errors }
}

struct Prepared {
    object: Value,
    allocation: Allocation,
}

async fn prepare(
    cx: &Context<'_>,
    options: &WriteOptions,
    old: &Value,
    mut object: Value,
    ownership: Ownership,
) -> Result<Prepared, ApiError> {
    let behaviour = cx.resource.behaviour;
    let part = part(cx)?;
    cx.resource.fill_defaults(&mut object);
    let mut object = to_storage(cx, object);
    if cx.resource.namespaced() {
        object["metadata"]["namespace"] = cx.path.namespace.as_str().into();
    } else if let Some(metadata) = object["metadata"].as_object_mut() {
        metadata.remove("namespace");
    }
    object["metadata"]["resourceVersion"] = old["metadata"]["resourceVersion"].clone();
    if part == Part::Binding {
        // The binding itself was checked; it sets what no update may.
        if ownership == Ownership::Update {
            create::own(cx, Some(old), &mut object, options);
        }
        return Ok(Prepared { object, allocation: Allocation::default() });
    }
    if ownership == Ownership::Update {
        create::own(cx, Some(old), &mut object, options);
    }
    webhooks::mutate(cx, "UPDATE", (part != Part::Scale).then_some(&mut object), Some(old), options.dry_run).await?;
    admission::restore(cx, &mut object);
    admission::complete_conditions(cx, &mut object);
    behaviour.prepare_update(&mut object, old, part);
    admission::update(cx, &mut object, old)?;
    let mut allocation = Allocation::plan(cx, &object, Some(old));
    allocation.assign(&mut object)?;
    let mut errors = behaviour.validate_update(&object, old, part);
    errors.extend(cx.resource.schema_faults(&object, Some(old)));
    if !errors.is_empty() {
        return Err(invalid(cx, errors));
    }
    cx.warnings.extend(behaviour.update_warnings(&object, old, part));
    Ok(Prepared { object, allocation })
}

impl Prepared {
    /// Whether nothing but times of field ownership would change: then nothing is written.
    fn is_noop(&self, old: &Value) -> bool {
        let same_but = |new: &Value, old: &Value, except: &str| match (new.as_object(), old.as_object()) {
            (Some(new), Some(old)) => {
                let others = |m: &serde_json::Map<String, Value>| m.keys().filter(|k| *k != except).count();
                others(new) == others(old) && new.iter().all(|(k, v)| k == except || old.get(k) == Some(v))
            }
            _ => false,
        };
        let owners = |object: &Value| object["metadata"]["managedFields"].as_array().cloned().unwrap_or_default();
        let (new, old_owners) = (owners(&self.object), owners(old));
        same_but(&self.object, old, "metadata")
            && same_but(&self.object["metadata"], &old["metadata"], "managedFields")
            && new.len() == old_owners.len()
            && new.iter().zip(&old_owners).all(|(new, old)| same_but(new, old, "time"))
    }

    /// Writes the object, or deletes it when this change released its last finalizer. `None`: somebody was faster,
    /// with the object or with what it was to be given.
    async fn commit(self, cx: &Context<'_>, options: &WriteOptions, entry: &Entry) -> Result<Option<Entry>, ApiError> {
        let value = if conversion::by_webhook(cx.resource) {
            codec::encode(&conversion::to_storage(cx.server, cx.resource, self.object.clone()).await?)
        } else {
            codec::encode(&self.object)
        };
        let last = delete::is_finished(&self.object);
        let (key, expect) = (entry.key.to_string(), Expect::Revision(entry.mod_revision));
        let ops = if last {
            delete::ops(cx, entry, &self.object)
        } else {
            let mut ops = vec![Op::Put { key, value: value.clone(), expect }];
            ops.extend(self.allocation.ops());
            ops
        };
        // A status only tells what is so already.
        let limits = if matches!(cx.subresource(), None | Some("resize")) { Limits::Enforced } else { Limits::Counted };
        if options.dry_run {
            quota::commit(cx.server, ops, limits, true)
                .await
                .map_err(|error| create::charge_failure(cx, &cx.path.name, error))?;
            return Ok(Some(Entry { value, ..entry.clone() }));
        }
        match cx.server.commit_within(ops, limits).await {
            Ok(committed) if last => Ok(Some(Entry { value, mod_revision: committed.revision, ..entry.clone() })),
            Ok(committed) => {
                if cx.subresource() == Some("status") {
                    quota::status_written(cx.server, &entry.key);
                }
                Ok(committed.entries.into_iter().next().flatten())
            }
            Err(ChargeError::Commit(CommitError::Conflict { .. })) => Ok(None),
            Err(error) => Err(create::charge_failure(cx, &cx.path.name, error)),
        }
    }
}

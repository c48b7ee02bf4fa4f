//! Creating objects.

use bytes::Bytes;
use http::{Response, StatusCode};
use mycelium_apimachinery::apply::{self, Operation};
use mycelium_apimachinery::schema::{self, Type};
use mycelium_store::{CommitError, Entry, Expect, Op};
use serde_json::{Value, json};

use super::admission;
use super::decode::{self, Expected};
use super::options::WriteOptions;
use super::services::Allocation;
use super::update::Ownership;
use super::validating;
use crate::body::Body;
use crate::codec;
use crate::custom::conversion;
use crate::dynamic::{self, webhooks};
use crate::error::{ApiError, Cause};
use crate::quota::{self, ChargeError, Limits};
use crate::read::shape;
use crate::route::Context;
use crate::server::commit_failure;

const GENERATE_TRIES: usize = 8;
const GENERATED_PREFIX_MAX: usize = 58;
const SUFFIX: usize = 5;
const TRIES: usize = 64;

/// Answers a POST to a collection.
pub async fn create(cx: &Context<'_>, body: &[u8]) -> Result<Response<Body>, ApiError> {
    let options = WriteOptions::parse(cx, "CreateOptions")?;
    let (object, warnings) = decode::object(cx, body, &Expected::of(cx), options.validation)?;
    cx.warnings.extend(warnings);
    let entry = object_from(cx, object, &options, Ownership::Update).await?;
    shape::answer(cx, StatusCode::CREATED, &entry).await
}

/// Creates a decoded object in the request's version.
pub async fn object_from(
    cx: &Context<'_>,
    mut object: Value,
    options: &WriteOptions,
    ownership: Ownership,
) -> Result<Entry, ApiError> {
    if cx.resource.custom.is_some() && is_ending(cx) {
        return Err(ApiError::Ending);
    }
    place(cx, &mut object)?;
    if object["metadata"]["resourceVersion"].as_str().is_some_and(|v| !v.is_empty() && v != "0") {
        return Err(ApiError::bad("resourceVersion should not be set on objects to be created"));
    }
    let metadata = &object["metadata"];
    let prefix = metadata["generateName"].as_str().unwrap_or_default();
    let generated = metadata["name"].as_str().unwrap_or_default().is_empty() && !prefix.is_empty();
    if !generated {
        return finish(cx, object, options, ownership).await;
    }
    let kept = prefix.char_indices().nth(GENERATED_PREFIX_MAX).map_or(prefix, |(at, _)| &prefix[..at]).to_owned();
    let mut last = None;
    for _ in 0..GENERATE_TRIES {
        let mut attempt = object.clone();
        attempt["metadata"]["name"] = json!(format!("{kept}{}", cx.server.env.name_suffix(SUFFIX)));
        match finish(cx, attempt, options, ownership).await {
            Err(error @ ApiError::AlreadyExists(_)) => last = Some(error),
            other => return other,
        }
    }
    Err(last.unwrap_or(ApiError::NoSuchPath))
}

/// Whether the resource's definition is being deleted.
fn is_ending(cx: &Context<'_>) -> bool {
    let key = format!("{}{}.{}", crate::custom::PREFIX, cx.resource.name(), cx.resource.group());
    let entry = cx.server.store.get(&key);
    let definition = entry.and_then(|entry| cx.server.parsed.get(&entry.key, &entry.value, entry.mod_revision).ok());
    definition.is_some_and(|definition| definition["metadata"]["deletionTimestamp"].is_string())
}

/// Puts the object into the namespace of the request.
fn place(cx: &Context<'_>, object: &mut Value) -> Result<(), ApiError> {
    let metadata = &mut object["metadata"];
    let given = metadata["namespace"].as_str().unwrap_or_default().to_owned();
    if !cx.resource.namespaced() {
        if let Some(metadata) = metadata.as_object_mut() {
            metadata.remove("namespace");
        }
        return Ok(());
    }
    if cx.path.namespace.is_empty() {
        return Err(ApiError::bad("an empty namespace may not be set during creation"));
    }
    if !given.is_empty() && given != cx.path.namespace {
        return Err(ApiError::bad(
            "the namespace of the provided object does not match the namespace sent on the request",
        ));
    }
    metadata["namespace"] = json!(cx.path.namespace);
    Ok(())
}

/// Defaults, field ownership, admission, what the kind's storage adds, allocation, validation: each sees what those
/// before it made. Fields belong to who sent them, so ownership comes before admission; storage adds last what
/// depends on the whole object: the selector of a Job on its uid, the QoS class of a pod on its final resources.
async fn finish(
    cx: &Context<'_>,
    mut object: Value,
    options: &WriteOptions,
    ownership: Ownership,
) -> Result<Entry, ApiError> {
    let resource = cx.resource;
    let behaviour = resource.behaviour;
    resource.fill_defaults(&mut object);
    let object = &mut to_storage(cx, object);
    system_fields(cx, object);
    let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    namespace_guard(cx, &name)?;
    if ownership == Ownership::Update {
        own(cx, None, object, options);
    }
    let more = admission::create(cx, object)?;
    webhooks::mutate(cx, "CREATE", Some(object), None, options.dry_run).await?;
    behaviour.prepare_create(object);
    admission::prepared(cx, object);
    let mut allocation = Allocation::plan(cx, object, None);
    let key = resource.key(&cx.path.namespace, &name);
    // Only what is allocated differs from one try to the next.
    let mut made = None;
    for _ in 0..TRIES {
        let value = match made.clone() {
            Some(value) => value,
            None => {
                let mut stored = if allocation.is_planned() { object.clone() } else { std::mem::take(object) };
                allocation.assign(&mut stored)?;
                let value = complete(cx, &stored, &name)?;
                validating::check(cx, &stored, None)?;
                dynamic::validate(cx, "CREATE", Some(&stored), None, options.dry_run).await?;
                made = (!allocation.is_planned()).then(|| value.clone());
                value
            }
        };
        let value = if conversion::by_webhook(resource) {
            let object = codec::parse(&value, 0)?;
            codec::encode(&conversion::to_storage(cx.server, resource, object).await?)
        } else {
            value
        };
        let mut ops = vec![Op::Put { key: key.clone(), value, expect: Expect::Absent }];
        ops.extend(namespace_guard(cx, &name)?);
        ops.extend(more.iter().cloned());
        ops.extend(allocation.ops());
        if options.dry_run {
            let Op::Put { value, .. } = ops[0].clone() else { return Err(lost()) };
            let entry = dry(cx, &key, value)?;
            quota::commit(cx.server, ops, Limits::Enforced, true)
                .await
                .map_err(|error| charge_failure(cx, &name, error))?;
            return Ok(entry);
        }
        match cx.server.commit_within(ops, Limits::Enforced).await {
            Ok(committed) => return committed.entries.into_iter().next().flatten().ok_or_else(lost),
            Err(ChargeError::Commit(CommitError::Conflict { key: taken, current })) if taken == key => {
                return Err(exists(cx, &name, current.as_ref()));
            }
            // What it was to get is taken, or the namespace was written: look again.
            Err(ChargeError::Commit(CommitError::Conflict { .. })) => {}
            Err(error) => return Err(charge_failure(cx, &name, error)),
        }
    }
    Err(ApiError::TooManyRequests("the namespace changes too often; please try again".into()))
}

/// Validates the object, and gives it the form in which it is stored.
fn complete(cx: &Context<'_>, object: &Value, name: &str) -> Result<Bytes, ApiError> {
    let resource = cx.resource;
    let mut errors = resource.behaviour.validate_create(object);
    errors.extend(resource.schema_faults(object, None));
    if !errors.is_empty() {
        let (group, kind) = (resource.group().into(), resource.kind().into());
        return Err(ApiError::Invalid { group, kind, name: name.to_owned(), errors });
    }
    cx.warnings.extend(resource.behaviour.warnings(object));
    Ok(codec::encode(object))
}

/// What it means to a client that a transaction was not carried out, conflicts aside.
pub fn charge_failure(cx: &Context<'_>, name: &str, error: ChargeError) -> ApiError {
    match error {
        ChargeError::Refused(why) => ApiError::forbidden(cx.subject_named(name), why),
        ChargeError::Commit(error) => commit_failure(error),
    }
}

fn lost() -> ApiError {
    ApiError::internal("the store did not return what it wrote")
}

fn dry(cx: &Context<'_>, key: &str, value: Bytes) -> Result<Entry, ApiError> {
    if let Some(current) = cx.server.store.get(key) {
        let name = key.rsplit('/').next().unwrap_or_default();
        return Err(exists(cx, name, Some(&current)));
    }
    Ok(Entry { key: key.into(), value, create_revision: 0, mod_revision: 0 })
}

fn exists(cx: &Context<'_>, name: &str, current: Option<&Entry>) -> ApiError {
    let deleting = current
        .and_then(|entry| codec::parse_entry(entry).ok())
        .is_some_and(|object| object["metadata"]["deletionTimestamp"].is_string());
    let subject = cx.subject_named(name);
    if deleting { ApiError::BeingDeleted(subject) } else { ApiError::AlreadyExists(subject) }
}

/// The object in storage version.
pub fn to_storage(cx: &Context<'_>, mut object: Value) -> Value {
    let resource = cx.resource;
    // A webhook converts at the very end.
    if !resource.is_storage_version() && !conversion::by_webhook(resource) {
        let group = if resource.group() == "events.k8s.io" { "" } else { resource.group() };
        mycelium_kinds::convert::to_version(&mut object, group, resource.storage_version);
    }
    object
}

/// Records in `managedFields` who set what.
pub fn own(cx: &Context<'_>, old: Option<&Value>, new: &mut Value, options: &WriteOptions) {
    apply::update_managed(storage_schema(cx), old, new, &operation(cx, options));
}

/// The write as field ownership sees it.
pub fn operation<'a>(cx: &Context<'a>, options: &'a WriteOptions) -> Operation<'a> {
    let has_status = cx.resource.facts.subresource("status").is_some();
    let reset: &[&[&str]] = match cx.subresource() {
        Some("status") => apply::RESET_SPEC,
        _ if has_status => apply::RESET_STATUS,
        _ => &[],
    };
    Operation {
        manager: &options.manager,
        force: options.force.unwrap_or(false),
        now: cx.server.env.now(),
        subresource: &cx.path.subresource,
        reset,
    }
}

/// The schema of the storage version.
pub fn storage_schema<'a>(cx: &Context<'a>) -> &'a Type {
    let resource = cx.resource;
    if resource.is_storage_version() {
        return &resource.schema;
    }
    let group = if resource.group() == "events.k8s.io" { "" } else { resource.group() };
    schema::types().for_gvk(group, resource.storage_version, resource.kind()).unwrap_or(&resource.schema)
}

fn system_fields(cx: &Context<'_>, object: &mut Value) {
    let metadata = &mut object["metadata"];
    metadata["uid"] = json!(cx.server.env.uuid());
    metadata["creationTimestamp"] = json!(cx.server.env.now_rfc3339());
    if let Some(metadata) = metadata.as_object_mut() {
        for field in ["deletionTimestamp", "deletionGracePeriodSeconds", "selfLink", "resourceVersion"] {
            metadata.remove(field);
        }
    }
}

/// The namespace must exist and not be going away, also at the moment of the write.
fn namespace_guard(cx: &Context<'_>, name: &str) -> Result<Option<Op>, ApiError> {
    if !cx.resource.namespaced() {
        return Ok(None);
    }
    let namespace = &cx.path.namespace;
    let key = format!("/registry/core/namespaces/{namespace}");
    let missing = || ApiError::NotFound(crate::error::Subject::new("", "namespaces", namespace));
    let entry = cx.server.store.get(&key).ok_or_else(missing)?;
    let object = cx.server.parsed.get(&entry.key, &entry.value, entry.mod_revision)?;
    if object["metadata"]["deletionTimestamp"].is_string() {
        let text = format!("unable to create new content in namespace {namespace} because it is being terminated");
        return Err(ApiError::Forbidden {
            subject: cx.subject_named(name),
            message: text,
            causes: vec![Cause {
                reason: "NamespaceTerminating".into(),
                message: format!("namespace {namespace} is being terminated"),
                field: "metadata.namespace".into(),
            }],
        });
    }
    Ok(Some(Op::Check { key, expect: Expect::Revision(entry.mod_revision) }))
}

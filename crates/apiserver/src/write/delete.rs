//! Deleting: at once, gracefully, or when the last finalizer is gone.

use futures::future::BoxFuture;
use futures::{StreamExt, stream};
use http::{Response, StatusCode};
use jiff::SignedDuration;
use mycelium_api::env::rfc3339_seconds;
use mycelium_store::{CommitError, Entry, Expect, Op};
use serde_json::{Value, json};

use super::decode::{self, Expected};
use super::options::{FieldValidation, WriteOptions};
use super::services;
use crate::answer;
use crate::body::Body;
use crate::codec;
use crate::custom::{conversion, definition, ending};
use crate::dynamic::{self, webhooks};
use crate::error::{ApiError, Subject};
use crate::read::filter::Filter;
use crate::read::list;
use crate::read::options::ListOptions;
use crate::read::shape;
use crate::resources::Resource;
use crate::route::Context;
use crate::server::commit_failure;

const ORPHAN: &str = "orphan";
const FOREGROUND: &str = "foregroundDeletion";
const DEFAULT_GRACE_SECONDS: i64 = 30;
/// Objects of a collection that are deleted at the same time.
const AT_ONCE: usize = 64;

/// Namespaces without which no cluster is one.
const LASTING: [&str; 3] = ["default", "kube-system", "kube-public"];

/// The kinds whose deletion answers with the object rather than a Status.
const ANSWER_OBJECT: [&str; 17] = [
    "csidrivers",
    "csinodes",
    "deviceclasses",
    "namespaces",
    "persistentvolumeclaims",
    "persistentvolumes",
    "pods",
    "podtemplates",
    "resourceclaims",
    "resourceclaimtemplates",
    "resourcequotas",
    "resourceslices",
    "serviceaccounts",
    "services",
    "storageclasses",
    "volumeattachments",
    "volumeattributesclasses",
];

/// `metav1.DeleteOptions`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeleteOptions {
    /// Grace period.
    pub grace_seconds: Option<i64>,
    /// `Orphan`, `Background` or `Foreground`.
    pub propagation: Option<String>,
    /// The object must have this uid.
    pub uid: Option<String>,
    /// The object must have this resource version.
    pub resource_version: Option<String>,
    /// Nothing is deleted.
    pub dry_run: bool,
}

impl DeleteOptions {
    /// From body and query; the body decides where both speak.
    pub fn parse(cx: &Context<'_>, body: &[u8]) -> Result<Self, ApiError> {
        let write = WriteOptions::parse(cx, "DeleteOptions")?;
        let mut options = Self {
            grace_seconds: cx.query.number("gracePeriodSeconds")?,
            propagation: cx.query.get("propagationPolicy").map(str::to_owned),
            dry_run: write.dry_run,
            ..Self::default()
        };
        if let Some(orphan) = cx.query.optional_flag("orphanDependents") {
            options.propagation = Some(if orphan { "Orphan" } else { "Background" }.to_owned());
        }
        if !body.is_empty() {
            options.merge(&Self::body(cx, body)?);
        }
        options.check()
    }

    fn body(cx: &Context<'_>, body: &[u8]) -> Result<Value, ApiError> {
        let format = crate::media::body_format(cx.headers)?;
        let expected = Expected::kind("", "v1", "DeleteOptions");
        let (mut value, _) = decode::syntax(format, body, "DeleteOptions")?;
        // Clients send it in the version of the resource as well.
        value["apiVersion"] = json!(expected.api_version);
        decode::check_kind(&mut value, &expected)?;
        let notes = decode::typed(&mut value, &expected).map_err(|why| ApiError::bad(why.to_string()))?;
        decode::judge(notes, &expected, FieldValidation::Ignore)?;
        Ok(value)
    }

    /// Takes what a `DeleteOptions` object says.
    pub fn merge(&mut self, value: &Value) {
        let text = |v: &Value| v.as_str().filter(|s| !s.is_empty()).map(str::to_owned);
        self.grace_seconds = value["gracePeriodSeconds"].as_i64().or(self.grace_seconds);
        self.propagation = text(&value["propagationPolicy"]).or(self.propagation.take());
        if let Some(orphan) = value["orphanDependents"].as_bool() {
            self.propagation = Some(if orphan { "Orphan" } else { "Background" }.to_owned());
        }
        self.uid = text(&value["preconditions"]["uid"]);
        self.resource_version = text(&value["preconditions"]["resourceVersion"]);
        self.dry_run |= value["dryRun"].as_array().is_some_and(|d| !d.is_empty());
    }

    fn check(self) -> Result<Self, ApiError> {
        use mycelium_api::field::{FieldError, Path};
        let allowed = ["Foreground", "Background", "Orphan"];
        match &self.propagation {
            Some(policy) if !allowed.contains(&policy.as_str()) => {
                let errors =
                    vec![FieldError::not_supported(&Path::new("propagationPolicy"), policy.as_str(), &allowed)];
                let (group, kind) = ("meta.k8s.io".into(), "DeleteOptions".into());
                Err(ApiError::Invalid { group, kind, name: String::new(), errors })
            }
            _ => Ok(self),
        }
    }
}

/// What became of a deletion.
pub struct Deleted {
    /// The object, gone or on its way.
    pub object: Value,
    /// Whether it is gone.
    pub gone: bool,
}

/// Answers a DELETE of an object.
pub async fn delete(cx: &Context<'_>, body: &[u8]) -> Result<Response<Body>, ApiError> {
    let options = DeleteOptions::parse(cx, body)?;
    let deleted = delete_named(cx, &cx.path.namespace, &cx.path.name, &options).await?;
    if !deleted.gone || ANSWER_OBJECT.contains(&cx.resource.name()) {
        let object = conversion::to_request(cx.server, cx.resource, deleted.object).await?;
        return shape::parsed(cx, StatusCode::OK, object);
    }
    let mut details = json!({"name": cx.path.name, "kind": cx.resource.name(),
        "uid": deleted.object["metadata"]["uid"]});
    if !cx.resource.group().is_empty() {
        details["group"] = json!(cx.resource.group());
    }
    let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details});
    Ok(answer::json(StatusCode::OK, &status))
}

/// Answers a DELETE of a collection.
pub async fn delete_collection(cx: &Context<'_>, body: &[u8]) -> Result<Response<Body>, ApiError> {
    let options = DeleteOptions::parse(cx, body)?;
    let listing = ListOptions::parse(cx.query, false)?;
    let filter = Filter::new(cx.resource, cx.query, "")?;
    let listed = list::find(cx, &listing, &filter).await?;
    // Together, so that they share syncs of the disk.
    let deletions: Vec<_> = listed.entries.iter().map(|entry| delete_listed(cx, entry, &options)).collect();
    let mut outcomes = stream::iter(deletions).buffered(AT_ONCE);
    let mut items = Vec::with_capacity(listed.entries.len());
    while let Some(outcome) = outcomes.next().await {
        items.extend(outcome?);
    }
    let list = json!({"kind": cx.resource.facts.list_kind(), "apiVersion": cx.resource.api_version(),
        "metadata": {"resourceVersion": listed.revision.to_string()}, "items": items});
    shape::value(cx, StatusCode::OK, &list)
}

/// Deletes an object of a list; one that is gone already is no fault.
fn delete_listed<'a>(
    cx: &'a Context<'_>,
    entry: &'a Entry,
    options: &'a DeleteOptions,
) -> BoxFuture<'a, Result<Option<Value>, ApiError>> {
    Box::pin(async move {
        let object = codec::parse_entry(entry)?;
        let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default();
        match delete_named(cx, text("namespace"), text("name"), options).await {
            Ok(deleted) => {
                let object = conversion::to_request(cx.server, cx.resource, deleted.object).await?;
                Ok(Some(shape::to_request_version(cx.resource, object)))
            }
            Err(ApiError::NotFound(_)) => Ok(None),
            Err(error) => Err(error),
        }
    })
}

/// Deletes one object, or begins to.
pub fn delete_named<'a>(
    cx: &'a Context<'_>,
    namespace: &'a str,
    name: &'a str,
    options: &'a DeleteOptions,
) -> BoxFuture<'a, Result<Deleted, ApiError>> {
    // Boxed, since deleting a definition deletes its objects.
    Box::pin(delete_one(cx, namespace, name, options))
}

async fn delete_one(
    cx: &Context<'_>,
    namespace: &str,
    name: &str,
    options: &DeleteOptions,
) -> Result<Deleted, ApiError> {
    let key = cx.resource.key(namespace, name);
    loop {
        let entry = cx.server.store.get(&key).ok_or_else(|| ApiError::NotFound(cx.subject_named(name)))?;
        let mut object = codec::parse_entry(&entry)?;
        check_preconditions(cx, name, &object, options)?;
        if cx.resource.is_core("namespaces") && LASTING.contains(&name) {
            return Err(ApiError::forbidden(cx.subject_named(name), "this namespace may not be deleted"));
        }
        if dynamic::is_upkeep(cx) {
            // The end of a definition must not wait for what it configured.
        } else if conversion::is_foreign(cx.resource) {
            let seen = conversion::to_request(cx.server, cx.resource, object.clone()).await?;
            admit(cx, &seen, options).await?;
        } else {
            admit(cx, &object, options).await?;
        }
        let gone = begin(cx, &mut object, options);
        if options.dry_run {
            return Ok(Deleted { object, gone });
        }
        let value = codec::encode(&object);
        if !gone && value == entry.value {
            return Ok(Deleted { object, gone });
        }
        let ops = if gone {
            ops(cx, &entry, &object)
        } else {
            vec![Op::Put { key: key.clone(), value, expect: Expect::Revision(entry.mod_revision) }]
        };
        match cx.server.commit(ops).await {
            Ok(committed) => {
                codec::set_revision(&mut object, committed.revision);
                if !gone && cx.resource.kind() == "CustomResourceDefinition" {
                    ending::begin(cx.server, &key).await;
                }
                return Ok(Deleted { object, gone });
            }
            Err(CommitError::Conflict { .. }) => {}
            Err(error) => return Err(commit_failure(error)),
        }
    }
}

/// Asks those who may refuse a deletion.
async fn admit(cx: &Context<'_>, object: &Value, options: &DeleteOptions) -> Result<(), ApiError> {
    webhooks::mutate(cx, "DELETE", None, Some(object), options.dry_run).await?;
    dynamic::validate(cx, "DELETE", None, Some(object), options.dry_run).await
}

fn check_preconditions(cx: &Context<'_>, name: &str, object: &Value, options: &DeleteOptions) -> Result<(), ApiError> {
    let check = |wanted: &Option<String>, field: &str, label: &str, why: &str| {
        let current = object["metadata"][field].as_str().unwrap_or_default();
        match wanted {
            Some(wanted) if wanted != current => Err(ApiError::Conflict {
                // Kubernetes names the kind here, not the resource.
                subject: Subject::new(cx.resource.group(), cx.resource.kind(), name),
                message: format!(
                    "the {label} in the precondition ({wanted}) does not match the {label} in record ({current}). \
                     The object might have been {why}"
                ),
            }),
            _ => Ok(()),
        }
    };
    check(&options.uid, "uid", "UID", "deleted and then recreated")?;
    check(&options.resource_version, "resourceVersion", "ResourceVersion", "modified")
}

/// Marks an object as deleted. Returns whether nothing holds it any more.
fn begin(cx: &Context<'_>, object: &mut Value, options: &DeleteOptions) -> bool {
    if let Some(policy) = options.propagation.as_deref() {
        set_propagation(object, policy);
    }
    if cx.resource.kind() == "CustomResourceDefinition" {
        ending::hold(object);
    }
    let grace = grace_seconds(cx.resource, object, options);
    let held = !finalizers(object).is_empty() || has_spec_finalizers(object);
    let marked = object["metadata"]["deletionTimestamp"].is_string();
    if grace == 0 && !held {
        return true;
    }
    let now = cx.server.env.now();
    let current = object["metadata"]["deletionGracePeriodSeconds"].as_i64();
    // A second deletion can only shorten the time that is left.
    if !marked || current.is_some_and(|current| grace < current) {
        let end = now.saturating_add(SignedDuration::from_secs(grace)).unwrap_or(now);
        if !marked && object["metadata"]["generation"].as_i64().is_some_and(|g| g > 0) {
            object["metadata"]["generation"] = json!(object["metadata"]["generation"].as_i64().unwrap_or(0) + 1);
        }
        object["metadata"]["deletionTimestamp"] = json!(rfc3339_seconds(end));
        object["metadata"]["deletionGracePeriodSeconds"] = json!(grace);
    }
    if cx.resource.is_core("namespaces") {
        object["status"]["phase"] = json!("Terminating");
    }
    if cx.resource.kind() == "CustomResourceDefinition" {
        definition::terminating(object, &cx.server.env.now_rfc3339());
    }
    false
}

/// How long an object may take to end by itself. Only pods that run somewhere get time.
fn grace_seconds(resource: &Resource, pod: &Value, options: &DeleteOptions) -> i64 {
    let unscheduled = pod["spec"]["nodeName"].as_str().unwrap_or_default().is_empty();
    let ended = matches!(pod["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
    if !resource.is_core("pods") || unscheduled || ended {
        return 0;
    }
    let wanted = options.grace_seconds.or(pod["spec"]["terminationGracePeriodSeconds"].as_i64());
    match wanted.unwrap_or(DEFAULT_GRACE_SECONDS) {
        seconds if seconds < 0 => 1,
        seconds => seconds,
    }
}

fn finalizers(object: &Value) -> &[Value] {
    object["metadata"]["finalizers"].as_array().map(Vec::as_slice).unwrap_or_default()
}

/// Namespaces have finalizers of their own.
fn has_spec_finalizers(object: &Value) -> bool {
    object["kind"] == "Namespace" && object["spec"]["finalizers"].as_array().is_some_and(|f| !f.is_empty())
}

fn set_propagation(object: &mut Value, policy: &str) {
    let wanted = match policy {
        "Orphan" => Some(ORPHAN),
        "Foreground" => Some(FOREGROUND),
        _ => None,
    };
    let mut list: Vec<Value> =
        finalizers(object).iter().filter(|f| *f != ORPHAN && *f != FOREGROUND).cloned().collect();
    list.extend(wanted.map(Value::from));
    match (list.is_empty(), object["metadata"].as_object_mut()) {
        (true, Some(metadata)) => {
            metadata.remove("finalizers");
        }
        (false, Some(metadata)) => {
            metadata.insert("finalizers".into(), list.into());
        }
        _ => {}
    }
}

/// Whether an updated object was only waiting for its finalizers, and has none left.
pub fn is_finished(object: &Value) -> bool {
    let metadata = &object["metadata"];
    metadata["deletionTimestamp"].is_string()
        && metadata["deletionGracePeriodSeconds"].as_i64().unwrap_or(0) == 0
        && finalizers(object).is_empty()
        && !has_spec_finalizers(object)
}

/// What deleting an object writes: the object, and what was allocated for it.
pub fn ops(cx: &Context<'_>, entry: &Entry, object: &Value) -> Vec<Op> {
    let mut ops = vec![Op::Delete { key: entry.key.to_string(), expect: Expect::Revision(entry.mod_revision) }];
    if cx.resource.is_core("services") {
        ops.extend(services::release(object));
    }
    ops
}

//! Revisions: the templates that a StatefulSet or DaemonSet had, kept as ControllerRevisions.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::apps::v1::ControllerRevision;
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::runtime::RawExtension;
use kube::Resource;
use kube::api::ObjectMeta;
use serde_json::{Value, json};

use crate::cache::Object;
use crate::children::Owner;
use crate::context::Context;
use crate::objects::{controller_reference, drop_empty, is_controlled_by, name, safe_hash};
use crate::write::{Delete, Error, Part};

/// The label of a pod that names its revision.
pub const REVISION_LABEL: &str = "controller-revision-hash";
/// A revision's name begins with at most this much of its owner's.
const PREFIX_BYTES: usize = 223;

/// What must become of the history before pods can be made from it.
#[derive(Clone, Debug)]
pub enum Latest {
    /// This revision holds the template, and it is the newest.
    Known(Arc<ControllerRevision>),
    /// The template is new.
    Create(Box<ControllerRevision>),
    /// The template is an old one's: that one becomes the newest.
    Renumber(Arc<ControllerRevision>, i64),
}

/// The revisions in order, oldest first.
pub fn sorted(mut revisions: Vec<Arc<ControllerRevision>>) -> Vec<Arc<ControllerRevision>> {
    revisions.sort_by(|a, b| {
        let place = |r: &ControllerRevision| {
            (r.revision, r.metadata.creation_timestamp.as_ref().map(|time| time.0), r.metadata.name.clone())
        };
        place(a).cmp(&place(b))
    });
    revisions
}

/// Where the template stands in the history. `hash_label` is the label that carries the hash, `revisions` are sorted.
pub fn latest(
    owner: &impl Owner,
    template: &PodTemplateSpec,
    revisions: &[Arc<ControllerRevision>],
    collisions: i32,
    hash_label: &str,
) -> Latest {
    let data = data(template);
    let equal = revisions.iter().rfind(|revision| plain(revision) == plain_value(&data));
    let last = revisions.last();
    let next = last.map_or(1, |last| last.revision + 1);
    match (equal, last) {
        (Some(equal), Some(last)) if Arc::ptr_eq(equal, last) => Latest::Known(equal.clone()),
        (Some(equal), _) => Latest::Renumber(equal.clone(), next),
        (None, _) => Latest::Create(Box::new(new(owner, template, data, next, collisions, hash_label))),
    }
}

fn new(
    owner: &impl Owner,
    template: &PodTemplateSpec,
    data: Value,
    number: i64,
    collisions: i32,
    hash_label: &str,
) -> ControllerRevision {
    let hash = safe_hash(&serde_json::to_vec(&data).unwrap_or_default(), (collisions > 0).then_some(collisions));
    let mut labels = template.metadata.as_ref().and_then(|meta| meta.labels.clone()).unwrap_or_default();
    labels.insert(hash_label.to_owned(), hash.clone());
    let mut prefix = name(owner.meta()).to_owned();
    prefix.truncate(PREFIX_BYTES);
    ControllerRevision {
        metadata: ObjectMeta {
            name: Some(format!("{prefix}-{hash}")),
            namespace: owner.meta().namespace.clone(),
            labels: Some(labels),
            annotations: owner.meta().annotations.clone(),
            owner_references: Some(vec![controller_reference(owner)]),
            ..ObjectMeta::default()
        },
        data: Some(RawExtension(data)),
        revision: number,
    }
}

/// A template as a patch that puts it back: what `kubectl rollout undo` sends.
fn data(template: &PodTemplateSpec) -> Value {
    let mut template = json!(template);
    template["$patch"] = json!("replace");
    json!({"spec": {"template": template}})
}

fn plain(revision: &ControllerRevision) -> Value {
    revision.data.as_ref().map_or(Value::Null, |data| plain_value(&data.0))
}

fn plain_value(data: &Value) -> Value {
    let mut data = data.clone();
    drop_empty(&mut data);
    data
}

/// The template a revision holds.
pub fn template(revision: &ControllerRevision) -> Option<PodTemplateSpec> {
    let mut template = revision.data.as_ref()?.0.get("spec")?.get("template")?.clone();
    template.as_object_mut()?.remove("$patch");
    serde_json::from_value(template).ok()
}

/// The revisions that no pod uses any more and that are more than `limit`, oldest first.
pub fn surplus(
    revisions: &[Arc<ControllerRevision>],
    used: &BTreeSet<&str>,
    limit: i32,
) -> Vec<Arc<ControllerRevision>> {
    let unused: Vec<_> = revisions.iter().filter(|revision| !used.contains(name(&revision.metadata))).collect();
    let limit = usize::try_from(limit).unwrap_or(0);
    unused.into_iter().rev().skip(limit).rev().cloned().collect()
}

/// How many templates happened to have the hash of another.
pub enum Stored {
    /// The history is as it should be.
    Done,
    /// Another template has taken the name: the count of collisions must rise.
    Clash,
}

/// Brings the history up to date.
pub async fn store(context: &Context, owner: &impl Object, latest: &Latest) -> Result<Stored, Error> {
    let cache = &context.caches.revisions;
    match latest {
        Latest::Known(_) => Ok(Stored::Done),
        Latest::Renumber(old, number) => {
            let mut new = old.as_ref().clone();
            new.revision = *number;
            context.writer.update(cache, old, &new, Part::Main).await.map(|_| Stored::Done)
        }
        Latest::Create(new) => match context.writer.create(cache, new.as_ref()).await {
            Ok(_) => Ok(Stored::Done),
            Err(error) if error.is_already_exists() => resolve(context, owner.meta(), new, error).await,
            Err(error) => Err(error),
        },
    }
}

/// A revision of that name exists: ours, which the cache did not show yet, or of another template with the same hash.
async fn resolve(
    context: &Context,
    owner: &ObjectMeta,
    wanted: &ControllerRevision,
    error: Error,
) -> Result<Stored, Error> {
    let live: Option<ControllerRevision> =
        context.writer.get(owner.namespace.as_deref(), name(&wanted.metadata)).await?;
    match live {
        None => Err(error),
        Some(live) if is_controlled_by(&live.metadata, owner.uid.as_deref()) && plain(&live) == plain(wanted) => {
            context.caches.revisions.observe(live);
            Ok(Stored::Done)
        }
        Some(_) => Ok(Stored::Clash),
    }
}

/// Takes over revisions that nobody manages.
pub async fn adopt(context: &Context, owner: &impl Owner, revisions: &[Arc<ControllerRevision>]) -> Result<(), Error> {
    for revision in revisions {
        let mut adopted = revision.as_ref().clone();
        adopted.metadata.owner_references.get_or_insert_default().push(controller_reference(owner));
        context.writer.update(&context.caches.revisions, revision, &adopted, Part::Main).await?;
    }
    Ok(())
}

/// Deletes revisions.
pub async fn forget(context: &Context, revisions: &[Arc<ControllerRevision>]) -> Result<(), Error> {
    for revision in revisions {
        context.writer.delete(&context.caches.revisions, revision.as_ref(), Delete::default()).await?;
    }
    Ok(())
}

/// The owner's revisions and those of its namespace that nobody manages.
pub fn candidates(context: &Context, owner: &impl Resource) -> Vec<Arc<ControllerRevision>> {
    let cache = &context.caches.revisions;
    let mut all = cache.by_index(&format!("owner:{}", owner.meta().uid.as_deref().unwrap_or_default()));
    all.extend(cache.by_index(&format!("orphan:{}", owner.meta().namespace.as_deref().unwrap_or_default())));
    all
}

/// A label of an object's metadata.
pub fn label<'a>(meta: &'a ObjectMeta, key: &str) -> Option<&'a str> {
    let labels: &BTreeMap<String, String> = meta.labels.as_ref()?;
    labels.get(key).map(String::as_str)
}

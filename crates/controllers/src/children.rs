//! What controllers that make pods share: a pod from a template, and creating, deleting, adopting and releasing pods.

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec};
use kube::Resource;
use kube::api::ObjectMeta;

use crate::cache::{Change, Key};
use crate::context::Context;
use crate::events::Type;
use crate::labels::Matcher;
use crate::objects::{controller_of, controller_reference, labels, name};
use crate::queue::Queue;
use crate::write::{Delete, Error, Part};

/// When to look again after acting was put off because the cache lags.
pub const STALE: Duration = Duration::from_millis(100);

/// A kind that can manage pods.
pub trait Owner: Resource<DynamicType = ()> {}
impl<K: Resource<DynamicType = ()>> Owner for K {}

/// A pod made from the template, with a name that the server completes.
pub fn pod(template: &PodTemplateSpec, owner: &impl Owner) -> Pod {
    let meta = template.metadata.clone().unwrap_or_default();
    let metadata = ObjectMeta {
        generate_name: Some(format!("{}-", name(owner.meta()))),
        namespace: owner.meta().namespace.clone(),
        labels: meta.labels,
        annotations: meta.annotations,
        finalizers: meta.finalizers,
        owner_references: Some(vec![controller_reference(owner)]),
        ..ObjectMeta::default()
    };
    Pod { metadata, spec: template.spec.clone(), status: None }
}

/// The pods the owner manages, and those of its namespace that nobody manages.
pub fn candidates(context: &Context, owner: &ObjectMeta) -> Vec<Arc<Pod>> {
    let pods = &context.caches.pods;
    let uid = owner.uid.as_deref().unwrap_or_default();
    let namespace = owner.namespace.as_deref().unwrap_or_default();
    let mut all = pods.by_index(&format!("owner:{uid}"));
    all.extend(pods.by_index(&format!("orphan:{namespace}")));
    all
}

/// Queues the owners that a changed pod concerns: its manager if it is of this kind, or whoever could adopt it.
pub fn queue_owners(
    change: &Change<Pod>,
    kind: &str,
    queue: &Queue<Key>,
    adopters: impl Fn(&str) -> Vec<(Key, Matcher)>,
) {
    let mut orphan = None;
    for pod in change.both() {
        let namespace = pod.metadata.namespace.clone().unwrap_or_default();
        match controller_of(&pod.metadata) {
            Some(owner) if owner.kind == kind => queue.add(Key::new(namespace, owner.name.clone())),
            Some(_) => {}
            None => orphan = Some(pod),
        }
    }
    let relabelled = change.old.as_ref().zip(change.new.as_ref()).is_none_or(|(old, new)| {
        old.metadata.labels != new.metadata.labels || old.metadata.owner_references != new.metadata.owner_references
    });
    if let Some(pod) = orphan.filter(|_| relabelled && change.new.is_some()) {
        for (key, selector) in adopters(pod.metadata.namespace.as_deref().unwrap_or_default()) {
            if selector.matches(labels(&pod.metadata)) {
                queue.add(key);
            }
        }
    }
}

/// Lets go of pods and takes over orphans; those of a kind that counts its pods carry a finalizer from then on.
pub async fn reclaim(
    context: &Context,
    owner: &impl Owner,
    adopt: &[Arc<Pod>],
    release: &[Arc<Pod>],
    finalizer: Option<&str>,
) -> Result<(), Error> {
    let writer = &context.writer;
    for pod in release {
        let owners = pod.metadata.owner_references.iter().flatten();
        let rest: Vec<_> = owners.filter(|held| Some(&held.uid) != owner.meta().uid.as_ref()).cloned().collect();
        let mut released = pod.as_ref().clone();
        released.metadata.owner_references = (!rest.is_empty()).then_some(rest);
        if let Some(finalizer) = finalizer {
            without_finalizer(&mut released, finalizer);
        }
        ignore_gone(writer.update(&context.caches.pods, pod, &released, Part::Main).await)?;
    }
    for pod in adopt {
        let mut adopted = pod.as_ref().clone();
        adopted.metadata.owner_references.get_or_insert_default().push(controller_reference(owner));
        if let Some(finalizer) = finalizer {
            let all = adopted.metadata.finalizers.get_or_insert_default();
            if !all.iter().any(|held| held == finalizer) {
                all.push(finalizer.to_owned());
            }
        }
        writer.update(&context.caches.pods, pod, &adopted, Part::Main).await?;
    }
    Ok(())
}

/// Takes a finalizer off.
pub fn without_finalizer(pod: &mut Pod, finalizer: &str) {
    if let Some(all) = &mut pod.metadata.finalizers {
        all.retain(|held| held != finalizer);
        if all.is_empty() {
            pod.metadata.finalizers = None;
        }
    }
}

/// What is gone already needs no writing.
pub fn ignore_gone<T>(result: Result<T, Error>) -> Result<(), Error> {
    match result {
        Err(error) if !error.is_not_found() => Err(error),
        _ => Ok(()),
    }
}

/// Creates pods in batches that double, so that something that fails every time fails only once.
pub async fn create(context: &Context, owner: &impl Owner, component: &'static str, pods: &[Pod]) -> Result<(), Error> {
    let tell = |type_, reason: &str, message| context.tell(owner, type_, reason, message, component);
    let (mut left, mut batch) = (pods, 1);
    while !left.is_empty() {
        let (now, later) = left.split_at(batch.min(left.len()));
        let creations = now.iter().map(|pod| context.writer.create(&context.caches.pods, pod));
        let mut failed = None;
        for result in join_all(creations).await {
            match result {
                Ok(pod) => {
                    tell(Type::Normal, "SuccessfulCreate", format!("Created pod: {}", name(&pod.metadata)));
                }
                Err(error) if error.is_namespace_terminating() => return Ok(()),
                Err(error) => {
                    tell(Type::Warning, "FailedCreate", format!("Error creating: {}", error.message()));
                    failed = Some(error);
                }
            }
        }
        if let Some(error) = failed {
            reread_if_unsure(context, owner.meta(), &error).await;
            return Err(error);
        }
        left = later;
        batch *= 2;
    }
    Ok(())
}

/// After a write whose outcome nobody knows, the server's own state decides what is still missing.
pub async fn reread_if_unsure(context: &Context, owner: &ObjectMeta, error: &Error) {
    while error.is_ambiguous() {
        let namespace = owner.namespace.as_deref().unwrap_or_default();
        match context.caches.pods.refresh(context.writer.client(), namespace).await {
            Ok(()) => return,
            Err(error) => tracing::debug!(%error, "cannot read pods after a write of unknown outcome"),
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// Deletes pods.
pub async fn delete(
    context: &Context,
    owner: &impl Owner,
    component: &'static str,
    pods: &[Arc<Pod>],
) -> Result<(), Error> {
    let tell = |type_, reason: &str, message| context.tell(owner, type_, reason, message, component);
    let deletions = pods.iter().map(|pod| context.writer.delete(&context.caches.pods, pod.as_ref(), Delete::default()));
    let mut failed = None;
    for (pod, result) in pods.iter().zip(join_all(deletions).await) {
        match result {
            Ok(()) => tell(Type::Normal, "SuccessfulDelete", format!("Deleted pod: {}", name(&pod.metadata))),
            Err(error) if error.is_conflict() => {}
            Err(error) => {
                tell(Type::Warning, "FailedDelete", format!("Error deleting: {}", error.message()));
                failed = Some(error);
            }
        }
    }
    if let Some(error) = failed {
        reread_if_unsure(context, owner.meta(), &error).await;
        return Err(error);
    }
    Ok(())
}

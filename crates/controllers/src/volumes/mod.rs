//! Persistent volumes and claims: who has which volume, which are made, and which may go.
//!
//! [`claim`] and [`volume`] decide, this shell carries it out. Two claims that want one volume are told apart by the API
//! server: the second write is refused, and its claim looks again.

pub mod claim;
pub mod class;
pub mod ephemeral;
pub mod matching;
mod provision;
pub mod volume;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use kube::Resource;
use kube::api::{Api, ListParams};
use mycelium_api::storage::{CLAIM_PROTECTION, VOLUME_PROTECTION};
use serde::Serialize;

use crate::cache::{Cache, Key, Object};
use crate::children::ignore_gone;
use crate::context::Context;
use crate::events::Type;
use crate::objects::node_name;
use crate::queue::Queue;
use crate::write::{Error, Part};

const COMPONENT: &str = "persistentvolume-controller";
const WORKERS: usize = 4;

/// Something to tell about an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// How serious it is.
    pub type_: Type,
    /// In a word.
    pub reason: &'static str,
    /// In a sentence.
    pub message: String,
}

/// What is looked at.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Subject {
    Claim(Key),
    Volume(Key),
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Claim(key) => write!(f, "claim {key}"),
            Self::Volume(key) => write!(f, "volume {key}"),
        }
    }
}

/// The claim that a volume is for.
fn claim_key(volume: &PersistentVolume) -> Option<Key> {
    let held = volume.spec.as_ref()?.claim_ref.as_ref()?;
    Some(Key::new(held.namespace.clone().unwrap_or_default(), held.name.clone().unwrap_or_default()))
}

/// The claims that a pod uses, with the name of the volume in the pod. Those that are made for it come last.
pub fn claims_of(pod: &Pod) -> impl Iterator<Item = (&str, String)> {
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    volumes.filter_map(|volume| {
        let named = volume.persistent_volume_claim.as_ref().map(|source| source.claim_name.clone());
        let own = || volume.ephemeral.as_ref().map(|_| ephemeral::claim_name(pod, &volume.name));
        Some((volume.name.as_str(), named.or_else(own)?))
    })
}

/// Subscribes to what volumes depend on, and returns the controller's work.
pub fn start(context: &Context) -> impl Future<Output = ()> + Send + use<> {
    let queue = Queue::<Subject>::default();
    follow(context, &queue);
    let context = context.clone();
    async move {
        context.caches.synced().await;
        let caches = &context.caches;
        let every = || {
            let claims = caches.claims.keys().into_iter().map(Subject::Claim);
            claims.chain(caches.volumes.keys().into_iter().map(Subject::Volume)).collect()
        };
        let work = |subject| reconcile(context.clone(), subject);
        queue.work(COMPONENT, WORKERS, every, work).await;
    }
}

fn follow(context: &Context, queue: &Queue<Subject>) {
    let caches = &context.caches;
    let (all, own) = (caches.volumes.clone(), queue.clone());
    caches.claims.subscribe(move |change| {
        own.add(Subject::Claim(change.key()));
        let named = change.both().filter_map(|claim| claim.spec.as_ref()?.volume_name.clone());
        named.for_each(|name| own.add(Subject::Volume(Key::new("", name))));
        // A volume that was made for the claim learns of its end although the claim never named it.
        if change.new.is_none() {
            let key = change.key();
            let concerned = all.all().into_iter().filter(|volume| claim_key(volume).as_ref() == Some(&key));
            concerned.for_each(|volume| own.add(Subject::Volume(Key::of(volume.as_ref()))));
        }
    });
    let (claims, own) = (caches.claims.clone(), queue.clone());
    caches.volumes.subscribe(move |change| {
        own.add(Subject::Volume(change.key()));
        change.both().filter_map(claim_key).for_each(|key| own.add(Subject::Claim(key)));
        wake(&claims, &own, |claim| {
            let named = claim.spec.as_ref().and_then(|spec| spec.volume_name.clone()).unwrap_or_default();
            named == change.key().name || named.is_empty()
        });
    });
    let (claims, own) = (caches.claims.clone(), queue.clone());
    caches.classes.subscribe(move |_| wake(&claims, &own, |claim| !claim::is_bound(claim)));
    let own = queue.clone();
    caches.pods.subscribe(move |change| {
        let namespace = change.any().metadata.namespace.clone().unwrap_or_default();
        let looks = |pod: &Option<Arc<Pod>>| pod.as_ref().map(|pod| node_name(pod).is_some());
        if looks(&change.old) != looks(&change.new) {
            for (_, name) in claims_of(change.any()) {
                own.add(Subject::Claim(Key::new(namespace.clone(), name)));
            }
        }
    });
}

fn wake(
    claims: &Cache<PersistentVolumeClaim>,
    queue: &Queue<Subject>,
    concerned: impl Fn(&PersistentVolumeClaim) -> bool,
) {
    let all = claims.all();
    all.iter().filter(|claim| concerned(claim)).for_each(|claim| queue.add(Subject::Claim(Key::of(claim.as_ref()))));
}

async fn reconcile(context: Context, subject: Subject) -> Result<Option<Duration>, Error> {
    match subject {
        Subject::Claim(key) => tend_claim(&context, &key).await,
        Subject::Volume(key) => tend_volume(&context, &key).await,
    }?;
    Ok(None)
}

async fn tend_claim(context: &Context, key: &Key) -> Result<(), Error> {
    let caches = &context.caches;
    let Some(claim) = caches.claims.get(key) else { return Ok(()) };
    let pods = caches.pods.by_index(&format!("claim:{key}"));
    if claim.metadata.deletion_timestamp.is_some() {
        return let_go(context, &claim, &pods).await;
    }
    let world = claim::World { volumes: caches.volumes.all(), classes: caches.classes.all(), pods };
    let outcome = claim::plan(&claim, &world);
    if let Some((old, new)) = &outcome.volume {
        settle(
            context,
            &caches.volumes,
            old,
            new,
            |volume| volume.status.clone(),
            |volume, status| volume.status = status,
        )
        .await?;
    }
    if let Some(volume) = &outcome.create {
        match context.writer.create(&caches.volumes, volume).await {
            Err(error) if !error.is_already_exists() => return Err(error),
            _ => {}
        }
    }
    let mut wanted = outcome.claim;
    protect(&mut wanted.metadata.finalizers, CLAIM_PROTECTION);
    settle(
        context,
        &caches.claims,
        &claim,
        &wanted,
        |claim| claim.status.clone(),
        |claim, status| claim.status = status,
    )
    .await?;
    for note in outcome.notes {
        context.tell(claim.as_ref(), note.type_, note.reason, note.message, COMPONENT);
    }
    Ok(())
}

fn protect(finalizers: &mut Option<Vec<String>>, finalizer: &str) {
    let all = finalizers.get_or_insert_default();
    if !all.iter().any(|held| held == finalizer) {
        all.push(finalizer.to_owned());
    }
}

/// Lets a claim that is being deleted go, once no pod that has a node uses it.
async fn let_go(context: &Context, claim: &PersistentVolumeClaim, pods: &[Arc<Pod>]) -> Result<(), Error> {
    let held = claim.metadata.finalizers.iter().flatten().any(|finalizer| finalizer == CLAIM_PROTECTION);
    if !held || pods.iter().any(|pod| node_name(pod).is_some()) {
        return Ok(());
    }
    // The cache may not know the newest pod.
    let namespace = claim.metadata.namespace.as_deref().unwrap_or_default();
    let name = claim.metadata.name.as_deref().unwrap_or_default();
    let api: Api<Pod> = Api::namespaced(context.writer.client().clone(), namespace);
    let uses = |pod: &Pod| node_name(pod).is_some() && claims_of(pod).any(|(_, used)| used == name);
    let live = api.list(&ListParams::default()).await;
    let live = live.map_err(|source| Error::Api { context: "listing pods".into(), source: Box::new(source) })?;
    if live.items.iter().any(uses) {
        return Ok(());
    }
    let mut free = claim.clone();
    free.metadata.finalizers.get_or_insert_default().retain(|finalizer| finalizer != CLAIM_PROTECTION);
    ignore_gone(context.writer.update(&context.caches.claims, claim, &free, Part::Main).await)?;
    Ok(())
}

async fn tend_volume(context: &Context, key: &Key) -> Result<(), Error> {
    let caches = &context.caches;
    let Some(volume) = caches.volumes.get(key) else { return Ok(()) };
    let claim = match claim_key(&volume) {
        Some(key) => match caches.claims.get(&key) {
            Some(claim) => Some(claim),
            // Whether data is given up is not decided from a cache that may lag.
            None => context.writer.get(Some(&key.namespace), &key.name).await?.map(Arc::new),
        },
        None => None,
    };
    let outcome = volume::plan(&volume, claim.as_ref());
    let mut wanted = outcome.volume;
    if wanted.metadata.deletion_timestamp.is_none() {
        protect(&mut wanted.metadata.finalizers, VOLUME_PROTECTION);
    }
    settle(
        context,
        &caches.volumes,
        &volume,
        &wanted,
        |volume| volume.status.clone(),
        |volume, status| volume.status = status,
    )
    .await?;
    for note in outcome.notes {
        context.tell(volume.as_ref(), note.type_, note.reason, note.message, COMPONENT);
    }
    Ok(())
}

/// Writes what differs: the object itself first, then its status. What is gone needs nothing.
async fn settle<K, S>(
    context: &Context,
    cache: &Cache<K>,
    old: &K,
    new: &K,
    status: impl Fn(&K) -> Option<S>,
    set: impl Fn(&mut K, Option<S>),
) -> Result<(), Error>
where
    K: Object + Serialize + Resource<DynamicType = ()>,
{
    let mut main = new.clone();
    set(&mut main, status(old));
    let mut current = match context.writer.update(cache, old, &main, Part::Main).await {
        Err(error) if error.is_not_found() => return Ok(()),
        other => other?,
    };
    let before = current.clone();
    set(&mut current, status(new));
    ignore_gone(context.writer.update(cache, &before, &current, Part::Status).await)?;
    Ok(())
}

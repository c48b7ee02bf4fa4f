//! Claims that live with a pod: `ephemeral` volumes.

use std::time::Duration;

use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::cache::Key;
use crate::context::Context;
use crate::events::Type;
use crate::objects::{controller_reference, is_active, is_controlled_by, name};
use crate::queue::Queue;
use crate::write::Error;

const COMPONENT: &str = "ephemeral_volume";
const WORKERS: usize = 2;

/// The name of the claim for a volume of a pod.
pub fn claim_name(pod: &Pod, volume: &str) -> String {
    format!("{}-{volume}", name(&pod.metadata))
}

fn is_concerned(pod: &Pod) -> bool {
    let mut volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    volumes.any(|volume| volume.ephemeral.is_some())
}

/// Subscribes to pods, and returns the controller's work.
pub fn start(context: &Context) -> impl Future<Output = ()> + Send + use<> {
    let queue = Queue::<Key>::default();
    let own = queue.clone();
    context.caches.pods.subscribe(move |change| {
        if change.new.is_some() && is_concerned(change.any()) {
            own.add(change.key());
        }
    });
    let (gone, pods) = (queue.clone(), context.caches.pods.clone());
    context.caches.claims.subscribe(move |change| {
        if change.new.is_none() {
            let all = pods.by_index(&format!("claim:{}", change.key()));
            all.iter().filter(|pod| is_concerned(pod)).for_each(|pod| gone.add(Key::of(pod.as_ref())));
        }
    });
    let context = context.clone();
    async move {
        context.caches.synced().await;
        queue.work(COMPONENT, WORKERS, Vec::new, |key| reconcile(context.clone(), key)).await;
    }
}

async fn reconcile(context: Context, key: Key) -> Result<Option<Duration>, Error> {
    let Some(pod) = context.caches.pods.get(&key).filter(|pod| is_active(pod)) else { return Ok(None) };
    for claim in claims(&pod) {
        match context.caches.claims.get(&Key::of(&claim)) {
            Some(held) if is_controlled_by(&held.metadata, pod.metadata.uid.as_deref()) => {}
            Some(_) => {
                let message = format!(
                    "ephemeral volume: PVC {} was not created for pod {key} (pod is not owner)",
                    Key::of(&claim)
                );
                context.tell(pod.as_ref(), Type::Warning, "ErrFailedToCreatePVC", message, COMPONENT);
            }
            None => match context.writer.create(&context.caches.claims, &claim).await {
                Err(error) if !error.is_already_exists() => return Err(error),
                _ => {}
            },
        }
    }
    Ok(None)
}

/// The claims that a pod's volumes stand for.
fn claims(pod: &Pod) -> Vec<PersistentVolumeClaim> {
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    let claim = |volume: &k8s_openapi::api::core::v1::Volume| {
        let template = volume.ephemeral.as_ref()?.volume_claim_template.clone()?;
        let meta = template.metadata.unwrap_or_default();
        let metadata = ObjectMeta {
            name: Some(claim_name(pod, &volume.name)),
            namespace: pod.metadata.namespace.clone(),
            labels: meta.labels,
            annotations: meta.annotations,
            owner_references: Some(vec![controller_reference(pod)]),
            ..ObjectMeta::default()
        };
        Some(PersistentVolumeClaim { metadata, spec: Some(template.spec), status: None })
    };
    volumes.filter_map(claim).collect()
}

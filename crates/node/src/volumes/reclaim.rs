//! Removing the folders of volumes that nobody is to have again.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::TryStreamExt;
use k8s_openapi::api::core::v1::{ObjectReference, PersistentVolume};
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use kube::runtime::watcher::{self, Event, watcher};
use mycelium_api::storage::FOLDER_PROTECTION;
use serde_json::json;

use super::persistent::folder;
use crate::context::Context;
use crate::events::Kind;

/// What could not be removed is tried again after this long.
const RETRY: Duration = Duration::from_secs(5);

/// What is to be done with a volume of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// It stays.
    Keep,
    /// Its folder goes, and then the object is deleted.
    Remove,
    /// The object is being deleted: the folder goes with it.
    RemoveWithObject,
    /// The object is being deleted, the folder stays.
    LetGo,
}

fn verdict(volume: &PersistentVolume) -> Verdict {
    let held = volume.metadata.finalizers.iter().flatten().any(|finalizer| finalizer == FOLDER_PROTECTION);
    let phase = volume.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default();
    let policy = volume.spec.as_ref().and_then(|spec| spec.persistent_volume_reclaim_policy.as_deref());
    let deleting = volume.metadata.deletion_timestamp.is_some();
    match (held, deleting, phase, policy) {
        (false, ..) | (_, _, "Bound", _) => Verdict::Keep,
        (_, true, _, Some("Delete")) => Verdict::RemoveWithObject,
        (_, true, ..) => Verdict::LetGo,
        (_, false, "Released", Some("Delete")) => Verdict::Remove,
        _ => Verdict::Keep,
    }
}

/// Follows all volumes and removes what is to go. What fails is told, and tried again.
pub async fn run(ctx: Arc<Context>) {
    let api: Api<PersistentVolume> = Api::all(ctx.client.clone());
    let mut events = std::pin::pin!(watcher(api, watcher::Config::default()));
    let mut failed: BTreeMap<String, PersistentVolume> = BTreeMap::new();
    loop {
        let event = tokio::select! {
            event = events.try_next() => event,
            () = tokio::time::sleep(RETRY), if !failed.is_empty() => {
                for (name, volume) in std::mem::take(&mut failed) {
                    if !tend(&ctx, &volume).await {
                        failed.insert(name, volume);
                    }
                }
                continue;
            }
        };
        match event {
            Ok(Some(Event::InitApply(volume) | Event::Apply(volume))) => {
                let name = volume.metadata.name.clone().unwrap_or_default();
                failed.remove(&name);
                if !tend(&ctx, &volume).await {
                    failed.insert(name, volume);
                }
            }
            Ok(Some(Event::Delete(volume))) => {
                failed.remove(volume.metadata.name.as_deref().unwrap_or_default());
            }
            Ok(Some(Event::Init | Event::InitDone)) => {}
            Ok(None) => return,
            Err(error) => {
                tracing::warn!(%error, "cannot watch volumes; trying again");
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
    }
}

/// Does what a volume needs. Tells whether that is done.
async fn tend(ctx: &Context, volume: &PersistentVolume) -> bool {
    let verdict = verdict(volume);
    if verdict == Verdict::Keep {
        return true;
    }
    if verdict != Verdict::LetGo
        && let Err(why) = remove(volume, ctx.volumes.clone()).await
    {
        let about = ObjectReference {
            api_version: Some("v1".into()),
            kind: Some("PersistentVolume".into()),
            name: volume.metadata.name.clone(),
            uid: volume.metadata.uid.clone(),
            ..ObjectReference::default()
        };
        ctx.events.about(about, Kind::Warning, "VolumeFailedDelete", why);
        return false;
    }
    match forget(ctx, volume, verdict).await {
        Ok(()) => true,
        Err(kube::Error::Api(status)) => matches!(status.code, 404 | 409),
        Err(_) => false,
    }
}

async fn remove(volume: &PersistentVolume, folders: PathBuf) -> Result<(), String> {
    let path = folder(volume, &folders)?;
    let removed = tokio::task::spawn_blocking(move || gone(&path)).await;
    removed.unwrap_or_else(|error| Err(error.to_string()))
}

fn gone(path: &Path) -> Result<(), String> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(format!("cannot remove the folder {}: {error}", path.display()))
        }
        _ => {
            let _ = std::fs::remove_file(super::persistent::note(path));
            Ok(())
        }
    }
}

/// Lets the object go after its folder.
async fn forget(ctx: &Context, volume: &PersistentVolume, verdict: Verdict) -> Result<(), kube::Error> {
    let api: Api<PersistentVolume> = Api::all(ctx.client.clone());
    let name = volume.metadata.name.as_deref().unwrap_or_default();
    if verdict == Verdict::Remove {
        let preconditions = Some(Preconditions { uid: volume.metadata.uid.clone(), resource_version: None });
        let params = DeleteParams { preconditions, ..DeleteParams::default() };
        return api.delete(name, &params).await.map(drop);
    }
    let left: Vec<&String> =
        volume.metadata.finalizers.iter().flatten().filter(|finalizer| *finalizer != FOLDER_PROTECTION).collect();
    let patch = json!({"metadata": {"finalizers": left, "resourceVersion": volume.metadata.resource_version}});
    api.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await.map(drop)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn only_what_is_released_or_deleted_goes() {
        let of = |phase: &str, policy: &str, deleting: bool, finalizers: Value| {
            let mut volume = json!({"metadata": {"finalizers": finalizers}, "status": {"phase": phase},
                "spec": {"persistentVolumeReclaimPolicy": policy}});
            if deleting {
                volume["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
            }
            verdict(&serde_json::from_value(volume).expect("a volume"))
        };
        let ours = json!([FOLDER_PROTECTION]);
        assert_eq!(of("Released", "Delete", false, ours.clone()), Verdict::Remove);
        assert_eq!(of("Released", "Delete", false, json!([])), Verdict::Keep);
        assert_eq!(of("Released", "Retain", false, ours.clone()), Verdict::Keep);
        assert_eq!(of("Bound", "Delete", true, ours.clone()), Verdict::Keep);
        assert_eq!(of("Released", "Retain", true, ours.clone()), Verdict::LetGo);
        assert_eq!(of("Available", "Delete", true, ours.clone()), Verdict::RemoveWithObject);
        assert_eq!(of("Pending", "Delete", false, ours), Verdict::Keep);
    }
}

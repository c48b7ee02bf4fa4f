//! Writing a pod's status, and the end of its deletion, to the API.

use k8s_openapi::api::core::v1::{Pod, PodStatus};
use kube::Client;
use kube::api::{Api, DeleteParams, Patch, PatchParams, Preconditions};
use serde_json::{Value, json};

/// What came of writing a status.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// It is written.
    Written(Box<Value>),
    /// There is no such pod any more.
    Gone,
    /// It could not be written; try again.
    Failed,
}

fn api(client: Client, pod: &Pod) -> (Api<Pod>, String) {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    (Api::namespaced(client, namespace), pod.metadata.name.clone().unwrap_or_default())
}

/// Writes the status. The uid in the patch makes it fail for another pod of the same name.
pub async fn write(client: Client, pod: &Pod, status: Value) -> Outcome {
    let (api, name) = api(client, pod);
    let patch = json!({"metadata": {"uid": pod.metadata.uid}, "status": status});
    match api.patch_status(&name, &PatchParams::default(), &Patch::Strategic(&patch)).await {
        Ok(_) => Outcome::Written(Box::new(status)),
        Err(kube::Error::Api(e)) if e.code == 404 || e.code == 409 => Outcome::Gone,
        Err(error) => {
            tracing::warn!(%error, pod = name, "cannot write the pod's status");
            Outcome::Failed
        }
    }
}

/// Tells the API that nothing of the pod is left on the node. Returns whether the pod is gone from the API.
pub async fn confirm(client: Client, pod: &Pod) -> bool {
    let (api, name) = api(client, pod);
    let precondition = Preconditions { uid: pod.metadata.uid.clone(), resource_version: None };
    let params =
        DeleteParams { grace_period_seconds: Some(0), preconditions: Some(precondition), ..DeleteParams::default() };
    match api.delete(&name, &params).await {
        // The object may wait for finalizers; then its last watch event ends the worker.
        Ok(either) => either.is_right() || either.left().is_none_or(|p: Pod| p.metadata.finalizers.is_none()),
        Err(kube::Error::Api(e)) if e.code == 404 || e.code == 409 => true,
        Err(error) => {
            tracing::warn!(%error, pod = name, "cannot confirm the pod's deletion");
            false
        }
    }
}

/// Whether a status says nothing but that the pod is on its way.
pub fn is_plain(status: &Value) -> bool {
    let lists = ["containerStatuses", "initContainerStatuses"];
    lists.iter().flat_map(|list| status[list].as_array().into_iter().flatten()).all(|container| {
        let reason = container["state"]["waiting"]["reason"].as_str();
        let ran = container["restartCount"] != 0 || container["state"]["terminated"].is_object();
        !ran && (reason.is_none() || matches!(reason, Some("ContainerCreating" | "PodInitializing")))
    })
}

/// Makes `own` the pod's status, but for conditions that others own.
pub fn take_over(pod: &mut Pod, own: PodStatus) {
    let old = pod.status.take().unwrap_or_default();
    let mut status = own;
    let conditions = status.conditions.take().unwrap_or_default();
    // One without a status is one that was taken back.
    let (mut conditions, taken_back): (Vec<_>, Vec<_>) = conditions.into_iter().partition(|c| !c.status.is_empty());
    let foreign = old.conditions.into_iter().flatten();
    let foreign: Vec<_> =
        foreign.filter(|c| !conditions.iter().chain(&taken_back).any(|own| own.type_ == c.type_)).collect();
    conditions.extend(foreign);
    status.conditions = Some(conditions);
    pod.status = Some(status);
}

//! Custom resources from the form in which they are stored into the one in which a request sees them, and back.
//!
//! Where a definition names a webhook, a request's objects stay in the version of the request all the way: what is stored
//! is converted when it is read, and converted back as the last step before it is written. Defaults that came into a
//! schema after an object was stored are filled in when it is read.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use crate::dynamic::call;
use crate::error::ApiError;
use crate::resources::Resource;
use crate::server::Inner;

/// How long a conversion may take, as in Kubernetes.
const LIMIT: Duration = Duration::from_secs(30);
/// Objects that one call converts.
const BATCH: usize = 500;

/// Whether a webhook converts between what is stored and what the requests of a resource see.
pub fn by_webhook(resource: &Resource) -> bool {
    resource.custom.as_ref().is_some_and(|custom| {
        custom.conversion.is_some() && (custom.mixed || resource.storage_version != resource.version())
    })
}

/// Whether what is stored has to be made over before the requests of a resource see it.
pub fn is_foreign(resource: &Resource) -> bool {
    by_webhook(resource) || resource.custom.as_ref().is_some_and(|custom| custom.late_defaults)
}

/// An object from the store in the version of a request.
pub async fn to_request(server: &Arc<Inner>, resource: &Resource, object: Value) -> Result<Value, ApiError> {
    let mut converted = all_to_request(server, resource, vec![object]).await?;
    Ok(converted.pop().unwrap_or_default())
}

/// Objects from the store in the version of a request.
pub async fn all_to_request(
    server: &Arc<Inner>,
    resource: &Resource,
    objects: Vec<Value>,
) -> Result<Vec<Value>, ApiError> {
    let mut objects = convert(server, resource, objects, &resource.api_version()).await?;
    if resource.custom.as_ref().is_some_and(|custom| custom.late_defaults) {
        objects.iter_mut().for_each(|object| resource.fill_defaults(object));
    }
    Ok(objects)
}

/// An object of a request in the version that is stored.
pub async fn to_storage(server: &Arc<Inner>, resource: &Resource, object: Value) -> Result<Value, ApiError> {
    let version = format!("{}/{}", resource.group(), resource.storage_version);
    let mut converted = convert(server, resource, vec![object], &version).await?;
    Ok(converted.pop().unwrap_or_default())
}

async fn convert(
    server: &Arc<Inner>,
    resource: &Resource,
    mut objects: Vec<Value>,
    version: &str,
) -> Result<Vec<Value>, ApiError> {
    let Some(client) = resource.custom.as_ref().and_then(|custom| custom.conversion.as_ref()) else {
        return Ok(objects);
    };
    let differing: Vec<usize> = (0..objects.len()).filter(|at| objects[*at]["apiVersion"] != version).collect();
    for batch in differing.chunks(BATCH) {
        let sent: Vec<Value> = batch.iter().map(|at| objects[*at].clone()).collect();
        let converted = ask(server, client, &sent, version).await.map_err(|why| {
            let from = sent.first().and_then(|object| object["apiVersion"].as_str()).unwrap_or_default();
            ApiError::internal(format!("conversion webhook for {from}, Kind={} failed: {why}", resource.kind()))
        })?;
        for (at, object) in batch.iter().zip(converted) {
            objects[*at] = merged(&objects[*at], object);
        }
    }
    Ok(objects)
}

/// Of the metadata, a conversion changes labels and annotations only.
fn merged(before: &Value, mut after: Value) -> Value {
    let mut metadata = before["metadata"].clone();
    for key in ["labels", "annotations"] {
        match after["metadata"].get(key) {
            Some(value) => metadata[key] = value.clone(),
            None => drop(metadata.as_object_mut().and_then(|metadata| metadata.remove(key))),
        }
    }
    after["metadata"] = metadata;
    after
}

async fn ask(server: &Arc<Inner>, client: &Value, objects: &[Value], version: &str) -> Result<Vec<Value>, String> {
    let uid = server.env.uuid();
    let review = json!({"kind": "ConversionReview", "apiVersion": "apiextensions.k8s.io/v1",
        "request": {"uid": uid, "desiredAPIVersion": version, "objects": objects}});
    let answer = call::post(server, client, review, LIMIT).await?;
    let response = &answer["response"];
    if response["uid"] != uid.as_str() {
        return Err(format!("invalid response: expected response.uid {uid:?}"));
    }
    if response["result"]["status"] != "Success" {
        let message = response["result"]["message"].as_str().filter(|message| !message.is_empty());
        return Err(message.unwrap_or("the webhook gave no reason").to_owned());
    }
    let converted = response["convertedObjects"].as_array().cloned().unwrap_or_default();
    if converted.len() != objects.len() {
        return Err(format!("webhook returned {} objects, expected {}", converted.len(), objects.len()));
    }
    for (before, after) in objects.iter().zip(&converted) {
        if after["apiVersion"] != version || after["kind"] != before["kind"] {
            return Err(format!("webhook returned an object that is not of {version}"));
        }
        let same = |field: &str| after["metadata"][field] == before["metadata"][field];
        if !same("name") || !same("namespace") || !same("uid") {
            return Err("webhook changed name, namespace or uid of an object".to_owned());
        }
    }
    Ok(converted)
}

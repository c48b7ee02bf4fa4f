//! Writing through the API: small typed calls, and changes sent as merge patches bound to the revision they were planned on.

use kube::api::{DeleteParams, GetParams, Patch, PatchParams, PostParams, Preconditions, PropagationPolicy};
use kube::core::Request;
use kube::{Client, Resource};
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::cache::{Cache, Object};

/// Field manager of the built-in controllers, as Kubernetes names its process.
pub const MANAGER: &str = "kube-controller-manager";

/// A write failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API refused it or could not be reached.
    #[error("{context}")]
    Api {
        /// What was being done.
        context: String,
        /// Why it failed.
        #[source]
        source: Box<kube::Error>,
    },
    /// The object could not be turned into JSON.
    #[error("cannot encode {0}")]
    Encode(String),
}

impl Error {
    fn api(context: String, source: kube::Error) -> Self {
        Self::Api { context, source: Box::new(source) }
    }

    fn status(&self) -> Option<&kube::core::Status> {
        match self {
            Self::Api { source, .. } => match source.as_ref() {
                kube::Error::Api(status) => Some(status),
                _ => None,
            },
            Self::Encode(_) => None,
        }
    }

    /// The object is not there.
    pub fn is_not_found(&self) -> bool {
        self.status().is_some_and(|status| status.code == 404)
    }

    /// The object exists already.
    pub fn is_already_exists(&self) -> bool {
        self.status().is_some_and(|status| status.reason == "AlreadyExists")
    }

    /// The object has changed since it was read, or has another identity.
    pub fn is_conflict(&self) -> bool {
        self.status().is_some_and(|status| status.code == 409 && status.reason == "Conflict")
    }

    /// The namespace is being deleted and takes nothing new.
    pub fn is_namespace_terminating(&self) -> bool {
        let causes = self.status().and_then(|status| status.details.as_ref()).map(|details| &details.causes);
        causes.is_some_and(|causes| causes.iter().any(|cause| cause.reason == "NamespaceTerminating"))
    }

    /// Nobody can tell whether the write was applied.
    pub fn is_ambiguous(&self) -> bool {
        match self {
            Self::Api { .. } => self.status().is_none_or(|status| status.code >= 500),
            Self::Encode(_) => false,
        }
    }

    /// The message of the API, or the whole chain of causes.
    pub fn message(&self) -> String {
        match (self.status(), self) {
            (Some(status), _) => status.message.clone(),
            (None, Self::Api { context, source }) => format!("{context}: {source}"),
            (None, other) => other.to_string(),
        }
    }
}

/// Which part of an object a patch goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The object itself.
    Main,
    /// Its status subresource.
    Status,
}

/// Writes objects and keeps the caches informed of it.
#[derive(Clone)]
pub struct Writer {
    client: Client,
    manager: &'static str,
}

impl Writer {
    /// Writes through `client` under the name `manager`.
    pub fn new(client: Client, manager: &'static str) -> Self {
        Self { client, manager }
    }

    /// The client.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Reads an object from the server.
    pub async fn get<K: Object>(&self, namespace: Option<&str>, name: &str) -> Result<Option<K>, Error> {
        let context = || format!("reading {} {name}", K::kind(&()));
        let request = Request::new(K::url_path(&(), namespace)).get(name, &GetParams::default());
        let request = request.map_err(|error| Error::api(context(), kube::Error::BuildRequest(error)))?;
        match self.client.request(request).await {
            Ok(object) => Ok(Some(object)),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(None),
            Err(error) => Err(Error::api(context(), error)),
        }
    }

    /// Creates an object.
    pub async fn create<K: Object + Serialize>(&self, cache: &Cache<K>, object: &K) -> Result<K, Error> {
        let context = || format!("creating {} {}", K::kind(&()), describe(object));
        let data = serde_json::to_vec(object).map_err(|_| Error::Encode(context()))?;
        let params = PostParams { field_manager: Some(self.manager.into()), ..PostParams::default() };
        let request = request(object).create(&params, data).map_err(kube::Error::BuildRequest);
        let request = request.map_err(|error| Error::api(context(), error))?;
        let created: K = self.client.request(request).await.map_err(|error| Error::api(context(), error))?;
        cache.observe(created.clone());
        Ok(created)
    }

    /// Changes `old` into `new`, if it is still what `old` shows. Returns the object as it then is.
    pub async fn update<K: Object + Serialize>(
        &self,
        cache: &Cache<K>,
        old: &K,
        new: &K,
        part: Part,
    ) -> Result<K, Error> {
        let context = || format!("updating {} {}", K::kind(&()), describe(old));
        let encode = |object: &K| serde_json::to_value(object).map_err(|_| Error::Encode(context()));
        let Some(mut patch) = difference(&encode(old)?, &encode(new)?) else { return Ok(old.clone()) };
        let meta = patch.as_object_mut().map(|patch| patch.entry("metadata").or_insert_with(|| json!({})));
        if let Some(Value::Object(meta)) = meta {
            meta.insert("resourceVersion".into(), json!(old.meta().resource_version));
            meta.insert("uid".into(), json!(old.meta().uid));
        }
        self.patch(cache, old, &patch, part).await
    }

    /// Sends a merge patch.
    pub async fn patch<K: Object>(&self, cache: &Cache<K>, of: &K, patch: &Value, part: Part) -> Result<K, Error> {
        let context = || format!("updating {} {}", K::kind(&()), describe(of));
        let params = PatchParams { field_manager: Some(self.manager.into()), ..PatchParams::default() };
        let name = of.meta().name.as_deref().unwrap_or_default();
        let patch = Patch::Merge(patch);
        let request = match part {
            Part::Main => request(of).patch(name, &params, &patch),
            Part::Status => request(of).patch_subresource("status", name, &params, &patch),
        };
        let request = request.map_err(|error| Error::api(context(), kube::Error::BuildRequest(error)))?;
        match self.client.request::<K>(request).await {
            Ok(patched) => {
                cache.observe(patched.clone());
                Ok(patched)
            }
            Err(error) => {
                let error = Error::api(context(), error);
                self.catch_up(cache, of, &error).await;
                Err(error)
            }
        }
    }

    /// A refusal may mean that the cache lags: looks at what the server has, so that the next attempt starts from that.
    async fn catch_up<K: Object>(&self, cache: &Cache<K>, held: &K, error: &Error) {
        if error.is_not_found() || error.is_conflict() {
            let name = held.meta().name.as_deref().unwrap_or_default();
            if let Ok(live) = self.get::<K>(held.meta().namespace.as_deref(), name).await {
                cache.observe_live(held, live);
            }
        }
    }

    /// Whether the server has exactly this state of an object that is not being deleted. If not, the cache learns of it.
    ///
    /// Asked before objects are created for an owner or deleted on its behalf: acting on a state that is long past would
    /// do harm, and the garbage collector would undo it again and again.
    pub async fn confirm<K: Object>(&self, cache: &Cache<K>, held: &K) -> Result<bool, Error> {
        let meta = held.meta();
        let live = self.get::<K>(meta.namespace.as_deref(), meta.name.as_deref().unwrap_or_default()).await?;
        let same = live.as_ref().is_some_and(|live| {
            live.meta().uid == meta.uid
                && live.meta().resource_version == meta.resource_version
                && live.meta().deletion_timestamp.is_none()
        });
        if !same {
            cache.observe_live(held, live);
        }
        Ok(same)
    }

    /// Deletes exactly this object (not another of the same name). Gone already is fine.
    pub async fn delete<K: Object>(&self, cache: &Cache<K>, object: &K, how: Delete) -> Result<(), Error> {
        let context = || format!("deleting {} {}", K::kind(&()), describe(object));
        let params = DeleteParams {
            grace_period_seconds: how.grace_seconds,
            propagation_policy: how.propagation,
            preconditions: Some(Preconditions { uid: object.meta().uid.clone(), resource_version: None }),
            ..DeleteParams::default()
        };
        let name = object.meta().name.as_deref().unwrap_or_default();
        let request = request(object).delete(name, &params).map_err(kube::Error::BuildRequest);
        let request = request.map_err(|error| Error::api(context(), error))?;
        match self.client.request::<Value>(request).await {
            Ok(answer) => {
                observe_deletion(cache, object, answer);
                Ok(())
            }
            Err(kube::Error::Api(status)) if status.code == 404 => {
                cache.observe_gone(object);
                Ok(())
            }
            Err(error) => {
                let error = Error::api(context(), error);
                self.catch_up(cache, object, &error).await;
                Err(error)
            }
        }
    }
}

/// How to delete.
#[derive(Clone, Debug, Default)]
pub struct Delete {
    /// Grace period; none takes the object's own.
    pub grace_seconds: Option<u32>,
    /// What becomes of dependents; none takes the kind's default.
    pub propagation: Option<PropagationPolicy>,
}

/// A deletion is answered with the object while it goes on (finalizers, grace period). When it is over the answer is a
/// status, or the object as it last was; either way the object is then no longer marked as going.
fn observe_deletion<K: Object>(cache: &Cache<K>, object: &K, answer: Value) {
    let waits = |meta: &kube::api::ObjectMeta| {
        meta.deletion_timestamp.is_some()
            && (meta.finalizers.as_ref().is_some_and(|list| !list.is_empty())
                || meta.deletion_grace_period_seconds.is_some_and(|seconds| seconds > 0))
    };
    if answer.get("kind").and_then(Value::as_str) == Some("Status") {
        return cache.observe_deleted(object);
    }
    match serde_json::from_value::<K>(answer) {
        Ok(current) if waits(current.meta()) => cache.observe(current),
        _ => cache.observe_deleted(object),
    }
}

fn request<K: Resource<DynamicType = ()>>(object: &K) -> Request {
    Request::new(K::url_path(&(), object.meta().namespace.as_deref()))
}

fn describe(object: &impl Resource) -> String {
    let meta = object.meta();
    let name = meta.name.as_ref().or(meta.generate_name.as_ref()).map_or("", String::as_str);
    meta.namespace.as_ref().map_or_else(|| name.to_owned(), |namespace| format!("{namespace}/{name}"))
}

/// The JSON merge patch (RFC 7386) that turns `old` into `new`; none if they are equal.
pub fn difference(old: &Value, new: &Value) -> Option<Value> {
    let (Value::Object(from), Value::Object(to)) = (old, new) else {
        return (old != new).then(|| new.clone());
    };
    let mut patch = Map::new();
    for key in from.keys().filter(|key| !to.contains_key(*key)) {
        patch.insert(key.clone(), Value::Null);
    }
    for (key, value) in to {
        match from.get(key) {
            Some(before) => {
                if let Some(change) = difference(before, value) {
                    patch.insert(key.clone(), change);
                }
            }
            None => {
                patch.insert(key.clone(), value.clone());
            }
        }
    }
    (!patch.is_empty()).then_some(Value::Object(patch))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_names_only_what_changed() {
        let old = json!({"a": 1, "b": {"c": [1], "d": 2}, "e": 3});
        let new = json!({"a": 1, "b": {"c": [2], "d": 2}, "f": {"g": 1}});
        assert_eq!(difference(&old, &new), Some(json!({"b": {"c": [2]}, "e": null, "f": {"g": 1}})));
        assert_eq!(difference(&old, &old), None);
    }
}

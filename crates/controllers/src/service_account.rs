//! What every namespace gets: the service account `default`, and the ConfigMap with the root certificate.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{ConfigMap, Namespace, ServiceAccount};
use kube::api::ObjectMeta;

use crate::cache::Key;
use crate::context::{Context, ROOT_CA};
use crate::objects::name;
use crate::queue::Queue;
use crate::write::{Error, Part};

const DEFAULT: &str = "default";
const FILE: &str = "ca.crt";
const WORKERS: usize = 4;

/// What a namespace lacks.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// The service account to create.
    pub account: Option<ServiceAccount>,
    /// The ConfigMap to create, or to bring into this form.
    pub certificate: Option<ConfigMap>,
}

/// Plans for one namespace. `certificate` is what the ConfigMap should hold; none if there is to be no ConfigMap.
pub fn plan(
    namespace: &Namespace,
    account: Option<&ServiceAccount>,
    held: Option<&ConfigMap>,
    certificate: Option<&str>,
) -> Plan {
    if namespace.metadata.deletion_timestamp.is_some() {
        return Plan::default();
    }
    let metadata = |object: &str| ObjectMeta {
        name: Some(object.to_owned()),
        namespace: namespace.metadata.name.clone(),
        ..ObjectMeta::default()
    };
    let account =
        account.is_none().then(|| ServiceAccount { metadata: metadata(DEFAULT), ..ServiceAccount::default() });
    let certificate = certificate.and_then(|text| {
        let data = Some(BTreeMap::from([(FILE.to_owned(), text.to_owned())]));
        let mut map =
            held.cloned().unwrap_or_else(|| ConfigMap { metadata: metadata(ROOT_CA), ..ConfigMap::default() });
        let differs = held.is_none() || map.data != data || map.binary_data.is_some();
        map.data = data;
        map.binary_data = None;
        differs.then_some(map)
    });
    Plan { account, certificate }
}

/// Subscribes to namespaces and to what they get, and returns the controller's work.
pub fn start(context: &Context, certificate: Option<String>) -> impl Future<Output = ()> + Send + use<> {
    let queue = Queue::<Key>::default();
    let namespaces = context.caches.namespaces.clone();
    let added = queue.clone();
    namespaces.subscribe(move |change| added.add(change.key()));
    let added = queue.clone();
    context.caches.service_accounts.subscribe(move |change| {
        if name(&change.any().metadata) == DEFAULT {
            added.add(Key::new("", change.key().namespace));
        }
    });
    let added = queue.clone();
    context.caches.root_certificates.subscribe(move |change| added.add(Key::new("", change.key().namespace)));
    let context = context.clone();
    let certificate = certificate.map(Arc::<str>::from);
    async move {
        context.caches.synced().await;
        let work = |key| reconcile(context.clone(), key, certificate.clone());
        queue.work("service-account-controller", WORKERS, || namespaces.keys(), work).await;
    }
}

async fn reconcile(context: Context, key: Key, certificate: Option<Arc<str>>) -> Result<Option<Duration>, Error> {
    let Some(namespace) = context.caches.namespaces.get(&key) else { return Ok(None) };
    let account = context.caches.service_accounts.get(&Key::new(key.name.clone(), DEFAULT));
    let held = context.caches.root_certificates.get(&Key::new(key.name.clone(), ROOT_CA));
    let plan = plan(&namespace, account.as_deref(), held.as_deref(), certificate.as_deref());
    if let Some(account) = &plan.account {
        settle(context.writer.create(&context.caches.service_accounts, account).await)?;
    }
    if let Some(map) = &plan.certificate {
        let cache = &context.caches.root_certificates;
        match &held {
            None => settle(context.writer.create(cache, map).await)?,
            Some(held) => settle(context.writer.update(cache, held.as_ref(), map, Part::Main).await)?,
        }
    }
    Ok(None)
}

/// A namespace that goes, or somebody who was faster, is no fault.
fn settle<T>(result: Result<T, Error>) -> Result<(), Error> {
    match result {
        Err(error) if error.is_namespace_terminating() || error.is_already_exists() || error.is_not_found() => Ok(()),
        other => other.map(|_| ()),
    }
}

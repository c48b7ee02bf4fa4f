//! Whether the API versions that others serve can be reached: the condition `Available` of each APIService.

use std::sync::Arc;
use std::time::Duration;

use http::Request;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::kube_aggregator::pkg::apis::apiregistration::v1::{
    APIService, APIServiceCondition, APIServiceSpec, APIServiceStatus, ServiceReference,
};

use crate::cache::{Cache, Key};
use crate::context::Context;
use crate::queue::Queue;
use crate::write::{Error, Part};

const WORKERS: usize = 4;
/// How long an extension server may think before it counts as away.
const ANSWER_MAX: Duration = Duration::from_secs(5);
/// How often one that answers is asked again, and one that does not.
const AGAIN: Duration = Duration::from_secs(30);
const AGAIN_AWAY: Duration = Duration::from_secs(2);

/// What was found: a reason and a message; available if the reason is [`PASSED`].
type Finding = (&'static str, String);

const PASSED: &str = "Passed";

/// Subscribes to API services, and returns the controller's work.
pub fn start(context: &Context) -> impl Future<Output = ()> + Send + use<> {
    let queue = Queue::<Key>::default();
    let services = Cache::<APIService>::default();
    let added = queue.clone();
    services.subscribe(move |change| added.add(change.key()));
    let context = context.clone();
    async move {
        let follow = services.clone().follow(context.writer.client().clone());
        let work = async {
            context.caches.synced().await;
            services.synced().await;
            let work = |key| reconcile(context.clone(), services.clone(), key);
            queue.work("apiservice-availability-controller", WORKERS, || services.keys(), work).await;
        };
        tokio::join!(follow, work);
    }
}

async fn reconcile(context: Context, cache: Cache<APIService>, key: Key) -> Result<Option<Duration>, Error> {
    let Some(service) = cache.get(&key) else { return Ok(None) };
    let Some(spec) = &service.spec else { return Ok(None) };
    let Some(reference) = &spec.service else { return Ok(None) };
    let finding = match reachable(&context, reference) {
        Ok(()) => asked(&context, spec).await,
        Err(finding) => finding,
    };
    let again = if finding.0 == PASSED { AGAIN } else { AGAIN_AWAY };
    if let Some(status) = with_condition(service.status.as_ref(), finding, Time(context.env.now())) {
        let mut new = APIService::clone(&service);
        new.status = Some(status);
        match context.writer.update(&cache, service.as_ref(), &new, Part::Status).await {
            Err(error) if !error.is_not_found() && !error.is_conflict() => return Err(error),
            _ => {}
        }
    }
    Ok(Some(again))
}

fn reachable(context: &Context, reference: &ServiceReference) -> Result<(), Finding> {
    let namespace = reference.namespace.as_deref().unwrap_or_default();
    let name = reference.name.as_deref().unwrap_or_default();
    let Some(service) = context.caches.services.get(&Key::new(namespace, name)) else {
        return Err(("ServiceNotFound", format!("service/{name} in {namespace:?} is not present")));
    };
    // Where that leads is not ours to know.
    if service.spec.as_ref().and_then(|spec| spec.type_.as_deref()) == Some("ExternalName") {
        return Ok(());
    }
    let slices = context.caches.endpoint_slices.by_index(&format!("service:{namespace}/{name}"));
    if slices.iter().any(has_ready) {
        return Ok(());
    }
    Err(("MissingEndpoints", format!("endpoints for service/{name} in {namespace:?} have no addresses")))
}

fn has_ready(slice: &Arc<EndpointSlice>) -> bool {
    let ready = |conditions: Option<bool>| conditions.unwrap_or(true);
    slice.endpoints.iter().any(|endpoint| ready(endpoint.conditions.as_ref().and_then(|c| c.ready)))
}

/// Asks for the version's resources, by the way that every client takes.
async fn asked(context: &Context, spec: &APIServiceSpec) -> Finding {
    let (group, version) = (spec.group.as_deref().unwrap_or_default(), spec.version.as_deref().unwrap_or_default());
    let path = format!("/apis/{group}/{version}");
    let why = match Request::get(&path).body(Vec::new()) {
        Err(why) => why.to_string(),
        Ok(request) => match tokio::time::timeout(ANSWER_MAX, context.writer.client().request_text(request)).await {
            Ok(Ok(_)) => return (PASSED, "all checks passed".to_owned()),
            Ok(Err(why)) => why.to_string(),
            Err(_) => "context deadline exceeded".to_owned(),
        },
    };
    ("FailedDiscoveryCheck", format!("failing or missing response from {path}: {why}"))
}

/// The status with the condition; nothing if it says so already.
fn with_condition(
    status: Option<&APIServiceStatus>,
    (reason, message): Finding,
    now: Time,
) -> Option<APIServiceStatus> {
    const AVAILABLE: &str = "Available";
    let mut status = status.cloned().unwrap_or_default();
    let value = if reason == PASSED { "True" } else { "False" };
    let conditions = status.conditions.get_or_insert_default();
    let old = conditions.iter().find(|condition| condition.type_ == AVAILABLE);
    let same = |old: &APIServiceCondition| {
        old.status == value && old.reason.as_deref() == Some(reason) && old.message.as_ref() == Some(&message)
    };
    if old.is_some_and(same) {
        return None;
    }
    let since = old.filter(|old| old.status == value).and_then(|old| old.last_transition_time.clone());
    let condition = APIServiceCondition {
        type_: AVAILABLE.to_owned(),
        status: value.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message),
        last_transition_time: since.or(Some(now)),
    };
    match conditions.iter_mut().find(|condition| condition.type_ == AVAILABLE) {
        Some(old) => *old = condition,
        None => conditions.push(condition),
    }
    Some(status)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Time {
        Time(text.parse().expect("a time"))
    }

    #[test]
    fn a_condition_is_written_when_it_says_something_new_and_dated_when_it_turns() {
        let away = |why: &str| ("FailedDiscoveryCheck", why.to_owned());
        let (first, later) = (at("2026-01-01T00:00:00Z"), at("2026-01-01T00:01:00Z"));
        let status = with_condition(None, away("x"), first.clone()).expect("new");
        assert_eq!(with_condition(Some(&status), away("x"), later.clone()), None);
        let status = with_condition(Some(&status), away("y"), later.clone()).expect("another reason");
        let condition = |status: &APIServiceStatus| status.conditions.as_ref().expect("one")[0].clone();
        assert_eq!(condition(&status).last_transition_time, Some(first));
        let status =
            with_condition(Some(&status), (PASSED, "all checks passed".into()), later.clone()).expect("turned");
        assert_eq!(
            (condition(&status).status.as_str(), condition(&status).last_transition_time),
            ("True", Some(later))
        );
    }
}

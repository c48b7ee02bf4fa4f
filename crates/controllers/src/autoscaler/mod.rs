//! HorizontalPodAutoscalers: as many replicas as the metrics ask for, within bounds and without haste.

pub mod limits;
mod metrics;
pub mod plan;
pub mod replicas;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::Method;
use k8s_openapi::api::autoscaling::v2::{
    CrossVersionObjectReference, HorizontalPodAutoscaler, HorizontalPodAutoscalerStatus,
};
use mycelium_api::selector::Selector;
use serde_json::{Value, json};

use crate::cache::Key;
use crate::children::ignore_gone;
use crate::context::Context;
use crate::discovery;
use crate::events::Type;
use crate::objects::{labels, seconds};
use crate::queue::Queue;
use crate::write::{Error, Part};
use limits::Past;
use metrics::{Meter, Scaled};
use plan::{Decision, Told};

const COMPONENT: &str = "horizontal-pod-autoscaler";
const WORKERS: usize = 4;
/// How often metrics are looked at.
const PERIOD: Duration = Duration::from_secs(15);

/// What each autoscaler recommended and did lately.
type Pasts = Arc<Mutex<BTreeMap<Key, Past>>>;

/// Subscribes to autoscalers, and returns the controller's work.
pub fn start(context: &Context) -> impl Future<Output = ()> + Send + use<> {
    let queue = Queue::<Key>::default();
    let autoscalers = context.caches.autoscalers.clone();
    let (added, pasts) = (queue.clone(), Pasts::default());
    let forgotten = pasts.clone();
    autoscalers.subscribe(move |change| {
        let spec = |held: &Option<Arc<HorizontalPodAutoscaler>>| held.as_ref().map(|held| held.spec.clone());
        if change.new.is_none() {
            forgotten.lock().unwrap_or_else(PoisonError::into_inner).remove(&change.key());
        } else if spec(&change.old) != spec(&change.new) {
            added.add(change.key());
        }
    });
    let context = context.clone();
    async move {
        context.caches.synced().await;
        let look = |key| reconcile(context.clone(), key, pasts.clone());
        queue.work(COMPONENT, WORKERS, || autoscalers.keys(), look).await;
    }
}

async fn reconcile(context: Context, key: Key, pasts: Pasts) -> Result<Option<Duration>, Error> {
    let Some(autoscaler) = context.caches.autoscalers.get(&key) else { return Ok(None) };
    let mut past = pasts.lock().unwrap_or_else(PoisonError::into_inner).remove(&key).unwrap_or_default();
    let result = look(&context, &autoscaler, &mut past).await;
    pasts.lock().unwrap_or_else(PoisonError::into_inner).insert(key, past);
    result.map(|()| Some(PERIOD))
}

async fn look(context: &Context, autoscaler: &HorizontalPodAutoscaler, past: &mut Past) -> Result<(), Error> {
    let now = context.env.now();
    let mut status = autoscaler.status.clone().unwrap_or_default();
    let mut conditions = status.conditions.take().unwrap_or_default();
    let mut told = Vec::new();
    match target(context, autoscaler).await {
        Err(why) => {
            warn(context, autoscaler, "FailedGetScale", why.clone());
            let message = format!("the HPA controller was unable to get the target's current scale: {why}");
            told.push(Told::new("AbleToScale", false, "FailedGetScale", message));
        }
        Ok((path, scale)) => {
            let message = "the HPA controller was able to get the target's current scale";
            told.push(Told::new("AbleToScale", true, "SucceededGetScale", message));
            told.extend(size(context, autoscaler, &path, scale, &mut status, past).await);
        }
    }
    told.iter().for_each(|told| plan::set(&mut conditions, told, now));
    status.conditions = Some(conditions);
    status.observed_generation = autoscaler.metadata.generation;
    if autoscaler.status.as_ref() != Some(&status) {
        let mut updated = autoscaler.clone();
        updated.status = Some(status);
        ignore_gone(context.writer.update(&context.caches.autoscalers, autoscaler, &updated, Part::Status).await)?;
    }
    Ok(())
}

fn warn(context: &Context, autoscaler: &HorizontalPodAutoscaler, reason: &str, message: String) {
    context.tell(autoscaler, Type::Warning, reason, message, COMPONENT);
}

/// Scales the target if need be; gives the conditions that follow.
async fn size(
    context: &Context,
    autoscaler: &HorizontalPodAutoscaler,
    path: &str,
    mut scale: Value,
    status: &mut HorizontalPodAutoscalerStatus,
    past: &mut Past,
) -> Vec<Told> {
    let now = context.env.now();
    let count = |part: &str| scale[part]["replicas"].as_i64().and_then(|n| i32::try_from(n).ok()).unwrap_or(0);
    let (current, observed) = (count("spec"), count("status"));
    status.current_replicas = Some(observed);
    if past.is_empty() {
        past.recommend(now, current);
    }
    let Decision { replicas, reason, mut told, complaint } =
        match autoscaler.spec.as_ref().and_then(|spec| plan::without_metrics(spec, current)) {
            Some(decision) => decision,
            None => ask(context, autoscaler, &scale, (current, observed), status, past).await,
        };
    if let Some(complaint) = complaint {
        warn(context, autoscaler, "FailedComputeMetricsReplicas", complaint);
    }
    let Some(replicas) = replicas else { return told };
    status.desired_replicas = replicas;
    if replicas == current {
        return told;
    }
    scale["spec"]["replicas"] = json!(replicas);
    match call(context, Method::PUT, path, Some(&scale)).await {
        Ok(_) => {
            let message = format!("New size: {replicas}; reason: {reason}");
            context.tell(autoscaler, Type::Normal, "SuccessfulRescale", message, COMPONENT);
            let message = format!("the HPA controller was able to update the target scale to {replicas}");
            told.push(Told::new("AbleToScale", true, "SucceededRescale", message));
            status.last_scale_time = Some(seconds(now));
            past.scaled(now, replicas - current);
        }
        Err(why) => {
            let message = format!("New size: {replicas}; reason: {reason}; error: {why}");
            warn(context, autoscaler, "FailedRescale", message);
            let message = format!("the HPA controller was unable to update the target scale: {why}");
            told.push(Told::new("AbleToScale", false, "FailedUpdateScale", message));
            status.desired_replicas = current;
        }
    }
    told
}

/// Asks the metrics.
async fn ask(
    context: &Context,
    autoscaler: &HorizontalPodAutoscaler,
    scale: &Value,
    (current, observed): (i32, i32),
    status: &mut HorizontalPodAutoscalerStatus,
    past: &mut Past,
) -> Decision {
    let Some(spec) = &autoscaler.spec else { return Decision::default() };
    let selector = scale["status"]["selector"].as_str().unwrap_or_default().to_owned();
    let Some(matcher) = Selector::parse(&selector).ok().filter(|_| !selector.is_empty()) else {
        warn(context, autoscaler, "SelectorRequired", "selector is required".into());
        let why = "the HPA target's scale is missing a selector";
        let told = vec![Told::new("ScalingActive", false, "InvalidSelector", why)];
        return Decision { told, ..Decision::default() };
    };
    let namespace = autoscaler.metadata.namespace.clone().unwrap_or_default();
    let pods = context.caches.pods.namespace(&namespace);
    let pods = pods.into_iter().filter(|pod| matcher.matches(labels(&pod.metadata))).collect();
    let scaled = Scaled { namespace, current, observed, selector, pods };
    let now = context.env.now();
    let meter = Meter { client: context.writer.client(), scaled: &scaled, tolerance: limits::tolerance(spec), now };
    let (mut proposals, mut shown) = (Vec::new(), Vec::new());
    for metric in spec.metrics.iter().flatten() {
        match meter.measure(autoscaler, metric).await {
            Ok((proposal, seen)) => {
                proposals.push(Ok(proposal));
                shown.push(seen);
            }
            Err(failure) => {
                warn(context, autoscaler, failure.reason, failure.message.clone());
                proposals.push(Err(failure));
            }
        }
    }
    status.current_metrics = (!shown.is_empty()).then_some(shown);
    plan::decide(spec, current, &proposals, past, now)
}

/// The scale of the target, and where it is.
async fn target(context: &Context, autoscaler: &HorizontalPodAutoscaler) -> Result<(String, Value), String> {
    let reference = autoscaler.spec.as_ref().map(|spec| spec.scale_target_ref.clone()).unwrap_or_default();
    let CrossVersionObjectReference { api_version, kind, name } = reference;
    let api_version = api_version.unwrap_or_else(|| "v1".into());
    let namespace = autoscaler.metadata.namespace.as_deref().unwrap_or_default();
    let collection = match (api_version.as_str(), kind.as_str()) {
        ("apps/v1", "Deployment") => format!("/apis/apps/v1/namespaces/{namespace}/deployments"),
        ("apps/v1", "StatefulSet") => format!("/apis/apps/v1/namespaces/{namespace}/statefulsets"),
        _ => {
            let found = discovery::discover(context.writer.client()).await.map_err(|error| error.to_string())?;
            let found = found.find(&api_version, &kind).cloned();
            let kind = found.ok_or_else(|| format!("no matches for kind {kind:?} in group {api_version:?}"))?;
            kind.request(Some(namespace)).url_path
        }
    };
    let path = format!("{collection}/{name}/scale");
    call(context, Method::GET, &path, None).await.map(|scale| (path, scale))
}

async fn call(context: &Context, method: Method, path: &str, body: Option<&Value>) -> Result<Value, String> {
    let bytes = body.map(|body| body.to_string().into_bytes()).unwrap_or_default();
    let request = http::Request::builder().method(method).uri(path).header("content-type", "application/json");
    let request = request.body(bytes).map_err(|error| error.to_string())?;
    context.writer.client().request(request).await.map_err(|error| match error {
        kube::Error::Api(status) => status.message.clone(),
        error => error.to_string(),
    })
}

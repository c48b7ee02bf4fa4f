//! `custom.metrics.k8s.io`: metrics of the pods' own, read from where they expose them when somebody asks.
//!
//! | path below `/apis/custom.metrics.k8s.io/v1beta2/namespaces/<namespace>/` | is about |
//! |---|---|
//! | `pods/<name>/<metric>`, `pods/*/<metric>?labelSelector=…` | each of these pods |
//! | `<resource>[.<group>]/<name>/<metric>` | an object with a selector: the sum over its pods |
//!
//! `metricLabelSelector` chooses among the series of a metric. Which series a name stands for: [`scrape::find`].

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use futures::StreamExt;
use http::{Response, StatusCode};
use mycelium_api::quantity::Quantity;
use mycelium_api::selector::Selector;
use mycelium_apimachinery::schema;
use serde_json::{Value, json};

use super::scrape::{self, Meaning};
use crate::answer as reply;
use crate::body::Body;
use crate::codec;
use crate::error::{ApiError, Subject};
use crate::request::{Query, ResourcePath};
use crate::resources::Resource;
use crate::server::Inner;

/// The API group.
pub const GROUP: &str = "custom.metrics.k8s.io";
const VERSIONS: [&str; 2] = ["v1beta2", "v1beta1"];
const GET: &[&str] = &["get"];
/// So many pods are asked at once.
const AT_ONCE: usize = 32;
/// Between the two looks of a first question.
const FIRST_WINDOW: Duration = Duration::from_secs(1);
/// Between two looks while somebody wants to know.
const EVERY: Duration = Duration::from_secs(5);

const fn facts(version: &'static str, resource: &'static str) -> schema::Resource {
    schema::Resource {
        group: GROUP,
        version,
        resource,
        singular: "",
        kind: "MetricValueList",
        namespaced: true,
        preferred: true,
        verbs: GET,
        short_names: &[],
        categories: &[],
        subresources: &[],
    }
}

static FACTS: [schema::Resource; 4] =
    [facts("v1beta2", "pods"), facts("v1beta2", "services"), facts("v1beta1", "pods"), facts("v1beta1", "services")];
static RESOURCES: LazyLock<Vec<Arc<Resource>>> =
    LazyLock::new(|| FACTS.iter().map(|facts| Arc::new(Resource::answered(facts))).collect());

/// The resources of the group, as discovery shows them.
pub fn resources() -> impl Iterator<Item = Arc<Resource>> {
    RESOURCES.iter().cloned()
}

/// A pod's metric.
struct Sample {
    pod: Value,
    value: f64,
    window: Option<f64>,
}

/// What is asked for.
struct Question<'a> {
    metric: &'a str,
    /// Among the series.
    series: Option<Selector>,
    /// As it was written.
    series_text: &'a str,
}

/// Answers a request about the group, and keeps looking for a while, so that the next answer is about the last few seconds.
pub async fn get(server: &Arc<Inner>, path: &ResourcePath, query: &Query) -> Result<Response<Body>, ApiError> {
    let answer = answer(server, path, query).await?;
    let asked = format!("{path:?} {query:?}");
    if server.counters.ask(&asked) {
        let (server, path, query) = (server.clone(), path.clone(), query.clone());
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(EVERY).await;
                if *server.shutdown.borrow() || !server.counters.is_wanted(&asked) {
                    return;
                }
                // Who asks next is told what is wrong.
                let _ = self::answer(&server, &path, &query).await;
            }
        });
    }
    Ok(answer)
}

async fn answer(server: &Arc<Inner>, path: &ResourcePath, query: &Query) -> Result<Response<Body>, ApiError> {
    if !VERSIONS.contains(&path.version.as_str()) || path.subresource.is_empty() || path.namespace.is_empty() {
        return Err(ApiError::NoSuchPath);
    }
    let parse = |text: &str| Selector::parse(text).map_err(|error| ApiError::bad(error.to_string()));
    let series_text = query.get("metricLabelSelector").unwrap_or_default();
    let series = Some(series_text).filter(|text| !text.is_empty()).map(parse).transpose()?;
    let question = Question { metric: &path.subresource, series, series_text };
    let items = if path.resource == "pods" {
        let chosen = query.get("labelSelector").filter(|text| !text.is_empty()).map(parse).transpose()?;
        let wanted = |pod: &Value| match path.name.as_str() {
            "*" => chosen.as_ref().is_none_or(|selector| selector.matches_value(&pod["metadata"]["labels"])),
            name => pod["metadata"]["name"] == name,
        };
        let samples = measure(server, &path.namespace, &wanted, &question).await?;
        let about = |pod: &Value| described("Pod", "/v1", &path.namespace, &pod["metadata"]["name"]);
        samples.iter().map(|s| item(server, path, &question, about(&s.pod), s.value, s.window)).collect()
    } else {
        vec![of_object(server, path, &question).await?]
    };
    if items.is_empty() {
        let subject = Subject::new(GROUP, &path.resource, &path.name);
        return Err(ApiError::NotFound(subject));
    }
    let list = json!({"kind": "MetricValueList", "apiVersion": format!("{GROUP}/{}", path.version), "metadata": {},
        "items": items});
    Ok(reply::json(StatusCode::OK, &list))
}

/// The sum over the pods that an object selects.
async fn of_object(server: &Arc<Inner>, path: &ResourcePath, question: &Question<'_>) -> Result<Value, ApiError> {
    let (name, group) = path.resource.split_once('.').unwrap_or((&path.resource, ""));
    let missing = || ApiError::NotFound(Subject::new(group, name, &path.name));
    let table = server.table();
    let resource = table.all().find(|r| r.name() == name && (r.group() == group || group.is_empty()) && r.stored());
    let resource = resource.ok_or(ApiError::NoSuchPath)?;
    let entry = server.store.get(&resource.key(&path.namespace, &path.name)).ok_or_else(missing)?;
    let object = codec::parse_entry(&entry)?;
    let selector = match &object["spec"]["selector"] {
        plain @ Value::Object(map) if map.values().all(Value::is_string) && !map.is_empty() => {
            Ok(Selector::from_map_value(plain))
        }
        selector @ Value::Object(_) => Selector::from_value(selector),
        _ => return Err(missing()),
    };
    let selector = selector.map_err(|error| ApiError::bad(error.to_string()))?;
    let wanted = |pod: &Value| selector.matches_value(&pod["metadata"]["labels"]);
    let samples = measure(server, &path.namespace, &wanted, question).await?;
    if samples.is_empty() {
        return Err(ApiError::NotFound(Subject::new(GROUP, name, &path.name)));
    }
    let window = samples.iter().filter_map(|sample| sample.window).reduce(f64::max);
    let about = described(resource.kind(), &resource.api_version(), &path.namespace, &json!(path.name));
    Ok(item(server, path, question, about, samples.iter().map(|sample| sample.value).sum(), window))
}

fn described(kind: &str, api_version: &str, namespace: &str, name: &Value) -> Value {
    json!({"kind": kind, "namespace": namespace, "name": name, "apiVersion": api_version})
}

fn item(
    server: &Inner,
    path: &ResourcePath,
    question: &Question<'_>,
    about: Value,
    value: f64,
    window: Option<f64>,
) -> Value {
    let milli = (value * 1000.0).ceil().clamp(i64::MIN as f64, i64::MAX as f64) as i64;
    let now = server.env.now_rfc3339();
    let mut item =
        json!({"describedObject": about, "timestamp": now, "value": Quantity::from_milli(milli).to_string()});
    if path.version == "v1beta1" {
        item["metricName"] = json!(question.metric);
    } else {
        let selector = Some(question.series_text).filter(|text| !text.is_empty());
        item["metric"] =
            json!({"name": question.metric, "selector": selector.map(|_| labels_of(question.series_text))});
    }
    if let Some(seconds) = window {
        item["windowSeconds"] = json!(seconds.round() as i64);
    }
    item
}

/// Equalities of a selector's text as a label selector.
fn labels_of(text: &str) -> Value {
    let pairs = text.split(',').filter_map(|part| part.split_once('='));
    let labels: BTreeMap<&str, &str> = pairs.map(|(key, value)| (key.trim(), value.trim_start_matches('='))).collect();
    json!({"matchLabels": labels})
}

/// Asks the pods of a namespace that are wanted. A counter that is looked at for the first time is looked at twice.
async fn measure(
    server: &Arc<Inner>,
    namespace: &str,
    wanted: &(dyn Fn(&Value) -> bool + Sync),
    question: &Question<'_>,
) -> Result<Vec<Sample>, ApiError> {
    let prefix = format!("/registry/core/pods/{namespace}/");
    let page = server.store.range(&prefix, None, 0, None).map_err(ApiError::internal)?;
    let mut pods = Vec::new();
    for entry in &page.entries {
        let pod = codec::parse_entry(entry)?;
        if wanted(&pod)
            && let Some(place) = scrape::place(&pod)
        {
            pods.push((pod, place));
        }
    }
    let (mut samples, first) = look(server, pods, question).await;
    if !first.is_empty() {
        tokio::time::sleep(FIRST_WINDOW).await;
        samples.extend(look(server, first, question).await.0);
    }
    samples.sort_by(|a, b| a.pod["metadata"]["name"].as_str().cmp(&b.pod["metadata"]["name"].as_str()));
    Ok(samples)
}

type Pods = Vec<(Value, (String, String))>;

/// One look at each of the pods; those with a counter that has no past come back.
async fn look(server: &Arc<Inner>, pods: Pods, question: &Question<'_>) -> (Vec<Sample>, Pods) {
    let answers = futures::stream::iter(pods).map(|(pod, (authority, path))| async move {
        let exposed = scrape::ask(&authority, &path).await;
        (pod, (authority, path), exposed)
    });
    let mut answers = answers.buffer_unordered(AT_ONCE);
    let (mut samples, mut first) = (Vec::new(), Vec::new());
    while let Some((pod, place, exposed)) = answers.next().await {
        let exposed = match exposed {
            Ok(exposed) => exposed,
            Err(why) => {
                tracing::debug!(why, place = place.0, "a pod's metrics cannot be read");
                continue;
            }
        };
        let wanted = |labels: &BTreeMap<String, String>| {
            question.series.as_ref().is_none_or(|selector| selector.matches(labels))
        };
        match scrape::find(&exposed, question.metric, &wanted) {
            None => {}
            Some(Meaning::Value(value)) => samples.push(Sample { pod, value, window: None }),
            Some(Meaning::Rate(counter)) => {
                let uid = pod["metadata"]["uid"].as_str().unwrap_or_default().to_owned();
                let asked = format!("{} {}", question.metric, question.series_text);
                match server.counters.rate(&uid, &asked, server.env.now(), counter) {
                    Some((value, window)) => samples.push(Sample { pod, value, window: Some(window) }),
                    None => first.push((pod, place)),
                }
            }
        }
    }
    (samples, first)
}

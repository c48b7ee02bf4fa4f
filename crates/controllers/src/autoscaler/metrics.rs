//! Reading metrics from the metrics APIs, if they are served.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::autoscaling::v2::{
    ContainerResourceMetricStatus, ExternalMetricStatus, HorizontalPodAutoscaler, MetricIdentifier, MetricSpec,
    MetricStatus, MetricTarget, MetricValueStatus, ObjectMetricStatus, PodsMetricStatus, ResourceMetricStatus,
};
use k8s_openapi::api::core::v1::{Container, Pod};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};
use kube::Client;
use mycelium_api::quantity::Quantity as Amount;
use serde_json::Value;

use super::plan::{Failure, Proposal};
use super::replicas::{Answer, Sample, Target, Tolerance, by_pod, of_whole};
use crate::discovery;
use crate::objects::{is_ready, name};

/// What is scaled, and how it stands.
pub struct Scaled {
    /// Namespace.
    pub namespace: String,
    /// Replicas asked for.
    pub current: i32,
    /// Replicas there are.
    pub observed: i32,
    /// The selector of its pods, as text.
    pub selector: String,
    /// Its pods.
    pub pods: Vec<Arc<Pod>>,
}

/// Where and how to measure.
pub struct Meter<'a> {
    /// The API.
    pub client: &'a Client,
    /// What is scaled.
    pub scaled: &'a Scaled,
    /// What counts as on target.
    pub tolerance: Tolerance,
    /// The time.
    pub now: Timestamp,
}

fn milli(text: &str) -> Option<i64> {
    i64::try_from(text.parse::<Amount>().ok()?.milli_value()).ok()
}

fn quantity_milli(quantity: Option<&Quantity>) -> Option<i64> {
    milli(&quantity?.0)
}

fn quantity(milli: i64) -> Option<Quantity> {
    Some(Quantity(Amount::from_milli(milli).to_string()))
}

/// `15s`, `1m0s`.
fn window(text: &str) -> SignedDuration {
    text.parse().unwrap_or(SignedDuration::from_secs(60))
}

/// All series of an external metric together, in thousandths.
fn total(list: &Value) -> Result<i64, String> {
    let items = list["items"].as_array().filter(|items| !items.is_empty());
    let items = items.ok_or("no metrics returned from external metrics API")?;
    let value = |item: &Value| match &item["value"] {
        Value::Number(number) => milli(&number.to_string()),
        text => milli(text.as_str()?),
    };
    items.iter().map(value).sum::<Option<i64>>().ok_or_else(|| "a value is not a quantity".to_owned())
}

fn escaped(text: &str) -> String {
    let safe = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte);
    text.bytes().map(|byte| if safe(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

impl Meter<'_> {
    /// What a metric asks for, and how it stands.
    pub async fn measure(
        &self,
        autoscaler: &HorizontalPodAutoscaler,
        metric: &MetricSpec,
    ) -> Result<(Proposal, MetricStatus), Failure> {
        let fail = |reason| move |message| Failure { reason, message };
        match metric.type_.as_str() {
            "Resource" => self.resource(metric).await.map_err(fail("FailedGetResourceMetric")),
            "ContainerResource" => self.container(metric).await.map_err(fail("FailedGetContainerResourceMetric")),
            "Pods" => self.pods(metric).await.map_err(fail("FailedGetPodsMetric")),
            "Object" => self.object(metric).await.map_err(fail("FailedGetObjectMetric")),
            "External" => self.external(metric).await.map_err(fail("FailedGetExternalMetric")),
            other => Err(Failure {
                reason: "InvalidMetricSourceType",
                message: format!("unknown metric source type {other:?} of {}", name(&autoscaler.metadata)),
            }),
        }
    }

    async fn get(&self, path: &str, what: &str) -> Result<Value, String> {
        let request = http::Request::get(path).body(Vec::new()).map_err(|error| error.to_string())?;
        self.client.request(request).await.map_err(|error| match error {
            kube::Error::Api(status) if status.code == 404 => {
                format!("the server could not find the requested resource (get {what})")
            }
            error => error.to_string(),
        })
    }

    /// What the pods use of a resource, all containers together or one of them.
    async fn usage(&self, resource: &str, container: Option<&str>) -> Result<BTreeMap<String, Sample>, String> {
        let Scaled { namespace, selector, .. } = self.scaled;
        let path =
            format!("/apis/metrics.k8s.io/v1beta1/namespaces/{namespace}/pods?labelSelector={}", escaped(selector));
        let list = self.get(&path, "pods.metrics.k8s.io").await.map_err(|why| {
            format!(
                "failed to get {resource} utilization: unable to get metrics for resource {resource}: unable to fetch metrics from resource metrics API: {why}"
            )
        })?;
        let mut samples = BTreeMap::new();
        for item in list["items"].as_array().into_iter().flatten() {
            let used: Option<i64> = item["containers"]
                .as_array()
                .into_iter()
                .flatten()
                .filter(|held| container.is_none_or(|name| held["name"] == name))
                .map(|held| milli(held["usage"][resource].as_str().unwrap_or_default()))
                .sum();
            let pod = item["metadata"]["name"].as_str().unwrap_or_default().to_owned();
            if let Some(milli) = used {
                let at = item["timestamp"].as_str().and_then(|text| text.parse().ok()).unwrap_or(self.now);
                let window = window(item["window"].as_str().unwrap_or_default());
                samples.insert(pod, Sample { milli, at, window });
            }
        }
        if samples.is_empty() {
            return Err(format!(
                "failed to get {resource} utilization: unable to get metrics for resource {resource}: no metrics returned from resource metrics API"
            ));
        }
        Ok(samples)
    }

    /// What each pod has asked for.
    fn requests(&self, resource: &str, container: Option<&str>) -> Result<BTreeMap<String, i64>, String> {
        let mut all = BTreeMap::new();
        for pod in &self.scaled.pods {
            let pod_name = name(&pod.metadata);
            let Some(spec) = &pod.spec else { continue };
            let lasting = |held: &&Container| held.restart_policy.as_deref() == Some("Always");
            let sidecars = spec.init_containers.iter().flatten().filter(lasting);
            let mut total = 0;
            for held in spec.containers.iter().chain(sidecars) {
                if container.is_some_and(|wanted| wanted != held.name) {
                    continue;
                }
                let requests = held.resources.as_ref().and_then(|resources| resources.requests.as_ref());
                let missing = || format!("missing request for {resource} in container {} of Pod {pod_name}", held.name);
                total += quantity_milli(requests.and_then(|all| all.get(resource))).ok_or_else(missing)?;
            }
            all.insert(pod_name.to_owned(), total);
        }
        Ok(all)
    }

    async fn of_resource(
        &self,
        resource: &str,
        container: Option<&str>,
        target: &MetricTarget,
    ) -> Result<(Answer, MetricValueStatus), String> {
        let samples = self.usage(resource, container).await?;
        let target = match quantity_milli(target.average_value.as_ref()) {
            Some(average) => Target::Average(average),
            None => {
                let percent = target
                    .average_utilization
                    .ok_or("invalid resource metric source: neither a utilization target nor a value target was set")?;
                Target::Utilization(percent.into(), self.requests(resource, container)?)
            }
        };
        let cpu = resource == "cpu";
        let scaled = self.scaled;
        let answer = by_pod(scaled.current, &scaled.pods, samples, &target, self.tolerance, cpu, self.now)?;
        let current = MetricValueStatus {
            average_utilization: answer.utilization,
            average_value: quantity(answer.average_milli),
            value: None,
        };
        Ok((answer, current))
    }

    async fn resource(&self, metric: &MetricSpec) -> Result<(Proposal, MetricStatus), String> {
        let source = metric.resource.as_ref().ok_or("no resource is named")?;
        let (answer, current) = self.of_resource(&source.name, None, &source.target).await?;
        let share = if answer.utilization.is_some() { " utilization (percentage of request)" } else { "" };
        let status = ResourceMetricStatus { name: source.name.clone(), current };
        Ok((
            Proposal { replicas: answer.replicas, name: format!("{} resource{share}", source.name) },
            MetricStatus { type_: "Resource".into(), resource: Some(status), ..MetricStatus::default() },
        ))
    }

    async fn container(&self, metric: &MetricSpec) -> Result<(Proposal, MetricStatus), String> {
        let source = metric.container_resource.as_ref().ok_or("no resource is named")?;
        let (answer, current) = self.of_resource(&source.name, Some(&source.container), &source.target).await?;
        let share = if answer.utilization.is_some() { " utilization (percentage of request)" } else { "" };
        let status =
            ContainerResourceMetricStatus { name: source.name.clone(), container: source.container.clone(), current };
        Ok((
            Proposal { replicas: answer.replicas, name: format!("{} container resource{share}", source.name) },
            MetricStatus {
                type_: "ContainerResource".into(),
                container_resource: Some(status),
                ..MetricStatus::default()
            },
        ))
    }

    fn custom(&self, inside: &str, metric: &MetricIdentifier, pods: bool) -> String {
        let labels = metric.selector.as_ref().map(selector_text).unwrap_or_default();
        let pods = if pods { format!("labelSelector={}&", escaped(&self.scaled.selector)) } else { String::new() };
        format!(
            "/apis/custom.metrics.k8s.io/v1beta2/namespaces/{}/{inside}/{}?{pods}metricLabelSelector={}",
            self.scaled.namespace,
            escaped(&metric.name),
            escaped(&labels)
        )
    }

    async fn pods(&self, metric: &MetricSpec) -> Result<(Proposal, MetricStatus), String> {
        let source = metric.pods.as_ref().ok_or("no metric is named")?;
        let what = format!("{}.custom.metrics.k8s.io", source.metric.name);
        let list = self.get(&self.custom("pods/*", &source.metric, true), &what).await.map_err(|why| {
            format!(
                "unable to get metric {}: unable to fetch metrics from custom metrics API: {why}",
                source.metric.name
            )
        })?;
        let mut samples = BTreeMap::new();
        for item in list["items"].as_array().into_iter().flatten() {
            if let Some(milli) = milli(item["value"].as_str().unwrap_or_default()) {
                let at = item["timestamp"].as_str().and_then(|text| text.parse().ok()).unwrap_or(self.now);
                let seconds = item["windowSeconds"].as_i64().unwrap_or(60);
                let pod = item["describedObject"]["name"].as_str().unwrap_or_default().to_owned();
                samples.insert(pod, Sample { milli, at, window: SignedDuration::from_secs(seconds) });
            }
        }
        let wanted = quantity_milli(source.target.average_value.as_ref()).ok_or("no average value is wanted")?;
        let scaled = self.scaled;
        let target = Target::Average(wanted);
        let answer = by_pod(scaled.current, &scaled.pods, samples, &target, self.tolerance, false, self.now)?;
        let current =
            MetricValueStatus { average_value: quantity(answer.average_milli), ..MetricValueStatus::default() };
        let status = PodsMetricStatus { metric: source.metric.clone(), current };
        Ok((
            Proposal { replicas: answer.replicas, name: format!("pods metric {}", source.metric.name) },
            MetricStatus { type_: "Pods".into(), pods: Some(status), ..MetricStatus::default() },
        ))
    }

    fn whole(&self, value: i64, target: &MetricTarget) -> Result<(Answer, MetricValueStatus), String> {
        let (per_replica, wanted) = match (quantity_milli(target.average_value.as_ref()), &target.value) {
            (Some(average), _) => (true, average),
            (None, total) => (false, quantity_milli(total.as_ref()).ok_or("neither a value nor an average is wanted")?),
        };
        let scaled = self.scaled;
        let ready = scaled.pods.iter().filter(|pod| is_ready(pod)).count();
        let answer =
            of_whole(scaled.current, scaled.observed, ready, value, wanted.max(1), per_replica, self.tolerance);
        if !per_replica && scaled.current > 0 && scaled.pods.is_empty() && answer.replicas != scaled.current {
            return Err(
                "unable to calculate ready pods: no pods returned by selector while calculating replica count".into()
            );
        }
        let mut current = MetricValueStatus::default();
        if per_replica {
            current.average_value = quantity(answer.average_milli);
        } else {
            current.value = quantity(value);
        }
        Ok((answer, current))
    }

    async fn object(&self, metric: &MetricSpec) -> Result<(Proposal, MetricStatus), String> {
        let source = metric.object.as_ref().ok_or("no metric is named")?;
        let about = &source.described_object;
        let found = discovery::discover(self.client).await.map_err(|error| error.to_string())?;
        let api_version = about.api_version.as_deref().unwrap_or("v1");
        let kind = found.find(api_version, &about.kind).ok_or_else(|| format!("no kind {} is known", about.kind))?;
        let inside = format!("{}/{}", kind.resource(), about.name);
        let what = format!("{}.custom.metrics.k8s.io", source.metric.name);
        let list = self.get(&self.custom(&inside, &source.metric, false), &what).await.map_err(|why| {
            format!(
                "unable to get metric {}: {} on {} {}/unable to fetch metrics from custom metrics API: {why}",
                source.metric.name, about.kind, self.scaled.namespace, about.name
            )
        })?;
        let value = milli(list["items"][0]["value"].as_str().unwrap_or_default()).ok_or("the metric has no value")?;
        let (answer, current) = self.whole(value, &source.target)?;
        let status = ObjectMetricStatus { described_object: about.clone(), metric: source.metric.clone(), current };
        Ok((
            Proposal { replicas: answer.replicas, name: format!("{} metric {}", about.kind, source.metric.name) },
            MetricStatus { type_: "Object".into(), object: Some(status), ..MetricStatus::default() },
        ))
    }

    async fn external(&self, metric: &MetricSpec) -> Result<(Proposal, MetricStatus), String> {
        let source = metric.external.as_ref().ok_or("no metric is named")?;
        let metric_name = &source.metric.name;
        let labels = source.metric.selector.as_ref().map(selector_text).unwrap_or_default();
        let path = format!(
            "/apis/external.metrics.k8s.io/v1beta1/namespaces/{}/{}?labelSelector={}",
            self.scaled.namespace,
            escaped(metric_name),
            escaped(&labels)
        );
        let what = format!("{metric_name}.external.metrics.k8s.io");
        let list = self
            .get(&path, &what)
            .await
            .map_err(|why| format!("unable to fetch metrics from external metrics API: {why}"));
        let value = list.and_then(|list| total(&list)).map_err(|why| {
            format!(
                "unable to get external metric {}/{metric_name}/{}: {why}",
                self.scaled.namespace,
                shown(source.metric.selector.as_ref())
            )
        })?;
        let (answer, current) = self.whole(value, &source.target)?;
        let status = ExternalMetricStatus { metric: source.metric.clone(), current };
        Ok((
            Proposal {
                replicas: answer.replicas,
                name: format!("external metric {metric_name}({})", shown(source.metric.selector.as_ref())),
            },
            MetricStatus { type_: "External".into(), external: Some(status), ..MetricStatus::default() },
        ))
    }
}

/// A selector as Kubernetes' messages have it.
fn shown(selector: Option<&LabelSelector>) -> String {
    let Some(selector) = selector else { return "nil".to_owned() };
    let labels: String =
        selector.match_labels.iter().flatten().map(|(key, value)| format!("{key}: {value},")).collect();
    let requirement = |held: &LabelSelectorRequirement| {
        let values = held.values.clone().unwrap_or_default().join(" ");
        format!("LabelSelectorRequirement{{Key:{},Operator:{},Values:[{values}],}},", held.key, held.operator)
    };
    let expressions: String = selector.match_expressions.iter().flatten().map(requirement).collect();
    format!(
        "&LabelSelector{{MatchLabels:map[string]string{{{labels}}},MatchExpressions:[]LabelSelectorRequirement{{{expressions}}},}}"
    )
}

fn selector_text(selector: &LabelSelector) -> String {
    let value = serde_json::to_value(selector).unwrap_or_default();
    mycelium_api::selector::Selector::from_value(&value).map(|selector| selector.to_string()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_series_of_an_external_metric_are_added_up() {
        let of = |values: Value| {
            let items: Vec<Value> =
                values.as_array().into_iter().flatten().map(|value| json!({"value": value})).collect();
            total(&json!({ "items": items }))
        };
        assert_eq!(of(json!(["30", "2500m", "1k", 2])), Ok(1_034_500));
        assert_eq!(of(json!([])), Err("no metrics returned from external metrics API".to_owned()));
        assert_eq!(of(json!(["30", "many"])), Err("a value is not a quantity".to_owned()));
    }
}

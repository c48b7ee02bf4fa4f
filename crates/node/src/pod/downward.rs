//! Fields of the pod and resources of its containers, as containers may ask for them.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod, ResourceFieldSelector};
use mycelium_api::quantity::Quantity;

use super::model::all_containers;

/// Why a field has no value. The texts are the kubelet's.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum DownwardError {
    /// No such field.
    #[error("unsupported fieldPath: {0}")]
    Field(String),
    /// No such resource.
    #[error("unsupported container resource : {0}")]
    Resource(String),
    /// No such container.
    #[error("container {0} not found")]
    Container(String),
}

/// What the API object does not know.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// The pod's addresses.
    pub pod_ips: Vec<String>,
    /// The node's addresses.
    pub host_ips: Vec<String>,
    /// What the node has to give, by resource name.
    pub allocatable: BTreeMap<String, String>,
}

/// The value of a field.
pub fn field(pod: &Pod, path: &str, facts: &Facts) -> Result<String, DownwardError> {
    let meta = &pod.metadata;
    let spec = pod.spec.as_ref();
    let first = |list: &[String]| list.first().cloned().unwrap_or_default();
    Ok(match path {
        "metadata.name" => meta.name.clone().unwrap_or_default(),
        "metadata.namespace" => meta.namespace.clone().unwrap_or_default(),
        "metadata.uid" => meta.uid.clone().unwrap_or_default(),
        "metadata.labels" => format_map(meta.labels.as_ref()),
        "metadata.annotations" => format_map(meta.annotations.as_ref()),
        "spec.nodeName" => spec.and_then(|s| s.node_name.clone()).unwrap_or_default(),
        "spec.serviceAccountName" => spec.and_then(|s| s.service_account_name.clone()).unwrap_or_default(),
        "status.hostIP" => first(&facts.host_ips),
        "status.hostIPs" => facts.host_ips.join(","),
        "status.podIP" => first(&facts.pod_ips),
        "status.podIPs" => facts.pod_ips.join(","),
        _ => {
            let entry = |prefix: &str, map: Option<&BTreeMap<String, String>>| {
                let key = path.strip_prefix(prefix)?.strip_suffix("']")?;
                Some(map.and_then(|m| m.get(key)).cloned().unwrap_or_default())
            };
            return entry("metadata.labels['", meta.labels.as_ref())
                .or_else(|| entry("metadata.annotations['", meta.annotations.as_ref()))
                .ok_or_else(|| DownwardError::Field(path.to_owned()));
        }
    })
}

/// `key="value"` lines, sorted.
fn format_map(map: Option<&BTreeMap<String, String>>) -> String {
    map.into_iter().flatten().map(|(k, v)| format!("{k}={v:?}")).collect::<Vec<_>>().join("\n")
}

/// The value of a request or limit, divided and rounded up.
pub fn resource(
    pod: &Pod,
    own: &Container,
    selector: &ResourceFieldSelector,
    facts: &Facts,
) -> Result<String, DownwardError> {
    let container = match selector.container_name.as_deref().filter(|name| !name.is_empty()) {
        None => own,
        Some(name) => pod
            .spec
            .as_ref()
            .and_then(|s| all_containers(s).find(|c| c.name == name))
            .ok_or_else(|| DownwardError::Container(name.to_owned()))?,
    };
    let unknown = || DownwardError::Resource(selector.resource.clone());
    let (kind, name) = selector.resource.split_once('.').ok_or_else(unknown)?;
    let resources = container.resources.as_ref();
    let found = match kind {
        "limits" => resources.and_then(|r| r.limits.as_ref()).and_then(|m| m.get(name)).map(|q| q.0.clone()),
        "requests" => resources.and_then(|r| r.requests.as_ref()).and_then(|m| m.get(name)).map(|q| q.0.clone()),
        _ => return Err(unknown()),
    };
    // Without a limit, what the node has is the limit.
    let text = match found {
        Some(text) => text,
        None if kind == "limits" => facts.allocatable.get(name).cloned().unwrap_or_else(|| "0".into()),
        None => "0".into(),
    };
    let milli = |text: &str| text.parse::<Quantity>().map(|q| q.milli_value()).unwrap_or(0);
    let divisor = selector.divisor.as_ref().map_or(0, |q| milli(&q.0));
    let divisor = if divisor == 0 { 1000 } else { divisor };
    Ok((milli(&text) + divisor - 1).div_euclid(divisor).to_string())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn fields_and_resources() {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "p", "labels": {"b": "2\"", "a": "1"}},
            "spec": {"containers": [{"name": "c", "resources": {"limits": {"cpu": "1500m", "memory": "1Gi"}}}]}
        }))
        .expect("a pod");
        let facts = Facts { pod_ips: vec!["10.0.0.1".into()], ..Facts::default() };
        let get = |path: &str| field(&pod, path, &facts);
        assert_eq!(get("metadata.labels"), Ok("a=\"1\"\nb=\"2\\\"\"".into()));
        assert_eq!(get("metadata.labels['a']"), Ok("1".into()));
        assert_eq!(get("status.podIP"), Ok("10.0.0.1".into()));
        assert!(get("spec.nope").is_err());
        let container = &pod.spec.as_ref().expect("a spec").containers[0];
        let of = |resource_name: &str, divisor: &str| {
            let selector =
                serde_json::from_value(json!({"resource": resource_name, "divisor": divisor})).expect("a selector");
            resource(&pod, container, &selector, &facts)
        };
        assert_eq!(of("limits.cpu", "0"), Ok("2".into()));
        assert_eq!(of("limits.cpu", "1m"), Ok("1500".into()));
        assert_eq!(of("limits.memory", "1Mi"), Ok("1024".into()));
        assert_eq!(of("requests.cpu", "0"), Ok("0".into()));
    }
}

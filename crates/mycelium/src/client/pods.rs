//! From `POD`, `deploy/NAME` or `svc/NAME` to pods, and to one of their containers.

use anyhow::{Result, bail};
use serde_json::Value;

use super::discovery::Discovery;
use super::{Cluster, query, text};

const DEFAULT_CONTAINER: &str = "kubectl.kubernetes.io/default-container";

/// The pods that a word of the command line means: one pod by name, or those that a workload or service selects.
pub async fn find(cluster: &Cluster, word: &str) -> Result<Vec<Value>> {
    let Some((kind, name)) = word.split_once('/') else {
        return Ok(vec![cluster.get(&format!("/api/v1/namespaces/{}/pods/{word}", cluster.namespace)).await?]);
    };
    let discovery = Discovery::load(cluster).await?;
    let resource = discovery.resolve(kind)?;
    let object = cluster.get(&resource.object(&cluster.namespace, name)).await?;
    if resource.kind == "Pod" && resource.group.is_empty() {
        return Ok(vec![object]);
    }
    let Some(selector) = selector_of(&object) else {
        bail!("{}/{name} selects no pods; name a pod, or something that has some", resource.display());
    };
    let pods = select(cluster, &selector).await?;
    if pods.is_empty() {
        bail!(
            "{}/{name} has no pods in namespace {}; `mycelium describe {word}` may say why",
            resource.display(),
            cluster.namespace
        );
    }
    Ok(pods)
}

/// The pods of the namespace with these labels: running ones first, then the newest.
pub async fn select(cluster: &Cluster, selector: &str) -> Result<Vec<Value>> {
    let query = query(&[("labelSelector", Some(selector.to_owned()))]);
    let list = cluster.get(&format!("/api/v1/namespaces/{}/pods{query}", cluster.namespace)).await?;
    let mut pods = list["items"].as_array().cloned().unwrap_or_default();
    pods.sort_by_key(|pod| {
        let running = text(pod, "/status/phase") == "Running" && pod.pointer("/metadata/deletionTimestamp").is_none();
        (!running, std::cmp::Reverse(text(pod, "/metadata/creationTimestamp").to_owned()))
    });
    Ok(pods)
}

/// The labels that a workload or service selects by, as a query.
pub fn selector_of(object: &Value) -> Option<String> {
    let selector = object.pointer("/spec/selector")?.as_object()?;
    let equal = |labels: &serde_json::Map<String, Value>| -> Vec<String> {
        labels.iter().map(|(name, value)| format!("{name}={}", value.as_str().unwrap_or_default())).collect()
    };
    // Services and ReplicationControllers have plain labels there.
    if !selector.is_empty() && selector.values().all(Value::is_string) {
        return Some(equal(selector).join(","));
    }
    let mut terms = selector.get("matchLabels").and_then(Value::as_object).map(equal).unwrap_or_default();
    for expression in selector.get("matchExpressions").and_then(Value::as_array).into_iter().flatten() {
        let key = text(expression, "/key");
        let values: Vec<_> = expression["values"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        terms.push(match text(expression, "/operator") {
            "In" => format!("{key} in ({})", values.join(",")),
            "NotIn" => format!("{key} notin ({})", values.join(",")),
            "Exists" => key.to_owned(),
            _ => format!("!{key}"),
        });
    }
    (!terms.is_empty()).then(|| terms.join(","))
}

/// The names of a pod's containers, those that run first at last.
pub fn containers(pod: &Value) -> Vec<String> {
    let of = |list: &str| -> Vec<String> {
        let containers = pod.pointer(list).and_then(Value::as_array);
        containers.into_iter().flatten().map(|container| text(container, "/name").to_owned()).collect()
    };
    [of("/spec/containers"), of("/spec/initContainers"), of("/spec/ephemeralContainers")].concat()
}

/// The container to take: the one asked for, the one the pod says, or the first. Tells the user when there was a choice.
pub fn container(pod: &Value, wanted: Option<&str>) -> Result<String> {
    let all = containers(pod);
    let name = text(pod, "/metadata/name");
    let marked = pod.pointer("/metadata/annotations").and_then(|a| a.get(DEFAULT_CONTAINER)).and_then(Value::as_str);
    match wanted.or(marked.filter(|marked| all.iter().any(|own| own == marked))) {
        Some(wanted) if all.iter().any(|own| own == wanted) => Ok(wanted.to_owned()),
        Some(wanted) => bail!("pod {name} has no container {wanted:?}; it has {}", all.join(", ")),
        None => {
            let Some(first) = all.first() else { bail!("pod {name} has no containers") };
            if all.len() > 1 {
                eprintln!("Defaulted container {first:?} out of: {}", all.join(", "));
            }
            Ok(first.clone())
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn selectors_of_both_forms_become_queries() {
        assert_eq!(selector_of(&json!({"spec": {"selector": {"a": "b", "c": "d"}}})).unwrap(), "a=b,c=d");
        let set = json!({"spec": {"selector": {"matchLabels": {"a": "b"}, "matchExpressions": [
            {"key": "x", "operator": "In", "values": ["1", "2"]}, {"key": "y", "operator": "DoesNotExist"}]}}});
        assert_eq!(selector_of(&set).unwrap(), "a=b,x in (1,2),!y");
        assert_eq!(selector_of(&json!({"spec": {}})), None);
    }

    #[test]
    fn the_container_is_chosen_or_said_to_be_missing() {
        let pod = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "a"}, {"name": "b"}], "initContainers": [{"name": "i"}]}});
        assert_eq!(container(&pod, None).unwrap(), "a");
        assert_eq!(container(&pod, Some("i")).unwrap(), "i");
        assert!(container(&pod, Some("z")).unwrap_err().to_string().contains("a, b, i"));
    }
}

//! RuntimeClass: what running pods of a class costs, and on which nodes they can run.

use serde_json::{Value, json};

use crate::value::{at, ensure_object, entries, has, is_empty, list, same, text};

/// Gives a new pod the overhead, node selector and tolerations of its class. `class` is the RuntimeClass that the pod
/// names, if it names one and it exists. An error is the refusal, of a 403.
pub fn apply(pod: &mut Value, class: Option<&Value>) -> Result<(), String> {
    let named = text(pod, &["spec", "runtimeClassName"]);
    let Some(class) = class else {
        if !named.is_empty() {
            return Err(format!("pod rejected: RuntimeClass {named:?} not found"));
        }
        if !is_empty(at(pod, &["spec", "overhead"])) {
            return Err("pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead".to_owned());
        }
        return Ok(());
    };
    let overhead = at(class, &["overhead", "podFixed"]);
    let given = at(pod, &["spec", "overhead"]);
    if !is_empty(given) && has(class, &["overhead"]) && !same(given, overhead) {
        return Err("pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead".to_owned());
    }
    if !is_empty(given) && !has(class, &["overhead"]) {
        return Err("pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead".to_owned());
    }
    for (key, wanted) in entries(class, &["scheduling", "nodeSelector"]) {
        let chosen = at(pod, &["spec", "nodeSelector", key]);
        if !chosen.is_null() && chosen != wanted {
            let (wanted, chosen) = (wanted.as_str().unwrap_or_default(), chosen.as_str().unwrap_or_default());
            return Err(format!(
                "conflict: runtimeClass.scheduling.nodeSelector[{key}] = {wanted}; pod.spec.nodeSelector[{key}] = {chosen}"
            ));
        }
    }
    fill(pod, class, overhead);
    Ok(())
}

fn fill(pod: &mut Value, class: &Value, overhead: &Value) {
    let tolerations = list(class, &["scheduling", "tolerations"]);
    let Some(spec) = ensure_object(pod, &["spec"]) else { return };
    if !overhead.is_null() {
        spec.insert("overhead".to_owned(), overhead.clone());
    }
    if !tolerations.is_empty() {
        let slot = spec.entry("tolerations").or_insert_with(|| json!([]));
        if let Some(given) = slot.as_array_mut() {
            let new: Vec<Value> = tolerations.iter().filter(|one| !given.contains(one)).cloned().collect();
            given.extend(new);
        }
    }
    if entries(class, &["scheduling", "nodeSelector"]).next().is_none() {
        return;
    }
    let Some(selector) = ensure_object(pod, &["spec", "nodeSelector"]) else { return };
    for (key, value) in entries(class, &["scheduling", "nodeSelector"]) {
        selector.insert(key.clone(), value.clone());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_class_adds_to_its_pods() {
        let class = json!({"handler": "h", "overhead": {"podFixed": {"cpu": "10m"}},
            "scheduling": {"nodeSelector": {"a": "b"}, "tolerations": [{"operator": "Exists"}]}});
        let mut pod = json!({"spec": {"runtimeClassName": "c", "containers": []}});
        apply(&mut pod, Some(&class)).expect("fits");
        assert_eq!(pod["spec"]["overhead"], json!({"cpu": "10m"}));
        assert_eq!(pod["spec"]["nodeSelector"], json!({"a": "b"}));
        assert_eq!(pod["spec"]["tolerations"], json!([{"operator": "Exists"}]));
        let mut other = json!({"spec": {"runtimeClassName": "c", "nodeSelector": {"a": "c"}}});
        assert!(apply(&mut other, Some(&class)).is_err());
        let refusal = apply(&mut json!({"spec": {"runtimeClassName": "x"}}), None).expect_err("missing");
        assert_eq!(refusal, "pod rejected: RuntimeClass \"x\" not found");
    }
}

//! Selectors that also ask for the pod's own value of some labels (`matchLabelKeys`): when the pod is created, they
//! become plain requirements.

use serde_json::{Value, json};

use crate::value::{each, list, text_map, texts, within};

/// Merges the keys of a new pod's affinity terms and spread constraints into their selectors.
pub fn merge(pod: &mut Value) {
    let labels: Vec<(String, String)> = text_map(pod, &["metadata", "labels"]).into_iter().collect();
    let merge_term = |term: &mut Value| {
        add(term, "matchLabelKeys", "In", &labels);
        add(term, "mismatchLabelKeys", "NotIn", &labels);
    };
    for kind in ["podAffinity", "podAntiAffinity"] {
        within(pod, &["spec", "affinity", kind], |affinity| {
            each(affinity, &["requiredDuringSchedulingIgnoredDuringExecution"], merge_term);
            each(affinity, &["preferredDuringSchedulingIgnoredDuringExecution"], |weighted| {
                within(weighted, &["podAffinityTerm"], merge_term);
            });
        });
    }
    each(pod, &["spec", "topologySpreadConstraints"], |constraint| add(constraint, "matchLabelKeys", "In", &labels));
}

fn add(term: &mut Value, keys: &str, operator: &str, labels: &[(String, String)]) {
    if !term["labelSelector"].is_object() {
        return;
    }
    let mut expressions = list(term, &["labelSelector", "matchExpressions"]).to_vec();
    for key in texts(term, &[keys]) {
        if let Some((_, value)) = labels.iter().find(|(label, _)| label == key) {
            expressions.push(json!({"key": key, "operator": operator, "values": [value]}));
        }
    }
    let selector = term.get_mut("labelSelector").and_then(Value::as_object_mut);
    if let Some(selector) = selector.filter(|_| !expressions.is_empty()) {
        selector.insert("matchExpressions".to_owned(), expressions.into());
    }
}

//! The scale subresource: a small view of how many replicas an object has and wants.

use mycelium_api::field::{FieldError, Path};
use mycelium_api::selector::Selector;
use serde_json::{Value, json};

use crate::Errors;
use crate::value::{at, ensure_object, int, text};

/// Whether objects of this kind have a scale subresource.
pub fn has_scale(group: &str, kind: &str) -> bool {
    matches!((group, kind), ("apps", "Deployment" | "ReplicaSet" | "StatefulSet") | ("", "ReplicationController"))
}

/// The `autoscaling/v1` Scale of an object.
pub fn of(object: &Value) -> Value {
    let mut metadata = serde_json::Map::new();
    for key in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
        if let Some(value) = object["metadata"].get(key) {
            metadata.insert(key.to_owned(), value.clone());
        }
    }
    let selector = at(object, &["spec", "selector"]);
    let parsed = if text(object, &["kind"]) == "ReplicationController" {
        Ok(Selector::from_map_value(selector))
    } else {
        Selector::from_value(selector)
    };
    let mut scale = json!({
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": metadata,
        "spec": {},
        "status": {"replicas": int(object, &["status", "replicas"]).unwrap_or_default()},
    });
    let replicas = int(object, &["spec", "replicas"]).unwrap_or_default();
    if replicas != 0 {
        scale["spec"]["replicas"] = replicas.into();
    }
    if let Ok(selector) = parsed.map(|selector| selector.to_string())
        && !selector.is_empty()
    {
        scale["status"]["selector"] = selector.into();
    }
    scale
}

/// Sets the replicas that a Scale asks for.
pub fn apply(scale: &Value, object: &mut Value) {
    let replicas = int(scale, &["spec", "replicas"]).unwrap_or_default();
    if let Some(spec) = ensure_object(object, &["spec"]) {
        spec.insert("replicas".to_owned(), replicas.into());
    }
}

/// What is wrong with a Scale.
pub fn validate(scale: &Value) -> Errors {
    let mut errors = crate::meta::validate(scale, Some(true), mycelium_api::names::is_dns1123_subdomain);
    if let Some(replicas) = int(scale, &["spec", "replicas"]).filter(|replicas| *replicas < 0) {
        let path = Path::new("spec").child("replicas");
        errors.push(FieldError::invalid(&path, replicas, "must be greater than or equal to 0"));
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scale_reflects_its_object_and_back() {
        let mut object = json!({"metadata": {"name": "a", "namespace": "b", "uid": "u", "labels": {"x": "y"}},
            "spec": {"replicas": 3, "selector": {"matchLabels": {"app": "a"}}}, "status": {"replicas": 2}});
        let mut scale = of(&object);
        assert_eq!(scale["status"], json!({"replicas": 2, "selector": "app=a"}));
        assert!(scale["metadata"].get("labels").is_none());
        scale["spec"]["replicas"] = 5.into();
        apply(&scale, &mut object);
        assert_eq!(object["spec"]["replicas"], 5);
    }
}

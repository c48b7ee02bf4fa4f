//! What admission adds to a pod that is about to be created. Pure: the caller looks up what a function needs.

pub mod limit_range;
pub mod pod_security;
pub mod quota;
pub mod runtime_class;

use mycelium_api::field::{FieldError, Path};
use serde_json::{Map, Value, json};

use crate::value::{at, each, ensure_object, fill, flag, has, int, list, text};

/// Where containers find the credentials of their service account.
pub const TOKEN_MOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// How long a mounted token is valid, and a little more: the extra seconds mark it as one for pods.
const TOKEN_SECONDS: i64 = 3607;
/// How long a pod stays on a node that is not ready or not reachable.
const EVICTION_SECONDS: u32 = 300;
/// Priority of pods without a class when no class is the default.
const DEFAULT_PRIORITY: i64 = 0;

/// The account a pod runs as: the one it names, or `default`.
pub fn service_account_name(pod: &Value) -> &str {
    [["spec", "serviceAccountName"], ["spec", "serviceAccount"]]
        .iter()
        .map(|path| text(pod, path))
        .find(|name| !name.is_empty())
        .unwrap_or("default")
}

/// Lets a pod run as its service account: names it, takes over its image pull secrets, and mounts a token with the
/// cluster's certificate and the namespace's name, unless pod or account do not want that. `suffix` is five random
/// characters.
pub fn apply_service_account(pod: &mut Value, account: &Value, suffix: &str) {
    let name = service_account_name(pod).to_owned();
    let wants_token =
        match (at(pod, &["spec", "automountServiceAccountToken"]), &account["automountServiceAccountToken"]) {
            (Value::Bool(wants), _) | (_, Value::Bool(wants)) => *wants,
            _ => true,
        };
    let Some(spec) = ensure_object(pod, &["spec"]) else { return };
    spec.insert("serviceAccountName".to_owned(), name.clone().into());
    spec.insert("serviceAccount".to_owned(), name.into());
    let secrets = list(account, &["imagePullSecrets"]);
    if spec.get("imagePullSecrets").and_then(Value::as_array).is_none_or(Vec::is_empty) && !secrets.is_empty() {
        spec.insert("imagePullSecrets".to_owned(), secrets.into());
    }
    // Pods that a node reports from its own files have no API credentials.
    let mirror = has(pod, &["metadata", "annotations", "kubernetes.io/config.mirror"]);
    if wants_token && !mirror {
        mount_token(pod, suffix);
    }
}

fn mount_token(pod: &mut Value, suffix: &str) {
    let volumes = list(pod, &["spec", "volumes"]);
    let given = volumes.iter().map(|volume| text(volume, &["name"])).find(|name| name.starts_with("kube-api-access-"));
    let (volume_name, add) = match given {
        Some(name) => (name.to_owned(), false),
        None => (format!("kube-api-access-{suffix}"), true),
    };
    let mut used = false;
    for containers in ["initContainers", "containers"] {
        each(pod, &["spec", containers], |container| {
            let mounted =
                list(container, &["volumeMounts"]).iter().any(|mount| text(mount, &["mountPath"]) == TOKEN_MOUNT);
            if mounted || !container.is_object() {
                return;
            }
            fill(container, "volumeMounts", json!([]));
            if let Some(mounts) = container.get_mut("volumeMounts").and_then(Value::as_array_mut) {
                mounts.push(json!({"name": volume_name, "readOnly": true, "mountPath": TOKEN_MOUNT}));
                used = true;
            }
        });
    }
    if !(used && add) {
        return;
    }
    let Some(spec) = ensure_object(pod, &["spec"]) else { return };
    let volumes = spec.entry("volumes").or_insert_with(|| json!([]));
    if let Some(volumes) = volumes.as_array_mut() {
        volumes.push(token_volume(&volume_name));
    }
}

fn token_volume(name: &str) -> Value {
    json!({"name": name, "projected": {"defaultMode": 0o644, "sources": [
        {"serviceAccountToken": {"expirationSeconds": TOKEN_SECONDS, "path": "token"}},
        {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}},
        {"downwardAPI": {"items": [
            {"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}},
        ]}},
    ]}})
}

/// How long a pod may stay on a node that is unwell, unless it says otherwise: seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// On one that says that it is not ready.
    pub not_ready_s: u32,
    /// On one that says nothing.
    pub unreachable_s: u32,
}

impl Default for Patience {
    fn default() -> Self {
        Self { not_ready_s: EVICTION_SECONDS, unreachable_s: EVICTION_SECONDS }
    }
}

/// Lets a pod stay for a while on a node that is not ready or not reachable, unless it says otherwise.
pub fn add_default_tolerations(pod: &mut Value, patience: Patience) {
    let wanted = [
        ("node.kubernetes.io/not-ready", patience.not_ready_s),
        ("node.kubernetes.io/unreachable", patience.unreachable_s),
    ];
    let missing: Vec<Value> = wanted
        .into_iter()
        .filter(|(key, _)| !list(pod, &["spec", "tolerations"]).iter().any(|toleration| tolerates(toleration, key)))
        .map(|(key, seconds)| {
            json!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": seconds})
        })
        .collect();
    append_tolerations(pod, missing);
}

fn append_tolerations(pod: &mut Value, more: Vec<Value>) {
    if more.is_empty() {
        return;
    }
    let Some(spec) = ensure_object(pod, &["spec"]) else { return };
    let tolerations = spec.entry("tolerations").or_insert_with(|| json!([]));
    if tolerations.is_null() {
        *tolerations = json!([]);
    }
    if let Some(tolerations) = tolerations.as_array_mut() {
        tolerations.extend(more);
    }
}

/// Whether a toleration covers the effect `NoExecute` of a taint with this key.
fn tolerates(toleration: &Value, key: &str) -> bool {
    let covers_key = matches!(text(toleration, &["key"]), "") || text(toleration, &["key"]) == key;
    covers_key && matches!(text(toleration, &["effect"]), "" | "NoExecute")
}

/// Sets the priority of a pod. `class` is the PriorityClass the pod names or, if it names none, the one that is the
/// default. An error is the whole refusal, of a 403.
pub fn apply_priority(pod: &mut Value, class: Option<&Value>) -> Result<(), FieldError> {
    let path = Path::new("spec");
    let named = text(pod, &["spec", "priorityClassName"]).to_owned();
    let (value, policy, class_name) = match class {
        Some(class) => {
            let policy = match text(class, &["preemptionPolicy"]) {
                "" => "PreemptLowerPriority",
                policy => policy,
            };
            (int(class, &["value"]).unwrap_or_default(), policy, text(class, &["metadata", "name"]))
        }
        None if named.is_empty() => (DEFAULT_PRIORITY, "PreemptLowerPriority", ""),
        None => {
            let system = crate::kinds::system_priority(&named);
            let detail = format!("no PriorityClass with name {named} was found");
            let value = system.ok_or_else(|| FieldError::forbidden(&path.child("priorityClassName"), detail))?;
            (value, "PreemptLowerPriority", "")
        }
    };
    let given = int(pod, &["spec", "priority"]);
    if given.is_some_and(|given| given != value) {
        let detail = format!(
            "the integer value of priority ({}) must not be provided in pod spec; priority admission controller computed {value} from the given PriorityClass name",
            given.unwrap_or_default()
        );
        return Err(FieldError::forbidden(&path.child("priority"), detail));
    }
    let Some(spec) = ensure_object(pod, &["spec"]) else { return Ok(()) };
    set_priority(spec, value, policy, class_name);
    Ok(())
}

fn set_priority(spec: &mut Map<String, Value>, value: i64, policy: &str, class_name: &str) {
    spec.insert("priority".to_owned(), value.into());
    crate::value::fill_in(spec, "preemptionPolicy", policy);
    if !class_name.is_empty() {
        spec.insert("priorityClassName".to_owned(), class_name.into());
    }
}

/// The default class among all PriorityClasses: of several, the lowest.
pub fn default_priority_class<'a>(classes: impl IntoIterator<Item = &'a Value>) -> Option<&'a Value> {
    classes.into_iter().filter(|class| flag(class, &["globalDefault"])).min_by_key(|class| int(class, &["value"]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_pod_gets_account_token_tolerations_and_priority() {
        let mut pod = json!({"metadata": {"name": "a"}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
        apply_service_account(&mut pod, &json!({"metadata": {"name": "default"}}), "abcde");
        add_default_tolerations(&mut pod, Patience::default());
        apply_priority(&mut pod, None).expect("no class");
        let spec = &pod["spec"];
        assert_eq!(spec["serviceAccountName"], "default");
        assert_eq!(spec["volumes"][0]["name"], "kube-api-access-abcde");
        assert_eq!(spec["containers"][0]["volumeMounts"][0]["mountPath"], TOKEN_MOUNT);
        assert_eq!(spec["tolerations"].as_array().map(Vec::len), Some(2));
        assert_eq!(spec["priority"], 0);
        assert_eq!(spec["preemptionPolicy"], "PreemptLowerPriority");
    }

    #[test]
    fn a_pod_can_do_without() {
        let mut pod = json!({"spec": {"automountServiceAccountToken": false, "priorityClassName": "nope",
            "tolerations": [{"operator": "Exists"}], "containers": [{"name": "c"}]}});
        apply_service_account(&mut pod, &json!({"automountServiceAccountToken": true}), "abcde");
        add_default_tolerations(&mut pod, Patience::default());
        assert!(pod["spec"].get("volumes").is_none());
        assert_eq!(pod["spec"]["tolerations"].as_array().map(Vec::len), Some(1));
        let refusal = apply_priority(&mut pod, None).expect_err("unknown class");
        assert_eq!(refusal.detail, "no PriorityClass with name nope was found");
    }
}

//! The variables a pod sets for a container, and those that point at services.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{ConfigMap, Container, EnvVar, Pod, Secret, Service};

use super::downward::{DownwardError, Facts, field, resource};
use crate::spec::expand::expand;
use crate::volumes::persistent::Claimed;

/// The objects a pod refers to, as far as they exist.
#[derive(Clone, Debug, Default)]
pub struct Objects {
    /// By name.
    pub config_maps: BTreeMap<String, ConfigMap>,
    /// By name.
    pub secrets: BTreeMap<String, Secret>,
    /// The volumes behind claims, by the name of the volume in the pod.
    pub claims: BTreeMap<String, Result<Claimed, String>>,
}

/// Why the variables cannot be determined. The texts are the kubelet's.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum EnvError {
    /// No such object.
    #[error("{kind} \"{name}\" not found")]
    Missing {
        /// `configmap` or `secret`.
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// The object has no such key.
    #[error("couldn't find key {key} in {kind} {namespace}/{name}")]
    Key {
        /// The key.
        key: String,
        /// `ConfigMap` or `Secret`.
        kind: &'static str,
        /// The pod's namespace.
        namespace: String,
        /// The object's name.
        name: String,
    },
    /// A field or resource of the pod.
    #[error(transparent)]
    Downward(#[from] DownwardError),
}

/// Names of the config maps and secrets that a container's variables refer to.
pub fn references(container: &Container) -> (BTreeSet<String>, BTreeSet<String>) {
    let (mut maps, mut secrets) = (BTreeSet::new(), BTreeSet::new());
    for from in container.env_from.iter().flatten() {
        maps.extend(from.config_map_ref.iter().map(|r| r.name.clone()));
        secrets.extend(from.secret_ref.iter().map(|r| r.name.clone()));
    }
    for source in container.env.iter().flatten().filter_map(|e| e.value_from.as_ref()) {
        maps.extend(source.config_map_key_ref.iter().map(|r| r.name.clone()));
        secrets.extend(source.secret_key_ref.iter().map(|r| r.name.clone()));
    }
    (maps, secrets)
}

/// The variables, in the order in which they are set.
pub fn build(
    pod: &Pod,
    container: &Container,
    objects: &Objects,
    services: &[(String, String)],
    facts: &Facts,
) -> Result<Vec<(String, String)>, EnvError> {
    let mut own: BTreeMap<String, String> = BTreeMap::new();
    let mut order: Vec<String> = Vec::new();
    for from in container.env_from.iter().flatten() {
        let prefix = from.prefix.as_deref().unwrap_or_default();
        for (key, value) in from_object(from, objects)? {
            set(&mut own, &mut order, format!("{prefix}{key}"), value);
        }
    }
    for variable in container.env.iter().flatten() {
        let known = |name: &str| {
            own.get(name).cloned().or_else(|| services.iter().find(|(n, _)| n == name).map(|(_, v)| v.clone()))
        };
        let value = match variable.value.as_deref().filter(|v| !v.is_empty()) {
            Some(text) => Some(expand(text, known)),
            None => from_source(pod, container, variable, objects, facts)?,
        };
        if let Some(value) = value {
            set(&mut own, &mut order, variable.name.clone(), value);
        }
    }
    let mut env: Vec<(String, String)> = services.iter().filter(|(name, _)| !own.contains_key(name)).cloned().collect();
    env.extend(order.into_iter().filter_map(|name| own.remove_entry(&name)));
    Ok(env)
}

fn set(own: &mut BTreeMap<String, String>, order: &mut Vec<String>, name: String, value: String) {
    if own.insert(name.clone(), value).is_none() {
        order.push(name);
    }
}

fn text(bytes: &k8s_openapi::ByteString) -> String {
    String::from_utf8_lossy(&bytes.0).into_owned()
}

fn from_object(
    from: &k8s_openapi::api::core::v1::EnvFromSource,
    objects: &Objects,
) -> Result<Vec<(String, String)>, EnvError> {
    if let Some(reference) = &from.config_map_ref {
        return match objects.config_maps.get(&reference.name) {
            Some(map) => Ok(map.data.clone().unwrap_or_default().into_iter().collect()),
            None if reference.optional == Some(true) => Ok(Vec::new()),
            None => Err(EnvError::Missing { kind: "configmap", name: reference.name.clone() }),
        };
    }
    if let Some(reference) = &from.secret_ref {
        return match objects.secrets.get(&reference.name) {
            Some(secret) => Ok(secret.data.iter().flatten().map(|(k, v)| (k.clone(), text(v))).collect()),
            None if reference.optional == Some(true) => Ok(Vec::new()),
            None => Err(EnvError::Missing { kind: "secret", name: reference.name.clone() }),
        };
    }
    Ok(Vec::new())
}

fn from_source(
    pod: &Pod,
    container: &Container,
    variable: &EnvVar,
    objects: &Objects,
    facts: &Facts,
) -> Result<Option<String>, EnvError> {
    let Some(source) = &variable.value_from else { return Ok(Some(String::new())) };
    let namespace = pod.metadata.namespace.clone().unwrap_or_default();
    if let Some(reference) = &source.field_ref {
        return Ok(Some(field(pod, &reference.field_path, facts)?));
    }
    if let Some(reference) = &source.resource_field_ref {
        return Ok(Some(resource(pod, container, reference, facts)?));
    }
    let (found, kinds, name, key, optional) = if let Some(r) = &source.config_map_key_ref {
        let found = objects.config_maps.get(&r.name).map(|m| m.data.as_ref().and_then(|d| d.get(&r.key)).cloned());
        (found, ("configmap", "ConfigMap"), &r.name, &r.key, r.optional)
    } else if let Some(r) = &source.secret_key_ref {
        let found = objects.secrets.get(&r.name).map(|s| s.data.as_ref().and_then(|d| d.get(&r.key)).map(text));
        (found, ("secret", "Secret"), &r.name, &r.key, r.optional)
    } else {
        return Ok(Some(String::new()));
    };
    match found {
        Some(Some(value)) => Ok(Some(value)),
        _ if optional == Some(true) => Ok(None),
        None => Err(EnvError::Missing { kind: kinds.0, name: name.clone() }),
        Some(None) => Err(EnvError::Key { key: key.clone(), kind: kinds.1, namespace, name: name.clone() }),
    }
}

/// The variables that point at `services`: those of the pod's namespace if it wants them, and the API server always.
pub fn for_services(services: &[Service], pod: &Pod) -> Vec<(String, String)> {
    let links = pod.spec.as_ref().and_then(|s| s.enable_service_links).unwrap_or(true);
    let mut env = Vec::new();
    for service in services {
        let name = service.metadata.name.as_deref().unwrap_or_default();
        let namespace = service.metadata.namespace.as_deref().unwrap_or_default();
        let api_server = name == "kubernetes" && namespace == "default";
        if api_server || (links && pod.metadata.namespace.as_deref() == Some(namespace)) {
            for_service(name, service, &mut env);
        }
    }
    env
}

fn for_service(name: &str, service: &Service, env: &mut Vec<(String, String)>) {
    let Some(spec) = &service.spec else { return };
    let Some(ip) = spec.cluster_ip.as_deref().filter(|ip| !ip.is_empty() && *ip != "None") else { return };
    let ports = spec.ports.as_deref().unwrap_or_default();
    let Some(first) = ports.first() else { return };
    let upper = |text: &str| text.to_uppercase().replace('-', "_");
    let host = if ip.contains(':') { format!("[{ip}]") } else { ip.to_owned() };
    let name = upper(name);
    let mut put = |suffix: String, value: String| env.push((format!("{name}_{suffix}"), value));
    put("SERVICE_HOST".into(), ip.to_owned());
    put("SERVICE_PORT".into(), first.port.to_string());
    for port in ports {
        if let Some(port_name) = port.name.as_deref().filter(|n| !n.is_empty()) {
            put(format!("SERVICE_PORT_{}", upper(port_name)), port.port.to_string());
        }
    }
    for (index, port) in ports.iter().enumerate() {
        let protocol = port.protocol.as_deref().unwrap_or("TCP");
        let lower = protocol.to_lowercase();
        let prefix = format!("PORT_{}_{}", port.port, protocol.to_uppercase());
        let url = format!("{lower}://{host}:{}", port.port);
        if index == 0 {
            put("PORT".into(), url.clone());
        }
        put(prefix.clone(), url);
        put(format!("{prefix}_PROTO"), lower);
        put(format!("{prefix}_PORT"), port.port.to_string());
        put(format!("{prefix}_ADDR"), ip.to_owned());
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn env(container: Value) -> Result<Vec<(String, String)>, EnvError> {
        let pod: Pod = serde_json::from_value(
            json!({"metadata": {"name": "p", "namespace": "n"}, "spec": {"containers": [container]}}),
        )
        .expect("a pod");
        let mut objects = Objects::default();
        let map = json!({"data": {"k": "v", "z": "9"}});
        objects.config_maps.insert("m".into(), serde_json::from_value(map).expect("a map"));
        let services = [("S_SERVICE_HOST".to_owned(), "10.96.0.9".to_owned())];
        let container = &pod.spec.as_ref().expect("a spec").containers[0];
        build(&pod, container, &objects, &services, &Facts::default())
    }

    #[test]
    fn variables_are_resolved_in_order() {
        let got = env(json!({"name": "c", "envFrom": [{"prefix": "P_", "configMapRef": {"name": "m"}}, {"secretRef": {"name": "no", "optional": true}}],
            "env": [{"name": "A", "value": "$(P_k) $(S_SERVICE_HOST) $(NO)"}, {"name": "P_z", "value": "1"},
                    {"name": "N", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
                    {"name": "O", "valueFrom": {"configMapKeyRef": {"name": "m", "key": "no", "optional": true}}}]}))
        .expect("resolves");
        let text: Vec<String> = got.into_iter().map(|(k, v)| format!("{k}={v}")).collect();
        assert_eq!(text, ["S_SERVICE_HOST=10.96.0.9", "P_k=v", "P_z=1", "A=v 10.96.0.9 $(NO)", "N=p"]);
    }

    #[test]
    fn what_is_missing_is_named_as_by_the_kubelet() {
        let one = |source: Value| {
            env(json!({"name": "c", "env": [{"name": "X", "valueFrom": source}]})).map_err(|e| e.to_string())
        };
        assert_eq!(one(json!({"secretKeyRef": {"name": "s", "key": "k"}})), Err("secret \"s\" not found".into()));
        assert_eq!(
            one(json!({"configMapKeyRef": {"name": "m", "key": "q"}})),
            Err("couldn't find key q in ConfigMap n/m".into())
        );
    }

    #[test]
    fn services_are_announced() {
        let service: Service = serde_json::from_value(json!({"metadata": {"name": "my-db", "namespace": "n"},
            "spec": {"clusterIP": "10.96.0.5", "ports": [{"name": "sql", "port": 5432}]}}))
        .expect("a service");
        let pod: Pod = serde_json::from_value(json!({"metadata": {"namespace": "n"}})).expect("a pod");
        let env = for_services(&[service], &pod);
        assert!(env.contains(&("MY_DB_SERVICE_PORT_SQL".into(), "5432".into())));
        assert!(env.contains(&("MY_DB_PORT_5432_TCP_ADDR".into(), "10.96.0.5".into())));
    }
}

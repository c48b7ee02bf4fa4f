//! What the files of a volume hold: config maps, secrets, fields of the pod and tokens.

use k8s_openapi::api::core::v1::{
    ConfigMap, Container, DownwardAPIVolumeFile, KeyToPath, Pod, ProjectedVolumeSource, Secret, Volume,
};

use super::atomic::{Entry, Payload};
use crate::pod::downward::{DownwardError, Facts, field, resource};
use crate::pod::environment::Objects;

/// Why a volume has no content. The texts are the kubelet's.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum PayloadError {
    /// No such object.
    #[error("{kind} \"{name}\" not found")]
    Missing {
        /// `configmap` or `secret`.
        kind: &'static str,
        /// Its name.
        name: String,
    },
    /// The object lacks a key.
    #[error("{kind} references non-existent {what} key: {key}")]
    Key {
        /// `configmap` or `secret`, empty where the kubelet has none.
        kind: &'static str,
        /// `config` or `secret`.
        what: &'static str,
        /// The key.
        key: String,
    },
    /// A field of the pod.
    #[error(transparent)]
    Downward(#[from] DownwardError),
    /// A token that was not fetched.
    #[error("no token for audience \"{0}\"")]
    Token(String),
}

/// A service-account token that a volume wants.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TokenWish {
    /// For whom, or empty for the API server.
    pub audience: String,
    /// Seconds it is to be valid.
    pub expiration_secs: i64,
}

/// What volumes are filled from.
pub struct Sources<'a> {
    /// The pod.
    pub pod: &'a Pod,
    /// Config maps and secrets.
    pub objects: &'a Objects,
    /// What the API object does not know.
    pub facts: &'a Facts,
    /// Tokens, by wish.
    pub tokens: &'a dyn Fn(&TokenWish) -> Option<String>,
    /// Group that must be able to read.
    pub group: Option<u32>,
    /// The one user that all containers run as, if there is one.
    pub user: Option<u32>,
}

/// Names of the config maps and secrets, and the tokens, that a volume is filled from.
pub fn references(volume: &Volume) -> (Vec<String>, Vec<String>, Vec<TokenWish>) {
    let (mut maps, mut secrets, mut tokens) = (Vec::new(), Vec::new(), Vec::new());
    maps.extend(volume.config_map.iter().map(|m| m.name.clone()));
    secrets.extend(volume.secret.iter().filter_map(|s| s.secret_name.clone()));
    for source in volume.projected.iter().flat_map(|p| p.sources.iter().flatten()) {
        maps.extend(source.config_map.iter().map(|m| m.name.clone()));
        secrets.extend(source.secret.iter().map(|s| s.name.clone()));
        tokens.extend(source.service_account_token.iter().map(wish));
    }
    (maps, secrets, tokens)
}

fn wish(token: &k8s_openapi::api::core::v1::ServiceAccountTokenProjection) -> TokenWish {
    TokenWish {
        audience: token.audience.clone().unwrap_or_default(),
        expiration_secs: token.expiration_seconds.unwrap_or(3600),
    }
}

/// The files of a volume, or `None` if it is not one that is filled.
pub fn build(volume: &Volume, sources: &Sources<'_>) -> Option<Result<Payload, PayloadError>> {
    if let Some(source) = &volume.config_map {
        let mode = source.default_mode.unwrap_or(0o644);
        Some(config_map(&source.name, source.items.as_deref(), source.optional, mode, sources))
    } else if let Some(source) = &volume.secret {
        let name = source.secret_name.as_deref().unwrap_or_default();
        let mode = source.default_mode.unwrap_or(0o644);
        Some(secret(name, source.items.as_deref(), source.optional, mode, sources))
    } else if let Some(source) = &volume.downward_api {
        let mode = source.default_mode.unwrap_or(0o644);
        Some(downward(source.items.as_deref().unwrap_or_default(), mode, sources))
    } else {
        volume.projected.as_ref().map(|source| projected(source, sources))
    }
}

fn projected(volume: &ProjectedVolumeSource, sources: &Sources<'_>) -> Result<Payload, PayloadError> {
    let mode = volume.default_mode.unwrap_or(0o644);
    let mut all = Payload::new();
    for source in volume.sources.iter().flatten() {
        if let Some(s) = &source.config_map {
            all.extend(config_map(&s.name, s.items.as_deref(), s.optional, mode, sources)?);
        }
        if let Some(s) = &source.secret {
            all.extend(secret(&s.name, s.items.as_deref(), s.optional, mode, sources)?);
        }
        if let Some(s) = &source.downward_api {
            all.extend(downward(s.items.as_deref().unwrap_or_default(), mode, sources)?);
        }
        if let Some(s) = &source.service_account_token {
            let wish = wish(s);
            let token = (sources.tokens)(&wish).ok_or(PayloadError::Token(wish.audience))?;
            // Readable by the group, else only by the one user if there is one, else by all.
            let (mode, owner) = match (sources.group, sources.user) {
                (Some(_), _) => (0o640, None),
                (None, Some(user)) => (0o600, Some(user)),
                (None, None) => (mode as u32, None),
            };
            all.insert(s.path.clone(), Entry { content: token.into_bytes(), mode, owner });
        }
    }
    Ok(all)
}

fn entry(content: Vec<u8>, mode: i32, sources: &Sources<'_>) -> Entry {
    let group_reads = if sources.group.is_some() { 0o440 } else { 0 };
    Entry { content, mode: (mode as u32 & 0o777) | group_reads, owner: None }
}

/// What a volume shows of an object that does not exist: nothing if it may be missing.
fn absent(kind: &'static str, name: &str, optional: bool) -> Result<Payload, PayloadError> {
    if optional { Ok(Payload::new()) } else { Err(PayloadError::Missing { kind, name: name.into() }) }
}

fn config_map(
    name: &str,
    items: Option<&[KeyToPath]>,
    optional: Option<bool>,
    mode: i32,
    sources: &Sources<'_>,
) -> Result<Payload, PayloadError> {
    let optional = optional == Some(true);
    let Some(map) = sources.objects.config_maps.get(name) else { return absent("configmap", name, optional) };
    select(&map_content(map), items, optional, mode, sources, ("configmap", "config"))
}

fn map_content(map: &ConfigMap) -> Vec<(String, Vec<u8>)> {
    let texts = map.data.iter().flatten().map(|(k, v)| (k.clone(), v.clone().into_bytes()));
    texts.chain(map.binary_data.iter().flatten().map(|(k, v)| (k.clone(), v.0.clone()))).collect()
}

fn secret(
    name: &str,
    items: Option<&[KeyToPath]>,
    optional: Option<bool>,
    mode: i32,
    sources: &Sources<'_>,
) -> Result<Payload, PayloadError> {
    let optional = optional == Some(true);
    let Some(secret) = sources.objects.secrets.get(name) else { return absent("secret", name, optional) };
    select(&secret_content(secret), items, optional, mode, sources, ("", "secret"))
}

fn secret_content(secret: &Secret) -> Vec<(String, Vec<u8>)> {
    secret.data.iter().flatten().map(|(k, v)| (k.clone(), v.0.clone())).collect()
}

fn select(
    content: &[(String, Vec<u8>)],
    items: Option<&[KeyToPath]>,
    optional: bool,
    mode: i32,
    sources: &Sources<'_>,
    (kind, what): (&'static str, &'static str),
) -> Result<Payload, PayloadError> {
    let Some(items) = items.filter(|items| !items.is_empty()) else {
        return Ok(content.iter().map(|(k, v)| (k.clone(), entry(v.clone(), mode, sources))).collect());
    };
    let mut files = Payload::new();
    for item in items {
        match content.iter().find(|(key, _)| *key == item.key) {
            Some((_, value)) => {
                files.insert(item.path.clone(), entry(value.clone(), item.mode.unwrap_or(mode), sources));
            }
            None if optional => {}
            None => return Err(PayloadError::Key { kind, what, key: item.key.clone() }),
        }
    }
    Ok(files)
}

fn downward(items: &[DownwardAPIVolumeFile], mode: i32, sources: &Sources<'_>) -> Result<Payload, PayloadError> {
    let mut files = Payload::new();
    for item in items {
        let value = if let Some(reference) = &item.field_ref {
            field(sources.pod, &reference.field_path, sources.facts)?
        } else if let Some(reference) = &item.resource_field_ref {
            resource(sources.pod, &Container::default(), reference, sources.facts)?
        } else {
            continue;
        };
        files.insert(item.path.clone(), entry(value.into_bytes(), item.mode.unwrap_or(mode), sources));
    }
    Ok(files)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn files(volume: Value, group: Option<u32>) -> Result<Vec<(String, String, u32)>, String> {
        let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "p"}})).expect("a pod");
        let mut objects = Objects::default();
        objects
            .config_maps
            .insert("m".into(), serde_json::from_value(json!({"data": {"a": "1", "b": "2"}})).expect("a map"));
        let volume: Volume = serde_json::from_value(volume).expect("a volume");
        let tokens = |wish: &TokenWish| Some(format!("token for {}", wish.audience));
        let sources =
            Sources { pod: &pod, objects: &objects, facts: &Facts::default(), tokens: &tokens, group, user: None };
        let payload = build(&volume, &sources).expect("is filled").map_err(|e| e.to_string())?;
        Ok(payload.into_iter().map(|(p, e)| (p, String::from_utf8_lossy(&e.content).into_owned(), e.mode)).collect())
    }

    #[test]
    fn volumes_are_filled_as_asked() {
        assert_eq!(
            files(
                json!({"name": "v", "configMap": {"name": "m", "items": [{"key": "b", "path": "d/x", "mode": 256}]}}),
                None
            ),
            Ok(vec![("d/x".into(), "2".into(), 0o400)])
        );
        let projected = json!({"name": "v", "projected": {"defaultMode": 292, "sources": [
            {"serviceAccountToken": {"path": "token", "audience": "x"}},
            {"downwardAPI": {"items": [{"path": "name", "fieldRef": {"fieldPath": "metadata.name"}}]}}]}});
        assert_eq!(
            files(projected, Some(1)),
            Ok(vec![("name".into(), "p".into(), 0o444), ("token".into(), "token for x".into(), 0o640)])
        );
        assert_eq!(
            files(json!({"name": "v", "secret": {"secretName": "s"}}), None),
            Err("secret \"s\" not found".into())
        );
        assert_eq!(
            files(json!({"name": "v", "configMap": {"name": "m", "items": [{"key": "q", "path": "q"}]}}), None),
            Err("configmap references non-existent config key: q".into())
        );
    }
}

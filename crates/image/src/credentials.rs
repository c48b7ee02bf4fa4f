//! Logins for registries, from Docker's configuration file or from image pull secrets, which have the same form.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use oci_client::secrets::RegistryAuth;
use serde::Deserialize;

use crate::digest::Digest;
use crate::reference::Reference;

/// Docker Hub's key in configuration files, kept from its first version.
const HUB_HOSTS: [&str; 3] = ["docker.io", "index.docker.io", "registry-1.docker.io"];

/// Logins, in the order they were added. Its `Debug` shows no secret.
#[derive(Clone, Default)]
pub struct Credentials {
    entries: Vec<Entry>,
}

#[derive(Clone)]
struct Entry {
    /// `host[:port][/path]`, the host with `*` in its labels perhaps.
    pattern: String,
    auth: RegistryAuth,
}

/// Why a login document was not understood.
#[derive(Debug, thiserror::Error)]
#[error("the registry logins are not valid: expected {{\"auths\":{{\"registry\":{{\"auth\":\"...\"}}}}}}")]
pub struct CredentialsError(#[source] serde_json::Error);

#[derive(Deserialize)]
struct File {
    #[serde(default)]
    auths: BTreeMap<String, Login>,
}

#[derive(Deserialize)]
struct Login {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    registrytoken: Option<String>,
}

impl Credentials {
    /// No logins: anonymous access.
    pub fn none() -> Self {
        Self::default()
    }

    /// Adds the logins of a `.dockerconfigjson` (secret type `kubernetes.io/dockerconfigjson`, or `~/.docker/config.json`).
    pub fn add_docker_config(&mut self, json: &[u8]) -> Result<(), CredentialsError> {
        let file: File = serde_json::from_slice(json).map_err(CredentialsError)?;
        self.add(file.auths);
        Ok(())
    }

    /// Adds the logins of a `.dockercfg` (secret type `kubernetes.io/dockercfg`), the older form without `auths`.
    pub fn add_docker_cfg(&mut self, json: &[u8]) -> Result<(), CredentialsError> {
        self.add(serde_json::from_slice(json).map_err(CredentialsError)?);
        Ok(())
    }

    /// Adds one login.
    pub fn add_basic(&mut self, registry: &str, user: &str, password: &str) {
        let auth = RegistryAuth::Basic(user.to_owned(), password.to_owned());
        self.entries.push(Entry { pattern: normal(registry), auth });
    }

    /// The logins of `~/.docker/config.json` below `home`; none if there is no such file.
    pub fn of_home(home: &Path) -> Result<Self, CredentialsError> {
        let mut credentials = Self::default();
        credentials.add_home(home)?;
        Ok(credentials)
    }

    /// Adds the logins of `~/.docker/config.json` below `home`, if there is such a file. Of two logins for the same
    /// registry the one added first is tried first.
    pub fn add_home(&mut self, home: &Path) -> Result<(), CredentialsError> {
        match std::fs::read(home.join(".docker/config.json")) {
            Ok(json) => self.add_docker_config(&json),
            Err(_) => Ok(()),
        }
    }

    fn add(&mut self, logins: BTreeMap<String, Login>) {
        for (registry, login) in logins {
            if let Some(auth) = login.auth() {
                self.entries.push(Entry { pattern: normal(&registry), auth });
            }
        }
    }

    /// What to try for an image, most specific first; anonymous if no login fits.
    pub(crate) fn matching(&self, reference: &Reference) -> Vec<RegistryAuth> {
        let mut fitting: Vec<_> = self.entries.iter().filter(|entry| fits(&entry.pattern, reference)).collect();
        fitting.sort_by_key(|entry| std::cmp::Reverse(entry.pattern.len()));
        if fitting.is_empty() {
            return vec![RegistryAuth::Anonymous];
        }
        fitting.into_iter().map(|entry| entry.auth.clone()).collect()
    }

    /// Tells sets of logins apart without holding them.
    pub(crate) fn fingerprint(&self, reference: &Reference) -> Digest {
        let mut text = String::new();
        for auth in self.matching(reference) {
            match auth {
                RegistryAuth::Anonymous => text.push_str("-\n"),
                RegistryAuth::Basic(user, password) => text.push_str(&format!("{user:?}{password:?}\n")),
                RegistryAuth::Bearer(token) => text.push_str(&format!("{token:?}\n")),
            }
        }
        Digest::of(text.as_bytes())
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.entries.iter().map(|entry| &entry.pattern)).finish()
    }
}

impl Login {
    fn auth(self) -> Option<RegistryAuth> {
        if let Some(token) = self.registrytoken.filter(|token| !token.is_empty()) {
            return Some(RegistryAuth::Bearer(token));
        }
        if let (Some(user), Some(password)) = (self.username, self.password) {
            return Some(RegistryAuth::Basic(user, password));
        }
        let encoded = self.auth?;
        let encoded = encoded.trim();
        let bytes = STANDARD.decode(encoded).or_else(|_| STANDARD_NO_PAD.decode(encoded)).ok()?;
        let text = String::from_utf8(bytes).ok()?;
        let (user, password) = text.split_once(':')?;
        Some(RegistryAuth::Basic(user.to_owned(), password.trim_end_matches('\0').to_owned()))
    }
}

/// `https://index.docker.io/v1/` to `docker.io`, `https://r.example/v2/` to `r.example`.
fn normal(registry: &str) -> String {
    let bare = registry.trim_start_matches("https://").trim_start_matches("http://").trim_end_matches('/');
    let bare = bare.trim_end_matches("/v1").trim_end_matches("/v2");
    match bare.split_once('/') {
        Some((host, path)) if HUB_HOSTS.contains(&host) => format!("docker.io/{path}"),
        None if HUB_HOSTS.contains(&bare) => "docker.io".to_owned(),
        _ => bare.to_owned(),
    }
}

/// Whether a pattern covers the image: hosts match label by label, paths by prefix.
fn fits(pattern: &str, reference: &Reference) -> bool {
    let (host, path) = pattern.split_once('/').unwrap_or((pattern, ""));
    let split = |registry: &str| -> (Vec<String>, Option<String>) {
        let (name, port) = match registry.rsplit_once(':') {
            Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => (name, Some(port.to_owned())),
            _ => (registry, None),
        };
        (name.split('.').map(str::to_owned).collect(), port)
    };
    let ((wanted, wanted_port), (labels, port)) = (split(host), split(reference.registry()));
    let hosts = wanted.len() == labels.len() && wanted.iter().zip(&labels).all(|(p, label)| glob(p, label));
    let paths = path.is_empty()
        || reference.repository().strip_prefix(path).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    hosts && wanted_port == port && paths
}

/// `*` stands for any characters.
fn glob(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((head, tail)) => text
            .strip_prefix(head)
            .is_some_and(|rest| (0..=rest.len()).any(|at| rest.is_char_boundary(at) && glob(tail, &rest[at..]))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn users(json: &str, image: &str) -> Vec<String> {
        let mut credentials = Credentials::none();
        credentials.add_docker_config(json.as_bytes()).unwrap();
        let user = |auth| match auth {
            RegistryAuth::Basic(user, _) => user,
            other => format!("{other:?}"),
        };
        credentials.matching(&image.parse().unwrap()).into_iter().map(user).collect()
    }

    #[test]
    fn the_most_specific_login_comes_first() {
        let json = r#"{"auths":{
            "https://index.docker.io/v1/":{"auth":"aHViOnB3"},
            "*.example.com":{"username":"any","password":"p"},
            "r.example.com/team":{"username":"team","password":"p"},
            "localhost:5000":{"username":"local","password":"p:q"},
            "broken":{"auth":"%%%"}},"credsStore":"x"}"#;
        assert_eq!(users(json, "nginx"), ["hub"]);
        assert_eq!(users(json, "r.example.com/team/app"), ["team", "any"]);
        assert_eq!(users(json, "r.example.com/teamster/app"), ["any"]);
        assert_eq!(users(json, "localhost:5000/x"), ["local"]);
        assert_eq!(users(json, "localhost:5001/x"), ["Anonymous"]);
        assert_eq!(users(json, "a.b.example.com/x"), ["Anonymous"]);
    }

    #[test]
    fn secrets_are_not_shown() {
        let mut credentials = Credentials::none();
        credentials.add_basic("r.example", "user", "hunter2");
        assert!(!format!("{credentials:?}").contains("hunter2"));
    }
}

//! Image names as Docker reads them: `[registry/]repository[:tag][@digest]`.

use std::fmt;
use std::str::FromStr;

use crate::digest::Digest;

const DEFAULT_REGISTRY: &str = "docker.io";
const DEFAULT_TAG: &str = "latest";
const NAME_MAX: usize = 255;
const TAG_MAX: usize = 128;

/// A normalised image reference: it always names a registry, and a tag or a digest.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// Why a text is not an image reference.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid image name {text:?}: {reason}")]
pub struct ParseReferenceError {
    text: String,
    reason: &'static str,
}

impl Reference {
    /// `docker.io`, `registry.example.com`, `localhost:5000`.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// `library/nginx`.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag, if the name has one. A name without tag and digest gets `latest`.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest, if the name has one. It decides over the tag.
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// The same repository at a digest.
    pub fn at(&self, digest: Digest) -> Self {
        Self { registry: self.registry.clone(), repository: self.repository.clone(), tag: None, digest: Some(digest) }
    }

    /// `registry/repository`, which is what credentials are matched against.
    pub fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }

    /// The name under which the index files the image: digests make tags irrelevant.
    pub(crate) fn key(&self) -> String {
        match &self.digest {
            Some(digest) => format!("{}@{digest}", self.name()),
            None => self.to_string(),
        }
    }

    /// As people write it: without `docker.io/` and `library/`.
    pub fn familiar(&self) -> String {
        let full = self.to_string();
        let short = full.strip_prefix("docker.io/").unwrap_or(&full);
        short.strip_prefix("library/").unwrap_or(short).to_owned()
    }

    /// Whether the registry is on this machine, where plain HTTP is harmless.
    pub fn is_loopback(&self) -> bool {
        let host = host_of(&self.registry);
        host == "localhost"
            || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
            || host.ends_with(".localhost")
    }
}

/// The host of `host[:port]` or `[v6]:port`.
fn host_of(registry: &str) -> &str {
    match registry.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or(rest),
        None => registry.split(':').next().unwrap_or(registry),
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

impl FromStr for Reference {
    type Err = ParseReferenceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse(text).map_err(|reason| ParseReferenceError { text: text.chars().take(300).collect(), reason })
    }
}

fn parse(text: &str) -> Result<Reference, &'static str> {
    if text.is_empty() {
        return Err("it is empty");
    }
    let (rest, digest) = match text.split_once('@') {
        Some((rest, digest)) => {
            (rest, Some(digest.parse::<Digest>().map_err(|_| "after @ comes a digest, sha256: and 64 hex digits")?))
        }
        None => (text, None),
    };
    // A colon before the last slash belongs to the registry's port.
    let name_end = rest.rfind('/').map_or(0, |slash| slash + 1);
    let (name, tag) = match rest[name_end..].find(':') {
        Some(colon) => (&rest[..name_end + colon], Some(&rest[name_end + colon + 1..])),
        None => (rest, None),
    };
    if let Some(tag) = tag {
        check_tag(tag)?;
    }
    let (registry, repository) = split_registry(name);
    check_registry(registry)?;
    check_repository(&repository)?;
    if registry.len() + 1 + repository.len() > NAME_MAX {
        return Err("it is longer than 255 characters");
    }
    let tag = match (tag, &digest) {
        (Some(tag), _) => Some(tag.to_owned()),
        (None, Some(_)) => None,
        (None, None) => Some(DEFAULT_TAG.to_owned()),
    };
    Ok(Reference { registry: registry.to_owned(), repository, tag, digest })
}

/// The first part is a registry only if it looks like a host: it has a dot or a port, is `localhost` or has capitals.
fn split_registry(name: &str) -> (&str, String) {
    let (registry, repository) = match name.split_once('/') {
        Some((first, rest))
            if first.contains(['.', ':']) || first == "localhost" || first.chars().any(|c| c.is_ascii_uppercase()) =>
        {
            (if first == "index.docker.io" { DEFAULT_REGISTRY } else { first }, rest)
        }
        _ => (DEFAULT_REGISTRY, name),
    };
    if registry == DEFAULT_REGISTRY && !repository.contains('/') {
        return (registry, format!("library/{repository}"));
    }
    (registry, repository.to_owned())
}

fn check_registry(registry: &str) -> Result<(), &'static str> {
    const BAD: &str = "the part before the first slash is not a registry (host[:port])";
    let (host, port) = match registry.strip_prefix('[') {
        Some(rest) => {
            let (address, after) = rest.split_once(']').ok_or(BAD)?;
            address.parse::<std::net::Ipv6Addr>().map_err(|_| BAD)?;
            match after {
                "" => return Ok(()),
                _ => (None, Some(after.strip_prefix(':').ok_or(BAD)?)),
            }
        }
        None => match registry.split_once(':') {
            Some((host, port)) => (Some(host), Some(port)),
            None => (Some(registry), None),
        },
    };
    if port.is_some_and(|port| port.parse::<u16>().is_err() || !port.bytes().all(|b| b.is_ascii_digit())) {
        return Err("the registry's port is not a number up to 65535");
    }
    let label = |label: &str| {
        !label.is_empty()
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    match host {
        Some(host) if !host.split('.').all(label) => Err(BAD),
        _ => Ok(()),
    }
}

fn check_repository(repository: &str) -> Result<(), &'static str> {
    if repository.bytes().any(|b| b.is_ascii_uppercase()) {
        return Err("the repository must be in lower case");
    }
    if repository.split('/').all(is_path_component) {
        Ok(())
    } else {
        Err("each part of the repository is lower case letters and digits, joined by '.', '_', '__' or dashes")
    }
}

/// `[a-z0-9]+(([.]|_|__|-+)[a-z0-9]+)*`
fn is_path_component(part: &str) -> bool {
    let mut rest = part;
    loop {
        let word = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit()).len();
        if word == 0 {
            return false;
        }
        rest = &rest[word..];
        if rest.is_empty() {
            return true;
        }
        let separator = match rest.as_bytes() {
            [b'_', b'_', ..] => 2,
            [b'_' | b'.', ..] => 1,
            [b'-', ..] => rest.len() - rest.trim_start_matches('-').len(),
            _ => return false,
        };
        rest = &rest[separator..];
    }
}

fn check_tag(tag: &str) -> Result<(), &'static str> {
    let first = tag.bytes().next().ok_or("the tag after ':' is empty")?;
    if tag.len() > TAG_MAX {
        return Err("the tag is longer than 128 characters");
    }
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    if word(first) && tag.bytes().all(|b| word(b) || b == b'.' || b == b'-') {
        Ok(())
    } else {
        Err("a tag is letters, digits, '_', '.' and '-', and begins with none of the last two")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn full(text: &str) -> String {
        text.parse::<Reference>().unwrap().to_string()
    }

    #[test]
    fn names_are_completed_as_docker_does() {
        let digest = format!("sha256:{}", "a".repeat(64));
        for (given, expected) in [
            ("nginx", "docker.io/library/nginx:latest"),
            ("symphainy-platform:latest", "docker.io/library/symphainy-platform:latest"),
            ("library/nginx:1.2", "docker.io/library/nginx:1.2"),
            ("team/app", "docker.io/team/app:latest"),
            ("index.docker.io/nginx", "docker.io/library/nginx:latest"),
            ("localhost/x", "localhost/x:latest"),
            ("localhost:5000/x", "localhost:5000/x:latest"),
            ("127.0.0.1:5000/a/b__c--d:v1", "127.0.0.1:5000/a/b__c--d:v1"),
            ("[::1]:5000/x", "[::1]:5000/x:latest"),
            ("ghcr.io/a/b/c:T_1.x-y", "ghcr.io/a/b/c:T_1.x-y"),
            ("x:5000", "docker.io/library/x:5000"),
        ] {
            assert_eq!(full(given), expected);
        }
        assert_eq!(full(&format!("nginx@{digest}")), format!("docker.io/library/nginx@{digest}"));
        assert_eq!(full(&format!("nginx:1@{digest}")), format!("docker.io/library/nginx:1@{digest}"));
    }

    #[test]
    fn what_is_not_a_name_is_refused() {
        for bad in [
            "",
            ":",
            "nginx:",
            "Nginx",
            "a//b",
            "/a",
            "a/",
            "a..b",
            "-a",
            "a-",
            "a___b",
            "localhost:99999/x",
            "x:-t",
            "a@sha256:12",
            "a b",
            "ex_ample.com/x",
            "[::1/x",
            "x:a:b",
            "é",
        ] {
            assert!(bad.parse::<Reference>().is_err(), "{bad:?} was taken");
        }
        assert!(format!("a{}", "/a".repeat(200)).parse::<Reference>().is_err());
    }

    #[test]
    fn loopback_registries_are_known() {
        for (name, expected) in
            [("localhost:5000/x", true), ("127.3.2.1/x", true), ("[::1]:1/x", true), ("nginx", false)]
        {
            assert_eq!(name.parse::<Reference>().unwrap().is_loopback(), expected, "{name}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_parsed_or_refused_without_panic(text in "\\PC{0,80}") {
            let _ = text.parse::<Reference>();
        }

        #[test]
        fn the_full_and_the_familiar_form_parse_to_the_same(
            registry in proptest::option::of("[a-z]{1,8}\\.(com|io)(:[1-9][0-9]{0,3})?|localhost(:[1-9][0-9]{0,3})?"),
            path in proptest::collection::vec("[a-z0-9]{1,6}([._]|__|-{1,3})[a-z0-9]{1,6}|[a-z0-9]{1,8}", 1..4),
            tag in proptest::option::of("[A-Za-z0-9_][A-Za-z0-9_.-]{0,20}"),
            digest in proptest::option::of("sha256:[0-9a-f]{64}"),
        ) {
            let mut text = registry.map(|registry| registry + "/").unwrap_or_default() + &path.join("/");
            if let Some(tag) = tag { text = text + ":" + &tag; }
            if let Some(digest) = digest { text = text + "@" + &digest; }
            let parsed: Reference = text.parse().unwrap();
            prop_assert_eq!(&parsed.to_string().parse::<Reference>().unwrap(), &parsed);
            prop_assert_eq!(&parsed.familiar().parse::<Reference>().unwrap(), &parsed);
            prop_assert!(parsed.tag().is_some() || parsed.digest().is_some());
        }
    }
}

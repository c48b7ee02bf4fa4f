//! Manifests and configurations, of OCI and of Docker (which differ in media types only).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::error::{Error, Result};

pub(crate) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub(crate) const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
pub(crate) const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub(crate) const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";

/// Manifests and configurations are small; anything larger is refused before it is read.
pub(crate) const DOCUMENT_BYTES_MAX: u64 = 8 << 20;
/// overlayfs takes at most 500 lower directories; Docker stops at 127 layers.
pub(crate) const LAYERS_MAX: usize = 400;

/// What an image says about how to run it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct ImageConfig {
    /// `user`, `uid`, `user:group` or `uid:gid`; empty means root.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "String::is_empty")]
    pub user: String,
    /// `NAME=value`.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<String>,
    /// The program and its fixed arguments.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "Vec::is_empty")]
    pub entrypoint: Vec<String>,
    /// Default arguments, or the program when there is no entry point.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "Vec::is_empty")]
    pub cmd: Vec<String>,
    /// Where the program starts; empty means `/`.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "String::is_empty")]
    pub working_dir: String,
    /// `8000/tcp` and the like, to an empty object each.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub exposed_ports: BTreeMap<String, Empty>,
    /// Paths the image wants as volumes.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub volumes: BTreeMap<String, Empty>,
    /// Labels.
    #[serde(deserialize_with = "null_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// The signal that asks the program to stop, by name or number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_signal: Option<String>,
}

/// The empty object of `ExposedPorts` and `Volumes`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Empty {}

/// Some builders write `null` where a list or text belongs.
fn null_default<'de, D: serde::Deserializer<'de>, T: Default + Deserialize<'de>>(
    deserializer: D,
) -> std::result::Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// The configuration document as far as it matters here.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ConfigDocument {
    #[serde(default, deserialize_with = "null_default")]
    pub architecture: String,
    #[serde(default, deserialize_with = "null_default")]
    pub os: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    #[serde(default, deserialize_with = "null_default")]
    pub config: ImageConfig,
    pub rootfs: RootFs,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct RootFs {
    #[serde(rename = "type")]
    pub kind: String,
    pub diff_ids: Vec<Digest>,
}

impl ConfigDocument {
    /// A configuration for this machine's platform around `diff_ids`.
    pub(crate) fn new(config: ImageConfig, diff_ids: Vec<Digest>, created: Option<String>) -> Self {
        Self {
            architecture: architecture().to_owned(),
            os: "linux".to_owned(),
            created,
            config,
            rootfs: RootFs { kind: "layers".to_owned(), diff_ids },
        }
    }

    /// Reads a configuration and refuses one that cannot run here.
    pub(crate) fn parse(bytes: &[u8], what: &str) -> Result<Self> {
        let document: Self = parse(bytes, what, "configuration")?;
        let reason = if !(document.os.is_empty() || document.os == "linux") {
            format!("it is made for {}, and only linux images run here", document.os)
        } else if !(document.architecture.is_empty() || document.architecture == architecture()) {
            format!("it is made for {}, and this machine is {}", document.architecture, architecture())
        } else if document.rootfs.diff_ids.len() > LAYERS_MAX {
            format!("it has {} layers, more than {LAYERS_MAX}", document.rootfs.diff_ids.len())
        } else {
            return Ok(document);
        };
        Err(Error::Document { what: what.to_owned(), reason })
    }
}

/// This machine's architecture, as images name it.
pub(crate) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// Points at content.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Descriptor {
    #[serde(default)]
    pub media_type: String,
    pub digest: Digest,
    #[serde(default)]
    pub size: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub urls: Option<Vec<String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    #[serde(default, deserialize_with = "null_default", skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Platform {
    #[serde(default)]
    pub architecture: String,
    #[serde(default)]
    pub os: String,
}

/// An image manifest.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Manifest {
    pub schema_version: u32,
    #[serde(default)]
    pub media_type: String,
    pub config: Descriptor,
    pub layers: Vec<Descriptor>,
}

impl Manifest {
    /// A manifest of `layers` around the configuration `config`.
    pub(crate) fn new(config: &[u8], layers: Vec<Descriptor>) -> Self {
        Self {
            schema_version: 2,
            media_type: OCI_MANIFEST.to_owned(),
            config: Descriptor::new(OCI_CONFIG, Digest::of(config), config.len() as u64),
            layers,
        }
    }
}

impl Descriptor {
    pub(crate) fn new(media_type: &str, digest: Digest, size: u64) -> Self {
        let media_type = media_type.to_owned();
        Self { media_type, digest, size, urls: None, platform: None, annotations: BTreeMap::new() }
    }
}

/// What a tag may point at.
pub(crate) enum Document {
    /// One image.
    Manifest(Box<Manifest>),
    /// The same image for several platforms, or several images.
    Index(Vec<Descriptor>),
}

impl Document {
    /// Tells a manifest from an index by its content: the media type may be missing in OCI documents.
    pub(crate) fn parse(bytes: &[u8], what: &str) -> Result<Self> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Probe {
            #[serde(default)]
            schema_version: u32,
            manifests: Option<Vec<Descriptor>>,
        }
        let probe: Probe = parse(bytes, what, "manifest")?;
        if probe.schema_version != 2 {
            let reason =
                format!("its manifest has schema version {}, and only 2 is in use today", probe.schema_version);
            return Err(Error::Document { what: what.to_owned(), reason });
        }
        Ok(match probe.manifests {
            Some(manifests) => Self::Index(manifests),
            None => Self::Manifest(Box::new(parse(bytes, what, "manifest")?)),
        })
    }
}

/// The entry of an index that runs on this machine; one without a platform is taken as a last resort.
pub(crate) fn select_platform(manifests: &[Descriptor]) -> Option<&Descriptor> {
    let fits = |descriptor: &&Descriptor| {
        descriptor.platform.as_ref().is_some_and(|p| p.os == "linux" && p.architecture == architecture())
    };
    let unnamed = |descriptor: &&Descriptor| descriptor.platform.as_ref().is_none_or(|p| p.os.is_empty());
    manifests.iter().find(fits).or_else(|| manifests.iter().find(unnamed))
}

/// The platforms an index offers, for messages.
pub(crate) fn platforms(manifests: &[Descriptor]) -> String {
    let names: Vec<_> =
        manifests.iter().filter_map(|m| m.platform.as_ref()).map(|p| format!("{}/{}", p.os, p.architecture)).collect();
    names.join(", ")
}

fn parse<'a, T: Deserialize<'a>>(bytes: &'a [u8], what: &str, part: &str) -> Result<T> {
    serde_json::from_slice(bytes)
        .map_err(|error| Error::Document { what: what.to_owned(), reason: format!("its {part} is not valid: {error}") })
}

/// The identity of a stack of layers: equal stacks unpack to equal directories, so they are shared.
/// `chain(1) = diff(1)`, `chain(n) = sha256(chain(n-1) + " " + diff(n))`.
pub(crate) fn chain_ids(diff_ids: &[Digest]) -> Vec<Digest> {
    let mut chain: Vec<Digest> = Vec::with_capacity(diff_ids.len());
    for diff in diff_ids {
        let next = match chain.last() {
            Some(parent) => Digest::of(format!("{parent} {diff}").as_bytes()),
            None => diff.clone(),
        };
        chain.push(next);
    }
    chain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nulls_of_older_builders_are_taken() {
        let zero = "0".repeat(64);
        let text = format!(
            r#"{{"architecture":"amd64","os":"linux","config":{{"Env":null,"Cmd":["a"],"Volumes":null,"ExposedPorts":{{"80/tcp":{{}}}},"Healthcheck":{{}}}},
                "rootfs":{{"type":"layers","diff_ids":["sha256:{zero}"]}},"history":[]}}"#
        );
        let document = ConfigDocument::parse(text.as_bytes(), "x").unwrap();
        assert_eq!(document.config.cmd, ["a"]);
        assert!(document.config.exposed_ports.contains_key("80/tcp"));
        let foreign = text.replace("amd64", "s390x");
        assert!(ConfigDocument::parse(foreign.as_bytes(), "x").unwrap_err().to_string().contains("s390x"));
    }

    #[test]
    fn the_platform_of_this_machine_is_selected() {
        let entry = |architecture: &str| Descriptor {
            platform: Some(Platform { architecture: architecture.to_owned(), os: "linux".to_owned() }),
            ..Descriptor::new(OCI_MANIFEST, Digest::of(architecture.as_bytes()), 1)
        };
        let manifests = [entry("s390x"), entry(architecture()), entry("riscv64")];
        assert_eq!(select_platform(&manifests).unwrap().digest, manifests[1].digest);
        assert!(select_platform(&manifests[..1]).is_none());
        assert_eq!(platforms(&manifests[..1]), "linux/s390x");
    }
}

//! One registry: connecting to it, asking it for documents, and saying what is wrong when it does not answer.

use std::fs;
use std::path::Path;
use std::time::Duration;

use futures::StreamExt;
use oci_client::client::{BlobResponse, Certificate, CertificateEncoding, ClientConfig, ClientProtocol, SizedStream};
use oci_client::errors::{OciDistributionError as OciError, OciErrorCode};
use oci_client::manifest::OciDescriptor;
use oci_client::secrets::RegistryAuth;
use oci_client::{Client, RegistryOperation};

use crate::config::{DOCKER_LIST, DOCKER_MANIFEST, DOCUMENT_BYTES_MAX, Descriptor, OCI_INDEX, OCI_MANIFEST};
use crate::digest::Digest;
use crate::pull::{PullError, PullErrorKind, PullOptions};
use crate::reference::Reference;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
const READ_TIMEOUT: Duration = Duration::from_secs(60);
/// Where Docker and Podman look for the certificate authority of a registry: `<folder>/<registry>/*.crt`.
const CERTIFICATE_DIRS: [&str; 2] = ["/etc/docker/certs.d", "/etc/containers/certs.d"];

/// What the TLS library says when the machine has no certificate authorities at all.
const NO_AUTHORITIES: &str = "No CA certificates were loaded";

/// A registry that answered, for one repository and one login.
pub(crate) struct Registry {
    client: Client,
    auth: RegistryAuth,
    reference: Reference,
}

impl Registry {
    /// Connects and logs in. Registries on this machine may speak plain HTTP.
    pub(crate) async fn connect(
        reference: &Reference,
        auth: RegistryAuth,
        options: &PullOptions,
    ) -> Result<Self, PullError> {
        let registry = reference.registry();
        let mut certificates = certificates_of(registry);
        certificates.extend(options.certificates.iter().cloned());
        let mut protocol = ClientProtocol::Https;
        loop {
            let plain = protocol == ClientProtocol::Http;
            let error = match log_in(reference, &auth, protocol, &certificates).await {
                Ok(client) => return Ok(Self { client, auth, reference: reference.clone() }),
                Err(error) => error,
            };
            if plain || !reference.is_loopback() || classify(&error).0 != PullErrorKind::Unreachable {
                return Err(explain(reference, &error));
            }
            protocol = ClientProtocol::Http;
        }
    }

    /// A manifest or index, by the name's tag or digest, and its digest.
    pub(crate) async fn manifest(&self, reference: &Reference) -> Result<(Vec<u8>, Digest), PullError> {
        let accepted = [OCI_MANIFEST, OCI_INDEX, DOCKER_MANIFEST, DOCKER_LIST];
        let answer = self.client.pull_manifest_raw(&oci(reference), &self.auth, &accepted).await;
        let (bytes, _) = answer.map_err(|error| explain(reference, &error))?;
        // The digest is computed here, whatever the registry says it is.
        let digest = Digest::of(&bytes);
        match reference.digest() {
            Some(expected) if *expected != digest => Err(self.corrupt("manifest", expected, &digest)),
            _ => Ok((bytes.to_vec(), digest)),
        }
    }

    /// A small blob, held to its digest.
    pub(crate) async fn document(&self, descriptor: &Descriptor) -> Result<Vec<u8>, PullError> {
        if descriptor.size > DOCUMENT_BYTES_MAX {
            let message = format!("its configuration has {} bytes, more than any should", descriptor.size);
            return Err(PullError::new(PullErrorKind::Invalid, &self.reference, &message));
        }
        let (mut stream, _) = self.blob(descriptor, 0).await?;
        let mut bytes = Vec::new();
        while let Some(chunk) = stream.stream.next().await {
            bytes.extend_from_slice(&chunk.map_err(|error| self.interrupted(&error))?);
            if bytes.len() as u64 > DOCUMENT_BYTES_MAX {
                return Err(PullError::new(PullErrorKind::Invalid, &self.reference, "its configuration is too large"));
            }
        }
        let found = Digest::of(&bytes);
        if found != descriptor.digest {
            return Err(self.corrupt("configuration", &descriptor.digest, &found));
        }
        Ok(bytes)
    }

    /// The bytes of a blob from `offset` on; the flag says whether the registry kept to the offset or began anew.
    pub(crate) async fn blob(&self, descriptor: &Descriptor, offset: u64) -> Result<(SizedStream, bool), PullError> {
        let layer = OciDescriptor {
            media_type: descriptor.media_type.clone(),
            digest: descriptor.digest.to_string(),
            size: i64::try_from(descriptor.size).unwrap_or(i64::MAX),
            urls: descriptor.urls.clone(),
            ..OciDescriptor::default()
        };
        let image = oci(&self.reference);
        match self.client.pull_blob_stream_partial(&image, &layer, offset, None).await {
            Ok(BlobResponse::Partial(stream)) => Ok((stream, true)),
            Ok(BlobResponse::Full(stream)) => Ok((stream, offset == 0)),
            Err(error) => {
                let mut error = explain(&self.reference, &error);
                if error.kind == PullErrorKind::NotFound {
                    error = PullError::new(
                        PullErrorKind::Registry,
                        &self.reference,
                        &format!(
                            "the registry lists {} as part of it and does not have it; push the image again",
                            descriptor.digest
                        ),
                    );
                }
                Err(error)
            }
        }
    }

    pub(crate) fn corrupt(&self, what: &str, expected: &Digest, found: &Digest) -> PullError {
        let message = format!(
            "the registry sent a {what} that is corrupt (expected {expected}, found {found}); nothing of it was kept. \
             If it happens again, push the image anew"
        );
        PullError::new(PullErrorKind::Corrupt, &self.reference, &message)
    }

    pub(crate) fn interrupted(&self, error: &(dyn std::error::Error + 'static)) -> PullError {
        let message = format!("the connection to {} broke: {}", self.reference.registry(), innermost(error));
        PullError::new(PullErrorKind::Unreachable, &self.reference, &message)
    }
}

/// The name in the form the protocol library has.
fn oci(reference: &Reference) -> oci_client::Reference {
    let (registry, repository) = (reference.registry().to_owned(), reference.repository().to_owned());
    match (reference.digest(), reference.tag()) {
        (Some(digest), _) => oci_client::Reference::with_digest(registry, repository, digest.to_string()),
        (None, tag) => oci_client::Reference::with_tag(registry, repository, tag.unwrap_or("latest").to_owned()),
    }
}

async fn log_in(
    reference: &Reference,
    auth: &RegistryAuth,
    protocol: ClientProtocol,
    certificates: &[Vec<u8>],
) -> Result<Client, OciError> {
    let client = client(protocol, certificates)?;
    client.auth(&oci(reference), auth, RegistryOperation::Pull).await?;
    Ok(client)
}

fn client(protocol: ClientProtocol, certificates: &[Vec<u8>]) -> Result<Client, OciError> {
    // The HTTP library wants to find one; the binary has set its own before.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let certificate = |data: &Vec<u8>| Certificate { encoding: CertificateEncoding::Pem, data: data.clone() };
    if !certificates.is_empty() {
        // On a machine without certificate authorities the library gives an error, but panics if it has extra ones.
        Client::try_from(ClientConfig::default())?;
    }
    Client::try_from(ClientConfig {
        protocol,
        extra_root_certificates: certificates.iter().map(certificate).collect(),
        connect_timeout: Some(CONNECT_TIMEOUT),
        read_timeout: Some(READ_TIMEOUT),
        user_agent: concat!("mycelium/", env!("CARGO_PKG_VERSION")),
        ..ClientConfig::default()
    })
}

/// Certificate authorities that the machine's owner put down for this registry.
fn certificates_of(registry: &str) -> Vec<Vec<u8>> {
    let folders = CERTIFICATE_DIRS.iter().map(|folder| Path::new(folder).join(registry));
    let files = folders.filter_map(|folder| fs::read_dir(folder).ok()).flat_map(|entries| entries.flatten());
    files
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "crt"))
        .filter_map(|path| fs::read(path).ok())
        .collect()
}

/// Says what happened, where, and what to do about it.
fn explain(reference: &Reference, error: &OciError) -> PullError {
    use PullErrorKind as Kind;
    let registry = reference.registry();
    let (kind, reason) = classify(error);
    let message = match kind {
        Kind::NotFound => format!(
            "registry {registry} does not have it ({reason}). Check the name and the tag; an image that is on this machine \
             can be brought in with `mycelium image load` or `mycelium image import`"
        ),
        Kind::Unauthorized => format!(
            "registry {registry} refuses access ({reason}). Check the name, and give a login for {registry}: as \
             imagePullSecrets of the pod, or for this machine in ~/.docker/config.json (`docker login {registry}`). \
             Some registries answer so for names that do not exist"
        ),
        Kind::Untrusted => format!(
            "the certificate of registry {registry} is not trusted ({reason}). Put the certificate of its authority into \
             {}/{registry}/ca.crt",
            CERTIFICATE_DIRS[0]
        ),
        Kind::Unreachable => format!(
            "registry {registry} cannot be reached ({reason}). Check the name and the network; an image that is on this \
             machine can be brought in with `mycelium image load` or `mycelium image import`"
        ),
        _ => format!("registry {registry} answered something unexpected ({reason})"),
    };
    PullError::new(kind, reference, &message)
}

fn classify(error: &OciError) -> (PullErrorKind, String) {
    use PullErrorKind as Kind;
    match error {
        OciError::RegistryError { envelope, .. } => {
            let reason = envelope.errors.first().map(|e| e.message.clone()).unwrap_or_default();
            let code = |wanted: &[OciErrorCode]| envelope.errors.iter().any(|e| wanted.contains(&e.code));
            use OciErrorCode as Code;
            let missing = [
                Code::ManifestUnknown,
                Code::NameUnknown,
                Code::NotFound,
                Code::BlobUnknown,
                Code::ManifestBlobUnknown,
            ];
            let kind = match () {
                () if code(&missing) => Kind::NotFound,
                () if code(&[Code::Unauthorized, Code::Denied]) => Kind::Unauthorized,
                () if code(&[Code::Toomanyrequests]) => Kind::Unreachable,
                () => Kind::Registry,
            };
            (kind, reason)
        }
        OciError::UnauthorizedError { .. } => (Kind::Unauthorized, "authentication required".to_owned()),
        OciError::AuthenticationFailure(reason) => (Kind::Unauthorized, first_line(reason)),
        OciError::ServerError { code: 401 | 403, message, .. } => (Kind::Unauthorized, first_line(message)),
        OciError::ServerError { code: 404, message, .. } => (Kind::NotFound, first_line(message)),
        OciError::ServerError { code, message, .. } if *code == 429 || *code >= 500 => {
            (Kind::Unreachable, format!("it answered {code} {}", first_line(message)))
        }
        OciError::ImageManifestNotFoundError(reason) => (Kind::NotFound, reason.clone()),
        OciError::DigestError(reason) => (Kind::Corrupt, reason.to_string()),
        OciError::RequestError(error) => {
            let reason = innermost(error);
            if reason.contains(NO_AUTHORITIES) {
                return (
                    Kind::Unreachable,
                    "this machine has no certificate authorities: install ca-certificates".to_owned(),
                );
            }
            let trust = reason.contains("certificate") || reason.contains("UnknownIssuer");
            (if trust { Kind::Untrusted } else { Kind::Unreachable }, reason)
        }
        other => (Kind::Registry, other.to_string()),
    }
}

/// The first cause of an error: the layers above it say that a request failed, which is known.
fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().chars().take(200).collect()
}

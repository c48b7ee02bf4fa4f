//! Who may talk to whom.
//!
//! A *group* is a certificate authority in one PEM file, copied to every member's host. Each process issues itself a
//! leaf certificate at start, with a key that never leaves its memory; its peer's name stands in it. Both sides verify
//! the other's certificate against the group. Nothing is ever renewed or revoked: a leaf lives as long as its process,
//! and who must go is left behind by making a new group.

use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rustls::client::WebPkiServerVerifier;
use rustls::crypto::{CryptoProvider, ring};
use rustls::server::WebPkiClientVerifier;
use rustls::version::TLS13;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::Error;

/// The name that every leaf carries and every dialler expects; whom it really talks to, the certificate's CN says.
const MEMBER: &str = "member.rhizomorph.internal";

/// A group of peers that trust each other: a CA certificate and its key.
pub struct Group {
    certificate: CertificateDer<'static>,
    name: String,
    key: KeyPair,
    pem: String,
}

impl Group {
    /// Makes a new group.
    pub fn create() -> Result<Self, Error> {
        let key = KeyPair::generate()?;
        let mut id = [0; 8];
        fill_random(&mut id)?;
        let name = format!("mycelium group {:016x}", u64::from_be_bytes(id));
        let certificate = authority(&name).self_signed(&key)?;
        let pem = format!("{}{}", certificate.pem(), key.serialize_pem());
        Ok(Self { certificate: certificate.der().clone(), name, key, pem })
    }

    /// Reads a group from what [`Group::to_pem`] gave.
    pub fn from_pem(pem: &str) -> Result<Self, Error> {
        let certificate =
            CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|_| Error::Group { what: "no certificate" })?;
        let key = PrivateKeyDer::from_pem_slice(pem.as_bytes()).map_err(|_| Error::Group { what: "no private key" })?;
        let key = KeyPair::try_from(&key).map_err(|_| Error::Group { what: "the private key is not usable" })?;
        let (_, parsed) = X509Certificate::from_der(&certificate)
            .map_err(|_| Error::Group { what: "the certificate is not readable" })?;
        if parsed.public_key().subject_public_key.data.as_ref() != key.public_key_raw() {
            return Err(Error::Group { what: "certificate and key do not belong together" });
        }
        if !parsed.is_ca() {
            return Err(Error::Group { what: "the certificate is not a CA's" });
        }
        let name = common_name(&certificate).ok_or(Error::Group { what: "the certificate has no name" })?;
        Ok(Self { name, key, pem: pem.to_owned(), certificate })
    }

    /// The certificate and the private key: whoever has it is a member. Keep it readable by its owner only.
    pub fn to_pem(&self) -> &str {
        &self.pem
    }

    /// The group's own name, which its certificate carries: the same on every member.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Issues an identity to this process.
    pub fn issue(&self, name: &str) -> Result<Identity, Error> {
        if name.is_empty() || name.len() > 64 || !name.bytes().all(|b| b.is_ascii_graphic() || b == b' ') {
            return Err(Error::Name { name: name.to_owned() });
        }
        let mut params = CertificateParams::new(vec![MEMBER.to_owned()])?;
        params.distinguished_name = distinguished(name);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate()?;
        let ca = authority(&self.name);
        let leaf = params.signed_by(&key, &Issuer::from_params(&ca, &self.key))?.der().clone();
        let private = || PrivateKeyDer::Pkcs8(key.serialize_der().into());
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.clone())?;
        let (roots, provider) = (Arc::new(roots), Arc::new(provider()));
        Ok(Identity {
            name: name.into(),
            client: client_config(&roots, &provider, leaf.clone(), private())?,
            server: server_config(&roots, &provider, leaf, private())?,
        })
    }
}

impl std::fmt::Debug for Group {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Group").field("name", &self.name).finish_non_exhaustive()
    }
}

/// What a process needs to open and accept links: its certificate, its key and whom it trusts. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Identity {
    name: Arc<str>,
    pub(crate) client: Arc<ClientConfig>,
    pub(crate) server: Arc<ServerConfig>,
}

impl Identity {
    /// Issues an identity from a group file's content; see [`Group::issue`].
    pub fn from_group_pem(pem: &str, name: &str) -> Result<Self, Error> {
        Group::from_pem(pem)?.issue(name)
    }

    /// The name under which peers know this process.
    pub fn name(&self) -> &str {
        &self.name
    }
}

fn authority(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = distinguished(name);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params
}

fn distinguished(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    distinguished.push(DnType::CommonName, name);
    distinguished
}

/// AES-128 first: it is the fastest with the instructions that servers have, and as good as the curve's 128 bits.
fn provider() -> CryptoProvider {
    let mut provider = ring::default_provider();
    provider.cipher_suites.sort_by_key(|suite| suite.suite() != rustls::CipherSuite::TLS13_AES_128_GCM_SHA256);
    provider
}

fn client_config(
    roots: &Arc<RootCertStore>,
    provider: &Arc<CryptoProvider>,
    leaf: CertificateDer<'static>,
    key: PrivateKeyDer<'static>,
) -> Result<Arc<ClientConfig>, Error> {
    let verifier = WebPkiServerVerifier::builder_with_provider(roots.clone(), provider.clone()).build()?;
    let mut config = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&TLS13])?
        .with_webpki_verifier(verifier)
        .with_client_auth_cert(vec![leaf], key)?;
    config.resumption = rustls::client::Resumption::disabled();
    config.enable_sni = false;
    Ok(Arc::new(config))
}

fn server_config(
    roots: &Arc<RootCertStore>,
    provider: &Arc<CryptoProvider>,
    leaf: CertificateDer<'static>,
    key: PrivateKeyDer<'static>,
) -> Result<Arc<ServerConfig>, Error> {
    let verifier = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone()).build()?;
    let mut config = ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(vec![leaf], key)?;
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

/// Whom a dialler expects: any member.
pub(crate) fn member() -> ServerName<'static> {
    ServerName::try_from(MEMBER).expect("a constant DNS name")
}

/// The CN of a certificate.
pub(crate) fn common_name(certificate: &CertificateDer<'_>) -> Option<String> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    parsed.subject().iter_common_name().next()?.as_str().ok().map(str::to_owned)
}

/// Random bytes of the system.
pub(crate) fn fill_random(bytes: &mut [u8]) -> Result<(), Error> {
    ring::default_provider().secure_random.fill(bytes).map_err(|_| Error::Tls(rustls::Error::FailedToGetRandomBytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_survives_its_file() {
        let group = Group::create().unwrap();
        let again = Group::from_pem(group.to_pem()).unwrap();
        assert_eq!(again.name(), group.name());
        let identity = again.issue("host-1").unwrap();
        assert_eq!(identity.name(), "host-1");
    }

    #[test]
    fn broken_group_files_and_names_are_refused() {
        let (one, other) = (Group::create().unwrap(), Group::create().unwrap());
        let certificate = one.to_pem().split_inclusive("-----END CERTIFICATE-----\n").next().unwrap();
        let key = other.to_pem().split("-----END CERTIFICATE-----").nth(1).unwrap();
        for pem in ["", "hello", certificate, key, &format!("{certificate}{key}")] {
            assert!(matches!(Group::from_pem(pem), Err(Error::Group { .. })), "{pem}");
        }
        for name in ["", "a\nb", &"x".repeat(65)] {
            assert!(matches!(one.issue(name), Err(Error::Name { .. })));
        }
    }
}

//! The cluster's keys and certificates: a CA, the serving certificate, the administrator's client
//! certificate and the key that signs service-account tokens. All are ECDSA P-256.
//!
//! Kept under one directory; private keys are readable by their owner only. The serving certificate is made anew when
//! the names it must carry change, and every leaf when it is near its end.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use mycelium_api::env::Env;
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType, SerialNumber,
};
use rustls::RootCertStore;
use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::auth::Identity;

const CA_NAME: &str = "mycelium-ca";
const CA_DAYS: i64 = 3650;
const LEAF_DAYS: i64 = 365;
const RENEW_DAYS: i64 = 30;

/// Why keys or certificates could not be loaded or made.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// A file could not be read or written.
    #[error("cannot access {}", .path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file holds something else than a key or certificate.
    #[error("{what} is not valid")]
    Malformed {
        /// Which item.
        what: String,
    },
    /// A certificate could not be made.
    #[error("cannot make a certificate")]
    Generate(#[from] rcgen::Error),
    /// The TLS library refused the material.
    #[error("cannot configure TLS")]
    Tls(#[from] rustls::Error),
    /// The client verifier refused the CA.
    #[error("cannot verify client certificates")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
}

/// A certificate with its private key, both PEM.
#[derive(Clone)]
pub struct CertKey {
    /// The certificate.
    pub cert: String,
    /// The private key, PKCS #8.
    pub key: String,
}

/// The cluster's keys and certificates.
#[derive(Clone)]
pub struct Pki {
    env: Env,
    ca_key: Arc<KeyPair>,
    ca_cert: String,
    serving: CertKey,
    admin: CertKey,
    service_account_key: Arc<KeyPair>,
}

impl Pki {
    /// Loads what `dir` holds and makes what is missing, out of date, or lacks one of `sans` (DNS names and
    /// addresses under which clients reach the server).
    pub fn load_or_create(dir: &Path, env: Env, sans: &[String]) -> Result<Self, PkiError> {
        fs::create_dir_all(dir).map_err(|source| PkiError::Io { path: dir.to_owned(), source })?;
        let ca_key = load_key(&dir.join("ca.key"))?;
        let ca_cert = match read_optional(&dir.join("ca.crt"))? {
            Some(pem) if days_left(&pem, env.now()).is_some_and(|days| days > RENEW_DAYS) => pem,
            _ => {
                let pem = self_signed_ca(&ca_key, &env)?.pem();
                write_file(&dir.join("ca.crt"), pem.as_bytes(), 0o644)?;
                pem
            }
        };
        let service_account_key = load_key(&dir.join("sa.key"))?;
        let issue = Issue { env: &env, ca_key: &ca_key, ca_cert: &ca_cert };
        let serving = issue.keep_or_make(
            dir,
            "apiserver",
            |cert| names_of(cert) == wanted_names(sans),
            |issue| issue.serving(sans),
        )?;
        let admin = issue.keep_or_make(dir, "admin", |_| true, |issue| issue.client(ADMIN, &[MASTERS.to_owned()]))?;
        Ok(Self {
            ca_key: Arc::new(ca_key),
            service_account_key: Arc::new(service_account_key),
            env,
            ca_cert,
            serving,
            admin,
        })
    }

    /// Keys that live in memory only, for tests and the simulation.
    pub fn in_memory(env: Env, sans: &[String]) -> Result<Self, PkiError> {
        let ca_key = KeyPair::generate()?;
        let ca_cert = self_signed_ca(&ca_key, &env)?.pem();
        let issue = Issue { env: &env, ca_key: &ca_key, ca_cert: &ca_cert };
        let serving = issue.serving(sans)?;
        let admin = issue.client(ADMIN, &[MASTERS.to_owned()])?;
        let service_account_key = Arc::new(KeyPair::generate()?);
        Ok(Self { ca_key: Arc::new(ca_key), service_account_key, env, ca_cert, serving, admin })
    }

    /// The CA certificate, PEM.
    pub fn ca_pem(&self) -> &str {
        &self.ca_cert
    }

    /// The administrator's certificate (`O=system:masters`).
    pub fn admin(&self) -> &CertKey {
        &self.admin
    }

    /// The key that signs service-account tokens.
    pub fn service_account_key(&self) -> &KeyPair {
        &self.service_account_key
    }

    /// A client certificate: the user is the common name, a group an organisation. At most two groups fit.
    pub fn client_cert(&self, user: &str, groups: &[String]) -> Result<CertKey, PkiError> {
        Issue { env: &self.env, ca_key: &self.ca_key, ca_cert: &self.ca_cert }.client(user, groups)
    }

    /// A kubeconfig with the CA and the administrator's certificate embedded.
    pub fn kubeconfig(&self, server: &str) -> String {
        self.kubeconfig_for(server, ADMIN, &self.admin)
    }

    /// A kubeconfig for any client certificate.
    pub fn kubeconfig_for(&self, server: &str, user: &str, credentials: &CertKey) -> String {
        use base64::Engine;
        let encode = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
        let config = serde_json::json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "mycelium", "preferences": {},
            "clusters": [{"name": "mycelium", "cluster": {"server": server,
                "certificate-authority-data": encode(&self.ca_cert)}}],
            "users": [{"name": user, "user": {"client-certificate-data": encode(&credentials.cert),
                "client-key-data": encode(&credentials.key)}}],
            "contexts": [{"name": "mycelium", "context": {"cluster": "mycelium", "user": user}}],
        });
        // JSON is YAML; every client reads it.
        format!("{config:#}\n")
    }

    /// Writes the administrator's kubeconfig, readable by its owner only.
    pub fn write_kubeconfig(&self, path: &Path, server: &str) -> Result<(), PkiError> {
        write_file(path, self.kubeconfig(server).as_bytes(), 0o600)
    }

    /// TLS for the server: our serving certificate, client certificates of our CA accepted but not required.
    pub fn server_config(&self) -> Result<rustls::ServerConfig, PkiError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut roots = RootCertStore::empty();
        roots.add(certificate(&self.ca_cert)?)?;
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
            .allow_unauthenticated()
            .build()?;
        let key = PrivateKeyDer::from_pem_slice(self.serving.key.as_bytes())
            .map_err(|_| PkiError::Malformed { what: "the serving key".into() })?;
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_client_cert_verifier(verifier)
            .with_single_cert(vec![certificate(&self.serving.cert)?], key)?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(config)
    }
}

const ADMIN: &str = "kubernetes-admin";
const MASTERS: &str = "system:masters";

/// The identity a verified client certificate stands for.
pub fn identity_of(cert: &CertificateDer<'_>) -> Option<Identity> {
    let (_, cert) = X509Certificate::from_der(cert).ok()?;
    let subject = cert.subject();
    let user = subject.iter_common_name().next()?.as_str().ok()?.to_owned();
    let groups = subject.iter_organization().filter_map(|o| o.as_str().ok()).map(str::to_owned).collect();
    Some(Identity { user, groups, ..Identity::default() })
}

struct Issue<'a> {
    env: &'a Env,
    ca_key: &'a KeyPair,
    ca_cert: &'a str,
}

impl Issue<'_> {
    fn keep_or_make(
        &self,
        dir: &Path,
        name: &str,
        fits: impl Fn(&X509Certificate<'_>) -> bool,
        make: impl Fn(&Self) -> Result<CertKey, PkiError>,
    ) -> Result<CertKey, PkiError> {
        let (cert_path, key_path) = (dir.join(format!("{name}.crt")), dir.join(format!("{name}.key")));
        if let (Some(cert), Some(key)) = (read_optional(&cert_path)?, read_optional(&key_path)?)
            && self.still_good(&cert, &key, fits)
        {
            return Ok(CertKey { cert, key });
        }
        let made = make(self)?;
        write_file(&key_path, made.key.as_bytes(), 0o600)?;
        write_file(&cert_path, made.cert.as_bytes(), 0o644)?;
        Ok(made)
    }

    /// Whether a stored certificate is ours, matches its key, is not near its end, and `fits`.
    fn still_good(&self, cert: &str, key: &str, fits: impl Fn(&X509Certificate<'_>) -> bool) -> bool {
        let (Ok(der), Ok(ca)) = (certificate(cert), certificate(self.ca_cert)) else { return false };
        let (Ok((_, parsed)), Ok((_, ca))) = (X509Certificate::from_der(&der), X509Certificate::from_der(&ca)) else {
            return false;
        };
        let key_matches = KeyPair::from_pem(key)
            .is_ok_and(|key| parsed.public_key().subject_public_key.data.as_ref() == key.public_key_raw());
        let ca_matches = ca.public_key().subject_public_key.data.as_ref() == self.ca_key.public_key_raw()
            && parsed.issuer() == ca.subject()
            && authority_key(&parsed) == subject_key(&ca);
        key_matches && ca_matches && days_left(cert, self.env.now()).is_some_and(|d| d > RENEW_DAYS) && fits(&parsed)
    }

    fn serving(&self, sans: &[String]) -> Result<CertKey, PkiError> {
        let mut params = self.leaf("mycelium-apiserver", ExtendedKeyUsagePurpose::ServerAuth);
        for san in sans {
            params.subject_alt_names.push(match san.parse() {
                Ok(address) => SanType::IpAddress(address),
                Err(_) => SanType::DnsName(san.as_str().try_into()?),
            });
        }
        self.sign(params)
    }

    fn client(&self, user: &str, groups: &[String]) -> Result<CertKey, PkiError> {
        if groups.len() > 2 {
            return Err(PkiError::Malformed { what: format!("a certificate with {} groups", groups.len()) });
        }
        let mut params = self.leaf(user, ExtendedKeyUsagePurpose::ClientAuth);
        let kinds = [DnType::OrganizationName, DnType::CustomDnType(vec![2, 5, 4, 10])];
        for (kind, group) in kinds.into_iter().zip(groups) {
            params.distinguished_name.push(kind, group.as_str());
        }
        self.sign(params)
    }

    fn leaf(&self, name: &str, usage: ExtendedKeyUsagePurpose) -> CertificateParams {
        let mut params = dated(self.env, LEAF_DAYS);
        params.distinguished_name.push(DnType::CommonName, name);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![usage];
        params.use_authority_key_identifier_extension = true;
        params
    }

    fn sign(&self, params: CertificateParams) -> Result<CertKey, PkiError> {
        let key = KeyPair::generate()?;
        let ca = ca_params(self.env);
        let cert = params.signed_by(&key, &Issuer::from_params(&ca, self.ca_key))?;
        Ok(CertKey { cert: cert.pem(), key: key.serialize_pem() })
    }
}

fn ca_params(env: &Env) -> CertificateParams {
    let mut params = dated(env, CA_DAYS);
    params.distinguished_name.push(DnType::CommonName, CA_NAME);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
    params
}

fn self_signed_ca(key: &KeyPair, env: &Env) -> Result<Certificate, PkiError> {
    Ok(ca_params(env).self_signed(key)?)
}

/// Parameters valid from yesterday, so that a clock set back a little does no harm.
fn dated(env: &Env, days: i64) -> CertificateParams {
    let mut params = CertificateParams::default();
    let day = |offset: i64| {
        let at = env.now().saturating_add(SignedDuration::from_hours(24 * offset)).unwrap_or(Timestamp::MAX);
        let date = TimeZone::UTC.to_datetime(at).date();
        rcgen::date_time_ymd(date.year().into(), date.month().unsigned_abs(), date.day().unsigned_abs())
    };
    params.not_before = day(-1);
    params.not_after = day(days);
    params.distinguished_name = DistinguishedName::new();
    let mut serial = env.random().to_be_bytes();
    serial[0] &= 0x7f;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params
}

fn certificate(pem: &str) -> Result<CertificateDer<'static>, PkiError> {
    CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|_| PkiError::Malformed { what: "a certificate".into() })
}

fn days_left(pem: &str, now: Timestamp) -> Option<i64> {
    let der = certificate(pem).ok()?;
    let (_, cert) = X509Certificate::from_der(&der).ok()?;
    Some((cert.validity().not_after.timestamp() - now.as_second()) / 86_400)
}

fn subject_key(cert: &X509Certificate<'_>) -> Option<Vec<u8>> {
    use x509_parser::extensions::ParsedExtension;
    cert.extensions().iter().find_map(|extension| match extension.parsed_extension() {
        ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0.to_vec()),
        _ => None,
    })
}

fn authority_key(cert: &X509Certificate<'_>) -> Option<Vec<u8>> {
    use x509_parser::extensions::ParsedExtension;
    cert.extensions().iter().find_map(|extension| match extension.parsed_extension() {
        ParsedExtension::AuthorityKeyIdentifier(id) => id.key_identifier.as_ref().map(|id| id.0.to_vec()),
        _ => None,
    })
}

fn wanted_names(sans: &[String]) -> Vec<String> {
    let mut names: Vec<String> = sans.to_vec();
    names.sort();
    names.dedup();
    names
}

fn names_of(cert: &X509Certificate<'_>) -> Vec<String> {
    let Ok(Some(extension)) = cert.subject_alternative_name() else { return Vec::new() };
    let names = extension.value.general_names.iter().filter_map(|name| match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(bytes) => match bytes.len() {
            4 => <[u8; 4]>::try_from(*bytes).ok().map(|b| std::net::IpAddr::from(b).to_string()),
            _ => <[u8; 16]>::try_from(*bytes).ok().map(|b| std::net::IpAddr::from(b).to_string()),
        },
        _ => None,
    });
    wanted_names(&names.collect::<Vec<_>>())
}

fn load_key(path: &Path) -> Result<KeyPair, PkiError> {
    if let Some(pem) = read_optional(path)? {
        return KeyPair::from_pem(&pem).map_err(|_| PkiError::Malformed { what: path.display().to_string() });
    }
    let key = KeyPair::generate()?;
    write_file(path, key.serialize_pem().as_bytes(), 0o600)?;
    Ok(key)
}

fn read_optional(path: &Path) -> Result<Option<String>, PkiError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(PkiError::Io { path: path.to_owned(), source }),
    }
}

/// Replaces a file in one step: a crash leaves the old or the new one.
fn write_file(path: &Path, bytes: &[u8], mode: u32) -> Result<(), PkiError> {
    let temporary = path.with_extension("new");
    let write = || -> io::Result<()> {
        match fs::remove_file(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    };
    write().map_err(|source| PkiError::Io { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    fn env(at: &str) -> Env {
        let now: Timestamp = at.parse().expect("a timestamp");
        let next = AtomicU64::new(1);
        Env::new(move || now, move || next.fetch_add(1, Ordering::Relaxed).wrapping_mul(0x9E37_79B9_7F4A_7C15))
    }

    #[test]
    fn files_are_kept_until_names_or_time_change() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let sans = ["127.0.0.1".to_owned(), "localhost".to_owned()];
        let first = Pki::load_or_create(dir.path(), env("2026-01-01T00:00:00Z"), &sans).expect("creates");
        let again = Pki::load_or_create(dir.path(), env("2026-02-01T00:00:00Z"), &sans).expect("loads");
        assert_eq!(first.serving.cert, again.serving.cert);
        assert_eq!(first.admin.cert, again.admin.cert);
        let other = Pki::load_or_create(dir.path(), env("2026-02-01T00:00:00Z"), &sans[..1]).expect("loads");
        assert_ne!(first.serving.cert, other.serving.cert);
        let later = Pki::load_or_create(dir.path(), env("2027-01-10T00:00:00Z"), &sans[..1]).expect("loads");
        assert_ne!(other.serving.cert, later.serving.cert);
        assert_ne!(first.admin.cert, later.admin.cert);
        assert_eq!(first.ca_pem(), later.ca_pem());
        for key in ["ca.key", "sa.key", "admin.key", "apiserver.key"] {
            let mode = fs::metadata(dir.path().join(key)).expect("exists").permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{key}");
        }
        later.server_config().expect("serves");
    }

    #[test]
    fn certificates_name_user_and_groups() {
        let pki = Pki::in_memory(env("2026-01-01T00:00:00Z"), &[]).expect("creates");
        let made = pki.client_cert("ann", &["dev".into(), "ops".into()]).expect("issues");
        let identity = identity_of(&certificate(&made.cert).expect("PEM")).expect("has a name");
        assert_eq!(identity.user, "ann");
        assert_eq!(identity.groups, ["dev", "ops"]);
    }
}

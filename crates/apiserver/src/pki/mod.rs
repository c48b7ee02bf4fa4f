//! The cluster's keys and certificates: a CA, the serving certificate, the administrator's client
//! certificate and the key that signs service-account tokens. All are ECDSA P-256.
//!
//! ```text
//!  files ─► ca.key, ca.crt ─► apiserver.crt, admin.crt ─┬─ a handshake, or the hourly look: due? ─ no ─► as it is
//!                                 ▲                     └─ yes ─┐
//!                                 └───────── made anew ◄────────┘
//! ```
//!
//! Kept under one directory; private keys are readable by their owner only. The serving certificate is made anew when
//! the names it must carry change. Leaves are made anew at two thirds of their life, also while the server runs: the
//! next handshake shows the new one, and connections that stand do not notice. The CA's certificate, which others hold
//! copies of, changes only at a start; its key never does.

mod cert;
mod files;
mod issue;
mod leaf;
mod renewal;
pub mod request;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use mycelium_api::env::Env;
use rcgen::KeyPair;
use rustls::RootCertStore;
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::time_provider::TimeProvider;
use rustls_pki_types::UnixTime;

pub use self::cert::identity_of;
use self::issue::Authority;
use self::leaf::{Current, Leaf};

const ADMIN: &str = "kubernetes-admin";
const MASTERS: &str = "system:masters";

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
    /// A host may not have a certificate of ours.
    #[error("the host {host:?} stands for the API server or is within the cluster's own domain")]
    Reserved {
        /// The host.
        host: String,
    },
    /// A certificate could not be made.
    #[error("cannot make a certificate")]
    Generate(#[from] rcgen::Error),
    /// The TLS library refused the material.
    #[error("cannot configure TLS")]
    Tls(#[from] rustls::Error),
    /// A request is not one that may be signed.
    #[error("{why}")]
    Refused {
        /// Why not.
        why: String,
    },
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

impl std::fmt::Debug for CertKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CertKey").field("cert", &self.cert).finish_non_exhaustive()
    }
}

/// The cluster's keys and certificates. Cheap to clone; all clones renew the same certificates.
#[derive(Clone)]
pub struct Pki {
    keys: Arc<Keys>,
}

struct Keys {
    env: Env,
    ca_key: KeyPair,
    ca_cert: String,
    service_account_key: KeyPair,
    /// The authority by which extension servers know us, apart from that of clients.
    front_key: KeyPair,
    front_cert: String,
    /// Under which clients reach the server.
    names: Vec<String>,
    /// Where leaves are kept, if anywhere.
    dir: Option<PathBuf>,
    serving: Current,
    admin: Current,
}

/// The leaves, by the name of their files.
#[derive(Clone, Copy)]
enum Purpose {
    Serving,
    Admin,
}

impl Purpose {
    fn file(self) -> &'static str {
        match self {
            Self::Serving => "apiserver",
            Self::Admin => "admin",
        }
    }

    fn make(self, authority: &Authority<'_>, names: &[String]) -> Result<CertKey, PkiError> {
        match self {
            Self::Serving => authority.serving("mycelium-apiserver", names),
            Self::Admin => authority.client(ADMIN, &[MASTERS.to_owned()]),
        }
    }
}

impl Pki {
    /// Loads what `dir` holds and makes what is missing, due for renewal, or lacks one of `sans` (DNS names and
    /// addresses under which clients reach the server).
    pub fn load_or_create(dir: &Path, env: Env, sans: &[String]) -> Result<Self, PkiError> {
        fs::create_dir_all(dir).map_err(|source| PkiError::Io { path: dir.to_owned(), source })?;
        let ca_key = files::load_key(&dir.join("ca.key"))?;
        let authority = Authority { env: &env, key: &ca_key };
        let ca_cert = own_certificate(&dir.join("ca.crt"), &env, &ca_key)?;
        let names = cert::in_order(sans);
        let load = |purpose: Purpose, fits: &dyn Fn(&CertKey) -> bool| {
            if let Some(pair) = files::read_pair(dir, purpose.file())?
                && cert::is_ours(&pair, &ca_cert, &ca_key)
                && is_fresh(&pair.cert, &env)
                && fits(&pair)
            {
                return Leaf::try_from(pair);
            }
            let pair = purpose.make(&authority, &names)?;
            files::write_pair(dir, purpose.file(), &pair)?;
            Leaf::try_from(pair)
        };
        let named = |pair: &CertKey| cert::decode(&pair.cert).is_ok_and(|der| cert::names_of(&der) == names);
        let serving = Current::new(load(Purpose::Serving, &named)?);
        let admin = Current::new(load(Purpose::Admin, &|_| true)?);
        let service_account_key = files::load_key(&dir.join("sa.key"))?;
        let front_key = files::load_key(&dir.join("front-proxy-ca.key"))?;
        let front_cert = own_certificate(&dir.join("front-proxy-ca.crt"), &env, &front_key)?;
        let dir = Some(dir.to_owned());
        Ok(Self {
            keys: Arc::new(Keys {
                serving,
                admin,
                ca_key,
                ca_cert,
                service_account_key,
                front_key,
                front_cert,
                names,
                dir,
                env,
            }),
        })
    }

    /// Loads the keys of a server for somebody else than the server: its names stay as they are.
    pub fn load(dir: &Path, env: Env) -> Result<Self, PkiError> {
        let serving = files::read_pair(dir, Purpose::Serving.file())?;
        let der = serving.map(|pair| cert::decode(&pair.cert)).transpose()?;
        Self::load_or_create(dir, env, &der.map(|der| cert::names_of(&der)).unwrap_or_default())
    }

    /// Keys that live in memory only, for tests and the simulation.
    pub fn in_memory(env: Env, sans: &[String]) -> Result<Self, PkiError> {
        let ca_key = KeyPair::generate()?;
        let authority = Authority { env: &env, key: &ca_key };
        let ca_cert = authority.own()?;
        let names = cert::in_order(sans);
        let serving = Current::new(Purpose::Serving.make(&authority, &names)?.try_into()?);
        let admin = Current::new(Purpose::Admin.make(&authority, &names)?.try_into()?);
        let service_account_key = KeyPair::generate()?;
        let front_key = KeyPair::generate()?;
        let front_cert = Authority { env: &env, key: &front_key }.own()?;
        Ok(Self {
            keys: Arc::new(Keys {
                serving,
                admin,
                ca_key,
                ca_cert,
                service_account_key,
                front_key,
                front_cert,
                names,
                dir: None,
                env,
            }),
        })
    }

    /// The CA certificate, PEM.
    pub fn ca_pem(&self) -> &str {
        &self.keys.ca_cert
    }

    /// The administrator's certificate (`O=system:masters`), renewed if that is due.
    pub fn admin(&self) -> CertKey {
        self.keys.current(Purpose::Admin).pair.clone()
    }

    /// The key that signs service-account tokens.
    pub fn service_account_key(&self) -> &KeyPair {
        &self.keys.service_account_key
    }

    /// Renews what is due, and says how long to wait before calling it again.
    pub fn renew(&self) -> Duration {
        let validities = [Purpose::Serving, Purpose::Admin].map(|purpose| self.keys.current(purpose).validity);
        renewal::next_look(&validities, self.keys.env.now())
    }

    /// A client certificate: the user is the common name, a group an organisation. At most two groups fit.
    pub fn client_cert(&self, user: &str, groups: &[String]) -> Result<CertKey, PkiError> {
        self.keys.authority().client(user, groups)
    }

    /// A certificate for hosts that somebody else than the API server serves. Names that stand for the API server, and those
    /// below the cluster's own domain, are refused: whoever trusts our CA would take their holder for the API server.
    pub fn host_cert(&self, hosts: &[String]) -> Result<CertKey, PkiError> {
        let Some(first) = hosts.first() else { return Err(PkiError::Reserved { host: String::new() }) };
        if let Some(host) = hosts.iter().find(|host| cert::covers_one_of(host, &self.keys.names)) {
            return Err(PkiError::Reserved { host: host.clone() });
        }
        self.keys.authority().serving(first, hosts)
    }

    /// The certificate that a request asks for, PEM.
    pub fn answer(&self, request: &request::Request<'_>) -> Result<String, PkiError> {
        self.keys.authority().answer(request)
    }

    /// The certificate of the authority by which extension servers know us, PEM.
    pub fn front_proxy_pem(&self) -> &str {
        &self.keys.front_cert
    }

    /// What we show to extension servers.
    pub fn front_proxy_client(&self, name: &str) -> Result<CertKey, PkiError> {
        Authority { env: &self.keys.env, key: &self.keys.front_key }.client(name, &[])
    }

    /// A kubeconfig with the CA and the administrator's certificate embedded.
    pub fn kubeconfig(&self, server: &str) -> String {
        self.kubeconfig_for(server, ADMIN, &self.admin())
    }

    /// A kubeconfig for any client certificate.
    pub fn kubeconfig_for(&self, server: &str, user: &str, credentials: &CertKey) -> String {
        use base64::Engine;
        let encode = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
        let config = serde_json::json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "mycelium", "preferences": {},
            "clusters": [{"name": "mycelium", "cluster": {"server": server,
                "certificate-authority-data": encode(self.ca_pem())}}],
            "users": [{"name": user, "user": {"client-certificate-data": encode(&credentials.cert),
                "client-key-data": encode(&credentials.key)}}],
            "contexts": [{"name": "mycelium", "context": {"cluster": "mycelium", "user": user}}],
        });
        // JSON is YAML; every client reads it.
        format!("{config:#}\n")
    }

    /// Writes the administrator's kubeconfig, readable by its owner only.
    pub fn write_kubeconfig(&self, path: &Path, server: &str) -> Result<(), PkiError> {
        files::write_private(path, &self.kubeconfig(server))
    }

    /// TLS for the server: our serving certificate of the moment, client certificates of our CA accepted but not
    /// required.
    pub fn server_config(&self) -> Result<rustls::ServerConfig, PkiError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut roots = RootCertStore::empty();
        roots.add(cert::decode(self.ca_pem())?)?;
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
            .allow_unauthenticated()
            .build()?;
        let mut config = rustls::ServerConfig::builder_with_details(provider, Arc::new(Clock(self.keys.env.clone())))
            .with_safe_default_protocol_versions()?
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(self.keys.clone());
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(config)
    }
}

impl Keys {
    fn authority(&self) -> Authority<'_> {
        Authority { env: &self.env, key: &self.ca_key }
    }

    fn current(&self, purpose: Purpose) -> Arc<Leaf> {
        let slot = match purpose {
            Purpose::Serving => &self.serving,
            Purpose::Admin => &self.admin,
        };
        slot.get(self.env.now(), || self.replace(purpose))
    }

    /// Makes a leaf anew. It serves even if it cannot be kept: the next start then makes another one.
    fn replace(&self, purpose: Purpose) -> Result<Leaf, PkiError> {
        let pair = purpose.make(&self.authority(), &self.names)?;
        if let Some(dir) = &self.dir
            && let Err(error) = files::write_pair(dir, purpose.file(), &pair)
        {
            tracing::warn!(%error, "a renewed certificate cannot be kept");
        }
        pair.try_into()
    }
}

impl ResolvesServerCert for Keys {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current(Purpose::Serving).certified.clone())
    }
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keys").field("names", &self.names).finish_non_exhaustive()
    }
}

/// Tells TLS the time.
#[derive(Debug)]
struct Clock(Env);

impl TimeProvider for Clock {
    fn current_time(&self) -> Option<UnixTime> {
        let seconds = u64::try_from(self.0.now().as_second()).ok()?;
        Some(UnixTime::since_unix_epoch(Duration::from_secs(seconds)))
    }
}

/// The certificate that an authority has of itself, made anew when it is missing or due.
fn own_certificate(path: &Path, env: &Env, key: &KeyPair) -> Result<String, PkiError> {
    match files::read_optional(path)? {
        Some(pem) if is_fresh(&pem, env) => Ok(pem),
        _ => {
            let pem = Authority { env, key }.own()?;
            files::write_public(path, &pem)?;
            Ok(pem)
        }
    }
}

/// Whether a stored certificate can be read and is not due for renewal.
fn is_fresh(pem: &str, env: &Env) -> bool {
    let validity = cert::decode(pem).ok().and_then(|der| cert::validity(&der));
    validity.is_some_and(|validity| !validity.is_due(env.now()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicU64, Ordering};

    use jiff::Timestamp;

    use super::*;

    /// A clock that the test sets.
    #[derive(Clone)]
    struct Clock(Arc<Mutex<Timestamp>>);

    impl Clock {
        fn at(text: &str) -> Self {
            Self(Arc::new(Mutex::new(text.parse().expect("a time"))))
        }

        fn set(&self, text: &str) {
            *self.0.lock().expect("no panic") = text.parse().expect("a time");
        }

        fn env(&self) -> Env {
            let (clock, next) = (self.0.clone(), AtomicU64::new(1));
            let random = move || next.fetch_add(1, Ordering::Relaxed).wrapping_mul(0x9E37_79B9_7F4A_7C15);
            Env::new(move || *clock.lock().expect("no panic"), random)
        }
    }

    fn env(at: &str) -> Env {
        Clock::at(at).env()
    }

    fn serving(pki: &Pki) -> String {
        pki.keys.current(Purpose::Serving).pair.cert.clone()
    }

    #[test]
    fn files_are_kept_until_names_or_time_change() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let sans = ["127.0.0.1".to_owned(), "localhost".to_owned()];
        let load = |at: &str, sans: &[String]| Pki::load_or_create(dir.path(), env(at), sans).expect("loads");
        let first = load("2026-01-01T00:00:00Z", &sans);
        let again = load("2026-08-31T00:00:00Z", &sans);
        assert_eq!(serving(&first), serving(&again));
        assert_eq!(first.admin().cert, again.admin().cert);
        let other = load("2026-02-01T00:00:00Z", &sans[..1]);
        assert_ne!(serving(&first), serving(&other));
        let later = load("2026-11-01T00:00:00Z", &sans[..1]);
        assert_ne!(serving(&other), serving(&later));
        assert_ne!(first.admin().cert, later.admin().cert);
        assert_eq!(first.ca_pem(), later.ca_pem());
        for key in ["ca.key", "sa.key", "admin.key", "apiserver.key"] {
            let mode = fs::metadata(dir.path().join(key)).expect("exists").permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{key}");
        }
        later.server_config().expect("serves");
        let authority_renewed = load("2033-01-01T00:00:00Z", &sans[..1]);
        assert_ne!(later.ca_pem(), authority_renewed.ca_pem());
    }

    #[test]
    fn hosts_get_certificates_but_not_for_the_servers_names() {
        let names = ["127.0.0.1", "localhost", "kubernetes.default.svc", "node-1.lan"].map(str::to_owned);
        let pki = Pki::in_memory(env("2026-01-01T00:00:00Z"), &names).expect("creates");
        let asked = |host: &str| pki.host_cert(&["a.test".to_owned(), host.to_owned()]);
        let der = cert::decode(&asked("*.b.test").expect("a certificate").cert).expect("readable");
        assert_eq!(cert::names_of(&der), ["*.b.test", "a.test"]);
        let refused = [
            "LOCALHOST",
            "127.0.0.1",
            "10.0.0.1",
            "node-1.lan",
            "*.lan",
            "x.ns.svc",
            "*.svc",
            "a.svc.cluster.local",
            "*.cluster.local",
            "*.local",
            "*",
            "",
        ];
        for host in refused {
            assert!(matches!(asked(host), Err(PkiError::Reserved { .. })), "{host}");
        }
        assert!(pki.host_cert(&[]).is_err());
    }

    #[test]
    fn leaves_are_renewed_while_in_use_and_kept() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let clock = Clock::at("2026-01-01T00:00:00Z");
        let pki = Pki::load_or_create(dir.path(), clock.env(), &["localhost".to_owned()]).expect("creates");
        let (first, admin) = (serving(&pki), pki.admin().cert);
        assert_eq!(pki.renew(), Duration::from_secs(3600));
        clock.set("2026-08-31T00:00:00Z");
        pki.renew();
        assert_eq!((&serving(&pki), &pki.admin().cert), (&first, &admin));
        clock.set("2026-09-01T00:00:00Z");
        assert_eq!(pki.renew(), Duration::from_secs(3600));
        assert_ne!(serving(&pki), first);
        assert_ne!(pki.admin().cert, admin);
        let loaded = Pki::load_or_create(dir.path(), clock.env(), &["localhost".to_owned()]).expect("loads");
        assert_eq!((serving(&loaded), loaded.admin().cert), (serving(&pki), pki.admin().cert));
    }

    #[test]
    fn a_leaf_that_cannot_be_kept_serves_all_the_same() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let clock = Clock::at("2026-01-01T00:00:00Z");
        let pki = Pki::load_or_create(dir.path(), clock.env(), &[]).expect("creates");
        let first = serving(&pki);
        drop(dir);
        clock.set("2026-10-01T00:00:00Z");
        assert_ne!(serving(&pki), first);
    }

    #[test]
    fn certificates_name_user_and_groups() {
        let pki = Pki::in_memory(env("2026-01-01T00:00:00Z"), &[]).expect("creates");
        let made = pki.client_cert("ann", &["dev".into(), "ops".into()]).expect("issues");
        let identity = identity_of(&cert::decode(&made.cert).expect("PEM")).expect("has a name");
        assert_eq!(identity.user, "ann");
        assert_eq!(identity.groups, ["dev", "ops"]);
    }
}

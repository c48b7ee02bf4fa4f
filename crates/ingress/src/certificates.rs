//! Certificates: what Secrets hold, which one a host gets, and which have to be made. Pure but for the resolver.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, OnceLock};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Secret;
use rustls::crypto::ring;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::proxy::Shared;
use crate::rules::model::ObjectName;

/// On a Secret that holds a certificate made here; others are never touched.
pub const ISSUED: &str = "mycelium.network/issued";

/// A certificate and its key, in a Secret.
#[derive(Clone, Debug)]
pub struct Pair {
    /// Ready for TLS, or why it is not.
    pub certified: Result<Arc<CertifiedKey>, String>,
    /// The names it is for.
    pub names: Vec<String>,
    /// First and last moment at which it is accepted.
    pub validity: Option<(Timestamp, Timestamp)>,
    /// It was made here.
    pub issued: bool,
    /// The authority that is said to have signed it, PEM.
    pub authority: Option<String>,
}

impl Pair {
    /// What a Secret holds; none if it holds no certificate.
    pub fn from_api(secret: &Secret) -> Option<Self> {
        let data = secret.data.as_ref()?;
        let (cert, key) = (&data.get("tls.crt")?.0, &data.get("tls.key")?.0);
        let labels = secret.metadata.labels.as_ref();
        let issued = labels.is_some_and(|labels| labels.contains_key(ISSUED));
        let authority = data.get("ca.crt").and_then(|pem| String::from_utf8(pem.0.clone()).ok());
        Some(Self { issued, authority, ..Self::from_pem(cert, key) })
    }

    /// A certificate chain and its key.
    pub fn from_pem(cert: &[u8], key: &[u8]) -> Self {
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(cert).collect();
        let chain = chain.unwrap_or_default();
        let facts = chain.first().and_then(facts);
        let (names, validity) = facts.map_or((Vec::new(), None), |(names, validity)| (names, validity));
        Self { certified: certified(chain, key).map(Arc::new), names, validity, issued: false, authority: None }
    }

    /// From when on it is to be made anew: two thirds of its life.
    pub fn due_from(&self) -> Option<Timestamp> {
        let (from, until) = self.validity?;
        let life: SignedDuration = until.duration_since(from);
        from.saturating_add(life / 3 * 2).ok()
    }

    /// Whether one of ours is to be made anew: it lacks a host, is of another authority, broken, or old.
    fn is_due(&self, hosts: &[String], authority: &str, now: Timestamp) -> bool {
        let in_time =
            self.validity.is_some_and(|(from, _)| from <= now) && self.due_from().is_some_and(|due| now < due);
        let good = self.certified.is_ok() && self.authority.as_deref() == Some(authority);
        !(good && in_time && hosts.iter().all(|host| self.names.contains(host)))
    }
}

fn certified(chain: Vec<CertificateDer<'static>>, key: &[u8]) -> Result<CertifiedKey, String> {
    if chain.is_empty() {
        return Err("tls.crt holds no certificate".to_owned());
    }
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|_| "tls.key holds no private key".to_owned())?;
    let certified = CertifiedKey::from_der(chain, key, &ring::default_provider());
    certified.map_err(|error| format!("tls.crt and tls.key do not go together: {error}"))
}

type Facts = (Vec<String>, Option<(Timestamp, Timestamp)>);

fn facts(der: &CertificateDer<'_>) -> Option<Facts> {
    let (_, cert) = X509Certificate::from_der(der).ok()?;
    let time = |at: x509_parser::time::ASN1Time| Timestamp::from_second(at.timestamp()).ok();
    let validity = cert.validity();
    let validity = time(validity.not_before).zip(time(validity.not_after));
    let names = cert.subject_alternative_name().ok().flatten().map(|extension| {
        let names = extension.value.general_names.iter();
        let dns = names.filter_map(|name| match name {
            GeneralName::DNSName(name) => Some(name.to_ascii_lowercase()),
            _ => None,
        });
        dns.collect()
    });
    Some((names.unwrap_or_default(), validity))
}

/// A certificate that an Ingress asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// The Secret that is to hold it.
    pub secret: ObjectName,
    /// The hosts it is for.
    pub hosts: Vec<String>,
    /// The Ingress that asks.
    pub ingress: ObjectName,
    /// It asks cert-manager; we serve it where that is not installed.
    pub of_cert_manager: bool,
}

impl Wanted {
    /// Whether it has to be made now. A Secret of somebody else is left alone, whatever it holds.
    pub fn is_due(&self, held: Option<&Pair>, authority: &str, now: Timestamp) -> bool {
        held.is_none_or(|pair| pair.issued && pair.is_due(&self.hosts, authority, now))
    }
}

/// Which certificate a host gets.
#[derive(Clone, Debug, Default)]
pub struct Certificates {
    exact: HashMap<String, Arc<CertifiedKey>>,
    /// By what follows `*.`.
    wildcards: HashMap<String, Arc<CertifiedKey>>,
}

impl Certificates {
    /// Gives a host, or `*.` and a domain, its certificate; the first stays.
    pub fn add(&mut self, host: &str, certified: &Arc<CertifiedKey>) {
        match host.strip_prefix("*.") {
            Some(parent) => self.wildcards.entry(parent.to_owned()).or_insert_with(|| certified.clone()),
            None => self.exact.entry(host.to_owned()).or_insert_with(|| certified.clone()),
        };
    }

    /// The certificate of a host.
    pub fn get(&self, host: &str) -> Option<&Arc<CertifiedKey>> {
        let wildcard = || self.wildcards.get(host.split_once('.')?.1);
        self.exact.get(host).or_else(wildcard)
    }
}

/// Chooses by the name that the client asks for; one that nobody has a certificate for gets our own.
pub(crate) struct Resolver {
    pub(crate) shared: Arc<Shared>,
    pub(crate) fallback: OnceLock<Option<Arc<CertifiedKey>>>,
}

impl Resolver {
    fn fallback(&self) -> Option<Arc<CertifiedKey>> {
        let make = || {
            let made = (self.shared.issue)(&["ingress.local".to_owned()]).inspect_err(|why| {
                tracing::warn!(why, "no certificate can be made for unknown hosts");
            });
            Pair::from_pem(made.as_ref().ok()?.cert.as_bytes(), made.as_ref().ok()?.key.as_bytes()).certified.ok()
        };
        self.fallback.get_or_init(make).clone()
    }
}

impl ResolvesServerCert for Resolver {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let table = self.shared.table();
        let host = hello.server_name().map(str::to_ascii_lowercase);
        host.and_then(|host| table.certificates.get(&host).cloned()).or_else(|| self.fallback())
    }
}

impl std::fmt::Debug for Resolver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Resolver").finish_non_exhaustive()
    }
}

/// The data of the Secret for a certificate that was made.
pub fn secret_data(cert: &str, key: &str, authority: &str) -> BTreeMap<&'static str, String> {
    BTreeMap::from([("tls.crt", cert.to_owned()), ("tls.key", key.to_owned()), ("ca.crt", authority.to_owned())])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(names: &[&str]) -> Pair {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let made = rcgen::generate_simple_self_signed(names).expect("a certificate");
        Pair::from_pem(made.cert.pem().as_bytes(), made.signing_key.serialize_pem().as_bytes())
    }

    #[test]
    fn a_host_gets_its_own_before_a_wildcard() {
        let (own, wild) = (pair(&["a.test"]).certified.expect("good"), pair(&["*.test"]).certified.expect("good"));
        let mut all = Certificates::default();
        all.add("a.test", &own);
        all.add("*.test", &wild);
        assert!(Arc::ptr_eq(all.get("a.test").expect("found"), &own));
        assert!(Arc::ptr_eq(all.get("b.test").expect("found"), &wild));
        assert!(all.get("x.b.test").is_none() && all.get("test").is_none());
    }

    #[test]
    fn ours_is_made_anew_when_it_does_not_fit_and_others_never() {
        let now: Timestamp = "2026-03-01T00:00:00Z".parse().expect("a time");
        let day = SignedDuration::from_hours(24);
        let fresh = Pair {
            issued: true,
            authority: Some("ca".into()),
            validity: Some((now - day, now + day * 89)),
            ..pair(&["a.test"])
        };
        let wanted = |hosts: &[&str]| Wanted {
            secret: ObjectName::default(),
            hosts: hosts.iter().map(|host| (*host).to_owned()).collect(),
            ingress: ObjectName::default(),
            of_cert_manager: false,
        };
        let due = |pair: &Pair, at: Timestamp| wanted(&["a.test"]).is_due(Some(pair), "ca", at);
        assert!(wanted(&["a.test"]).is_due(None, "ca", now));
        assert!(!due(&fresh, now) && !due(&fresh, now + day * 58));
        assert!(due(&fresh, now + day * 60), "at two thirds of its life");
        assert!(wanted(&["a.test", "b.test"]).is_due(Some(&fresh), "ca", now));
        assert!(wanted(&["a.test"]).is_due(Some(&fresh), "another", now));
        let foreign = Pair { issued: false, certified: Err("broken".into()), ..fresh };
        assert!(!due(&foreign, now + day * 1000));
    }

    #[test]
    fn what_is_no_certificate_says_so() {
        let good = rcgen::generate_simple_self_signed(vec!["a.test".to_owned()]).expect("a certificate");
        let (cert, key) = (good.cert.pem(), good.signing_key.serialize_pem());
        for (cert, key) in [("", key.as_str()), ("nonsense", &key), (&cert, ""), (&cert, "nonsense")] {
            assert!(Pair::from_pem(cert.as_bytes(), key.as_bytes()).certified.is_err());
        }
        let other = rcgen::generate_simple_self_signed(vec!["a.test".to_owned()]).expect("a certificate");
        let mixed = Pair::from_pem(cert.as_bytes(), other.signing_key.serialize_pem().as_bytes());
        assert!(mixed.certified.expect_err("they differ").contains("do not go together"));
    }
}

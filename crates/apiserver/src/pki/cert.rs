//! What a certificate says: its time, its names, its keys, whom it stands for.

use jiff::Timestamp;
use rcgen::KeyPair;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::renewal::Validity;
use super::{CertKey, PkiError};
use crate::auth::Identity;

/// The identity a verified client certificate stands for.
pub fn identity_of(cert: &CertificateDer<'_>) -> Option<Identity> {
    let (_, cert) = X509Certificate::from_der(cert).ok()?;
    let subject = cert.subject();
    let user = subject.iter_common_name().next()?.as_str().ok()?.to_owned();
    let groups = subject.iter_organization().filter_map(|o| o.as_str().ok()).map(str::to_owned).collect();
    Some(Identity { user, groups, ..Identity::default() })
}

/// The certificate in a PEM text.
pub fn decode(pem: &str) -> Result<CertificateDer<'static>, PkiError> {
    CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|_| PkiError::Malformed { what: "a certificate".into() })
}

/// The time within which a certificate is accepted.
pub fn validity(der: &CertificateDer<'_>) -> Option<Validity> {
    let (_, cert) = X509Certificate::from_der(der).ok()?;
    let validity = cert.validity();
    let time = |at: x509_parser::time::ASN1Time| Timestamp::from_second(at.timestamp()).ok();
    Some(Validity { from: time(validity.not_before)?, until: time(validity.not_after)? })
}

/// Whether a certificate is of this CA and belongs to its key.
pub fn is_ours(pair: &CertKey, ca_cert: &str, ca_key: &KeyPair) -> bool {
    let (Ok(der), Ok(ca)) = (decode(&pair.cert), decode(ca_cert)) else { return false };
    let (Ok((_, parsed)), Ok((_, ca))) = (X509Certificate::from_der(&der), X509Certificate::from_der(&ca)) else {
        return false;
    };
    let of_key = |cert: &X509Certificate<'_>, key: &KeyPair| {
        cert.public_key().subject_public_key.data.as_ref() == key.public_key_raw()
    };
    KeyPair::from_pem(&pair.key).is_ok_and(|key| of_key(&parsed, &key))
        && of_key(&ca, ca_key)
        && parsed.issuer() == ca.subject()
        && authority_key(&parsed) == subject_key(&ca)
}

/// The names and addresses a serving certificate is for, in order.
pub fn names_of(der: &CertificateDer<'_>) -> Vec<String> {
    let Ok((_, cert)) = X509Certificate::from_der(der) else { return Vec::new() };
    let Ok(Some(extension)) = cert.subject_alternative_name() else { return Vec::new() };
    let names = extension.value.general_names.iter().filter_map(|name| match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(bytes) => match bytes.len() {
            4 => <[u8; 4]>::try_from(*bytes).ok().map(|b| std::net::IpAddr::from(b).to_string()),
            _ => <[u8; 16]>::try_from(*bytes).ok().map(|b| std::net::IpAddr::from(b).to_string()),
        },
        _ => None,
    });
    in_order(&names.collect::<Vec<_>>())
}

/// Names in order, each once.
pub fn in_order(names: &[String]) -> Vec<String> {
    let mut names: Vec<String> = names.to_vec();
    names.sort();
    names.dedup();
    names
}

/// Whether a host, or `*.` and a domain, covers one of `names`, is an address, or is within the cluster's own domain.
pub fn covers_one_of(host: &str, names: &[String]) -> bool {
    let host = host.to_ascii_lowercase();
    let host = host.trim_end_matches('.');
    let plain = host.strip_prefix("*.").unwrap_or(host);
    let within = |domain: &str| plain.strip_suffix(domain).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
    let covers = |name: &String| match host.strip_prefix("*.") {
        Some(parent) => name.split_once('.').is_some_and(|(_, rest)| rest.eq_ignore_ascii_case(parent)),
        None => name.eq_ignore_ascii_case(host),
    };
    plain.is_empty()
        || plain.contains('*')
        || plain.parse::<std::net::IpAddr>().is_ok()
        || ["svc", "cluster.local", "localhost"].into_iter().any(within)
        || host == "*.local"
        || names.iter().any(covers)
}

fn subject_key(cert: &X509Certificate<'_>) -> Option<Vec<u8>> {
    cert.extensions().iter().find_map(|extension| match extension.parsed_extension() {
        ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0.to_vec()),
        _ => None,
    })
}

fn authority_key(cert: &X509Certificate<'_>) -> Option<Vec<u8>> {
    cert.extensions().iter().find_map(|extension| match extension.parsed_extension() {
        ParsedExtension::AuthorityKeyIdentifier(id) => id.key_identifier.as_ref().map(|id| id.0.to_vec()),
        _ => None,
    })
}

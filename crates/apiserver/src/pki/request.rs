//! Signing what a CertificateSigningRequest asks for, by the rules of Kubernetes' own signers.

use std::net::IpAddr;

use jiff::SignedDuration;
use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose, PublicKeyData,
    SanType, SignatureAlgorithm,
};
use rustls_pki_types::CertificateSigningRequestDer;
use rustls_pki_types::pem::PemObject;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::FromDer;
use x509_parser::x509::SubjectPublicKeyInfo;

use super::PkiError;
use super::issue::Authority;

/// The longest life of a certificate, and that of one whose request names none.
const LIFE: SignedDuration = SignedDuration::from_hours(365 * 24);
const LIFE_MIN: SignedDuration = SignedDuration::from_mins(10);
/// At most two organisations fit into the names that are written.
const GROUPS_MAX: usize = 2;

/// What is asked for.
#[derive(Debug)]
pub struct Request<'a> {
    /// Who is to sign: `kubernetes.io/kube-apiserver-client` and so on.
    pub signer: &'a str,
    /// The request, PKCS #10 as PEM.
    pub pem: &'a [u8],
    /// What the certificate is to be used for.
    pub usages: &'a [String],
    /// How long it is to be valid.
    pub seconds: Option<i64>,
}

/// What a signer lets a certificate be used for.
struct Rules {
    usages: &'static [&'static str],
    required: &'static str,
    /// Whether it is a node's, and so named.
    node: bool,
    /// Whether it names the addresses of a server.
    server: bool,
}

fn rules(signer: &str) -> Option<Rules> {
    const CLIENT: &[&str] = &["client auth", "digital signature", "key encipherment"];
    const SERVER: &[&str] = &["server auth", "digital signature", "key encipherment"];
    let client = Rules { usages: CLIENT, required: "client auth", node: false, server: false };
    match signer {
        "kubernetes.io/kube-apiserver-client" => Some(client),
        "kubernetes.io/kube-apiserver-client-kubelet" => Some(Rules { node: true, ..client }),
        "kubernetes.io/kubelet-serving" => {
            Some(Rules { usages: SERVER, required: "server auth", node: true, server: true })
        }
        _ => None,
    }
}

/// Whether requests to a signer are ours to sign.
pub fn is_served(signer: &str) -> bool {
    rules(signer).is_some()
}

fn refused(what: impl Into<String>) -> PkiError {
    PkiError::Refused { why: what.into() }
}

/// The parsed request: whom it names, and the key that it proves to hold.
struct Subject {
    name: String,
    groups: Vec<String>,
    names: Vec<SanType>,
    key: Vec<u8>,
    algorithm: &'static SignatureAlgorithm,
}

impl PublicKeyData for Subject {
    fn der_bytes(&self) -> &[u8] {
        &self.key
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        self.algorithm
    }
}

fn algorithm(key: &SubjectPublicKeyInfo<'_>) -> Option<&'static SignatureAlgorithm> {
    let parameter = key.algorithm.parameters.as_ref().and_then(|any| any.as_oid().ok()).map(|oid| oid.to_id_string());
    match (key.algorithm.algorithm.to_id_string().as_str(), parameter.as_deref()) {
        ("1.2.840.113549.1.1.1", _) => Some(&rcgen::PKCS_RSA_SHA256),
        ("1.2.840.10045.2.1", Some("1.2.840.10045.3.1.7")) => Some(&rcgen::PKCS_ECDSA_P256_SHA256),
        ("1.2.840.10045.2.1", Some("1.3.132.0.34")) => Some(&rcgen::PKCS_ECDSA_P384_SHA384),
        ("1.3.101.112", _) => Some(&rcgen::PKCS_ED25519),
        _ => None,
    }
}

/// Whether the request is signed with the key that it holds.
fn is_signed(request: &X509CertificationRequest<'_>) -> bool {
    use ring::signature::{self, VerificationAlgorithm};
    let info = &request.certification_request_info;
    let key = info.subject_pki.subject_public_key.data.as_ref();
    let signed_with = request.signature_algorithm.algorithm.to_id_string();
    // An uncompressed point of P-384 has 97 bytes, one of P-256 65.
    let how: &dyn VerificationAlgorithm = match (signed_with.as_str(), key.len()) {
        ("1.2.840.113549.1.1.11", _) => &signature::RSA_PKCS1_2048_8192_SHA256,
        ("1.2.840.113549.1.1.12", _) => &signature::RSA_PKCS1_2048_8192_SHA384,
        ("1.2.840.113549.1.1.13", _) => &signature::RSA_PKCS1_2048_8192_SHA512,
        ("1.2.840.10045.4.3.2", 97) => &signature::ECDSA_P384_SHA256_ASN1,
        ("1.2.840.10045.4.3.2", _) => &signature::ECDSA_P256_SHA256_ASN1,
        ("1.2.840.10045.4.3.3", 97) => &signature::ECDSA_P384_SHA384_ASN1,
        ("1.2.840.10045.4.3.3", _) => &signature::ECDSA_P256_SHA384_ASN1,
        ("1.3.101.112", _) => &signature::ED25519,
        _ => return false,
    };
    signature::UnparsedPublicKey::new(how, key).verify(info.raw, &request.signature_value.data).is_ok()
}

fn parse(pem: &[u8]) -> Result<Subject, PkiError> {
    let der = CertificateSigningRequestDer::from_pem_slice(pem).map_err(|_| refused("the request is not PEM"))?;
    let (_, request) =
        X509CertificationRequest::from_der(&der).map_err(|_| refused("the request is not a PKCS #10 request"))?;
    if !is_signed(&request) {
        return Err(refused("the request is not signed with its key"));
    }
    let info = &request.certification_request_info;
    let text = |name: &x509_parser::x509::AttributeTypeAndValue<'_>| name.as_str().ok().map(str::to_owned);
    let algorithm = algorithm(&info.subject_pki).ok_or_else(|| refused("the kind of key is not supported"))?;
    Ok(Subject {
        name: info.subject.iter_common_name().find_map(text).unwrap_or_default(),
        groups: info.subject.iter_organization().filter_map(text).collect(),
        names: names(&request)?,
        key: info.subject_pki.subject_public_key.data.to_vec(),
        algorithm,
    })
}

fn names(request: &X509CertificationRequest<'_>) -> Result<Vec<SanType>, PkiError> {
    let extensions = request.requested_extensions().into_iter().flatten();
    let names = extensions.filter_map(|extension| match extension {
        ParsedExtension::SubjectAlternativeName(names) => Some(&names.general_names),
        _ => None,
    });
    let one = |name: &GeneralName<'_>| match name {
        GeneralName::DNSName(name) => Ok(SanType::DnsName((*name).try_into()?)),
        GeneralName::IPAddress(bytes) => match (<[u8; 4]>::try_from(*bytes), <[u8; 16]>::try_from(*bytes)) {
            (Ok(v4), _) => Ok(SanType::IpAddress(IpAddr::from(v4))),
            (_, Ok(v6)) => Ok(SanType::IpAddress(IpAddr::from(v6))),
            _ => Err(refused("an address in the request is malformed")),
        },
        _ => Err(refused("only DNS names and addresses may be named")),
    };
    names.flatten().map(one).collect()
}

impl Rules {
    fn check(&self, subject: &Subject, usages: &[String]) -> Result<(), PkiError> {
        let odd = usages.iter().find(|usage| !self.usages.contains(&usage.as_str()));
        if odd.is_some() || !usages.iter().any(|usage| usage == self.required) {
            return Err(refused(format!(
                "usages did not match {:?}, of which {:?} is required",
                self.usages, self.required
            )));
        }
        if subject.groups.len() > GROUPS_MAX {
            return Err(refused(format!("at most {GROUPS_MAX} organisations can be named")));
        }
        if self.node && (subject.groups != ["system:nodes"] || !subject.name.starts_with("system:node:")) {
            return Err(refused("subject must be of organization system:nodes, with a common name system:node:NAME"));
        }
        if self.server == subject.names.is_empty() {
            let text = if self.server { "a DNS name or an address is required" } else { "no names may be given" };
            return Err(refused(text));
        }
        Ok(())
    }
}

impl Authority<'_> {
    /// The certificate asked for, PEM.
    pub fn answer(&self, request: &Request<'_>) -> Result<String, PkiError> {
        let rules = rules(request.signer).ok_or_else(|| refused("the signer is not served here"))?;
        let subject = parse(request.pem)?;
        rules.check(&subject, request.usages)?;
        let life = request.seconds.map_or(LIFE, |seconds| SignedDuration::from_secs(seconds).clamp(LIFE_MIN, LIFE));
        let mut params: CertificateParams = self.lasting(life);
        params.is_ca = IsCa::ExplicitNoCa;
        params.distinguished_name = DistinguishedName::new();
        let kinds = [DnType::OrganizationName, DnType::CustomDnType(vec![2, 5, 4, 10])];
        for (kind, group) in kinds.into_iter().zip(&subject.groups) {
            params.distinguished_name.push(kind, group.as_str());
        }
        params.distinguished_name.push(DnType::CommonName, subject.name.as_str());
        params.subject_alt_names = subject.names.clone();
        params.use_authority_key_identifier_extension = true;
        for usage in request.usages {
            match usage.as_str() {
                "digital signature" => params.key_usages.push(KeyUsagePurpose::DigitalSignature),
                "key encipherment" => params.key_usages.push(KeyUsagePurpose::KeyEncipherment),
                "server auth" => params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth),
                _ => params.extended_key_usages.push(ExtendedKeyUsagePurpose::ClientAuth),
            }
        }
        Ok(params.signed_by(&subject, &self.issuer())?.pem())
    }
}

#[cfg(test)]
mod tests {
    use mycelium_api::env::Env;
    use rcgen::KeyPair;

    use super::*;
    use crate::pki::{Pki, cert, identity_of};

    fn request(name: &str, groups: &[&str]) -> String {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        for group in groups {
            params.distinguished_name.push(DnType::OrganizationName, *group);
        }
        let key = KeyPair::generate().expect("a key");
        params.serialize_request(&key).expect("a request").pem().expect("PEM")
    }

    #[test]
    fn requests_are_signed_or_refused_by_the_rules_of_their_signer() {
        let pki =
            Pki::in_memory(Env::new(|| "2026-01-01T00:00:00Z".parse().expect("a time"), || 7), &[]).expect("keys");
        let client = ["client auth".to_owned(), "digital signature".to_owned()];
        let ask = |signer: &str, pem: &str, usages: &[String]| {
            pki.answer(&Request { signer, pem: pem.as_bytes(), usages, seconds: Some(7200) })
        };
        let (api, kubelet) = ("kubernetes.io/kube-apiserver-client", "kubernetes.io/kube-apiserver-client-kubelet");
        let signed = ask(api, &request("carl", &["people"]), &client).expect("signed");
        let der = cert::decode(&signed).expect("PEM");
        let identity = identity_of(&der).expect("a name");
        assert_eq!((identity.user.as_str(), identity.groups.as_slice()), ("carl", &["people".to_owned()][..]));
        let validity = cert::validity(&der).expect("a time");
        assert_eq!((validity.until - validity.from).get_seconds(), 7200 + 300);
        for (signer, pem, usages, why) in [
            (api, request("carl", &[]), &["server auth".to_owned()][..], "usages did not match"),
            (kubelet, request("carl", &[]), &client, "subject must be of organization system:nodes"),
            ("example.com/own", request("carl", &[]), &client, "the signer is not served here"),
            (api, "nonsense".to_owned(), &client, "the request is not PEM"),
        ] {
            let error = ask(signer, &pem, usages).expect_err("refused").to_string();
            assert!(error.contains(why), "{error}");
        }
        assert!(ask(kubelet, &request("system:node:n", &["system:nodes"]), &client).is_ok());
    }
}

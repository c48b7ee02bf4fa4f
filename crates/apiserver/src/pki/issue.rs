//! Making certificates: the CA's own, and leaves that it signs.

use jiff::{SignedDuration, Timestamp};
use mycelium_api::env::Env;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType, SerialNumber,
};

use super::{CertKey, PkiError};

const CA_NAME: &str = "mycelium-ca";
const DAY: SignedDuration = SignedDuration::from_hours(24);
const CA_DAYS: i32 = 3650;
const LEAF_DAYS: i32 = 365;

/// The key that all certificates are signed with.
pub struct Authority<'a> {
    /// Clock and randomness.
    pub env: &'a Env,
    /// The CA's key.
    pub key: &'a KeyPair,
}

impl Authority<'_> {
    /// The CA's own certificate, PEM. Made anew with the same key it vouches for the same leaves.
    pub fn own(&self) -> Result<String, PkiError> {
        Ok(self.params().self_signed(self.key)?.pem())
    }

    /// A certificate for a server with these names and addresses.
    pub fn serving(&self, common_name: &str, names: &[String]) -> Result<CertKey, PkiError> {
        let mut params = self.leaf(common_name, ExtendedKeyUsagePurpose::ServerAuth);
        for name in names {
            params.subject_alt_names.push(match name.parse() {
                Ok(address) => SanType::IpAddress(address),
                Err(_) => SanType::DnsName(name.as_str().try_into()?),
            });
        }
        self.sign(params)
    }

    /// A client certificate: the user is the common name, a group an organisation. At most two groups fit.
    pub fn client(&self, user: &str, groups: &[String]) -> Result<CertKey, PkiError> {
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

    /// Parameters of a certificate that is valid for some time, from five minutes ago.
    pub(super) fn lasting(&self, life: SignedDuration) -> CertificateParams {
        let mut params = dated(self.env, 0);
        let now = self.env.now();
        let from = now.saturating_sub(SignedDuration::from_mins(5)).unwrap_or(Timestamp::MIN);
        set_time(&mut params, from, now.saturating_add(life).unwrap_or(Timestamp::MAX));
        params
    }

    /// Who signs.
    pub(super) fn issuer(&self) -> Issuer<'static, &KeyPair> {
        Issuer::new(self.params(), self.key)
    }

    fn sign(&self, params: CertificateParams) -> Result<CertKey, PkiError> {
        let key = KeyPair::generate()?;
        let ca = self.params();
        let cert = params.signed_by(&key, &Issuer::from_params(&ca, self.key))?;
        Ok(CertKey { cert: cert.pem(), key: key.serialize_pem() })
    }

    fn params(&self) -> CertificateParams {
        let mut params = dated(self.env, CA_DAYS);
        params.distinguished_name.push(DnType::CommonName, CA_NAME);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages =
            vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
        params
    }
}

fn set_time(params: &mut CertificateParams, from: Timestamp, until: Timestamp) {
    let moment = |at: Timestamp| {
        let date = jiff::tz::TimeZone::UTC.to_datetime(at);
        let midnight = rcgen::date_time_ymd(date.year().into(), date.month().unsigned_abs(), date.day().unsigned_abs());
        midnight + std::time::Duration::from_secs(u64::try_from(at.as_second().rem_euclid(86_400)).unwrap_or_default())
    };
    params.not_before = moment(from);
    params.not_after = moment(until);
}

/// Parameters valid from a day ago, so that a clock set back a little does no harm.
fn dated(env: &Env, days: i32) -> CertificateParams {
    let mut params = CertificateParams::default();
    let now = env.now();
    let day = |offset: i32| now.saturating_add(DAY * offset).unwrap_or(Timestamp::MAX);
    set_time(&mut params, day(-1), day(days));
    params.distinguished_name = DistinguishedName::new();
    let mut serial = env.random().to_be_bytes();
    serial[0] &= 0x7f;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params
}

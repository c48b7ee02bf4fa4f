//! A certificate of ours that is in use, and replaced in time.

use std::sync::{Arc, Mutex, PoisonError};

use jiff::Timestamp;
use rustls::crypto::ring;
use rustls::sign::CertifiedKey;
use rustls_pki_types::PrivateKeyDer;
use rustls_pki_types::pem::PemObject;

use super::renewal::Validity;
use super::{CertKey, PkiError, cert};

/// A certificate with its key, as text and ready for TLS.
#[derive(Debug)]
pub struct Leaf {
    /// As text.
    pub pair: CertKey,
    /// Ready for TLS.
    pub certified: Arc<CertifiedKey>,
    /// When it is accepted.
    pub validity: Validity,
}

impl TryFrom<CertKey> for Leaf {
    type Error = PkiError;

    fn try_from(pair: CertKey) -> Result<Self, PkiError> {
        let der = cert::decode(&pair.cert)?;
        let validity = cert::validity(&der).ok_or(PkiError::Malformed { what: "a certificate".into() })?;
        let key = PrivateKeyDer::from_pem_slice(pair.key.as_bytes())
            .map_err(|_| PkiError::Malformed { what: "a private key".into() })?;
        let certified = Arc::new(CertifiedKey::from_der(vec![der], key, &ring::default_provider())?);
        Ok(Self { pair, certified, validity })
    }
}

/// The leaf that is in use. Whoever looks when it is due replaces it.
#[derive(Debug)]
pub struct Current(Mutex<Arc<Leaf>>);

impl Current {
    /// Starts with this one.
    pub fn new(leaf: Leaf) -> Self {
        Self(Mutex::new(Arc::new(leaf)))
    }

    /// The leaf to use now. One that is due is replaced by what `make` gives; if that fails it stays in use, and the
    /// next caller tries again.
    pub fn get(&self, now: Timestamp, make: impl FnOnce() -> Result<Leaf, PkiError>) -> Arc<Leaf> {
        let mut leaf = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if leaf.validity.is_due(now) {
            match make() {
                Ok(made) => *leaf = Arc::new(made),
                Err(error) => tracing::warn!(%error, until = %leaf.validity.until, "a certificate cannot be renewed"),
            }
        }
        leaf.clone()
    }
}

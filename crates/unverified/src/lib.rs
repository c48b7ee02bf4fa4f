//! TLS to those whose certificate nobody vouches for: pods have one of their own making, for no name that we know.
//!
//! It keeps listeners out, not impostors. Where that is right is said by who asks for it.

use std::sync::Arc;

use rustls::client::WantsClientCert;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::{ClientConfig, ConfigBuilder, DigitallySignedStruct, Error, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

/// Whether the other side has to prove that the certificate's key is its own. That can only be proven for a certificate
/// of version 3 (RFC 5280).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proof {
    /// It has to.
    Asked,
    /// It need not.
    Spared,
}

/// A client that accepts every certificate; whether it shows one itself is still to be said.
pub fn client(proof: Proof) -> Result<ConfigBuilder<ClientConfig, WantsClientCert>, Error> {
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions()?;
    Ok(builder.dangerous().with_custom_certificate_verifier(Arc::new(Anyone { provider, proof })))
}

#[derive(Debug)]
struct Anyone {
    provider: Arc<CryptoProvider>,
    proof: Proof,
}

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        match self.proof {
            Proof::Asked => {
                verify_tls12_signature(message, cert, signature, &self.provider.signature_verification_algorithms)
            }
            Proof::Spared => Ok(HandshakeSignatureValid::assertion()),
        }
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        match self.proof {
            Proof::Asked => {
                verify_tls13_signature(message, cert, signature, &self.provider.signature_verification_algorithms)
            }
            Proof::Spared => Ok(HandshakeSignatureValid::assertion()),
        }
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

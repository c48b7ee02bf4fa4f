//! TLS to backends whose certificate nobody vouches for: `backend-protocol: HTTPS` and `GRPCS`.
//!
//! As with ingress-nginx the certificate is not verified: pods have one of their own making, for no name that the proxy
//! knows. It keeps listeners out, not impostors; the pod network is the machine's own.

use std::sync::Arc;

use mycelium_unverified::{Proof, verifier};
use rustls::ClientConfig;
use rustls::crypto::ring;

/// Settings of a client that takes any certificate.
pub fn config(multiplexed: bool) -> ClientConfig {
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone());
    // The provider is ours and supports them.
    let builder = builder.with_safe_default_protocol_versions().expect("ring supports the default versions of TLS");
    let mut config =
        builder.dangerous().with_custom_certificate_verifier(verifier(provider, Proof::Asked)).with_no_client_auth();
    config.alpn_protocols = vec![if multiplexed { b"h2".to_vec() } else { b"http/1.1".to_vec() }];
    config
}

//! TLS to backends whose certificate nobody vouches for: `backend-protocol: HTTPS` and `GRPCS`.
//!
//! As with ingress-nginx the certificate is not verified: pods have one of their own making, for no name that the proxy
//! knows. It keeps listeners out, not impostors; the pod network is the machine's own.

use mycelium_unverified::{Proof, client};
use rustls::ClientConfig;

/// Settings of a client that takes any certificate.
pub fn config(multiplexed: bool) -> ClientConfig {
    let mut config = client(Proof::Asked).expect("ring supports the default versions of TLS").with_no_client_auth();
    config.alpn_protocols = vec![if multiplexed { b"h2".to_vec() } else { b"http/1.1".to_vec() }];
    config
}

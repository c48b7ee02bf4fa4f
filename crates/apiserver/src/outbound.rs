//! Requests that the server sends on: to pods, services and extension servers.

use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use http::{Request, Response};
use hyper::rt::{Read, Write};
use hyper_util::rt::TokioIo;
use mycelium_unverified::{Proof, client};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::body::{self, Body, BoxError};
use crate::pki::CertKey;

/// How long a connection may take to stand.
const CONNECT_MAX: Duration = Duration::from_secs(10);

/// Whose certificates are believed.
pub enum Trust<'a> {
    /// Everybody's: who answers is known by its address.
    Anyone,
    /// Those of the authorities in this PEM text.
    Authorities(&'a [u8]),
}

/// How to speak TLS, and under which name the other side is expected.
pub struct Tls {
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
}

impl Tls {
    /// TLS to `host`; with a certificate if we have to show one.
    pub fn new(host: &str, trust: &Trust<'_>, shown: Option<&CertKey>) -> Result<Self, BoxError> {
        let builder = match trust {
            Trust::Anyone => client(Proof::Spared)?,
            Trust::Authorities(pem) => {
                let mut roots = RootCertStore::empty();
                for certificate in CertificateDer::pem_slice_iter(pem) {
                    roots.add(certificate?)?;
                }
                let provider = Arc::new(rustls::crypto::ring::default_provider());
                let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
                builder.with_root_certificates(roots)
            }
        };
        let config = match shown {
            None => builder.with_no_client_auth(),
            Some(pair) => {
                let chain = CertificateDer::pem_slice_iter(pair.cert.as_bytes()).collect::<Result<Vec<_>, _>>()?;
                builder.with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(pair.key.as_bytes())?)?
            }
        };
        Ok(Self { config: Arc::new(config), name: ServerName::try_from(host.to_owned())? })
    }
}

/// Sends a request to `address:port` over a connection of its own.
pub fn send(
    authority: String,
    tls: Option<Tls>,
    request: Request<Body>,
) -> BoxFuture<'static, Result<Response<Body>, BoxError>> {
    Box::pin(async move {
        let connect = async {
            let stream = TcpStream::connect(&authority).await?;
            Ok::<_, BoxError>(match tls {
                None => Stream::Plain(stream),
                Some(Tls { config, name }) => {
                    Stream::Tls(Box::new(TlsConnector::from(config).connect(name, stream).await?))
                }
            })
        };
        match tokio::time::timeout(CONNECT_MAX, connect).await?? {
            Stream::Plain(stream) => exchange(TokioIo::new(stream), request).await,
            Stream::Tls(stream) => exchange(TokioIo::new(*stream), request).await,
        }
    })
}

enum Stream {
    Plain(TcpStream),
    Tls(Box<tokio_rustls::client::TlsStream<TcpStream>>),
}

async fn exchange<I>(io: I, request: Request<Body>) -> Result<Response<Body>, BoxError>
where
    I: Read + Write + Unpin + Send + 'static,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await?;
    tokio::spawn(connection);
    Ok(sender.send_request(request).await?.map(body::boxed))
}

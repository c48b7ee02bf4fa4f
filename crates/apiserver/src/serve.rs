//! The outside of the server: TLS connections, and the in-process service.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, header};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tower::util::BoxCloneSyncService;

use crate::auth::Identity;
use crate::body::{self, Body, BoxError};
use crate::pki::{self, PkiError};
use crate::server::ApiServer;

const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);
const DRAIN_LIMIT: Duration = Duration::from_secs(5);
const UPGRADE_BUFFER: usize = 64 * 1024;

impl ApiServer {
    /// The server as a service that answers in the name of `who`: no sockets, no TLS. Suits `kube::Client::new`.
    pub fn client_service<B>(&self, who: Identity) -> BoxCloneSyncService<Request<B>, Response<Body>, BoxError>
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let server = self.clone();
        BoxCloneSyncService::new(tower::service_fn(move |request: Request<B>| {
            let (server, who) = (server.clone(), who.clone());
            async move {
                let request = request.map(body::boxed);
                if request.headers().contains_key(header::UPGRADE) {
                    return server.upgraded(request, who).await;
                }
                Ok(server.handle(request, who).await)
            }
        }))
    }

    /// A request that changes the protocol needs a connection that can: one in memory.
    async fn upgraded(&self, mut request: Request<Body>, who: Identity) -> Result<Response<Body>, BoxError> {
        let (client, server_side) = tokio::io::duplex(UPGRADE_BUFFER);
        let server = self.clone();
        let service = hyper::service::service_fn(move |request: Request<hyper::body::Incoming>| {
            let (server, who) = (server.clone(), who.clone());
            async move { Ok::<_, Infallible>(server.handle(request.map(body::boxed), who).await) }
        });
        let connection = hyper::server::conn::http1::Builder::new()
            .serve_connection(TokioIo::new(server_side), service)
            .with_upgrades();
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "an in-process connection ended");
            }
        });
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(client)).await?;
        tokio::spawn(connection.with_upgrades());
        if !request.headers().contains_key(header::HOST) {
            request.headers_mut().insert(header::HOST, http::HeaderValue::from_static("mycelium"));
        }
        let path = request.uri().path_and_query().map_or("/", |p| p.as_str()).to_owned();
        *request.uri_mut() = path.parse()?;
        Ok(sender.send_request(request).await?.map(body::boxed))
    }

    /// Serves TLS connections until `shutdown` is ready; then ends watches and waits a little for what is under way.
    pub async fn serve(self, listener: TcpListener, shutdown: impl Future<Output = ()>) -> Result<(), PkiError> {
        let acceptor = TlsAcceptor::from(Arc::new(self.inner.pki.server_config()?));
        let graceful = GracefulShutdown::new();
        let mut shutdown = std::pin::pin!(shutdown);
        loop {
            let accepted = tokio::select! {
                biased;
                () = &mut shutdown => break,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, _)) => {
                    tokio::spawn(connection(self.clone(), acceptor.clone(), stream, graceful.watcher()));
                }
                Err(error) => {
                    // Out of descriptors, mostly: waiting lets some close.
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
        self.shut_down();
        let _ = tokio::time::timeout(DRAIN_LIMIT, graceful.shutdown()).await;
        Ok(())
    }
}

async fn connection(
    server: ApiServer,
    acceptor: TlsAcceptor,
    stream: TcpStream,
    graceful: hyper_util::server::graceful::Watcher,
) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "cannot turn off Nagle's algorithm");
    }
    let stream = match tokio::time::timeout(HANDSHAKE_LIMIT, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return tracing::debug!(%error, "a TLS handshake failed"),
        Err(_) => return tracing::debug!("a TLS handshake took too long"),
    };
    let certificates = stream.get_ref().1.peer_certificates();
    let who = certificates.and_then(|c| pki::identity_of(c.first()?)).unwrap_or_else(Identity::anonymous);
    let service = hyper::service::service_fn(move |request: Request<hyper::body::Incoming>| {
        let (server, who) = (server.clone(), who.clone());
        async move { Ok::<_, Infallible>(server.admit(request.map(body::boxed), who).await) }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(hyper_util::rt::TokioTimer::new());
    builder.http2().timer(hyper_util::rt::TokioTimer::new()).max_concurrent_streams(1000);
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service).into_owned();
    if let Err(error) = graceful.watch(connection).await {
        tracing::debug!(error = %describe(&*error), "a connection ended");
    }
}

fn describe(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        if cause.downcast_ref::<io::Error>().is_some() || !text.contains(&cause.to_string()) {
            text.push_str(": ");
            text.push_str(&cause.to_string());
        }
        source = cause.source();
    }
    text
}

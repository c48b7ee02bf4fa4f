//! A server whose certificate is renewed while clients are connected. The clock is set by the test.
#![allow(missing_docs)]

mod common;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use jiff::{SignedDuration, Timestamp};
use mycelium_api::env::Env;
use mycelium_apiserver::{ApiServer, CertKey, Config, Pki};
use mycelium_store::{Options, Store};
use rustls::time_provider::TimeProvider;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use x509_parser::prelude::{FromDer, X509Certificate};

#[derive(Clone, Debug)]
struct Clock(Arc<Mutex<Timestamp>>);

impl Clock {
    fn now(&self) -> Timestamp {
        *self.0.lock().expect("no panic")
    }

    fn advance_days(&self, days: i32) {
        *self.0.lock().expect("no panic") += SignedDuration::from_hours(24) * days;
    }
}

impl TimeProvider for Clock {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(Duration::from_secs(self.now().as_second().try_into().ok()?)))
    }
}

/// A connection, and the serial number that the server showed on it.
struct Connection {
    serial: String,
    sender: SendRequest<Empty<Bytes>>,
}

impl Connection {
    /// Asks for something that needs a login; any failure counts as no answer.
    async fn get(&mut self) -> Option<StatusCode> {
        self.sender.ready().await.ok()?;
        let request =
            Request::get("/api/v1/secrets").header("host", "localhost").body(Empty::new()).expect("a request");
        let response = self.sender.send_request(request).await.ok()?;
        let status = response.status();
        response.into_body().collect().await.ok()?;
        Some(status)
    }
}

/// Connects as a client that trusts only our CA, believes the test's clock, and resumes nothing.
async fn connect(address: SocketAddr, pki: &Pki, login: &CertKey, clock: &Clock) -> Connection {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(pki.ca_pem().as_bytes()).expect("PEM")).expect("a CA");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ClientConfig::builder_with_details(provider, Arc::new(clock.clone()))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots)
        .with_client_auth_cert(
            vec![CertificateDer::from_pem_slice(login.cert.as_bytes()).expect("PEM")],
            PrivateKeyDer::from_pem_slice(login.key.as_bytes()).expect("PEM"),
        )
        .expect("a login");
    config.resumption = rustls::client::Resumption::disabled();
    let stream = TcpStream::connect(address).await.expect("connects");
    let name = ServerName::try_from("localhost").expect("a name");
    let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await.expect("shakes hands");
    let shown = stream.get_ref().1.peer_certificates().expect("a certificate")[0].clone();
    let serial = X509Certificate::from_der(&shown).expect("DER").1.raw_serial_as_string();
    let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.expect("HTTP");
    tokio::spawn(connection);
    Connection { serial, sender }
}

#[tokio::test]
async fn a_new_connection_sees_the_renewed_certificate_and_an_old_one_lives_on() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let clock = Clock(Arc::new(Mutex::new("2026-01-01T00:00:00Z".parse().expect("a time"))));
    let (real, at) = (common::real_env(), clock.clone());
    let env = Env::new(move || at.now(), move || real.random());
    let store = Store::open_file(&directory.path().join("state"), Options::default()).expect("a store");
    let pki = Pki::load_or_create(&directory.path().join("pki"), env.clone(), &["localhost".to_owned()]).expect("keys");
    let api = ApiServer::new(Config::new(store, env, pki.clone())).expect("a server");
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(api.clone().serve(listener, std::future::pending()));

    let login = pki.admin();
    let mut old = connect(address, &pki, &login, &clock).await;
    assert_eq!(old.get().await, Some(StatusCode::OK));
    assert_eq!(connect(address, &pki, &login, &clock).await.serial, old.serial, "nothing is due yet");

    clock.advance_days(250);
    let mut new = connect(address, &pki, &login, &clock).await;
    assert_ne!(new.serial, old.serial);
    assert_eq!(new.get().await, Some(StatusCode::OK), "a login lasts longer than two thirds of its life");
    assert_eq!(old.get().await, Some(StatusCode::OK));
    assert_eq!(connect(address, &pki, &login, &clock).await.serial, new.serial, "once is enough");

    // Past the end of the first certificates: the connection made with them still stands, the login opens no new one.
    clock.advance_days(150);
    assert_eq!(old.get().await, Some(StatusCode::OK));
    assert_eq!(connect(address, &pki, &login, &clock).await.get().await, None);
    assert_eq!(connect(address, &pki, &pki.admin(), &clock).await.get().await, Some(StatusCode::OK));
    api.shut_down();
}

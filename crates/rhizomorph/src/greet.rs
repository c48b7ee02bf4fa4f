//! How a connection begins: TCP, TLS with both certificates, one greeting each way.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::connection::{Transport, tune};
use crate::error::{Error, Refusal};
use crate::frame::{GREETING_BYTES, Greeting, GreetingKind, SessionId};
use crate::identity::{Identity, common_name, member};
use crate::link::Options;

/// Who is at the other end of a connection.
pub(crate) struct Peer {
    pub name: String,
    /// Its certificate.
    pub leaf: Vec<u8>,
}

/// A connection after both greetings.
pub(crate) struct Greeted {
    pub transport: Transport,
    pub peer: Peer,
    /// What the peer said.
    pub greeting: Greeting,
    pub local: SocketAddr,
    pub remote: SocketAddr,
}

/// What this side says.
pub(crate) fn greeting(kind: GreetingKind, session: SessionId, options: &Options) -> Greeting {
    Greeting {
        kind,
        session,
        window: options.receive_window,
        urgent_window: options.urgent_window,
        message_max: options.message_max,
        dead_after_ms: options.dead_after.as_millis().min(u32::MAX.into()) as u32,
    }
}

/// Dials a peer and asks to open (`session` is `None`) or to join a link.
pub(crate) async fn dial(
    local: Option<IpAddr>,
    remote: SocketAddr,
    session: Option<SessionId>,
    identity: &Identity,
    options: &Options,
    patience: Duration,
) -> Result<Greeted, Error> {
    let work = async {
        let stream = connect(local, remote).await?;
        let (local, remote) = addresses(&stream)?;
        let tls = TlsConnector::from(identity.client.clone()).connect(member(), stream).await;
        let mut tls = tls.map_err(Error::io(format!("agree on TLS with {remote}")))?;
        let peer = peer(tls.get_ref().1.peer_certificates())?;
        let kind = if session.is_some() { GreetingKind::Join } else { GreetingKind::Open };
        say(&mut tls, &greeting(kind, session.unwrap_or_default(), options), remote).await?;
        let answer = listen(&mut tls, remote).await?;
        let reason = match answer.kind {
            GreetingKind::Welcome => {
                let (stream, tls) = tls.into_inner();
                let transport = Transport { stream, tls: tls.into() };
                return Ok(Greeted { transport, peer, greeting: answer, local, remote });
            }
            GreetingKind::UnknownSession => Refusal::UnknownSession,
            GreetingKind::Full => Refusal::Full,
            _ => Refusal::Version,
        };
        Err(Error::Refused { reason })
    };
    timeout(patience, work).await.unwrap_or_else(|_| Err(Error::Timeout { peer: remote.to_string() }))
}

async fn connect(local: Option<IpAddr>, remote: SocketAddr) -> Result<TcpStream, Error> {
    let socket = if remote.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() };
    let socket = socket.map_err(Error::io("make a socket"))?;
    if let Some(local) = local {
        socket.bind((local, 0).into()).map_err(Error::io(format!("bind {local}")))?;
    }
    let stream = socket.connect(remote).await.map_err(Error::io(format!("connect to {remote}")))?;
    tune(&stream).map_err(Error::io("set a socket's options"))?;
    Ok(stream)
}

/// A connection that came in, before it was answered.
pub(crate) struct Arrived {
    tls: tokio_rustls::server::TlsStream<TcpStream>,
    pub peer: Peer,
    pub greeting: Greeting,
    pub local: SocketAddr,
    pub remote: SocketAddr,
}

/// Lets a connection in as far as its greeting.
pub(crate) async fn arrive(stream: TcpStream, identity: &Identity) -> Result<Arrived, Error> {
    tune(&stream).map_err(Error::io("set a socket's options"))?;
    let (local, remote) = addresses(&stream)?;
    let tls = TlsAcceptor::from(identity.server.clone()).accept(stream).await;
    let mut tls = tls.map_err(Error::io(format!("agree on TLS with {remote}")))?;
    let peer = peer(tls.get_ref().1.peer_certificates())?;
    let greeting = listen(&mut tls, remote).await?;
    Ok(Arrived { tls, peer, greeting, local, remote })
}

impl Arrived {
    /// Answers a connection.
    pub async fn answer(mut self, answer: &Greeting) -> Result<Greeted, Error> {
        say(&mut self.tls, answer, self.remote).await?;
        let (stream, tls) = self.tls.into_inner();
        let transport = Transport { stream, tls: tls.into() };
        let Self { peer, greeting, local, remote, .. } = self;
        Ok(Greeted { transport, peer, greeting, local, remote })
    }
}

fn addresses(stream: &TcpStream) -> Result<(SocketAddr, SocketAddr), Error> {
    let action = || Error::io("learn a connection's addresses");
    Ok((stream.local_addr().map_err(action())?, stream.peer_addr().map_err(action())?))
}

fn peer(certificates: Option<&[rustls_pki_types::CertificateDer<'static>]>) -> Result<Peer, Error> {
    let leaf = certificates.and_then(<[_]>::first).ok_or(Error::WrongGroup)?;
    Ok(Peer { name: common_name(leaf).ok_or(Error::WrongGroup)?, leaf: leaf.to_vec() })
}

async fn say(stream: &mut (impl AsyncWrite + Unpin), greeting: &Greeting, to: SocketAddr) -> Result<(), Error> {
    stream.write_all(&greeting.encode()).await.map_err(Error::io(format!("greet {to}")))?;
    stream.flush().await.map_err(Error::io(format!("greet {to}")))
}

async fn listen(stream: &mut (impl AsyncRead + Unpin), from: SocketAddr) -> Result<Greeting, Error> {
    let mut bytes = [0; GREETING_BYTES];
    stream.read_exact(&mut bytes).await.map_err(Error::io(format!("read the greeting of {from}")))?;
    Ok(Greeting::decode(&bytes)?)
}

//! Connections to endpoints: kept for the next request while they are idle, shared where they carry many at once.
//!
//! A connection of HTTP/1.1 is driven by whoever uses it: the task that waits for the answer moves the bytes itself, and
//! between requests nobody has to. Only where a request has a body, which must go on while the client does not read, the
//! connection gets a task of its own.

use std::collections::{BTreeSet, HashMap};
use std::future::{Future, poll_fn};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Context;
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::{TrySendError, http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;

use crate::annotations::Protocol;
use crate::proxy::body::{Progress, Upload};
use crate::rules::backend::Address;
use crate::rules::table::Table;
use crate::unverified;

/// Idle connections that are kept for one endpoint.
const IDLE_MAX: usize = 320;
/// How long an idle connection is kept. Servers close theirs after 60 s and more.
const IDLE_LIMIT: Duration = Duration::from_secs(50);
/// How long the addresses of a name are remembered.
const NAME_LIMIT: Duration = Duration::from_secs(5);

/// Where a connection leads.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// The endpoint.
    pub address: Address,
    /// What is spoken.
    pub protocol: Protocol,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// It took too long.
    #[error("connecting took longer than {0:?}")]
    TimedOut(Duration),
    /// It was refused, or the handshake failed.
    #[error("cannot connect")]
    Io(#[from] io::Error),
    /// HTTP could not be begun.
    #[error("cannot begin HTTP")]
    Http(#[from] hyper::Error),
    /// A name leads to this machine itself or to a link's own addresses, which nobody outside may reach through us.
    #[error("the name {0} leads to {1}, which is not to be reached from outside")]
    Forbidden(String, IpAddr),
}

/// Moves the bytes of a connection.
type Driver = Pin<Box<dyn Future<Output = Result<(), hyper::Error>> + Send>>;

struct Idle {
    sender: http1::SendRequest<Upload>,
    driver: Option<Driver>,
    since: Instant,
}

type Names = HashMap<(String, u16), (Instant, Vec<SocketAddr>)>;

/// All connections to endpoints.
#[derive(Default)]
pub struct Upstreams {
    idle: Mutex<HashMap<Place, Vec<Idle>>>,
    shared: Mutex<HashMap<Place, http2::SendRequest<Upload>>>,
    names: Mutex<Names>,
    tls: Mutex<HashMap<Protocol, Arc<ClientConfig>>>,
}

/// A connection that carries one request at a time, in use.
pub struct Lease {
    pool: Arc<Upstreams>,
    place: Place,
    sender: http1::SendRequest<Upload>,
    /// None if it has a task of its own, or is closed.
    driver: Option<Driver>,
    /// How far the body of the request is.
    upload: Option<Arc<Progress>>,
}

/// What kind of connection is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Any.
    Any,
    /// One that has carried nothing yet.
    Fresh,
    /// The same, for a request that changes the protocol.
    Upgrade,
}

/// A connection for one request.
pub enum Channel {
    /// HTTP/1.1, and whether it has carried requests before.
    One(Box<Lease>, bool),
    /// HTTP/2.
    Many(http2::SendRequest<Upload>),
}

/// An answer; or an error, which holds the request if nothing of it was sent.
type Sent = Result<Response<Incoming>, TrySendError<Request<Upload>>>;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl std::fmt::Debug for Upstreams {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Upstreams").finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Lease {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lease").field("place", &self.place).finish_non_exhaustive()
    }
}

impl Lease {
    /// Moves what bytes there are.
    pub fn drive(&mut self, cx: &mut Context<'_>) {
        if let Some(driver) = &mut self.driver
            && driver.as_mut().poll(cx).is_ready()
        {
            self.driver = None;
        }
    }

    /// Whether the connection takes a request.
    async fn is_ready(&mut self) -> bool {
        poll_fn(|cx| {
            self.drive(cx);
            self.sender.poll_ready(cx)
        })
        .await
        .is_ok()
    }

    async fn send(&mut self, request: Request<Upload>) -> Sent {
        self.upload = request.body().progress();
        if self.upload.is_some() {
            self.leave_alone();
        }
        let mut sending = std::pin::pin!(self.sender.try_send_request(request));
        let driver = &mut self.driver;
        poll_fn(|cx| {
            if let Some(moving) = driver
                && moving.as_mut().poll(cx).is_ready()
            {
                *driver = None;
            }
            sending.as_mut().poll(cx)
        })
        .await
    }

    /// Gives the connection a task of its own.
    fn leave_alone(&mut self) {
        if let Some(driver) = self.driver.take() {
            tokio::spawn(driver);
        }
    }

    /// The request is answered: the connection may serve the next, unless the answer came before the request was whole.
    pub fn give_back(self) {
        let under_way = self.upload.as_ref().is_some_and(|upload| !upload.last().1);
        if under_way || self.sender.is_closed() {
            return;
        }
        let mut idle = lock(&self.pool.idle);
        let kept = idle.entry(self.place).or_default();
        if kept.len() < IDLE_MAX {
            kept.push(Idle { sender: self.sender, driver: self.driver, since: Instant::now() });
        }
    }
}

impl Channel {
    /// Sends a request. An error holds the request if nothing of it was sent.
    pub async fn send(&mut self, request: Request<Upload>) -> Sent {
        match self {
            Self::One(lease, _) => lease.send(request).await,
            Self::Many(sender) => sender.try_send_request(request).await,
        }
    }

    /// Whether the connection has served before: the endpoint may have closed it meanwhile.
    pub fn used(&self) -> bool {
        match self {
            Self::One(_, used) => *used,
            Self::Many(_) => true,
        }
    }

    /// What is to be given back when the answer is whole.
    pub fn lease(self) -> Option<Lease> {
        match self {
            Self::One(lease, _) => Some(*lease),
            Self::Many(_) => None,
        }
    }
}

impl Upstreams {
    /// No connections.
    pub fn new() -> Self {
        Self::default()
    }

    /// A connection to an endpoint: one that is idle, unless it has to be new.
    pub async fn channel(
        self: &Arc<Self>,
        place: &Place,
        limit: Duration,
        need: Need,
    ) -> Result<Channel, ConnectError> {
        if need == Need::Any
            && let Some(found) = self.known(place).await
        {
            return Ok(found);
        }
        let opened = tokio::time::timeout(limit, self.open(place, need == Need::Upgrade)).await;
        opened.map_err(|_| ConnectError::TimedOut(limit))?
    }

    async fn known(self: &Arc<Self>, place: &Place) -> Option<Channel> {
        if place.protocol.multiplexed() {
            let mut sender = lock(&self.shared).get(place).cloned()?;
            return sender.ready().await.is_ok().then_some(Channel::Many(sender));
        }
        loop {
            // The last one in is the least likely to have been closed.
            let found = lock(&self.idle).get_mut(place)?.pop()?;
            let mut lease = self.lease(place, found.sender, found.driver);
            if found.since.elapsed() < IDLE_LIMIT && lease.is_ready().await {
                return Some(Channel::One(Box::new(lease), true));
            }
        }
    }

    fn lease(self: &Arc<Self>, place: &Place, sender: http1::SendRequest<Upload>, driver: Option<Driver>) -> Lease {
        Lease { pool: self.clone(), place: place.clone(), sender, driver, upload: None }
    }

    async fn open(self: &Arc<Self>, place: &Place, upgrade: bool) -> Result<Channel, ConnectError> {
        let stream = self.connect(&place.address).await?;
        stream.set_nodelay(true)?;
        if !place.protocol.tls() {
            return self.begin(place, TokioIo::new(stream), upgrade).await;
        }
        let name = match &place.address {
            Address::Socket(address) => ServerName::IpAddress(address.ip().into()),
            Address::Name(name, _) => ServerName::try_from(name.clone()).map_err(io::Error::other)?,
        };
        let connector = TlsConnector::from(self.client_config(place.protocol));
        self.begin(place, TokioIo::new(connector.connect(name, stream).await?), upgrade).await
    }

    async fn begin<T>(self: &Arc<Self>, place: &Place, io: T, upgrade: bool) -> Result<Channel, ConnectError>
    where
        T: hyper::rt::Read + hyper::rt::Write + Send + Unpin + 'static,
    {
        if place.protocol.multiplexed() {
            let mut builder = http2::Builder::new(TokioExecutor::new());
            let (sender, connection) = builder.timer(TokioTimer::new()).handshake(io).await?;
            tokio::spawn(connection);
            lock(&self.shared).insert(place.clone(), sender.clone());
            return Ok(Channel::Many(sender));
        }
        let (sender, connection) = http1::handshake(io).await?;
        let mut lease = self.lease(place, sender, Some(Box::pin(connection.with_upgrades())));
        if upgrade {
            lease.leave_alone();
        }
        Ok(Channel::One(Box::new(lease), false))
    }

    async fn connect(&self, address: &Address) -> Result<TcpStream, ConnectError> {
        let (name, port) = match address {
            Address::Socket(address) => return Ok(TcpStream::connect(address).await?),
            Address::Name(name, port) => (name, *port),
        };
        let addresses = self.resolve(name, port).await?;
        if let Some(bad) = addresses.iter().map(SocketAddr::ip).find(|ip| !may_be_reached(*ip)) {
            return Err(ConnectError::Forbidden(name.clone(), bad));
        }
        Ok(TcpStream::connect(addresses.as_slice()).await?)
    }

    async fn resolve(&self, name: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        let key = (name.to_owned(), port);
        if let Some((at, known)) = lock(&self.names).get(&key)
            && at.elapsed() < NAME_LIMIT
        {
            return Ok(known.clone());
        }
        let found: Vec<SocketAddr> = tokio::net::lookup_host((name, port)).await?.collect();
        let mut names = lock(&self.names);
        names.retain(|_, (at, _)| at.elapsed() < NAME_LIMIT);
        names.insert(key, (Instant::now(), found.clone()));
        Ok(found)
    }

    fn client_config(&self, protocol: Protocol) -> Arc<ClientConfig> {
        lock(&self.tls).entry(protocol).or_insert_with(|| Arc::new(unverified::config(protocol.multiplexed()))).clone()
    }

    /// Lets go of connections to endpoints that no route leads to any more; what is under way on them goes on.
    pub fn forget_all_but(&self, table: &Table) {
        let mut kept: BTreeSet<Place> = BTreeSet::new();
        for route in table.routes() {
            let protocol = route.backend.protocol;
            let places = route.backend.targets.iter().map(|target| target.address.clone());
            kept.extend(places.map(|address| Place { address, protocol }));
        }
        lock(&self.idle).retain(|place, idle| !idle.is_empty() && kept.contains(place));
        lock(&self.shared).retain(|place, sender| !sender.is_closed() && kept.contains(place));
    }

    /// Lets go of connections that were idle for too long.
    pub fn forget_old(&self) {
        for idle in lock(&self.idle).values_mut() {
            idle.retain(|idle| idle.since.elapsed() < IDLE_LIMIT && !idle.sender.is_closed());
        }
    }
}

/// Loopback and link-local addresses are the machine's own business.
fn may_be_reached(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => !(ip.is_loopback() || ip.is_unspecified() || ip.is_link_local() || ip.is_multicast()),
        IpAddr::V6(ip) => match ip.to_ipv4_mapped() {
            Some(mapped) => may_be_reached(mapped.into()),
            None => !(ip.is_loopback() || ip.is_unspecified() || ip.is_unicast_link_local() || ip.is_multicast()),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_do_not_lead_into_the_machine() {
        for bad in ["127.0.0.1", "0.0.0.0", "169.254.169.254", "::1", "::ffff:127.0.0.1", "fe80::1", "224.0.0.1"] {
            assert!(!may_be_reached(bad.parse().expect("an address")), "{bad}");
        }
        assert!(may_be_reached("192.0.2.1".parse().expect("an address")));
    }
}

//! Asking the host's DNS servers. Questions and answers pass through as bytes, so that any record type works.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::{Instant, timeout};

use crate::resolv::Host;

/// How long one server may take; then the next is asked.
const PATIENCE: Duration = Duration::from_secs(2);
/// How often the host's file is looked at.
const RELOAD: Duration = Duration::from_secs(2);
const ROUNDS: usize = 2;
const MAX_UDP: usize = 65_535;

/// The host's servers, as its `resolv.conf` names them at the moment.
pub struct Upstream {
    file: PathBuf,
    own: IpAddr,
    cached: Mutex<Cached>,
}

#[derive(Default)]
struct Cached {
    looked: Option<Instant>,
    modified: Option<SystemTime>,
    servers: Vec<SocketAddr>,
}

impl Upstream {
    /// The servers in a file, without the cluster DNS itself.
    pub fn new(file: PathBuf, own: IpAddr) -> Self {
        Self { file, own, cached: Mutex::default() }
    }

    fn servers(&self) -> Vec<SocketAddr> {
        let mut cached = self.cached.lock().unwrap_or_else(PoisonError::into_inner);
        if cached.looked.is_none_or(|looked| looked.elapsed() >= RELOAD) {
            cached.looked = Some(Instant::now());
            let modified = std::fs::metadata(&self.file).and_then(|file| file.modified()).ok();
            if modified.is_none() || modified != cached.modified {
                cached.modified = modified;
                let host = Host::parse(&std::fs::read_to_string(&self.file).unwrap_or_default());
                let usable = host.nameservers.into_iter().filter(|server| *server != self.own);
                cached.servers = usable.map(|server| SocketAddr::new(server, 53)).collect();
            }
        }
        cached.servers.clone()
    }

    /// The first answer of any server, asked in order.
    pub async fn ask(&self, query: &[u8], over_tcp: bool) -> Option<Vec<u8>> {
        let servers = self.servers();
        for _ in 0..ROUNDS {
            for server in &servers {
                let answer =
                    async { if over_tcp { ask_tcp(*server, query).await } else { ask_udp(*server, query).await } };
                match timeout(PATIENCE, answer).await {
                    Ok(Ok(answer)) => return Some(answer),
                    Ok(Err(e)) => {
                        tracing::debug!(%server, error = &e as &dyn std::error::Error, "a DNS server of the host failed")
                    }
                    Err(_) => tracing::debug!(%server, "a DNS server of the host did not answer in time"),
                }
            }
        }
        None
    }
}

/// Whether `answer` has the form of an answer to `query`: the same id, and marked as an answer.
fn answers(query: &[u8], answer: &[u8]) -> bool {
    answer.len() >= 12 && answer.get(..2) == query.get(..2) && answer[2] & 0x80 != 0
}

async fn ask_udp(server: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
    let any: IpAddr = if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    // A socket, and so a port of the kernel's choice, for each question: an attacker has to guess it.
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(server).await?;
    socket.send(query).await?;
    let mut buffer = vec![0; MAX_UDP];
    loop {
        let length = socket.recv(&mut buffer).await?;
        if answers(query, &buffer[..length]) {
            buffer.truncate(length);
            return Ok(buffer);
        }
    }
}

async fn ask_tcp(server: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    let mut message = (query.len() as u16).to_be_bytes().to_vec();
    message.extend_from_slice(query);
    stream.write_all(&message).await?;
    let length = stream.read_u16().await?;
    let mut answer = vec![0; usize::from(length)];
    stream.read_exact(&mut answer).await?;
    if answers(query, &answer) { Ok(answer) } else { Err(io::ErrorKind::InvalidData.into()) }
}

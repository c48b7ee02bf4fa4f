//! Sockets and messages of the cluster DNS server.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, Record, RecordType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::dns::answer::{Lookup, Zone};
use crate::dns::upstream::Upstream;
use crate::error::NetError;
use crate::sync::Shared;

const PORT: u16 = 53;
/// What every client can take without saying more (RFC 1035).
const MIN_PAYLOAD: usize = 512;
/// What passes a common network in one packet (DNS flag day 2020).
const MAX_PAYLOAD: u16 = 1232;
/// Questions under way at once; more wait in the socket.
const MAX_QUESTIONS: usize = 1024;
const MAX_CONNECTIONS: usize = 256;
const IDLE: Duration = Duration::from_secs(10);
/// Aliases of aliases that are followed.
const MAX_ALIASES: usize = 8;
const HEADER_LEN: usize = 12;

/// The server's sockets.
pub struct Server {
    udp: UdpSocket,
    tcp: TcpListener,
    address: Ipv4Addr,
    host_file: PathBuf,
}

struct Context {
    zone: Zone,
    cluster: Shared,
    upstream: Upstream,
    questions: Semaphore,
    connections: Arc<Semaphore>,
}

impl Server {
    /// Listens at the cluster DNS address; `host_file` names the servers for all other names.
    pub async fn bind(address: Ipv4Addr, host_file: PathBuf) -> Result<Self, NetError> {
        let to = SocketAddr::from((address, PORT));
        let failed = || {
            NetError::io(format!(
                "cluster DNS cannot listen at {to}: if another DNS server listens at all addresses of this machine, bind it to its own"
            ))
        };
        let udp = UdpSocket::bind(to).await.map_err(failed())?;
        let tcp = TcpListener::bind(to).await.map_err(failed())?;
        Ok(Self { udp, tcp, address, host_file })
    }

    /// Answers until the future is dropped.
    pub(crate) async fn run(self, zone: Zone, cluster: Shared) {
        let context = Arc::new(Context {
            zone,
            cluster,
            upstream: Upstream::new(self.host_file, IpAddr::V4(self.address)),
            questions: Semaphore::new(MAX_QUESTIONS),
            connections: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
        });
        let (udp, tcp) = (Arc::new(self.udp), self.tcp);
        let mut tasks = JoinSet::new();
        let mut buffer = vec![0; usize::from(u16::MAX)];
        loop {
            tokio::select! {
                biased;
                Some(_) = tasks.join_next(), if !tasks.is_empty() => {}
                received = udp.recv_from(&mut buffer) => match received {
                    Ok((length, client)) => datagram(&context, &udp, &mut tasks, buffer[..length].to_vec(), client),
                    Err(e) => pause(&e).await,
                },
                accepted = tcp.accept() => match accepted {
                    Ok((stream, _)) => {
                        if let Ok(permit) = context.connections.clone().try_acquire_owned() {
                            let context = context.clone();
                            tasks.spawn(async move {
                                let _permit = permit;
                                // A client that breaks off is its own business.
                                let _ = connection(&context, stream).await;
                            });
                        }
                    }
                    Err(e) => pause(&e).await,
                },
            }
        }
    }
}

/// Waits a moment after an error that may come again at once, such as too many open files.
async fn pause(error: &io::Error) {
    tracing::debug!(error = error as &dyn std::error::Error, "a DNS socket failed");
    tokio::time::sleep(Duration::from_millis(10)).await;
}

/// Answers what is known on the spot, and the rest in a task of its own.
fn datagram(
    context: &Arc<Context>,
    socket: &Arc<UdpSocket>,
    tasks: &mut JoinSet<()>,
    query: Vec<u8>,
    client: SocketAddr,
) {
    let (context, socket) = (context.clone(), socket.clone());
    tasks.spawn(async move {
        let Ok(_permit) = context.questions.acquire().await else { return };
        if let Some(answer) = context.answer(&query, false).await
            && let Err(e) = socket.send_to(&answer, client).await
        {
            tracing::debug!(%client, error = &e as &dyn std::error::Error, "a DNS answer could not be sent");
        }
    });
}

async fn connection(context: &Context, mut stream: TcpStream) -> io::Result<()> {
    loop {
        let length = timeout(IDLE, stream.read_u16()).await??;
        let mut query = vec![0; usize::from(length)];
        timeout(IDLE, stream.read_exact(&mut query)).await??;
        let Some(answer) = context.answer(&query, true).await else { return Ok(()) };
        let mut message = (answer.len() as u16).to_be_bytes().to_vec();
        message.extend_from_slice(&answer);
        timeout(IDLE, stream.write_all(&message)).await??;
    }
}

/// The outcome of following a name.
struct Resolved {
    answers: Vec<Record>,
    additionals: Vec<Record>,
    code: ResponseCode,
    /// The name is in a zone of ours.
    ours: bool,
}

impl Context {
    /// The answer to a message; none to what is not a question.
    async fn answer(&self, bytes: &[u8], over_tcp: bool) -> Option<Vec<u8>> {
        let query = match Message::from_vec(bytes) {
            Ok(query) => query,
            Err(_) => return malformed(bytes),
        };
        if query.metadata.message_type != MessageType::Query {
            return None;
        }
        let mut response = Message::response(query.metadata.id, query.metadata.op_code);
        response.metadata.recursion_desired = query.metadata.recursion_desired;
        response.metadata.recursion_available = true;
        response.add_queries(query.queries.iter().cloned());
        if query.edns.is_some() {
            let mut edns = Edns::new();
            edns.set_max_payload(MAX_PAYLOAD);
            response.set_edns(edns);
        }
        let [question] = query.queries.as_slice() else {
            return finish(response, ResponseCode::FormErr, &query, over_tcp);
        };
        if query.metadata.op_code != OpCode::Query {
            return finish(response, ResponseCode::NotImp, &query, over_tcp);
        }
        match self.resolve(question, over_tcp).await {
            Some(resolved) => {
                response.metadata.authoritative = resolved.ours;
                let aliases_only = resolved.answers.iter().all(|record| record.record_type() == RecordType::CNAME);
                if resolved.ours && aliases_only && question.query_type() != RecordType::CNAME {
                    response.add_authority(self.zone.authority());
                }
                response.add_answers(resolved.answers);
                response.add_additionals(resolved.additionals);
                finish(response, resolved.code, &query, over_tcp)
            }
            None => match self.upstream.ask(bytes, over_tcp).await {
                Some(answer) => Some(answer),
                None => finish(response, ResponseCode::ServFail, &query, over_tcp),
            },
        }
    }

    fn lookup(&self, name: &Name, wanted: RecordType) -> Lookup {
        let cluster = self.cluster.read().unwrap_or_else(PoisonError::into_inner);
        self.zone.lookup(&cluster, name, wanted)
    }

    /// Follows a question through aliases; nothing if it is not ours to begin with.
    async fn resolve(&self, question: &Query, over_tcp: bool) -> Option<Resolved> {
        if question.query_class() != DNSClass::IN {
            return None;
        }
        let (mut name, mut answers) = (question.name().clone(), Vec::new());
        let done = |answers, additionals, code| Some(Resolved { answers, additionals, code, ours: true });
        for _ in 0..MAX_ALIASES {
            match self.lookup(&name, question.query_type()) {
                Lookup::Found(records, additionals) => {
                    answers.extend(records);
                    return done(answers, additionals, ResponseCode::NoError);
                }
                Lookup::Empty => return done(answers, Vec::new(), ResponseCode::NoError),
                Lookup::Unknown => return done(answers, Vec::new(), ResponseCode::NXDomain),
                Lookup::Alias(record, target) => {
                    answers.push(*record);
                    name = target;
                }
                Lookup::Elsewhere if answers.is_empty() => return None,
                Lookup::Elsewhere => {
                    let found = self.elsewhere(&name, question.query_type(), over_tcp).await;
                    let code = found.as_ref().map_or(ResponseCode::ServFail, |found| found.metadata.response_code);
                    answers.extend(found.into_iter().flat_map(|found| found.answers));
                    return Some(Resolved { answers, additionals: Vec::new(), code, ours: false });
                }
            }
        }
        done(answers, Vec::new(), ResponseCode::ServFail)
    }

    async fn elsewhere(&self, name: &Name, wanted: RecordType, over_tcp: bool) -> Option<Message> {
        let mut query = Message::query();
        query.metadata.recursion_desired = true;
        query.add_query(Query::query(name.clone(), wanted));
        Message::from_vec(&self.upstream.ask(&query.to_vec().ok()?, over_tcp).await?).ok()
    }
}

/// Encodes an answer, cut to what the client can take.
fn finish(mut response: Message, code: ResponseCode, query: &Message, over_tcp: bool) -> Option<Vec<u8>> {
    response.metadata.response_code = code;
    let bytes = response.to_vec().ok()?;
    let limit = if over_tcp { usize::from(u16::MAX) } else { payload(query) };
    if bytes.len() <= limit {
        return Some(bytes);
    }
    response.additionals.clear();
    match response.to_vec() {
        Ok(bytes) if bytes.len() <= limit => Some(bytes),
        _ => response.truncate().to_vec().ok(),
    }
}

fn payload(query: &Message) -> usize {
    let offered = query.edns.as_ref().map_or(MIN_PAYLOAD, |edns| usize::from(edns.max_payload().min(MAX_PAYLOAD)));
    offered.max(MIN_PAYLOAD)
}

/// "Format error" for what has at least a header that asks.
fn malformed(bytes: &[u8]) -> Option<Vec<u8>> {
    let header = bytes.get(..HEADER_LEN)?;
    let id = u16::from_be_bytes([header[0], header[1]]);
    let asks = header[2] & 0x80 == 0;
    asks.then(|| Message::error_msg(id, OpCode::Query, ResponseCode::FormErr).to_vec().ok()).flatten()
}

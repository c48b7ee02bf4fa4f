//! Forwarding ports into a pod: SPDY streams in a WebSocket (or [`channels`]), connections from inside the pod's network.

use std::collections::BTreeMap;
use std::fs::File;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream as StdStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use http::{Request, Response, StatusCode};
use nix::sched::{CloneFlags, setns};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_tungstenite::tungstenite::Message;

use super::socket::{Socket, offers, upgrade};
use super::spdy::{Decoder, Encoder, Frame, Headers};
use super::{Body, Query, channels, refuse};
use crate::node::Inner;

const PROTOCOL: &str = "SPDY/3.1+portforward.k8s.io";
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Connections at once through one forwarding.
const CONNECTIONS_MAX: usize = 512;
/// Messages that wait for a slow client.
pub(super) const WAITING_MAX: usize = 16;
/// Bytes of one message.
pub(super) const CHUNK_BYTES: usize = 32 << 10;

/// Answers a request to forward ports.
pub fn serve(
    inner: &Arc<Inner>,
    (namespace, pod, uid): (&str, &str, &str),
    query: &Query,
    request: Request<Body>,
) -> Response<Body> {
    let missing = || refuse(StatusCode::NOT_FOUND, "NotFound", &format!("pods \"{pod}\" not found"));
    let Some(handle) = inner.find(namespace, pod, Some(uid)) else { return missing() };
    let pid = handle.shared.borrow().pid;
    if pid == 0 {
        let text = "unable to forward port because pod is not running";
        return refuse(StatusCode::BAD_REQUEST, "BadRequest", text);
    }
    let place = Place { netns: PathBuf::from(format!("/proc/{pid}/ns/net")), pod: pod.to_owned(), uid: uid.to_owned() };
    if offers(request.headers(), PROTOCOL) {
        return upgrade(request, &[PROTOCOL], move |socket, _| forward(socket, Arc::new(place)));
    }
    let ports: Option<Vec<u16>> = query.all("port").iter().map(|port| port.parse().ok().filter(|p| *p > 0)).collect();
    match ports {
        Some(ports) if (1..=channels::PORTS_MAX).contains(&ports.len()) => {
            upgrade(request, &[PROTOCOL, channels::PROTOCOL], move |socket, _| {
                channels::forward(socket, Arc::new(place), ports)
            })
        }
        _ => refuse(StatusCode::BAD_REQUEST, "BadRequest", "query parameter \"port\" must name 1 to 64 ports"),
    }
}

/// Where connections are made.
pub(super) struct Place {
    netns: PathBuf,
    pod: String,
    uid: String,
}

/// One forwarded connection: its two streams.
#[derive(Default)]
struct Pair {
    data: Option<u32>,
    error: Option<u32>,
    port: u16,
}

type Frames = mpsc::Sender<Frame>;

struct Forwarding {
    place: Arc<Place>,
    frames: Frames,
    /// Pairs that are not complete, by request id.
    pairs: BTreeMap<String, Pair>,
    /// Where the bytes of a data stream go; closed streams are absent.
    inputs: BTreeMap<u32, mpsc::Sender<Vec<u8>>>,
    failures: mpsc::Sender<u32>,
}

async fn forward(socket: Socket, place: Arc<Place>) {
    let (mut sink, mut stream) = socket.split();
    let (frames, mut outgoing) = mpsc::channel::<Frame>(WAITING_MAX);
    let writer = tokio::spawn(async move {
        let mut encoder = Encoder::default();
        while let Some(frame) = outgoing.recv().await {
            let bytes: Bytes = encoder.encode(&frame).into();
            if sink.send(Message::Binary(bytes)).await.is_err() {
                return;
            }
        }
        let _ = sink.close().await;
    });
    let (failures, mut ended) = mpsc::channel(WAITING_MAX);
    let mut forwarding = Forwarding { place, frames, pairs: BTreeMap::new(), inputs: BTreeMap::new(), failures };
    let mut decoder = Decoder::default();
    loop {
        let message = tokio::select! {
            biased;
            Some(stream) = ended.recv() => {
                forwarding.inputs.remove(&stream);
                continue;
            }
            message = stream.next() => message,
        };
        let Some(Ok(message)) = message else { break };
        let Message::Binary(bytes) = message else { continue };
        decoder.push(&bytes);
        loop {
            match decoder.next_frame() {
                Ok(Some(frame)) => forwarding.take(frame).await,
                Ok(None) => break,
                Err(error) => {
                    tracing::debug!(%error, "a port-forward client sends what is not SPDY");
                    writer.abort();
                    return;
                }
            }
        }
    }
    writer.abort();
}

fn header<'a>(headers: &'a Headers, name: &str) -> Option<&'a str> {
    headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
}

impl Forwarding {
    async fn send(&self, frame: Frame) {
        // A writer that is gone ends the reading side as well.
        let _ = self.frames.send(frame).await;
    }

    async fn take(&mut self, frame: Frame) {
        match frame {
            Frame::Open { stream, headers, .. } => self.open(stream, &headers).await,
            Frame::Data { stream, bytes, last } => {
                if let Some(input) = self.inputs.get(&stream)
                    && !bytes.is_empty()
                    && input.send(bytes).await.is_err()
                {
                    self.inputs.remove(&stream);
                }
                if last {
                    self.inputs.remove(&stream);
                }
            }
            Frame::Reset { stream } => drop(self.inputs.remove(&stream)),
            Frame::Ping(id) => self.send(Frame::Ping(id)).await,
            Frame::Reply { .. } | Frame::GoAway | Frame::Other => {}
        }
    }

    async fn open(&mut self, stream: u32, headers: &Headers) {
        let kind = header(headers, "streamtype").unwrap_or_default();
        let port = header(headers, "port").and_then(|p| p.parse::<u16>().ok()).filter(|p| *p > 0);
        let (Some(port), true) = (port, matches!(kind, "data" | "error")) else {
            self.send(Frame::Reset { stream }).await;
            return;
        };
        if self.pairs.len() + self.inputs.len() >= CONNECTIONS_MAX {
            self.send(Frame::Reset { stream }).await;
            return;
        }
        self.send(Frame::Reply { stream, headers: Headers::new() }).await;
        // Old clients number no requests: there, the two streams of a connection follow each other.
        let id = header(headers, "requestid").map_or_else(|| format!("port {port}"), str::to_owned);
        let pair = self.pairs.entry(id.clone()).or_default();
        pair.port = port;
        match kind {
            "data" => pair.data = Some(stream),
            _ => pair.error = Some(stream),
        }
        if let Pair { data: Some(data), error: Some(error), port } = *pair {
            self.pairs.remove(&id);
            let (input, pieces) = mpsc::channel(WAITING_MAX);
            self.inputs.insert(data, input);
            let (place, frames, ended) = (self.place.clone(), self.frames.clone(), self.failures.clone());
            tokio::spawn(async move {
                connection(&place, port, data, error, &frames, pieces).await;
                let _ = ended.send(data).await;
            });
        }
    }
}

async fn connection(
    place: &Place,
    port: u16,
    data: u32,
    error: u32,
    frames: &Frames,
    mut pieces: mpsc::Receiver<Vec<u8>>,
) {
    let last = |stream: u32, bytes: Vec<u8>| Frame::Data { stream, bytes, last: true };
    match place.dial(port).await {
        Err(reason) => {
            let _ = frames.send(last(error, place.failure(port, &reason).into_bytes())).await;
            let _ = frames.send(last(data, Vec::new())).await;
        }
        Ok(stream) => {
            let (mut read, mut write) = stream.into_split();
            let up = tokio::spawn(async move {
                while let Some(piece) = pieces.recv().await {
                    if write.write_all(&piece).await.is_err() {
                        return;
                    }
                }
                let _ = write.shutdown().await;
            });
            let mut chunk = vec![0; CHUNK_BYTES];
            while let Ok(count @ 1..) = read.read(&mut chunk).await {
                let frame = Frame::Data { stream: data, bytes: chunk[..count].to_vec(), last: false };
                if frames.send(frame).await.is_err() {
                    break;
                }
            }
            let _ = frames.send(last(data, Vec::new())).await;
            let _ = frames.send(last(error, Vec::new())).await;
            up.abort();
        }
    }
}

impl Place {
    /// Connects from inside the pod's network namespace, which a thread of its own enters: a namespace belongs to a
    /// thread.
    pub(super) async fn dial(&self, port: u16) -> Result<TcpStream, String> {
        let (sender, receiver) = tokio::sync::oneshot::channel();
        let netns = self.netns.clone();
        let thread = std::thread::Builder::new().name("port-forward".into()).spawn(move || {
            let _ = sender.send(connect_inside(&netns, port));
        });
        thread.map_err(|e| e.to_string())?;
        let stream = receiver.await.map_err(|e| e.to_string())??;
        stream.set_nonblocking(true).map_err(|e| e.to_string())?;
        TcpStream::from_std(stream).map_err(|e| e.to_string())
    }

    /// What a client is told of a connection that could not be made.
    pub(super) fn failure(&self, port: u16, reason: &str) -> String {
        let (pod, uid) = (&self.pod, &self.uid);
        format!(
            "an error occurred forwarding {port} -> {port}: error forwarding port {port} to pod {pod}, uid {uid}: {reason}"
        )
    }
}

fn connect_inside(netns: &std::path::Path, port: u16) -> Result<StdStream, String> {
    let namespace = File::open(netns).map_err(|e| format!("the pod's network is gone: {e}"))?;
    setns(namespace, CloneFlags::CLONE_NEWNET).map_err(|e| e.to_string())?;
    let v4 = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let v6 = SocketAddr::from((Ipv6Addr::LOCALHOST, port));
    StdStream::connect_timeout(&v4, CONNECT_TIMEOUT)
        .or_else(|first| StdStream::connect_timeout(&v6, CONNECT_TIMEOUT).map_err(|_| first))
        .map_err(|e| match e.kind() {
            std::io::ErrorKind::ConnectionRefused => {
                format!("failed to connect to localhost:{port} inside the pod: connection refused")
            }
            _ => format!("failed to connect to localhost:{port} inside the pod: {e}"),
        })
}

//! One connection: a TCP socket, a TLS session, and the loop that moves bytes between them and the link.
//!
//! The loop writes at most one chunk ahead of the socket and the socket keeps little unsent (`TCP_NOTSENT_LOWAT`), so
//! that an urgent message never waits behind more than that. Bytes to send go from the application's buffers through
//! the cipher to the socket; bytes received go through the cipher into the message's buffer.

use std::io::{self, BufRead, Write};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use tokio::io::Interest;
use tokio::net::TcpStream;

use crate::Balancing;
use crate::core::receiver::Place;
use crate::error::{CloseReason, Violation};
use crate::frame::{DataHeader, FRAME_BYTES_MAX, Frame, Report, frame_length};
use crate::shared::{Connection, Shared, lock, micros};

/// How much is read from the socket at once.
const READ_BYTES: usize = 256 * 1024;
/// How much the socket may hold unsent.
const UNSENT_BYTES: u32 = 128 * 1024;
/// How many pings are answered at once; a peer has no reason to send more.
const PONGS_MAX: usize = 16;
/// How long a closing connection tries to say so.
const CLOSE_TIME: Duration = Duration::from_millis(200);

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Ended {
    #[error("the peer closed the connection")]
    Eof,
    #[error("the link is closed")]
    LinkClosed,
    #[error("nothing was heard for too long")]
    Silent,
    #[error("another connection took its place")]
    Retired,
    #[error("transport failed")]
    Io(#[from] io::Error),
    #[error("TLS failed")]
    Tls(#[from] rustls::Error),
    #[error("the peer broke the protocol")]
    Violation(#[from] Violation),
}

/// A socket and its TLS session after the greeting.
pub(crate) struct Transport {
    pub stream: TcpStream,
    pub tls: rustls::Connection,
}

/// Makes a socket fit for its purpose.
pub(crate) fn tune(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    socket2::SockRef::from(stream).set_tcp_notsent_lowat(UNSENT_BYTES)
}

/// Runs a connection until it ends. What was on it goes over the others.
pub(crate) async fn run(link: Arc<Shared>, transport: Transport, connection: Arc<Connection>) {
    let mut driver = Driver {
        transport,
        input: Input::default(),
        output: Output::default(),
        buffer: vec![0; READ_BYTES].into_boxed_slice(),
        connection: connection.clone(),
        link: link.clone(),
    };
    let ended = driver.run().await;
    if let Err(Ended::LinkClosed) = &ended {
        let _ = tokio::time::timeout(CLOSE_TIME, driver.say_goodbye()).await;
    }
    driver.input.abandon(&link);
    link.remove(&connection);
    let Err(ended) = ended;
    tracing::debug!(peer = %link.peer, remote = %connection.remote, error = &ended as &dyn std::error::Error, "connection ended");
    if let Ended::Violation(violation) = ended {
        link.close(CloseReason::Violation(violation));
    }
}

struct Driver {
    link: Arc<Shared>,
    connection: Arc<Connection>,
    transport: Transport,
    input: Input,
    output: Output,
    buffer: Box<[u8]>,
}

/// What is to be written besides chunks.
#[derive(Default)]
struct Output {
    pongs: Vec<u64>,
    scratch: Vec<u8>,
}

/// Where in the stream of frames the reader is.
#[derive(Default)]
struct Input {
    head: [u8; FRAME_BYTES_MAX],
    head_length: usize,
    chunk: Option<(DataHeader, Place, usize)>,
    /// Data frames received.
    frames: u64,
    pongs: Vec<u64>,
}

impl Driver {
    async fn run(&mut self) -> Result<std::convert::Infallible, Ended> {
        self.transport.tls.set_buffer_limit(None);
        // The handshake may have left something behind.
        self.drain()?;
        loop {
            if self.link.closed.borrow().is_some() {
                return Err(Ended::LinkClosed);
            }
            if self.connection.doomed.load(Relaxed) {
                return Err(Ended::Silent);
            }
            if self.connection.retired.load(Relaxed) {
                return Err(Ended::Retired);
            }
            let filled = self.fill()?;
            let wrote = self.write()?;
            let read = self.read()?;
            if filled || wrote || read {
                tokio::task::yield_now().await;
                continue;
            }
            let writing = self.transport.tls.wants_write();
            let interest = if writing { Interest::READABLE | Interest::WRITABLE } else { Interest::READABLE };
            tokio::select! {
                ready = self.transport.stream.ready(interest) => drop(ready?),
                () = self.connection.wake.notified() => {}
            }
        }
    }

    /// Encrypts what is to be sent next, once everything before is in the socket.
    fn fill(&mut self) -> Result<bool, Ended> {
        if self.transport.tls.wants_write() {
            return Ok(false);
        }
        let control = self.fill_control()?;
        let now = self.link.now();
        let mut sender = lock(&self.link.sender);
        let next = sender.next(self.connection.id, now);
        drop(sender);
        let Some(next) = next else { return Ok(control) };
        let slices = next.slices(&mut self.output.scratch);
        write_whole(&mut self.transport.tls, &slices)?;
        if self.link.options.balancing == Balancing::LatencyOptimized && !next.header.urgent {
            // This connection has become less attractive.
            self.link.wake_all();
        }
        Ok(true)
    }

    fn fill_control(&mut self) -> Result<bool, Ended> {
        let scratch = &mut self.output.scratch;
        scratch.clear();
        let pinging = self.connection.ping.swap(false, Relaxed);
        if self.connection.report.swap(false, Relaxed) || pinging {
            let (bulk, urgent) = lock(&self.link.receiver).consumed();
            Frame::Report(Report { frames: self.input.frames, bulk, urgent }).encode(scratch);
        }
        self.output.pongs.append(&mut self.input.pongs);
        for id in self.output.pongs.drain(..) {
            Frame::Pong(id).encode(scratch);
        }
        if pinging {
            Frame::Ping(micros(self.link.now())).encode(scratch);
        }
        self.transport.tls.writer().write_all(scratch)?;
        Ok(!scratch.is_empty())
    }

    fn write(&mut self) -> Result<bool, Ended> {
        let mut wrote = false;
        while self.transport.tls.wants_write() {
            match self.transport.tls.write_tls(&mut Socket(&self.transport.stream)) {
                Ok(0) => return Err(io::Error::from(io::ErrorKind::WriteZero).into()),
                Ok(_) => wrote = true,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(wrote)
    }

    /// Reads once from the socket.
    fn read(&mut self) -> Result<bool, Ended> {
        let length = match self.transport.stream.try_read(&mut self.buffer) {
            Ok(0) => return Err(Ended::Eof),
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(error) => return Err(error.into()),
        };
        let mut at = 0;
        while at < length {
            at += self.transport.tls.read_tls(&mut &self.buffer[at..length])?;
            if let Err(error) = self.transport.tls.process_new_packets() {
                // Tells the peer what was wrong, if the socket takes it.
                let _ = self.write();
                return Err(error.into());
            }
            drain(&mut self.transport.tls, &mut self.input, &self.link, &self.connection)?;
        }
        self.link.heard(&self.connection);
        Ok(true)
    }

    fn drain(&mut self) -> Result<(), Ended> {
        drain(&mut self.transport.tls, &mut self.input, &self.link, &self.connection)
    }

    async fn say_goodbye(&mut self) -> Result<(), Ended> {
        if self.link.close_reason() != Some(CloseReason::Peer) {
            let mut scratch = Vec::new();
            Frame::Close.encode(&mut scratch);
            self.transport.tls.writer().write_all(&scratch)?;
        }
        self.transport.tls.send_close_notify();
        while self.transport.tls.wants_write() {
            self.transport.stream.writable().await?;
            self.write()?;
        }
        Ok(())
    }
}

/// Hands decrypted bytes to the link.
fn drain(tls: &mut rustls::Connection, input: &mut Input, link: &Shared, connection: &Connection) -> Result<(), Ended> {
    loop {
        let length = match tls.reader().into_first_chunk() {
            Ok([]) => return Err(Ended::Eof),
            Ok(plain) => {
                input.feed(plain, link, connection)?;
                plain.len()
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        tls.reader().consume(length);
    }
}

impl Input {
    fn feed(&mut self, mut bytes: &[u8], link: &Shared, connection: &Connection) -> Result<(), Violation> {
        loop {
            if let Some((header, place, filled)) = &mut self.chunk {
                let length = (header.length as usize - *filled).min(bytes.len());
                if let Place::Fill(piece) = place {
                    piece[*filled..*filled + length].copy_from_slice(&bytes[..length]);
                }
                *filled += length;
                bytes = &bytes[length..];
                if *filled < header.length as usize {
                    return Ok(());
                }
                self.finish_chunk(link, connection)?;
            }
            let Some(frame) = self.next_frame(&mut bytes)? else { return Ok(()) };
            self.take_frame(frame, link, connection)?;
        }
    }

    /// Collects a frame's bytes; `None` when there are not enough.
    fn next_frame(&mut self, bytes: &mut &[u8]) -> Result<Option<Frame>, Violation> {
        let Some(kind) = self.head[..self.head_length].first().or(bytes.first()) else { return Ok(None) };
        let missing = (frame_length(*kind)? - self.head_length).min(bytes.len());
        let (now, later) = bytes.split_at(missing);
        self.head[self.head_length..self.head_length + missing].copy_from_slice(now);
        self.head_length += missing;
        *bytes = later;
        let frame = Frame::decode(&self.head[..self.head_length])?;
        if frame.is_some() {
            self.head_length = 0;
        }
        Ok(frame.map(|(frame, _)| frame))
    }

    fn take_frame(&mut self, frame: Frame, link: &Shared, connection: &Connection) -> Result<(), Violation> {
        match frame {
            Frame::Data(header) => {
                let place = lock(&link.receiver).begin(&header)?;
                self.chunk = Some((header, place, 0));
            }
            Frame::Report(report) => {
                let now = link.now();
                let granted = lock(&link.sender).report(connection.id, report, now)?;
                link.room.notify_waiters();
                if granted {
                    link.wake_all();
                }
            }
            Frame::Ping(id) if self.pongs.len() < PONGS_MAX => self.pongs.push(id),
            Frame::Ping(_) => {}
            Frame::Pong(id) => {
                let now = link.now();
                if let Some(rtt) = now.checked_sub(Duration::from_micros(id)) {
                    lock(&link.sender).pong(connection.id, rtt, now);
                }
            }
            Frame::Close => link.close(CloseReason::Peer),
        }
        Ok(())
    }

    fn finish_chunk(&mut self, link: &Shared, connection: &Connection) -> Result<(), Violation> {
        let Some((header, place, _)) = self.chunk.take() else { return Ok(()) };
        self.frames += 1;
        connection.received_bytes.fetch_add(header.length.into(), Relaxed);
        connection.received_chunks.fetch_add(1, Relaxed);
        if !header.urgent {
            link.bulk_received.fetch_add(1, Relaxed);
        }
        connection.report.store(true, Relaxed);
        if let Place::Fill(piece) = place
            && lock(&link.receiver).finish(&header, piece)?
        {
            link.last_path.store(connection.id, Relaxed);
            link.notify_ready();
        }
        Ok(())
    }

    /// Gives back the buffer of a chunk that will not be completed.
    fn abandon(&mut self, link: &Shared) {
        if let Some((header, Place::Fill(piece), _)) = self.chunk.take() {
            lock(&link.receiver).abandon(&header, piece);
        }
    }
}

fn write_whole(tls: &mut rustls::Connection, slices: &[io::IoSlice<'_>]) -> io::Result<()> {
    let total: usize = slices.iter().map(|slice| slice.len()).sum();
    // Without a limit on its buffer, TLS takes everything.
    match tls.writer().write_vectored(slices)? {
        written if written == total => Ok(()),
        _ => Err(io::ErrorKind::WriteZero.into()),
    }
}

/// A socket that answers `WouldBlock` where it would wait.
struct Socket<'a>(&'a TcpStream);

impl Write for Socket<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.try_write(bytes)
    }

    fn write_vectored(&mut self, slices: &[io::IoSlice<'_>]) -> io::Result<usize> {
        self.0.try_write_vectored(slices)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

//! One client: negotiation, then requests. What the page cache can answer is answered here and now, and replies are
//! gathered while more requests are already there; everything that must wait for the medium goes to the pool.

use std::io::{self, IoSliceMut, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};

use super::pool::Pool;
use super::proto::{self, Command, Negotiation, Next, OptionHeader, Request};
use crate::disk::Disk;

/// What is read from the socket at once.
const INPUT: usize = 256 * 1024;
/// Gathered replies are sent when they are this long.
const OUTPUT: usize = 256 * 1024;
/// Buffers that grew beyond this are given back.
const BUFFER_KEPT: usize = 512 * 1024;

/// Why a connection ended early.
#[derive(Debug, thiserror::Error)]
pub enum ConnectionError {
    /// The socket failed.
    #[error("the socket failed: {0}")]
    Io(#[from] io::Error),
    /// The client broke the protocol.
    #[error("the client broke the protocol: {0}")]
    Protocol(#[from] proto::Violation),
}

pub struct Connection {
    input: Input,
    output: Output,
    disk: Disk,
    pool: Arc<Pool>,
    payload: Vec<u8>,
}

/// Where replies go; shared with the pool's threads.
type Sink = Arc<Mutex<UnixStream>>;

impl Connection {
    pub fn new(stream: UnixStream, disk: Disk, pool: Arc<Pool>) -> io::Result<Self> {
        let sink = Arc::new(Mutex::new(stream.try_clone()?));
        let input = Input { stream, buffer: vec![0; INPUT], start: 0, end: 0 };
        Ok(Self { input, output: Output { sink, buffer: Vec::new(), len: 0 }, disk, pool, payload: Vec::new() })
    }

    /// Serves until the client leaves.
    pub fn serve(mut self) -> Result<(), ConnectionError> {
        let outcome = self.talk();
        // The server and the pool hold the socket too: closing ours would not hang up.
        let _ = self.input.stream.shutdown(Shutdown::Both);
        outcome
    }

    fn talk(&mut self) -> Result<(), ConnectionError> {
        match self.negotiate() {
            Ok(true) => {}
            Ok(false) => return Ok(()),
            Err(ConnectionError::Io(error)) if gone(&error) => return Ok(()),
            Err(error) => return Err(error),
        }
        loop {
            if !self.input.has(proto::REQUEST_LEN) {
                self.output.send()?;
            }
            let mut header = [0; proto::REQUEST_LEN];
            match self.input.fill(&mut header) {
                Ok(()) => {}
                Err(error) if gone(&error) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
            let request = Request::decode(&header)?;
            if request.command == Command::Disconnect {
                return Ok(self.output.send()?);
            }
            self.request(request)?;
        }
    }

    fn negotiate(&mut self) -> Result<bool, ConnectionError> {
        self.output.put(&proto::greeting());
        self.output.send()?;
        let mut flags = [0; 4];
        self.input.fill(&mut flags)?;
        let negotiation = Negotiation::new(self.disk.size(), u32::from_be_bytes(flags))?;
        loop {
            let mut header = [0; proto::OPTION_LEN];
            self.input.fill(&mut header)?;
            let header = OptionHeader::decode(&header)?;
            let mut reply = Vec::new();
            let next = if header.len > proto::OPTION_MAX {
                self.input.skip(header.len.into())?;
                Negotiation::too_big(header, &mut reply);
                Next::Option
            } else {
                let mut data = vec![0; header.len as usize];
                self.input.fill(&mut data)?;
                negotiation.option(header.option, &data, &mut reply)?
            };
            self.output.put(&reply);
            self.output.send()?;
            match next {
                Next::Option => {}
                Next::Transmission => return Ok(true),
                Next::Hangup => return Ok(false),
            }
        }
    }

    fn request(&mut self, request: Request) -> Result<(), ConnectionError> {
        if let Command::Write { .. } = request.command {
            self.payload.resize(self.payload.len().max(request.len as usize), 0);
            self.input.fill(&mut self.payload[..request.len as usize])?;
        }
        if let Err(error) = request.check(self.disk.size()) {
            return Ok(self.output.reply(request.cookie, error)?);
        }
        let Request { offset, len, cookie, .. } = request;
        match request.command {
            Command::Read => self.read(request)?,
            Command::Write { fua } => {
                // Writers wait here for room in the log: nobody must wait for replies that are done.
                self.output.send_if_waiting(&self.disk, len.into())?;
                let outcome = self.disk.write(&self.payload[..len as usize], offset);
                self.changed(cookie, outcome, fua)?;
                if self.payload.len() > BUFFER_KEPT {
                    self.payload = Vec::new();
                }
            }
            Command::Trim { fua } => {
                let outcome = self.disk.zero(offset, len.into(), false);
                self.changed(cookie, outcome, fua)?;
            }
            Command::WriteZeroes { fua, keep } => {
                let outcome = self.disk.zero(offset, len.into(), keep);
                self.changed(cookie, outcome, fua)?;
            }
            Command::Flush => self.flush(cookie)?,
            Command::Disconnect | Command::Unknown => {}
        }
        Ok(())
    }

    fn read(&mut self, request: Request) -> io::Result<()> {
        let Request { offset, len, cookie, .. } = request;
        let data = self.output.reserve(16 + len as usize);
        if self.disk.read_now(&mut data[16..], offset) {
            data[..16].copy_from_slice(&proto::reply(cookie, 0));
            return self.output.commit(16 + len as usize);
        }
        let (disk, sink) = (self.disk.clone(), Arc::clone(&self.output.sink));
        self.pool.run(move || {
            let mut reply = vec![0; 16 + len as usize];
            let error = disk.read(&mut reply[16..], offset).err().map_or(0, |error| proto::error_number(&error));
            reply[..16].copy_from_slice(&proto::reply(cookie, error));
            if error != 0 {
                reply.truncate(16);
            }
            send(&sink, &reply);
        });
        Ok(())
    }

    /// Answers a change that was made, after a sync if it was asked for.
    fn changed(&mut self, cookie: u64, outcome: io::Result<()>, fua: bool) -> io::Result<()> {
        match outcome {
            Ok(()) if fua => self.flush(cookie),
            Ok(()) => self.output.reply(cookie, 0),
            Err(error) => self.output.reply(cookie, proto::error_number(&error)),
        }
    }

    fn flush(&mut self, cookie: u64) -> io::Result<()> {
        if self.disk.flush_asked() {
            return self.output.reply(cookie, 0);
        }
        let (disk, sink) = (self.disk.clone(), Arc::clone(&self.output.sink));
        self.pool.run(move || {
            let error = disk.flush().err().map_or(0, |error| proto::error_number(&error));
            send(&sink, &proto::reply(cookie, error));
        });
        Ok(())
    }
}

/// Sends a reply from a thread of the pool. A client that is gone needs none; the connection's own thread notices.
fn send(sink: &Sink, reply: &[u8]) {
    let _ = sink.lock().unwrap_or_else(PoisonError::into_inner).write_all(reply);
}

/// Whether the client has simply left.
fn gone(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe)
}

/// A reader that knows what it has.
struct Input {
    stream: UnixStream,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
}

impl Input {
    /// Whether so many bytes are here already.
    fn has(&self, len: usize) -> bool {
        self.end - self.start >= len
    }

    /// Fills `target`, waiting for the client as needed. What has not been read yet goes straight to its place, and
    /// what follows it into the buffer, by the same call.
    fn fill(&mut self, target: &mut [u8]) -> io::Result<()> {
        let here = (self.end - self.start).min(target.len());
        let (now, mut rest) = target.split_at_mut(here);
        now.copy_from_slice(&self.buffer[self.start..self.start + here]);
        self.start += here;
        while !rest.is_empty() {
            let wanted = rest.len();
            let mut parts = [IoSliceMut::new(rest), IoSliceMut::new(&mut self.buffer)];
            let read = match self.stream.read_vectored(&mut parts) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                read => read?,
            };
            (self.start, self.end) = (0, read.saturating_sub(wanted));
            rest = &mut rest[read.min(wanted)..];
        }
        Ok(())
    }

    fn skip(&mut self, mut len: u64) -> io::Result<()> {
        let mut waste = [0; 4096];
        while len > 0 {
            let now = len.min(waste.len() as u64);
            self.fill(&mut waste[..now as usize])?;
            len -= now;
        }
        Ok(())
    }
}

/// Replies that are gathered before they are sent.
struct Output {
    sink: Sink,
    /// Only grows, so that reading into it needs no clearing.
    buffer: Vec<u8>,
    len: usize,
}

impl Output {
    /// Room for `len` more bytes; they count after [`Output::commit`].
    fn reserve(&mut self, len: usize) -> &mut [u8] {
        let end = self.len + len;
        if self.buffer.len() < end {
            self.buffer.resize(end, 0);
        }
        &mut self.buffer[self.len..end]
    }

    fn commit(&mut self, len: usize) -> io::Result<()> {
        self.len += len;
        if self.len >= OUTPUT { self.send() } else { Ok(()) }
    }

    fn put(&mut self, bytes: &[u8]) {
        self.reserve(bytes.len()).copy_from_slice(bytes);
        self.len += bytes.len();
    }

    fn reply(&mut self, cookie: u64, error: u32) -> io::Result<()> {
        self.put(&proto::reply(cookie, error));
        self.commit(0)
    }

    /// Sends what was gathered, if the next write of `len` bytes might wait for long.
    fn send_if_waiting(&mut self, disk: &Disk, len: u64) -> io::Result<()> {
        if self.len == 0 || !disk.may_wait(len) {
            return Ok(());
        }
        self.send()
    }

    fn send(&mut self) -> io::Result<()> {
        if self.len > 0 {
            let mut sink = self.sink.lock().unwrap_or_else(PoisonError::into_inner);
            sink.write_all(&self.buffer[..self.len])?;
        }
        self.len = 0;
        if self.buffer.len() > BUFFER_KEPT {
            self.buffer = Vec::new();
        }
        Ok(())
    }
}

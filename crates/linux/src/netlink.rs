//! Netlink: messages, attributes and a blocking socket, enough for links, routes, neighbours and connection tracking.
//!
//! Requests of one batch leave in one system call and are answered in order, each with its own acknowledgement. A
//! socket belongs to the network namespace in which it was opened, whichever thread uses it later.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send, socket,
};

/// The message is a request.
pub const REQUEST: u16 = 0x001;
/// The kernel shall acknowledge.
pub const ACK: u16 = 0x004;
/// With a get: every object.
pub const DUMP: u16 = 0x300;
/// With a new: replace what is there.
pub const REPLACE: u16 = 0x100;
/// With a new: fail when it is there.
pub const EXCL: u16 = 0x200;
/// With a new: create when it is not there.
pub const CREATE: u16 = 0x400;

const ERROR: u16 = 2;
const DONE: u16 = 3;
const HEADER_LEN: usize = 16;
const NESTED: u16 = 0x8000;
const KIND_MASK: u16 = 0x3fff;
/// Requests sent before their acknowledgements are read: their answers must fit the socket's receive buffer.
const CHUNK: usize = 64;

/// Which part of the kernel a socket speaks to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// Links, addresses, routes, neighbours.
    Route,
    /// Packet filter and connection tracking.
    Netfilter,
}

/// A message under construction: kind, flags, and a body of a fixed header and attributes.
#[derive(Clone, Debug)]
pub struct Message {
    kind: u16,
    flags: u16,
    body: Vec<u8>,
}

impl Message {
    /// A message of this kind; [`REQUEST`] is implied.
    pub fn new(kind: u16, flags: u16, header: &[u8]) -> Self {
        Self { kind, flags, body: header.to_vec() }
    }

    /// Appends an attribute.
    pub fn attr(mut self, kind: u16, value: &[u8]) -> Self {
        put(&mut self.body, kind, value);
        self
    }

    /// Appends an attribute of a number in the machine's byte order.
    pub fn attr_u32(self, kind: u16, value: u32) -> Self {
        self.attr(kind, &value.to_ne_bytes())
    }

    /// Appends an attribute of a zero-terminated text.
    pub fn attr_str(self, kind: u16, value: &str) -> Self {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.attr(kind, &bytes)
    }

    /// Appends an attribute that holds what `fill` writes: a header, if any, and attributes by [`put`].
    pub fn nest(mut self, kind: u16, fill: impl FnOnce(&mut Vec<u8>)) -> Self {
        nest(&mut self.body, kind, fill);
        self
    }

    fn write(&self, sequence: u32, flags: u16, out: &mut Vec<u8>) {
        let length = (HEADER_LEN + self.body.len()) as u32;
        out.extend_from_slice(&length.to_ne_bytes());
        out.extend_from_slice(&self.kind.to_ne_bytes());
        out.extend_from_slice(&(self.flags | REQUEST | flags).to_ne_bytes());
        out.extend_from_slice(&sequence.to_ne_bytes());
        out.extend_from_slice(&0u32.to_ne_bytes());
        out.extend_from_slice(&self.body);
        pad(out);
    }
}

/// Writes an attribute.
pub fn put(out: &mut Vec<u8>, kind: u16, value: &[u8]) {
    out.extend_from_slice(&((value.len() + 4) as u16).to_ne_bytes());
    out.extend_from_slice(&kind.to_ne_bytes());
    out.extend_from_slice(value);
    pad(out);
}

/// Writes an attribute that holds what `fill` writes.
pub fn nest(out: &mut Vec<u8>, kind: u16, fill: impl FnOnce(&mut Vec<u8>)) {
    let mut inner = Vec::new();
    fill(&mut inner);
    put(out, kind | NESTED, &inner);
}

fn pad(out: &mut Vec<u8>) {
    out.resize(out.len().next_multiple_of(4), 0);
}

/// The attributes in `bytes`, up to the first malformed one.
pub fn attrs(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes([*rest.first()?, *rest.get(1)?]));
        let kind = u16::from_ne_bytes([*rest.get(2)?, *rest.get(3)?]) & KIND_MASK;
        let value = rest.get(4..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// The first attribute of this kind.
pub fn attr(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attrs(bytes).find(|(found, _)| *found == kind).map(|(_, value)| value)
}

/// A number in the machine's byte order at the head of an attribute's value.
pub fn number(value: &[u8]) -> Option<u32> {
    Some(u32::from_ne_bytes(value.get(..4)?.try_into().ok()?))
}

/// A text, without its terminating zero.
pub fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value.split(|b| *b == 0).next().unwrap_or_default()).into_owned()
}

/// The kernel refused request `index` of a batch; those before it took effect, those after it may have.
#[derive(Debug, thiserror::Error)]
#[error("request {index} of a netlink batch was refused")]
pub struct BatchError {
    /// Position in the batch.
    pub index: usize,
    /// Why.
    pub source: io::Error,
}

impl BatchError {
    /// The system's error number.
    pub fn errno(&self) -> Option<i32> {
        self.source.raw_os_error()
    }
}

/// An answer: its kind and body.
pub struct Answer {
    /// Message kind.
    pub kind: u16,
    /// Fixed header and attributes.
    pub body: Vec<u8>,
}

/// A netlink socket with blocking calls.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Socket {
    /// Opens a socket in the network namespace of the calling thread.
    pub fn open(family: Family) -> io::Result<Self> {
        let protocol = match family {
            Family::Route => SockProtocol::NetlinkRoute,
            Family::Netfilter => SockProtocol::NetlinkNetFilter,
        };
        let fd = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        Ok(Self { fd, sequence: 0, buffer: vec![0; 64 << 10] })
    }

    /// Sends all messages and waits for the acknowledgement of each; the first refusal is the error.
    pub fn batch(&mut self, messages: &[Message]) -> Result<(), BatchError> {
        let mut first_error = None;
        for (number, chunk) in messages.chunks(CHUNK).enumerate() {
            let base = number * CHUNK;
            for (index, result) in
                self.exchange(chunk).map_err(|source| BatchError { index: base, source })?.into_iter().enumerate()
            {
                if let (Err(source), None) = (result, &first_error) {
                    first_error = Some(BatchError { index: base + index, source });
                }
            }
            if first_error.is_some() {
                break;
            }
        }
        first_error.map_or(Ok(()), Err)
    }

    /// Sends all messages and returns the kernel's verdict on each.
    pub fn try_each(&mut self, messages: &[Message]) -> io::Result<Vec<io::Result<()>>> {
        let mut results = Vec::with_capacity(messages.len());
        for chunk in messages.chunks(CHUNK) {
            results.extend(self.exchange(chunk)?);
        }
        Ok(results)
    }

    fn exchange(&mut self, messages: &[Message]) -> io::Result<Vec<io::Result<()>>> {
        let first = self.sequence.wrapping_add(1);
        let mut out = Vec::new();
        for message in messages {
            self.sequence = self.sequence.wrapping_add(1);
            message.write(self.sequence, ACK, &mut out);
        }
        self.send(&out)?;
        let mut results: Vec<Option<io::Result<()>>> = messages.iter().map(|_| None).collect();
        while results.iter().any(Option::is_none) {
            self.receive(|header, body| {
                if header.kind == ERROR
                    && let Some(slot) = results.get_mut(header.sequence.wrapping_sub(first) as usize)
                {
                    *slot = Some(verdict(body));
                }
            })?;
        }
        Ok(results.into_iter().flatten().collect())
    }

    /// Sends one get request and returns the one object it names, or every object with [`DUMP`].
    pub fn get(&mut self, message: &Message) -> io::Result<Vec<Answer>> {
        self.sequence = self.sequence.wrapping_add(1);
        let expected = self.sequence;
        let dump = message.flags & DUMP == DUMP;
        let mut out = Vec::new();
        message.write(expected, if dump { 0 } else { ACK }, &mut out);
        self.send(&out)?;
        let (mut answers, mut end) = (Vec::new(), None);
        while end.is_none() {
            self.receive(|header, body| match header.kind {
                _ if header.sequence != expected => {}
                ERROR => end = Some(verdict(body)),
                DONE => end = Some(Ok(())),
                kind => answers.push(Answer { kind, body: body.to_vec() }),
            })?;
        }
        end.unwrap_or(Ok(())).map(|()| answers)
    }

    fn send(&self, bytes: &[u8]) -> io::Result<()> {
        send(self.fd.as_raw_fd(), bytes, MsgFlags::empty())?;
        Ok(())
    }

    fn receive(&mut self, mut each: impl FnMut(Header, &[u8])) -> io::Result<()> {
        let length = loop {
            match recv(self.fd.as_raw_fd(), &mut self.buffer, MsgFlags::empty()) {
                Err(nix::errno::Errno::EINTR) => {}
                other => break other?,
            }
        };
        let mut rest = self.buffer.get(..length).unwrap_or_default();
        while let Some(header) = Header::parse(rest) {
            let Some(body) = rest.get(HEADER_LEN..header.length) else { break };
            each(header, body);
            rest = rest.get(header.length.next_multiple_of(4)..).unwrap_or_default();
        }
        Ok(())
    }
}

#[derive(Clone, Copy)]
struct Header {
    length: usize,
    kind: u16,
    sequence: u32,
}

impl Header {
    fn parse(bytes: &[u8]) -> Option<Self> {
        let length = number(bytes)? as usize;
        let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
        let sequence = number(bytes.get(8..12)?)?;
        (length >= HEADER_LEN).then_some(Self { length, kind, sequence })
    }
}

fn verdict(body: &[u8]) -> io::Result<()> {
    match body.get(..4).and_then(|b| b.try_into().ok()).map(i32::from_ne_bytes) {
        Some(0) => Ok(()),
        Some(code) => Err(io::Error::from_raw_os_error(code.wrapping_neg())),
        None => Err(io::Error::from(io::ErrorKind::InvalidData)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_survive_a_round_trip_and_garbage_ends_the_list() {
        let mut bytes = Vec::new();
        put(&mut bytes, 3, b"eth0\0");
        nest(&mut bytes, 18, |inner| put(inner, 1, b"veth"));
        bytes.extend_from_slice(&[0xff, 0xff, 1, 0]);
        let found: Vec<_> = attrs(&bytes).collect();
        assert_eq!(found.len(), 2);
        assert_eq!(text(found[0].1), "eth0");
        assert_eq!(attr(found[1].1, 1), Some(b"veth".as_slice()));
        assert_eq!(attrs(&[1, 0, 0]).count(), 0);
        assert_eq!(attrs(&[2, 0, 0, 0, 0, 0]).count(), 0);
    }

    #[test]
    fn loopback_is_listed_and_a_missing_link_is_an_error() {
        let mut socket = Socket::open(Family::Route).unwrap();
        let all = socket.get(&Message::new(18, DUMP, &[0; 16])).unwrap();
        assert!(all.iter().any(|link| attr(&link.body[16..], 3).map(text).as_deref() == Some("lo")));
        let missing = socket.get(&Message::new(18, 0, &[0; 16]).attr_str(3, "none-such"));
        assert_eq!(missing.err().and_then(|e| e.raw_os_error()), Some(libc::ENODEV));
    }
}

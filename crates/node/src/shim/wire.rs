//! Framing of messages with descriptors over a Unix socket, for both ends.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::protocol::MESSAGE_BYTES_MAX;

/// Descriptors that may travel with one message.
const DESCRIPTORS_MAX: usize = 4;

/// A message as bytes.
pub fn encode(message: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; 4];
    serde_json::to_writer(&mut bytes, message)?;
    let len = u32::try_from(bytes.len() - 4).map_err(|_| io::Error::other("message too long"))?;
    bytes[..4].copy_from_slice(&len.to_le_bytes());
    Ok(bytes)
}

/// Sends `bytes` with `fds` as far as the socket takes them; returns how many bytes went.
pub fn send_some(socket: impl AsFd, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::Error::other("too many descriptors for one message"));
    }
    Ok(rustix::net::sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)?)
}

/// The receiving end of a connection: collects bytes and descriptors until messages are whole.
#[derive(Default)]
pub struct Receiver {
    bytes: Vec<u8>,
    fds: Vec<OwnedFd>,
}

/// What one read brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received {
    /// Some bytes.
    Bytes,
    /// The other end has closed.
    End,
}

impl Receiver {
    /// Reads once from `socket`.
    pub fn fill(&mut self, socket: impl AsFd) -> io::Result<Received> {
        let mut chunk = [0; 4096];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let got =
            rustix::net::recvmsg(socket, &mut [IoSliceMut::new(&mut chunk)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = message {
                self.fds.extend(fds);
            }
        }
        self.bytes.extend_from_slice(&chunk[..got.bytes]);
        Ok(if got.bytes == 0 { Received::End } else { Received::Bytes })
    }

    /// A descriptor that came without a message.
    pub fn take_descriptor(&mut self) -> Option<OwnedFd> {
        self.fds.pop()
    }

    /// The next whole message and every descriptor received so far, or `None` while it is incomplete.
    pub fn take<T: DeserializeOwned>(&mut self) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
        let Some(header) = self.bytes.first_chunk::<4>() else { return Ok(None) };
        let len = u32::from_le_bytes(*header) as usize;
        if len > MESSAGE_BYTES_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "message too long"));
        }
        if self.bytes.len() < 4 + len {
            return Ok(None);
        }
        let message = serde_json::from_slice(&self.bytes[4..4 + len])?;
        self.bytes.drain(..4 + len);
        Ok(Some((message, std::mem::take(&mut self.fds))))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::shim::protocol::Reply;

    #[test]
    fn messages_and_descriptors_arrive_whole_whatever_the_pieces() {
        let (a, b) = UnixStream::pair().expect("a socket pair");
        let bytes = encode(&Reply::Failed("x".repeat(10_000))).expect("encodes");
        let file = std::fs::File::open("/dev/null").expect("opens");
        assert_eq!(send_some(&a, &bytes[..3], &[file.as_fd()]).expect("sends"), 3);
        let mut receiver = Receiver::default();
        receiver.fill(&b).expect("receives");
        assert!(receiver.take::<Reply>().expect("no error").is_none());
        assert_eq!(send_some(&a, &bytes[3..], &[]).expect("sends"), bytes.len() - 3);
        let (reply, fds) = loop {
            receiver.fill(&b).expect("receives");
            if let Some(message) = receiver.take::<Reply>().expect("no error") {
                break message;
            }
        };
        assert_eq!((reply, fds.len()), (Reply::Failed("x".repeat(10_000)), 1));
    }

    #[test]
    fn an_absurd_length_is_refused() {
        let mut receiver = Receiver { bytes: vec![0xff; 8], fds: Vec::new() };
        assert!(receiver.take::<Reply>().is_err());
    }
}

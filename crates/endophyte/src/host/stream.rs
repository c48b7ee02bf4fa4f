//! What flows between a primary and a backup, in order: epochs, copies, files; and the backup's answers to a copy.
//!
//! Each message starts with a byte that tells its kind. Integers are little-endian.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use mycelium_rhizomorph::{Link, Priority};
use tokio::sync::mpsc;

use super::book::channel;
use super::held::{Held, Weight};
use crate::group::Position;

const FRAME: u8 = 1;
const SYNC_BEGIN: u8 = 2;
const SYNC_END: u8 = 3;
const DISK: u8 = 4;
const FILE: u8 = 5;
const HASHES: u8 = 6;
const FAILED: u8 = 7;
const SYNC_START: u8 = 8;

/// A message of the stream, or an answer to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StreamMessage {
    /// An epoch or a part of a copy, as [`crate::codec`] frames them.
    Frame(Bytes),
    /// A copy begins: the backup answers with the hashes of its pages.
    SyncBegin {
        /// Tells copies apart.
        id: u64,
        /// Seed of the hashes.
        seed: u64,
    },
    /// The frames of a copy follow: what came between [`Self::SyncBegin`] and this belongs to what was before.
    SyncStart {
        /// The copy.
        id: u64,
    },
    /// All of memory was sent: with the frame before this one, memory is whole.
    SyncEnd {
        /// The copy.
        id: u64,
        /// What that frame was.
        at: Position,
    },
    /// The disk's own copying speaks, in either direction.
    Disk {
        /// The copy it belongs to.
        id: u64,
        /// What it says.
        words: Bytes,
    },
    /// A file of the machine.
    File {
        /// Its name.
        name: String,
        /// All of it.
        content: Bytes,
    },
    /// (Backup) 128-bit hashes of all pages, in order.
    Hashes {
        /// The copy.
        id: u64,
        /// 16 bytes for each page.
        hashes: Bytes,
    },
    /// (Backup) it cannot be brought in sync.
    Failed {
        /// Why.
        reason: String,
    },
}

impl StreamMessage {
    /// As pieces of one message; large parts are not copied.
    pub fn encode(self) -> Vec<Bytes> {
        let mut head = BytesMut::new();
        match self {
            Self::Frame(bytes) => vec![Bytes::from_static(&[FRAME]), bytes],
            Self::Disk { id, words } => {
                head.put_u8(DISK);
                head.put_u64_le(id);
                vec![head.freeze(), words]
            }
            Self::SyncBegin { id, seed } => {
                head.put_u8(SYNC_BEGIN);
                head.put_u64_le(id);
                head.put_u64_le(seed);
                vec![head.freeze()]
            }
            Self::SyncStart { id } => {
                head.put_u8(SYNC_START);
                head.put_u64_le(id);
                vec![head.freeze()]
            }
            Self::SyncEnd { id, at } => {
                head.put_u8(SYNC_END);
                head.put_u64_le(id);
                head.put_u64_le(at.term);
                head.put_u64_le(at.epoch);
                vec![head.freeze()]
            }
            Self::File { name, content } => {
                head.put_u8(FILE);
                head.put_u16_le(u16::try_from(name.len()).unwrap_or(0));
                head.put_slice(name.as_bytes());
                vec![head.freeze(), content]
            }
            Self::Hashes { id, hashes } => {
                head.put_u8(HASHES);
                head.put_u64_le(id);
                vec![head.freeze(), hashes]
            }
            Self::Failed { reason } => {
                head.put_u8(FAILED);
                head.put_slice(reason.as_bytes());
                vec![head.freeze()]
            }
        }
    }

    /// Whether a message asks for the hashes of pages.
    pub fn begins_sync(bytes: &Bytes) -> bool {
        bytes.first() == Some(&SYNC_BEGIN)
    }

    /// The file that a message brings, if it brings one.
    pub fn file(bytes: &Bytes) -> Option<(String, Bytes)> {
        if bytes.first() != Some(&FILE) {
            return None;
        }
        match Self::decode(bytes.clone()) {
            Ok(Self::File { name, content }) => Some((name, content)),
            _ => None,
        }
    }

    /// From the bytes of one message.
    ///
    /// # Errors
    /// A sentence that says what is wrong with them.
    pub fn decode(mut bytes: Bytes) -> Result<Self, String> {
        let short = |_| "a message of the stream is cut short".to_owned();
        let message = match bytes.try_get_u8().map_err(short)? {
            FRAME => Self::Frame(bytes.split_off(0)),
            DISK => Self::Disk { id: bytes.try_get_u64_le().map_err(short)?, words: bytes.split_off(0) },
            SYNC_BEGIN => Self::SyncBegin {
                id: bytes.try_get_u64_le().map_err(short)?,
                seed: bytes.try_get_u64_le().map_err(short)?,
            },
            SYNC_START => Self::SyncStart { id: bytes.try_get_u64_le().map_err(short)? },
            SYNC_END => {
                let id = bytes.try_get_u64_le().map_err(short)?;
                let term = bytes.try_get_u64_le().map_err(short)?;
                Self::SyncEnd { id, at: Position::new(term, bytes.try_get_u64_le().map_err(short)?) }
            }
            FILE => {
                let length = usize::from(bytes.try_get_u16_le().map_err(short)?);
                if length > bytes.len() {
                    return Err("a message of the stream is cut short".into());
                }
                let name =
                    String::from_utf8(bytes.split_to(length).to_vec()).map_err(|_| "a file's name is not text")?;
                Self::File { name, content: bytes.split_off(0) }
            }
            HASHES => Self::Hashes { id: bytes.try_get_u64_le().map_err(short)?, hashes: bytes.split_off(0) },
            FAILED => Self::Failed { reason: String::from_utf8_lossy(&bytes.split_off(0)).into_owned() },
            other => {
                return Err(format!("kind {other} of stream message is unknown: run the same release on every host"));
            }
        };
        if bytes.has_remaining() {
            return Err("a message of the stream is longer than it should be".into());
        }
        Ok(message)
    }
}

/// A frame as pieces of one message.
pub fn frame_message(pieces: Vec<Bytes>) -> Vec<Bytes> {
    let mut message = Vec::with_capacity(pieces.len() + 1);
    message.push(Bytes::from_static(&[FRAME]));
    message.extend(pieces);
    message
}

/// The way to one backup: messages leave in order, and how many bytes wait can be told.
#[derive(Debug, Clone)]
pub struct Outbox {
    queue: mpsc::UnboundedSender<(Vec<Bytes>, Weight)>,
    held: Held,
    waiting: Arc<AtomicU64>,
    /// Of these, the bytes of the message that is being handed to the link.
    sending: Arc<AtomicU64>,
    /// Bytes per second; 0 before any were measured.
    bandwidth: Arc<AtomicU64>,
}

impl Outbox {
    /// Sends over a link until it closes or the outbox is dropped; what waits counts as held.
    pub fn new(link: Link, held: &Held) -> Self {
        let (queue, mut messages) = mpsc::unbounded_channel::<(Vec<Bytes>, Weight)>();
        let waiting = Arc::new(AtomicU64::new(0));
        let sending = Arc::new(AtomicU64::new(0));
        let (counted, first) = (Arc::clone(&waiting), Arc::clone(&sending));
        let bandwidth = Arc::new(AtomicU64::new(0));
        let measured = Arc::clone(&bandwidth);
        tokio::spawn(async move {
            while let Some((message, _weight)) = messages.recv().await {
                let length = length(&message);
                measured.store(link_bandwidth(&link), Ordering::Relaxed);
                first.store(length, Ordering::Relaxed);
                let sent = link.send(channel::STREAM, Priority::Bulk, message).await;
                first.store(0, Ordering::Relaxed);
                counted.fetch_sub(length, Ordering::Relaxed);
                if sent.is_err() {
                    break;
                }
            }
            counted.store(0, Ordering::Relaxed);
        });
        Self { queue, held: held.clone(), waiting, sending, bandwidth }
    }

    /// Queues a message; into nothing when the link is gone, which is noticed elsewhere.
    pub fn send(&self, message: Vec<Bytes>) {
        let weight = self.held.weigh(length(&message));
        self.send_shared(message, weight);
    }

    /// The same with a message that other queues have too, and its weight.
    pub fn send_shared(&self, message: Vec<Bytes>, weight: Weight) {
        let length = length(&message);
        self.waiting.fetch_add(length, Ordering::Relaxed);
        if self.queue.send((message, weight)).is_err() {
            self.waiting.fetch_sub(length, Ordering::Relaxed);
        }
    }

    /// Bytes per second that the link carries, as measured; none before anything was.
    pub fn bandwidth(&self) -> Option<u64> {
        Some(self.bandwidth.load(Ordering::Relaxed)).filter(|rate| *rate > 0)
    }

    /// Bytes that wait for the link.
    pub fn waiting(&self) -> u64 {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Bytes that wait behind the message that is being handed to the link.
    pub fn behind(&self) -> u64 {
        self.waiting().saturating_sub(self.sending.load(Ordering::Relaxed))
    }
}

/// What all connections of a link carry together.
fn link_bandwidth(link: &Link) -> u64 {
    link.stats().connections.iter().filter_map(|connection| connection.bandwidth_bytes_per_s).sum()
}

fn length(message: &[Bytes]) -> u64 {
    message.iter().map(|piece| piece.len() as u64).sum()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn message() -> impl Strategy<Value = StreamMessage> {
        let bytes = || prop::collection::vec(any::<u8>(), 0..64).prop_map(Bytes::from);
        prop_oneof![
            bytes().prop_map(StreamMessage::Frame),
            (any::<u64>(), bytes()).prop_map(|(id, words)| StreamMessage::Disk { id, words }),
            any::<(u64, u64)>().prop_map(|(id, seed)| StreamMessage::SyncBegin { id, seed }),
            any::<u64>().prop_map(|id| StreamMessage::SyncStart { id }),
            any::<(u64, u64, u64)>()
                .prop_map(|(id, term, epoch)| StreamMessage::SyncEnd { id, at: Position::new(term, epoch) }),
            ("[a-z]{0,9}", bytes()).prop_map(|(name, content)| StreamMessage::File { name, content }),
            (any::<u64>(), bytes()).prop_map(|(id, hashes)| StreamMessage::Hashes { id, hashes }),
            "[a-z ]{0,20}".prop_map(|reason| StreamMessage::Failed { reason }),
        ]
    }

    proptest! {
        #[test]
        fn messages_survive_the_wire(message in message()) {
            let bytes = Bytes::from(message.clone().encode().concat());
            prop_assert_eq!(StreamMessage::decode(bytes), Ok(message));
        }

        #[test]
        fn any_bytes_are_decoded_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            let _ = StreamMessage::decode(Bytes::from(bytes));
        }
    }
}

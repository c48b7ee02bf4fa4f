//! What flows inside a connection: a greeting, then frames. All numbers are little endian.
//!
//! ```text
//! greeting  "MYRZ" version:u8 kind:u8 session:16 window:u64 urgent_window:u64 message_max:u64 dead_after_ms:u32
//! data      1 flags:u8 channel:u16 sequence:u64 total:u64 offset:u64 length:u32 <length bytes>
//! report    2 frames:u64 bulk:u64 urgent:u64      data frames received here; bytes consumed on the whole link
//! ping      3 id:u64
//! pong      4 id:u64
//! close     5
//! ```

use crate::error::Violation;

/// No chunk is longer.
pub const CHUNK_BYTES_MAX: u32 = 1 << 20;
/// The longest frame, without a chunk's bytes.
pub(crate) const FRAME_BYTES_MAX: usize = 32;
/// The length of a greeting.
pub(crate) const GREETING_BYTES: usize = 50;
const MAGIC: [u8; 4] = *b"MYRZ";
/// The version of this protocol.
pub(crate) const VERSION: u8 = 1;

/// A random number that names a link; only connections of the same two processes may join it.
pub type SessionId = [u8; 16];

/// The start of a piece of a message; `length` bytes follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DataHeader {
    /// Whether the message overtakes bulk ones.
    pub urgent: bool,
    /// The channel.
    pub channel: u16,
    /// The message's number in its channel.
    pub sequence: u64,
    /// The whole message's length.
    pub total: u64,
    /// Where this piece stands in it.
    pub offset: u64,
    /// How long this piece is.
    pub length: u32,
}

/// A frame; of data only the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Frame {
    /// A piece of a message.
    Data(DataHeader),
    /// What arrived on this connection, and what the application has taken from the link.
    Report(Report),
    /// Asks for a pong.
    Ping(u64),
    /// Answers a ping.
    Pong(u64),
    /// The link ends.
    Close,
}

/// What a receiver tells: all counters only grow, so that any report makes earlier ones superfluous.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Report {
    /// Data frames received on this connection.
    pub frames: u64,
    /// Cost of the bulk messages that the application has taken.
    pub bulk: u64,
    /// The same of urgent messages.
    pub urgent: u64,
}

impl Frame {
    /// Appends the frame to `out`.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Data(header) => {
                out.extend([1, u8::from(header.urgent)]);
                out.extend(header.channel.to_le_bytes());
                out.extend(header.sequence.to_le_bytes());
                out.extend(header.total.to_le_bytes());
                out.extend(header.offset.to_le_bytes());
                out.extend(header.length.to_le_bytes());
            }
            Self::Report(report) => {
                out.push(2);
                out.extend(report.frames.to_le_bytes());
                out.extend(report.bulk.to_le_bytes());
                out.extend(report.urgent.to_le_bytes());
            }
            Self::Ping(id) | Self::Pong(id) => {
                out.push(if matches!(self, Self::Ping(_)) { 3 } else { 4 });
                out.extend(id.to_le_bytes());
            }
            Self::Close => out.push(5),
        }
    }

    /// Reads a frame from the front of `bytes` and says how long it is; `None` when more bytes are needed.
    pub fn decode(bytes: &[u8]) -> Result<Option<(Self, usize)>, Violation> {
        let Some(kind) = bytes.first() else { return Ok(None) };
        let length = frame_length(*kind)?;
        let Some(body) = bytes.get(1..length) else { return Ok(None) };
        let frame = match kind {
            1 => Self::Data(data_header(body)?),
            2 => Self::Report(Report { frames: u64_at(body, 0), bulk: u64_at(body, 8), urgent: u64_at(body, 16) }),
            3 => Self::Ping(u64_at(body, 0)),
            4 => Self::Pong(u64_at(body, 0)),
            _ => Self::Close,
        };
        Ok(Some((frame, length)))
    }
}

/// How long a frame of this kind is, without a chunk's bytes.
pub(crate) fn frame_length(kind: u8) -> Result<usize, Violation> {
    match kind {
        1 => Ok(32),
        2 => Ok(25),
        3 | 4 => Ok(9),
        5 => Ok(1),
        other => Err(Violation::Kind(other)),
    }
}

fn data_header(body: &[u8]) -> Result<DataHeader, Violation> {
    if body[0] > 1 {
        return Err(Violation::Field("flags"));
    }
    let header = DataHeader {
        urgent: body[0] == 1,
        channel: u16::from_le_bytes([body[1], body[2]]),
        sequence: u64_at(body, 3),
        total: u64_at(body, 11),
        offset: u64_at(body, 19),
        length: u32_at(body, 27),
    };
    let end = header.offset.checked_add(header.length.into());
    if header.length > CHUNK_BYTES_MAX || end.is_none_or(|end| end > header.total) {
        return Err(Violation::Field("length"));
    }
    if header.length == 0 && header.total > 0 {
        return Err(Violation::Field("empty chunk"));
    }
    Ok(header)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

/// What a connection says first, and what is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Greeting {
    /// What it is about.
    pub kind: GreetingKind,
    /// The link; zero when it has no name yet.
    pub session: SessionId,
    /// How many bytes of bulk messages it takes before the application does.
    pub window: u64,
    /// The same of urgent messages.
    pub urgent_window: u64,
    /// The longest message it takes.
    pub message_max: u64,
    /// After how much silence it gives up.
    pub dead_after_ms: u32,
}

/// What a greeting is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GreetingKind {
    /// A dialler asks for a new link.
    Open,
    /// A dialler adds a connection to a link.
    Join,
    /// Yes.
    Welcome,
    /// No: the protocol's version.
    Version,
    /// No: the session is not known.
    UnknownSession,
    /// No: too many.
    Full,
}

const KINDS: [GreetingKind; 6] = [
    GreetingKind::Open,
    GreetingKind::Join,
    GreetingKind::Welcome,
    GreetingKind::Version,
    GreetingKind::UnknownSession,
    GreetingKind::Full,
];

impl Greeting {
    /// The bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(GREETING_BYTES);
        out.extend(MAGIC);
        out.push(VERSION);
        out.push(KINDS.iter().position(|kind| *kind == self.kind).unwrap_or_default() as u8);
        out.extend(self.session);
        out.extend(self.window.to_le_bytes());
        out.extend(self.urgent_window.to_le_bytes());
        out.extend(self.message_max.to_le_bytes());
        out.extend(self.dead_after_ms.to_le_bytes());
        out
    }

    /// Reads a greeting. One of another version is only known by its kind [`GreetingKind::Version`].
    pub fn decode(bytes: &[u8]) -> Result<Self, Violation> {
        let bytes: &[u8; GREETING_BYTES] = bytes.try_into().map_err(|_| Violation::Field("greeting's length"))?;
        if bytes[..4] != MAGIC {
            return Err(Violation::Field("greeting"));
        }
        let kind = *KINDS.get(usize::from(bytes[5])).ok_or(Violation::Field("greeting's kind"))?;
        Ok(Self {
            kind: if bytes[4] == VERSION { kind } else { GreetingKind::Version },
            session: bytes[6..22].try_into().expect("sixteen bytes"),
            window: u64_at(bytes, 22),
            urgent_window: u64_at(bytes, 30),
            message_max: u64_at(bytes, 38),
            dead_after_ms: u32_at(bytes, 46),
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Any bytes: no panic, and what is accepted can be written and read again.
        #[test]
        fn frames_of_any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..64), kind in 0u8..7) {
            for start in [None, Some(kind)] {
                let mut bytes = bytes.clone();
                if let (Some(kind), Some(first)) = (start, bytes.first_mut()) { *first = kind; }
                if let Ok(Some((frame, length))) = Frame::decode(&bytes) {
                    let mut again = Vec::new();
                    frame.encode(&mut again);
                    prop_assert_eq!(&again, &bytes[..length]);
                    prop_assert!(length <= FRAME_BYTES_MAX);
                    for cut in 0..length {
                        prop_assert_eq!(Frame::decode(&again[..cut]), Ok(None));
                    }
                }
            }
        }

        #[test]
        fn greetings(kind in 0usize..6, session: [u8; 16], window: u64, urgent_window: u64, message_max: u64, dead_after_ms: u32) {
            let greeting = Greeting { kind: KINDS[kind], session, window, urgent_window, message_max, dead_after_ms };
            prop_assert_eq!(Greeting::decode(&greeting.encode()), Ok(greeting));
        }

        #[test]
        fn greetings_of_any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            let _ = Greeting::decode(&bytes);
        }
    }
}

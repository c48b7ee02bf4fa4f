//! The NBD protocol as bytes: what a client may send and what we answer. Pure, so that it can be fuzzed.
//!
//! The protocol is described at <https://github.com/NetworkBlockDevice/nbd/blob/master/doc/proto.md>. We speak its
//! fixed newstyle with simple replies: structured ones and metadata contexts are refused politely.

use std::io;

/// The largest payload of one request in either direction.
pub const PAYLOAD_MAX: u32 = 32 * 1024 * 1024;
/// The largest data of one option.
pub const OPTION_MAX: u32 = 64 * 1024;
/// The length of a request's header.
pub const REQUEST_LEN: usize = 28;
/// The length of an option's header.
pub const OPTION_LEN: usize = 16;

const MAGIC: u64 = u64::from_be_bytes(*b"NBDMAGIC");
const OPTION_MAGIC: u64 = u64::from_be_bytes(*b"IHAVEOPT");
const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const REPLY_MAGIC: u32 = 0x6744_6698;

/// Fixed newstyle, and no zeroes after it.
const HANDSHAKE_FLAGS: u16 = 0b11;
/// Flags, flush, FUA, trim, write zeroes, several connections.
const EXPORT_FLAGS: u16 = 1 | 1 << 2 | 1 << 3 | 1 << 5 | 1 << 6 | 1 << 8;

const REP_ACK: u32 = 1;
const REP_SERVER: u32 = 2;
const REP_INFO: u32 = 3;
const REP_ERR_UNSUP: u32 = 1 << 31 | 1;
const REP_ERR_INVALID: u32 = 1 << 31 | 3;
const REP_ERR_UNKNOWN: u32 = 1 << 31 | 6;
const REP_ERR_TOO_BIG: u32 = 1 << 31 | 9;

/// The client broke the protocol; the connection ends.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Violation {
    /// A magic number is wrong.
    #[error("wrong magic number")]
    Magic,
    /// Flags that were never offered.
    #[error("unknown client flags {0:#x}")]
    Flags(u32),
    /// A payload that is larger than we announced.
    #[error("a payload of {0} bytes")]
    TooLarge(u32),
    /// An export that we do not have was asked for in the way that knows no errors.
    #[error("no such export")]
    Export,
}

/// What the server says first.
pub fn greeting() -> [u8; 18] {
    let mut bytes = [0; 18];
    bytes[..8].copy_from_slice(&MAGIC.to_be_bytes());
    bytes[8..16].copy_from_slice(&OPTION_MAGIC.to_be_bytes());
    bytes[16..].copy_from_slice(&HANDSHAKE_FLAGS.to_be_bytes());
    bytes
}

/// The negotiation with one client.
#[derive(Debug)]
pub struct Negotiation {
    export: u64,
    zeroes: bool,
}

/// What follows after an option.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// Send the reply and wait for another option.
    Option,
    /// Send the reply and serve requests.
    Transmission,
    /// Send the reply and hang up.
    Hangup,
}

/// An option's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OptionHeader {
    /// Which option.
    pub option: u32,
    /// The length of the data that follows.
    pub len: u32,
}

impl OptionHeader {
    /// Reads the header.
    pub fn decode(bytes: &[u8; OPTION_LEN]) -> Result<Self, Violation> {
        let (magic, rest) = bytes.split_at(8);
        if magic != OPTION_MAGIC.to_be_bytes() {
            return Err(Violation::Magic);
        }
        Ok(Self { option: be32(rest, 0), len: be32(rest, 4) })
    }
}

impl Negotiation {
    /// Reads the client's flags; the export has `size` bytes.
    pub fn new(size: u64, client_flags: u32) -> Result<Self, Violation> {
        if client_flags & !0b11 != 0 {
            return Err(Violation::Flags(client_flags));
        }
        Ok(Self { export: size, zeroes: client_flags & 0b10 == 0 })
    }

    /// Answers an option whose data is too long to be read.
    pub fn too_big(header: OptionHeader, reply: &mut Vec<u8>) {
        option_reply(reply, header.option, REP_ERR_TOO_BIG, b"too long");
    }

    /// Answers one option.
    pub fn option(&self, option: u32, data: &[u8], reply: &mut Vec<u8>) -> Result<Next, Violation> {
        match option {
            1 => self.export_name(data, reply),
            2 => {
                option_reply(reply, option, REP_ACK, &[]);
                Ok(Next::Hangup)
            }
            3 => {
                self.list(data, reply);
                Ok(Next::Option)
            }
            6 | 7 => Ok(self.info(option, data, reply)),
            _ => {
                option_reply(reply, option, REP_ERR_UNSUP, b"not supported");
                Ok(Next::Option)
            }
        }
    }

    fn export_name(&self, name: &[u8], reply: &mut Vec<u8>) -> Result<Next, Violation> {
        if !known(name) {
            return Err(Violation::Export);
        }
        reply.extend(self.export.to_be_bytes());
        reply.extend(EXPORT_FLAGS.to_be_bytes());
        if self.zeroes {
            reply.extend([0; 124]);
        }
        Ok(Next::Transmission)
    }

    fn list(&self, data: &[u8], reply: &mut Vec<u8>) {
        if !data.is_empty() {
            return option_reply(reply, 3, REP_ERR_INVALID, b"LIST takes no data");
        }
        option_reply(reply, 3, REP_SERVER, &0_u32.to_be_bytes());
        option_reply(reply, 3, REP_ACK, &[]);
    }

    fn info(&self, option: u32, data: &[u8], reply: &mut Vec<u8>) -> Next {
        let Some((name, wanted)) = info_request(data) else {
            option_reply(reply, option, REP_ERR_INVALID, b"malformed");
            return Next::Option;
        };
        if !known(name) {
            option_reply(reply, option, REP_ERR_UNKNOWN, b"no such export");
            return Next::Option;
        }
        let mut export = vec![0, 0];
        export.extend(self.export.to_be_bytes());
        export.extend(EXPORT_FLAGS.to_be_bytes());
        option_reply(reply, option, REP_INFO, &export);
        if wanted.chunks_exact(2).any(|kind| kind == [0, 3]) {
            let mut sizes = vec![0, 3];
            for size in [1, 4096, PAYLOAD_MAX] {
                sizes.extend(size.to_be_bytes());
            }
            option_reply(reply, option, REP_INFO, &sizes);
        }
        option_reply(reply, option, REP_ACK, &[]);
        if option == 7 { Next::Transmission } else { Next::Option }
    }
}

/// There is one export, the default one.
fn known(name: &[u8]) -> bool {
    name.is_empty() || name == b"disk"
}

/// Splits the data of INFO and GO into the export's name and the kinds of information wanted.
fn info_request(data: &[u8]) -> Option<(&[u8], &[u8])> {
    let (len, rest) = data.split_first_chunk::<4>()?;
    let (name, rest) = rest.split_at_checked(u32::from_be_bytes(*len) as usize)?;
    let (count, wanted) = rest.split_first_chunk::<2>()?;
    (wanted.len() == usize::from(u16::from_be_bytes(*count)) * 2).then_some((name, wanted))
}

fn option_reply(reply: &mut Vec<u8>, option: u32, kind: u32, data: &[u8]) {
    reply.extend(OPTION_REPLY_MAGIC.to_be_bytes());
    reply.extend(option.to_be_bytes());
    reply.extend(kind.to_be_bytes());
    reply.extend((data.len() as u32).to_be_bytes());
    reply.extend(data);
}

/// What a request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// Bytes.
    Read,
    /// Put the payload on the disk, durably if asked.
    Write {
        /// Force unit access.
        fua: bool,
    },
    /// Hang up.
    Disconnect,
    /// Make everything that was answered durable.
    Flush,
    /// The range is not needed any more; it reads as zeroes afterwards.
    Trim {
        /// Force unit access.
        fua: bool,
    },
    /// Make the range zero.
    WriteZeroes {
        /// Force unit access.
        fua: bool,
        /// Keep the blocks allocated.
        keep: bool,
    },
    /// Something that we never offered: answered with an error.
    Unknown,
}

/// A request's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// What to do.
    pub command: Command,
    /// The client's name for it, sent back.
    pub cookie: u64,
    /// The first byte.
    pub offset: u64,
    /// How many bytes.
    pub len: u32,
}

impl Request {
    /// Reads a header.
    pub fn decode(bytes: &[u8; REQUEST_LEN]) -> Result<Self, Violation> {
        if be32(bytes, 0) != REQUEST_MAGIC {
            return Err(Violation::Magic);
        }
        let flags = u16::from_be_bytes([bytes[4], bytes[5]]);
        let kind = u16::from_be_bytes([bytes[6], bytes[7]]);
        let (fua, keep) = (flags & 1 != 0, flags & 2 != 0);
        let len = be32(bytes, 24);
        let command = match (kind, flags) {
            (1, _) if len > PAYLOAD_MAX => return Err(Violation::TooLarge(len)),
            (0, 0 | 1) => Command::Read,
            (1, 0 | 1) => Command::Write { fua },
            // Its payload follows whatever its flags are.
            (1, _) => return Err(Violation::Flags(flags.into())),
            (2, _) => Command::Disconnect,
            (3, 0 | 1) => Command::Flush,
            (4, 0 | 1) => Command::Trim { fua },
            (6, 0..=3) => Command::WriteZeroes { fua, keep },
            _ => Command::Unknown,
        };
        Ok(Self { command, cookie: be64(bytes, 8), offset: be64(bytes, 16), len })
    }

    /// The error, if the request does not fit a disk of `size` bytes.
    pub fn check(&self, size: u64) -> Result<(), u32> {
        let outside = self.offset.checked_add(self.len.into()).is_none_or(|end| end > size);
        match self.command {
            Command::Unknown => Err(errno::INVALID),
            Command::Read if self.len > PAYLOAD_MAX => Err(errno::OVERFLOW),
            Command::Read | Command::Trim { .. } if outside => Err(errno::INVALID),
            Command::Write { .. } | Command::WriteZeroes { .. } if outside => Err(errno::NO_SPACE),
            _ => Ok(()),
        }
    }
}

/// The header of a reply; `error` 0 is success.
pub fn reply(cookie: u64, error: u32) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..4].copy_from_slice(&REPLY_MAGIC.to_be_bytes());
    bytes[4..8].copy_from_slice(&error.to_be_bytes());
    bytes[8..].copy_from_slice(&cookie.to_be_bytes());
    bytes
}

/// The errors that the protocol knows.
pub mod errno {
    /// Not permitted.
    pub const PERMISSION: u32 = 1;
    /// The medium failed.
    pub const IO: u32 = 5;
    /// Out of memory.
    pub const MEMORY: u32 = 12;
    /// Not a request that makes sense.
    pub const INVALID: u32 = 22;
    /// The medium is full, or ends before.
    pub const NO_SPACE: u32 = 28;
    /// More than fits one reply.
    pub const OVERFLOW: u32 = 75;
}

/// The protocol's number for an error.
pub fn error_number(error: &io::Error) -> u32 {
    use io::ErrorKind as Kind;
    match error.kind() {
        Kind::StorageFull | Kind::QuotaExceeded | Kind::FileTooLarge => errno::NO_SPACE,
        Kind::PermissionDenied | Kind::ReadOnlyFilesystem => errno::PERMISSION,
        Kind::OutOfMemory => errno::MEMORY,
        Kind::InvalidInput => errno::INVALID,
        _ => errno::IO,
    }
}

fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn be64(bytes: &[u8], at: usize) -> u64 {
    u64::from(be32(bytes, at)) << 32 | u64::from(be32(bytes, at + 4))
}

//! One epoch as one message: what it is of, its parts, and one checksum over all of it.
//!
//! ```text
//!  0 "MYEF"  4 version:u16  6 kind:u8  7 name length:u8  8 term  16 epoch  24 part  32 guest pages     (u64 each)
//! 40 bytes of pages  48 of disk  56 of devices  64 of network                                          (u64 each)
//! 72 XXH3-128 of bytes 0..72 and 88..   88 name   then the four parts
//! ```
//! Integers are little-endian. The checksum guards against accidents, also those of our own; that the bytes come from
//! a member of the group is the transport's business.

use std::fmt;

use bytes::Bytes;
use xxhash_rust::xxh3::Xxh3;

const MAGIC: [u8; 4] = *b"MYEF";
/// Version of the format that this build writes, and the only one that it reads.
const VERSION: u16 = 2;
const HASHED: usize = 72;
const HEADER: usize = 88;

/// What a frame's parts mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameKind {
    /// A checkpoint: what changed since the one before.
    Epoch,
    /// A part of the first full copy, taken while the guest runs. Parts are numbered from 0.
    Base,
}

impl fmt::Display for FrameKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Epoch => "an epoch",
            Self::Base => "a part of a full copy",
        })
    }
}

/// What a frame is of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EpochId {
    /// Name of the virtual machine, at most 255 bytes.
    pub vm: String,
    /// Term of the primary that made it.
    pub term: u64,
    /// Number of the checkpoint; for a part of a full copy, of the checkpoint it leads up to.
    pub epoch: u64,
    /// Checkpoint or full copy.
    pub kind: FrameKind,
    /// Number of the part of a full copy; 0 for an epoch.
    pub part: u64,
    /// Pages of the guest's memory.
    pub guest_pages: u64,
}

/// What a receiver is ready to apply: exactly this and nothing else.
pub type Expected = EpochId;

/// The contents of a frame, in pieces as they were made.
#[derive(Clone, Debug, Default)]
pub struct Parts {
    /// Page section.
    pub pages: Vec<Bytes>,
    /// The disk's writes, packed by [`super::Packer`].
    pub disk: Vec<Bytes>,
    /// State of the devices, by [`super::DeviceEncoder`].
    pub devices: Bytes,
    /// Addresses learned from the guest's frames.
    pub network: Bytes,
}

/// What the header of a frame says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// What it is of.
    pub id: EpochId,
    /// Bytes of pages, disk, devices and network.
    pub lengths: [u64; 4],
    checksum: u128,
}

/// Why a frame was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Not a frame at all.
    #[error("this is no epoch frame: it starts with {found:02x?}, expected {MAGIC:02x?} (\"MYEF\")")]
    Magic {
        /// The first bytes.
        found: Vec<u8>,
    },
    /// Made by another version.
    #[error(
        "epoch frame of format version {found}, but this build reads version {VERSION} only: run the same release on every host"
    )]
    Version {
        /// Its version.
        found: u16,
    },
    /// It is cut short or too long.
    #[error("epoch frame of {found} bytes, expected {expected}")]
    Length {
        /// Bytes found.
        found: u64,
        /// Bytes that the header promises.
        expected: u64,
    },
    /// It was damaged.
    #[error("epoch frame is damaged: checksum {found:032x}, expected {expected:032x}")]
    Checksum {
        /// Over what arrived.
        found: u128,
        /// In the header.
        expected: u128,
    },
    /// A field of the header has a value that has no meaning.
    #[error("epoch frame with {field} {found}, which has no meaning")]
    Field {
        /// The field.
        field: &'static str,
        /// What it holds.
        found: String,
    },
    /// It is of something else than what can be applied now.
    #[error("epoch frame of {field} {found}, expected {expected}")]
    Other {
        /// Which property differs.
        field: &'static str,
        /// What the frame says.
        found: String,
        /// What would have been right.
        expected: String,
    },
}

/// Puts a frame together. Returns its pieces: the header, then the parts untouched.
pub fn seal(id: &EpochId, parts: Parts) -> Vec<Bytes> {
    let length = |pieces: &[Bytes]| pieces.iter().map(|piece| piece.len() as u64).sum::<u64>();
    let lengths = [length(&parts.pages), length(&parts.disk), parts.devices.len() as u64, parts.network.len() as u64];
    let mut name = id.vm.as_bytes();
    name = &name[..name.len().min(255)];
    let mut header = Vec::with_capacity(HEADER + name.len());
    header.extend_from_slice(&MAGIC);
    header.extend_from_slice(&VERSION.to_le_bytes());
    header.push(id.kind as u8);
    header.push(name.len() as u8);
    for number in [id.term, id.epoch, id.part, id.guest_pages].iter().chain(&lengths) {
        header.extend_from_slice(&number.to_le_bytes());
    }
    let body = parts.pages.into_iter().chain(parts.disk).chain([parts.devices, parts.network]);
    let body: Vec<Bytes> = body.filter(|piece| !piece.is_empty()).collect();
    let mut hash = Xxh3::new();
    hash.update(&header);
    hash.update(name);
    body.iter().for_each(|piece| hash.update(piece));
    header.extend_from_slice(&hash.digest128().to_le_bytes());
    header.extend_from_slice(name);
    std::iter::once(Bytes::from(header)).chain(body).collect()
}

impl Header {
    /// Reads the header at the start of `bytes`, without looking at what follows.
    pub fn read(bytes: &[u8]) -> Result<Self, FrameError> {
        let short = || FrameError::Length { found: bytes.len() as u64, expected: HEADER as u64 };
        if bytes.get(..4) != Some(&MAGIC) {
            return Err(FrameError::Magic { found: bytes.iter().take(4).copied().collect() });
        }
        let version = bytes.get(4..6).and_then(|b| b.try_into().ok()).map(u16::from_le_bytes).ok_or_else(short)?;
        if version != VERSION {
            return Err(FrameError::Version { found: version });
        }
        let head: &[u8; HEADER] = bytes.first_chunk().ok_or_else(short)?;
        let number = |index: usize| head[8 + 8 * index..].first_chunk().map_or(0, |b| u64::from_le_bytes(*b));
        let kind = match head[6] {
            0 => FrameKind::Epoch,
            1 => FrameKind::Base,
            other => return Err(FrameError::Field { field: "kind", found: other.to_string() }),
        };
        let name = bytes.get(HEADER..HEADER + usize::from(head[7])).ok_or_else(short)?;
        let vm = std::str::from_utf8(name)
            .map_err(|_| FrameError::Field { field: "name", found: String::from_utf8_lossy(name).into_owned() })?;
        let id = EpochId {
            vm: vm.to_owned(),
            term: number(0),
            epoch: number(1),
            part: number(2),
            guest_pages: number(3),
            kind,
        };
        let checksum = head[HASHED..].first_chunk().map_or(0, |b| u128::from_le_bytes(*b));
        Ok(Self { id, lengths: [number(4), number(5), number(6), number(7)], checksum })
    }

    /// Bytes of the whole frame.
    pub fn frame_length(&self) -> u64 {
        let name = self.id.vm.len() as u64;
        self.lengths.iter().fold(HEADER as u64 + name, |sum, length| sum.saturating_add(*length))
    }

    fn expect(&self, expected: &Expected) -> Result<(), FrameError> {
        fn same<T: PartialEq + ToString>(field: &'static str, found: &T, expected: &T) -> Result<(), FrameError> {
            if found == expected {
                return Ok(());
            }
            Err(FrameError::Other { field, found: found.to_string(), expected: expected.to_string() })
        }
        same("virtual machine", &self.id.vm, &expected.vm)?;
        same("term", &self.id.term, &expected.term)?;
        same("kind", &self.id.kind, &expected.kind)?;
        same("epoch", &self.id.epoch, &expected.epoch)?;
        same("part", &self.id.part, &expected.part)?;
        same("guest pages", &self.id.guest_pages, &expected.guest_pages)
    }
}

/// A frame that arrived whole, undamaged, and is the one that was expected.
#[derive(Clone, Debug)]
pub struct EpochFrame {
    /// What it is of.
    pub header: Header,
    /// Page section, for [`super::PageDecoder`].
    pub pages: Bytes,
    /// The disk's writes, for [`super::unpack`].
    pub disk: Bytes,
    /// State of the devices, for [`super::DeviceDecoder`].
    pub devices: Bytes,
    /// Addresses learned from the guest's frames.
    pub network: Bytes,
}

impl From<EpochFrame> for Parts {
    /// What it was put together from, to be sent again.
    fn from(frame: EpochFrame) -> Self {
        let EpochFrame { pages, disk, devices, network, .. } = frame;
        Self { pages: vec![pages], disk: vec![disk], devices, network }
    }
}

impl EpochFrame {
    /// Checks `bytes` from the first to the last, without copying them.
    pub fn open(bytes: &Bytes, expected: &Expected) -> Result<Self, FrameError> {
        let header = Header::read(bytes)?;
        let (found, promised) = (bytes.len() as u64, header.frame_length());
        if found != promised {
            return Err(FrameError::Length { found, expected: promised });
        }
        let mut hash = Xxh3::new();
        hash.update(&bytes[..HASHED]);
        hash.update(&bytes[HEADER..]);
        if hash.digest128() != header.checksum {
            return Err(FrameError::Checksum { found: hash.digest128(), expected: header.checksum });
        }
        header.expect(expected)?;
        let mut at = HEADER + header.id.vm.len();
        let [pages, disk, devices, network] = header.lengths.map(|length| {
            let part = bytes.slice(at..at + length as usize);
            at += length as usize;
            part
        });
        Ok(Self { header, pages, disk, devices, network })
    }
}

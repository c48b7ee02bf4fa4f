//! The writes of one epoch, and how they travel.
//!
//! ```text
//! u8 version | u64 epoch | u32 count | count x (u64 offset, u64 length, u8 kind) | data ... | u32 crc32
//! ```
//! All numbers are little-endian. `kind` 0 is data and 1 is zeroes; the data of the former follows the table in its
//! order. The checksum covers everything before it.

use bytes::{Buf, BufMut, Bytes, BytesMut};

const VERSION: u8 = 1;
const HEAD: usize = 1 + 8 + 4;
const ENTRY: usize = 8 + 8 + 1;

/// What a write puts on the disk.
#[derive(Clone, PartialEq, Eq)]
pub enum Payload {
    /// These bytes.
    Data(Bytes),
    /// That many zeroes.
    Zero(u64),
}

impl Payload {
    /// How many bytes of the disk it covers.
    pub fn len(&self) -> u64 {
        match self {
            Self::Data(data) => data.len() as u64,
            Self::Zero(len) => *len,
        }
    }

    /// Whether it covers nothing.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The part from `start` to `end`, with memory of its own, so that a small rest never holds a large buffer.
    pub(super) fn part(&self, start: u64, end: u64) -> Self {
        match self {
            Self::Data(data) => Self::Data(Bytes::copy_from_slice(&data[start as usize..end as usize])),
            Self::Zero(_) => Self::Zero(end - start),
        }
    }
}

impl std::fmt::Debug for Payload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Data(data) => write!(f, "Data({} bytes)", data.len()),
            Self::Zero(len) => write!(f, "Zero({len})"),
        }
    }
}

/// One write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    /// The first byte on the disk.
    pub offset: u64,
    /// What is put there.
    pub payload: Payload,
}

impl Write {
    /// One past the last byte; decoding and the log ensure that it does not overflow.
    pub fn end(&self) -> u64 {
        self.offset + self.payload.len()
    }
}

/// All writes between two pauses of the guest, to be applied wholly or not at all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DiskEpoch {
    /// Its number.
    pub epoch: u64,
    /// Its writes, in order. [`super::Disk::seal`] yields disjoint ones, sorted by offset.
    pub writes: Vec<Write>,
}

/// Bytes that are not a [`DiskEpoch`].
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum DecodeError {
    /// They end too soon, or too late.
    #[error("wrong length")]
    Length,
    /// Their version is not known.
    #[error("unknown version {0}")]
    Version(u8),
    /// Their checksum does not fit.
    #[error("wrong checksum")]
    Checksum,
    /// An entry is neither data nor zeroes, is empty, or lies beyond what an offset can say.
    #[error("bad entry {0}")]
    Entry(usize),
}

impl DiskEpoch {
    /// The number of bytes of data it carries.
    pub fn data_bytes(&self) -> u64 {
        let data = |write: &Write| if let Payload::Data(data) = &write.payload { data.len() as u64 } else { 0 };
        self.writes.iter().map(data).sum()
    }

    /// The encoded form in parts that share the writes' memory: nothing is copied but the table.
    pub fn encode(&self) -> Vec<Bytes> {
        let mut head = BytesMut::with_capacity(HEAD + self.writes.len() * ENTRY);
        head.put_u8(VERSION);
        head.put_u64_le(self.epoch);
        head.put_u32_le(self.writes.len() as u32);
        for write in &self.writes {
            head.put_u64_le(write.offset);
            head.put_u64_le(write.payload.len());
            head.put_u8(matches!(write.payload, Payload::Zero(_)).into());
        }
        let mut checksum = crc32fast::Hasher::new();
        checksum.update(&head);
        let mut parts = Vec::with_capacity(self.writes.len() + 2);
        parts.push(head.freeze());
        for write in &self.writes {
            if let Payload::Data(data) = &write.payload {
                checksum.update(data);
                parts.push(data.clone());
            }
        }
        parts.push(Bytes::copy_from_slice(&checksum.finalize().to_le_bytes()));
        parts
    }

    /// The encoded form in one piece.
    pub fn to_bytes(&self) -> Bytes {
        self.encode().concat().into()
    }

    /// Reads an encoded epoch; its data shares the memory of `bytes`.
    pub fn decode(mut bytes: Bytes) -> Result<Self, DecodeError> {
        let body = bytes.len().checked_sub(4).ok_or(DecodeError::Length)?;
        let checksum = bytes.split_off(body).get_u32_le();
        let whole = bytes.clone();
        let version = bytes.try_get_u8().map_err(|_| DecodeError::Length)?;
        if version != VERSION {
            return Err(DecodeError::Version(version));
        }
        let epoch = bytes.try_get_u64_le().map_err(|_| DecodeError::Length)?;
        let count = bytes.try_get_u32_le().map_err(|_| DecodeError::Length)? as usize;
        if count > bytes.len() / ENTRY {
            return Err(DecodeError::Length);
        }
        if crc32fast::hash(&whole) != checksum {
            return Err(DecodeError::Checksum);
        }
        let mut table = bytes.split_to(count * ENTRY);
        let mut writes = Vec::with_capacity(count);
        for index in 0..count {
            let (offset, len, kind) = (table.get_u64_le(), table.get_u64_le(), table.get_u8());
            if len == 0 || offset.checked_add(len).is_none() {
                return Err(DecodeError::Entry(index));
            }
            let payload = match kind {
                0 if len > bytes.len() as u64 => return Err(DecodeError::Length),
                0 => Payload::Data(bytes.split_to(len as usize)),
                1 => Payload::Zero(len),
                _ => return Err(DecodeError::Entry(index)),
            };
            writes.push(Write { offset, payload });
        }
        if bytes.is_empty() { Ok(Self { epoch, writes }) } else { Err(DecodeError::Length) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn writes() -> impl Strategy<Value = Vec<Write>> {
        let payload = prop_oneof![
            proptest::collection::vec(any::<u8>(), 1..200).prop_map(|data| Payload::Data(data.into())),
            (1..1_u64 << 40).prop_map(Payload::Zero),
        ];
        let write = (0..1_u64 << 50, payload).prop_map(|(offset, payload)| Write { offset, payload });
        proptest::collection::vec(write, 0..20)
    }

    proptest! {
        #[test]
        fn what_was_encoded_is_decoded(epoch: u64, writes in writes()) {
            let epoch = DiskEpoch { epoch, writes };
            prop_assert_eq!(DiskEpoch::decode(epoch.to_bytes()), Ok(epoch));
        }

        #[test]
        fn damage_is_noticed(epoch: u64, writes in writes(), at: prop::sample::Index, flip in 1_u8..) {
            let mut bytes = DiskEpoch { epoch, writes }.to_bytes().to_vec();
            let at = at.index(bytes.len());
            bytes[at] ^= flip;
            prop_assert!(DiskEpoch::decode(bytes.into()).is_err());
        }

        #[test]
        fn anything_is_refused_or_read(bytes: Vec<u8>) {
            let mut sealed = bytes.clone();
            sealed.extend(crc32fast::hash(&bytes).to_le_bytes());
            let _ = DiskEpoch::decode(sealed.into());
            let _ = DiskEpoch::decode(bytes.into());
        }
    }
}

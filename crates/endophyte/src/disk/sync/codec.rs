//! Messages as bytes: a tag, then little-endian fields. Integrity is the transport's; this refuses what makes no sense.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::{Blocks, HashRun, LIST_MAX, Message};
use crate::disk::epoch::DecodeError;
use crate::disk::{BLOCK, Position};

impl Message {
    /// The encoded form.
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::new();
        match self {
            Self::Hello { size, lineage, position, marked } => {
                out.put_u8(0);
                out.put_u64_le(*size);
                out.put_slice(lineage);
                out.put_u8(position.is_some().into());
                put_position(&mut out, position.unwrap_or_default());
                put_ranges(&mut out, marked);
            }
            Self::Plan { size, lineage, base, epoch, compare } => {
                out.put_u8(1);
                out.put_u64_le(*size);
                out.put_slice(lineage);
                put_position(&mut out, *base);
                put_position(&mut out, *epoch);
                put_ranges(&mut out, compare);
            }
            Self::Hashes { first, runs } => {
                out.put_u8(2);
                out.put_u64_le(*first);
                runs.iter().for_each(|run| put_run(&mut out, run));
            }
            Self::Compared(blocks) => put_number(&mut out, 3, *blocks),
            Self::Data { block, data } => {
                out.reserve(9 + data.len());
                put_number(&mut out, 4, *block);
                out.put_slice(data);
            }
            Self::Zero(range) => {
                put_number(&mut out, 5, range.start);
                out.put_u64_le(range.end);
            }
            Self::Copy { block, from, hash } => {
                put_number(&mut out, 6, *block);
                out.put_u64_le(*from);
                out.put_slice(hash);
            }
            Self::Mark(epoch) => put_number(&mut out, 7, *epoch),
            Self::Finish => out.put_u8(8),
            Self::Taken(missing) => {
                out.put_u8(9);
                missing.iter().for_each(|block| out.put_u64_le(*block));
            }
            Self::Done(position) => {
                out.put_u8(10);
                put_position(&mut out, *position);
            }
        }
        out.freeze()
    }

    /// Reads a message; a block's content shares the memory of `bytes`.
    pub fn decode(mut bytes: Bytes) -> Result<Self, DecodeError> {
        let message = match bytes.try_get_u8()? {
            0 => Self::Hello {
                size: bytes.try_get_u64_le()?,
                lineage: array(&mut bytes)?,
                position: {
                    let known = bytes.try_get_u8()? != 0;
                    let position = position(&mut bytes)?;
                    known.then_some(position)
                },
                marked: ranges(&mut bytes)?,
            },
            1 => Self::Plan {
                size: bytes.try_get_u64_le()?,
                lineage: array(&mut bytes)?,
                base: position(&mut bytes)?,
                epoch: position(&mut bytes)?,
                compare: ranges(&mut bytes)?,
            },
            2 => Self::Hashes { first: bytes.try_get_u64_le()?, runs: runs(&mut bytes)? },
            3 => Self::Compared(bytes.try_get_u64_le()?),
            4 => {
                let block = bytes.try_get_u64_le()?;
                let data = std::mem::take(&mut bytes);
                if data.is_empty() || data.len() as u64 > BLOCK {
                    return Err(DecodeError::Length);
                }
                Self::Data { block, data }
            }
            5 => Self::Zero(range(&mut bytes)?),
            6 => Self::Copy { block: bytes.try_get_u64_le()?, from: bytes.try_get_u64_le()?, hash: array(&mut bytes)? },
            7 => Self::Mark(bytes.try_get_u64_le()?),
            8 => Self::Finish,
            9 => Self::Taken(numbers(&mut bytes)?),
            10 => Self::Done(position(&mut bytes)?),
            tag => return Err(DecodeError::Version(tag)),
        };
        if bytes.is_empty() { Ok(message) } else { Err(DecodeError::Length) }
    }
}

impl From<bytes::TryGetError> for DecodeError {
    fn from(_: bytes::TryGetError) -> Self {
        Self::Length
    }
}

fn put_number(out: &mut BytesMut, tag: u8, number: u64) {
    out.put_u8(tag);
    out.put_u64_le(number);
}

fn put_position(out: &mut BytesMut, position: Position) {
    out.put_u64_le(position.term);
    out.put_u64_le(position.epoch);
}

fn put_ranges(out: &mut BytesMut, ranges: &[Blocks]) {
    for range in ranges {
        out.put_u64_le(range.start);
        out.put_u64_le(range.end);
    }
}

fn put_run(out: &mut BytesMut, run: &HashRun) {
    match run {
        HashRun::Zero(blocks) => put_number(out, 0, *blocks),
        HashRun::Hash(hash) => {
            out.put_u8(1);
            out.put_slice(hash);
        }
    }
}

fn array<const N: usize>(bytes: &mut Bytes) -> Result<[u8; N], DecodeError> {
    let mut array = [0; N];
    bytes.try_copy_to_slice(&mut array)?;
    Ok(array)
}

fn position(bytes: &mut Bytes) -> Result<Position, DecodeError> {
    Ok(Position { term: bytes.try_get_u64_le()?, epoch: bytes.try_get_u64_le()? })
}

fn range(bytes: &mut Bytes) -> Result<Blocks, DecodeError> {
    let range = bytes.try_get_u64_le()?..bytes.try_get_u64_le()?;
    if range.is_empty() { Err(DecodeError::Entry(0)) } else { Ok(range) }
}

/// Sorted, disjoint ranges to the end.
fn ranges(bytes: &mut Bytes) -> Result<Vec<Blocks>, DecodeError> {
    let mut ranges = Vec::with_capacity(bytes.len() / 16);
    let mut end = 0;
    while !bytes.is_empty() {
        let range = range(bytes)?;
        if range.start < end {
            return Err(DecodeError::Entry(ranges.len()));
        }
        end = range.end;
        ranges.push(range);
    }
    Ok(ranges)
}

fn runs(bytes: &mut Bytes) -> Result<Vec<HashRun>, DecodeError> {
    let mut runs = Vec::new();
    while !bytes.is_empty() {
        runs.push(match bytes.try_get_u8()? {
            0 => HashRun::Zero(bytes.try_get_u64_le()?),
            1 => HashRun::Hash(array(bytes)?),
            _ => return Err(DecodeError::Entry(runs.len())),
        });
        if runs.len() > LIST_MAX {
            return Err(DecodeError::Length);
        }
    }
    Ok(runs)
}

fn numbers(bytes: &mut Bytes) -> Result<Vec<u64>, DecodeError> {
    if bytes.len() > LIST_MAX * 8 {
        return Err(DecodeError::Length);
    }
    let mut numbers = Vec::with_capacity(bytes.len() / 8);
    while !bytes.is_empty() {
        numbers.push(bytes.try_get_u64_le()?);
    }
    Ok(numbers)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ranges() -> impl Strategy<Value = Vec<Blocks>> {
        proptest::collection::vec((0..100_u64, 1..100_u64), 0..8).prop_map(|steps| {
            let mut at = 0;
            let next = |(skip, len): (u64, u64)| {
                let start = at + skip;
                at = start + len;
                start..at
            };
            steps.into_iter().map(next).collect()
        })
    }

    fn position() -> impl Strategy<Value = Position> {
        any::<(u64, u64)>().prop_map(|(term, epoch)| Position { term, epoch })
    }

    fn message() -> impl Strategy<Value = Message> {
        let run = prop_oneof![any::<u64>().prop_map(HashRun::Zero), any::<[u8; 32]>().prop_map(HashRun::Hash)];
        let data = proptest::collection::vec(any::<u8>(), 1..300);
        prop_oneof![
            (any::<u64>(), any::<[u8; 16]>(), proptest::option::of(position()), ranges())
                .prop_map(|(size, lineage, position, marked)| Message::Hello { size, lineage, position, marked }),
            (any::<u64>(), any::<[u8; 16]>(), position(), position(), ranges()).prop_map(
                |(size, lineage, base, epoch, compare)| Message::Plan { size, lineage, base, epoch, compare }
            ),
            (any::<u64>(), proptest::collection::vec(run, 0..9))
                .prop_map(|(first, runs)| Message::Hashes { first, runs }),
            any::<u64>().prop_map(Message::Compared),
            (any::<u64>(), data).prop_map(|(block, data)| Message::Data { block, data: data.into() }),
            (0..99_u64, 100..200_u64).prop_map(|(start, end)| Message::Zero(start..end)),
            any::<(u64, u64, [u8; 32])>().prop_map(|(block, from, hash)| Message::Copy { block, from, hash }),
            any::<u64>().prop_map(Message::Mark),
            Just(Message::Finish),
            any::<Vec<u64>>().prop_map(Message::Taken),
            position().prop_map(Message::Done),
        ]
    }

    proptest! {
        #[test]
        fn what_was_encoded_is_decoded(message in message()) {
            prop_assert_eq!(Message::decode(message.encode()), Ok(message));
        }

        #[test]
        fn anything_is_refused_or_read(tag in 0..12_u8, mut bytes: Vec<u8>) {
            bytes.insert(0, tag);
            if let Ok(message) = Message::decode(bytes.into()) {
                prop_assert_eq!(Message::decode(message.encode()), Ok(message));
            }
        }
    }
}

//! Bytes of no particular kind, such as the disk's writes, packed where it pays.
//!
//! ```text
//! blob = length:u64 block*      each block is 256 KiB of the content, the last one what is left:
//! block = method:u8 stored:v bytes      as in a page section
//! ```

use bytes::Bytes;

use super::compress::{Compression, Compressor, Packed};
use super::wire::Reader;
use crate::clock::thread_time;

const BLOCK: usize = 256 << 10;
/// Room that is made for a content before any of it was read.
const ROOM_MAX: usize = 64 << 20;

/// Packs what is measured to pay on the link.
pub struct Packer {
    compressor: Compressor,
    block: Vec<u8>,
}

impl Packer {
    /// Packs by this policy.
    pub fn new(compression: Compression) -> Self {
        Self { compressor: Compressor::new(compression, thread_time), block: Vec::new() }
    }

    /// Packs these pieces, as one content, for links that carry `link_bytes_per_s`.
    pub fn pack(&mut self, pieces: &[Bytes], link_bytes_per_s: u64) -> Bytes {
        self.compressor.begin(link_bytes_per_s);
        let length: usize = pieces.iter().map(Bytes::len).sum();
        let mut out = (length as u64).to_le_bytes().to_vec();
        for piece in pieces {
            let mut rest = &piece[..];
            while !rest.is_empty() {
                let (now, later) = rest.split_at(rest.len().min(BLOCK - self.block.len()));
                self.block.extend_from_slice(now);
                rest = later;
                if self.block.len() == BLOCK {
                    self.flush(&mut out);
                }
            }
        }
        if !self.block.is_empty() {
            self.flush(&mut out);
        }
        out.into()
    }

    fn flush(&mut self, out: &mut Vec<u8>) {
        self.compressor.pack(&self.block, out);
        self.block.clear();
    }
}

/// The content of a blob, of at most `max` bytes; nothing when it is not one.
pub fn unpack(blob: &Bytes, max: usize) -> Option<Bytes> {
    let mut reader = Reader::new(blob);
    let length = usize::try_from(u64::from_le_bytes(reader.array()?)).ok().filter(|length| *length <= max)?;
    let mut content = Vec::with_capacity(length.min(ROOM_MAX));
    while content.len() < length {
        let wanted = BLOCK.min(length - content.len());
        let packed = Packed::read(&mut reader)?;
        match packed.plain() {
            Some(plain) if plain.len() == wanted => content.extend_from_slice(plain),
            Some(_) => return None,
            None => content.extend_from_slice(&packed.unpack(wanted)?),
        }
    }
    reader.is_empty().then(|| content.into())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn what_was_packed_comes_out(
            pieces in prop::collection::vec((any::<u8>(), 0_usize..300_000, any::<bool>()), 0..4),
            slow in any::<bool>(),
        ) {
            let piece = |(seed, length, noise): (u8, usize, bool)| -> Bytes {
                let mut state = u32::from(seed) | 1;
                (0..length).map(|at| if noise { state = state.wrapping_mul(747_796_405).wrapping_add(1); (state >> 24) as u8 } else { (at / 97) as u8 }).collect()
            };
            let pieces: Vec<Bytes> = pieces.into_iter().map(piece).collect();
            let mut packer = Packer::new(Compression::Auto);
            let blob = packer.pack(&pieces, if slow { 1_000_000 } else { u64::MAX });
            let content = pieces.concat();
            prop_assert_eq!(unpack(&blob, content.len()), Some(Bytes::from(content.clone())));
            prop_assert!(content.is_empty() || unpack(&blob, content.len() - 1).is_none());
            prop_assert!(unpack(&blob.slice(..blob.len() - 1), usize::MAX).is_none());
        }

        #[test]
        fn any_bytes_are_unpacked_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            let _ = unpack(&bytes.into(), 1 << 20);
        }
    }
}

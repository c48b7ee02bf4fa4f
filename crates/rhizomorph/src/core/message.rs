//! A message on its way out: shared bytes, never joined, cut where a connection wants it.

use std::io::IoSlice;
use std::sync::Arc;

use bytes::Bytes;

use crate::frame::{DataHeader, Frame};

/// A message as the application gave it.
#[derive(Debug)]
pub struct OutMessage {
    parts: Vec<Bytes>,
    /// Where each part starts.
    starts: Vec<u64>,
    total: u64,
}

impl OutMessage {
    /// Takes the parts; empty ones vanish.
    pub fn new(mut parts: Vec<Bytes>) -> Self {
        parts.retain(|part| !part.is_empty());
        let mut total = 0;
        let mut starts = Vec::with_capacity(parts.len());
        for part in &parts {
            starts.push(total);
            total += part.len() as u64;
        }
        Self { parts, starts, total }
    }

    /// The length of all parts together.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Calls `take` with each slice of `[offset, offset + length)`.
    pub fn slices<'a>(&'a self, offset: u64, length: u64, mut take: impl FnMut(&'a [u8])) {
        let end = (offset + length).min(self.total);
        let mut at = offset;
        let mut index = self.starts.partition_point(|start| *start <= offset).saturating_sub(1);
        while at < end {
            let (part, start) = (&self.parts[index], self.starts[index]);
            let from = (at - start) as usize;
            let to = part.len().min((end - start) as usize);
            take(&part[from..to]);
            at = start + to as u64;
            index += 1;
        }
    }
}

/// A piece of a message, ready to be written to one connection.
#[derive(Debug, Clone)]
pub struct Outgoing {
    /// Its frame.
    pub header: DataHeader,
    /// The message it is cut from.
    pub message: Arc<OutMessage>,
}

impl Outgoing {
    /// Frame and bytes as slices; `head` holds the frame's bytes.
    pub fn slices<'a>(&'a self, head: &'a mut Vec<u8>) -> Vec<IoSlice<'a>> {
        head.clear();
        Frame::Data(self.header).encode(head);
        let mut slices = vec![IoSlice::new(head)];
        self.message.slices(self.header.offset, self.header.length.into(), |slice| slices.push(IoSlice::new(slice)));
        slices
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_cut_gives_the_same_bytes(parts in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..20), 0..8), from in 0usize..160, length in 0usize..160) {
            let whole: Vec<u8> = parts.concat();
            let message = OutMessage::new(parts.into_iter().map(Bytes::from).collect());
            prop_assert_eq!(message.total(), whole.len() as u64);
            let from = from.min(whole.len());
            let to = (from + length).min(whole.len());
            let mut cut = Vec::new();
            message.slices(from as u64, (to - from) as u64, |slice| cut.extend_from_slice(slice));
            prop_assert_eq!(&cut[..], &whole[from..to]);
        }
    }
}

//! The writes of the epoch in progress: disjoint ranges, the last write to a byte wins.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::epoch::{Payload, Write};

/// What one entry costs beside its data.
const ENTRY_COST: u64 = 96;
/// Larger writes are cut, so that overwriting a part of one copies little.
const PIECE: usize = 128 * 1024;

/// Coalesces writes. Its memory is what [`WriteLog::bytes`] says, to within a small factor: pieces own exactly their data.
#[derive(Default, Debug)]
pub struct WriteLog {
    entries: BTreeMap<u64, Payload>,
    data: u64,
}

impl WriteLog {
    /// The memory it takes.
    pub fn bytes(&self) -> u64 {
        self.data + self.entries.len() as u64 * ENTRY_COST
    }

    /// Whether nothing was written.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Records that `data` was written at `offset`.
    pub fn write(&mut self, offset: u64, data: &[u8]) {
        self.clear(offset, offset + data.len() as u64);
        let mut at = offset;
        for piece in data.chunks(PIECE) {
            self.put(at, Payload::Data(Bytes::copy_from_slice(piece)));
            at += piece.len() as u64;
        }
    }

    /// Records that `len` bytes at `offset` became zero.
    pub fn zero(&mut self, mut offset: u64, len: u64) {
        let mut end = offset + len;
        if len == 0 {
            return;
        }
        self.clear(offset, end);
        if let Some((&before, Payload::Zero(more))) = self.entries.range(..offset).next_back()
            && before + more == offset
        {
            offset = before;
        }
        if let Some(Payload::Zero(more)) = self.entries.get(&end) {
            let more = *more;
            self.entries.remove(&end);
            end += more;
        }
        self.put(offset, Payload::Zero(end - offset));
    }

    /// Yields all writes, sorted and disjoint, and starts anew.
    pub fn take(&mut self) -> Vec<Write> {
        self.data = 0;
        std::mem::take(&mut self.entries).into_iter().map(|(offset, payload)| Write { offset, payload }).collect()
    }

    fn put(&mut self, offset: u64, payload: Payload) {
        self.data += owned(&payload);
        if let Some(old) = self.entries.insert(offset, payload) {
            self.data -= owned(&old);
        }
    }

    fn remove(&mut self, offset: u64) -> Option<Payload> {
        let payload = self.entries.remove(&offset)?;
        self.data -= owned(&payload);
        Some(payload)
    }

    /// Forgets what is recorded between `start` and `end`, cutting entries that reach beyond.
    fn clear(&mut self, start: u64, end: u64) {
        if let Some((&offset, payload)) = self.entries.range(..start).next_back()
            && offset + payload.len() > start
        {
            self.cut(offset, start, end);
        }
        while let Some((&offset, _)) = self.entries.range(start..end).next() {
            self.cut(offset, start, end);
        }
    }

    /// Cuts the range out of the entry at `offset`, which it meets.
    fn cut(&mut self, offset: u64, start: u64, end: u64) {
        let Some(payload) = self.remove(offset) else { return };
        let last = offset + payload.len();
        if offset < start {
            self.put(offset, payload.part(0, start - offset));
        }
        if last > end {
            self.put(end, payload.part(end - offset, last - offset));
        }
    }
}

fn owned(payload: &Payload) -> u64 {
    if let Payload::Data(data) = payload { data.len() as u64 } else { 0 }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_last_write_wins(ops in proptest::collection::vec((0..4000_u64, 1..600_u64, 0..4_u8), 1..60)) {
            let mut log = WriteLog::default();
            let mut oracle: Vec<Option<u8>> = vec![None; 5000];
            for (step, (offset, len, kind)) in ops.into_iter().enumerate() {
                let value = if kind == 0 { 0 } else { (step % 255) as u8 + 1 };
                if kind == 0 { log.zero(offset, len) } else { log.write(offset, &vec![value; len as usize]) }
                oracle[offset as usize..(offset + len) as usize].fill(Some(value));
            }
            let held: u64 = log.entries.values().map(owned).sum();
            prop_assert_eq!(held, log.data);
            let mut image = vec![None; 5000];
            let mut end = 0;
            for write in log.take() {
                prop_assert!(write.offset >= end && !write.payload.is_empty());
                end = write.end();
                for at in write.offset..end {
                    image[at as usize] = Some(match &write.payload {
                        Payload::Data(data) => data[(at - write.offset) as usize],
                        Payload::Zero(_) => 0,
                    });
                }
            }
            prop_assert!(image == oracle);
            prop_assert!(log.bytes() == 0 && log.is_empty());
        }
    }
}

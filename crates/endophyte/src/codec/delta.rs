//! A page as its difference from what it held before: runs of new bytes and how far to skip between them.

use super::PAGE;
use super::wire::{Reader, put_varint};

/// A delta longer than this is no better than the page, compressed or not.
const LENGTH_MAX: usize = PAGE / 2;
/// Equal bytes between two changes that are cheaper to repeat than to skip.
const GAP_MIN: usize = 4;
/// Compared at once: the compiler turns it into a few vector instructions.
const BLOCK: usize = 64;
const WORD: usize = 8;

/// Appends the difference of `new` from `old`; false, with `out` as it was, when it is too long to be worth it.
pub(super) fn encode(old: &[u8; PAGE], new: &[u8; PAGE], out: &mut Vec<u8>) -> bool {
    if differing_words(old, new) * WORD > LENGTH_MAX {
        return false;
    }
    let start = out.len();
    let mut writer = Writer { new, out, written: 0, run: None };
    for (block, (a, b)) in old.chunks_exact(BLOCK).zip(new.chunks_exact(BLOCK)).enumerate() {
        if a == b {
            continue;
        }
        for (word, (a, b)) in a.chunks_exact(WORD).zip(b.chunks_exact(WORD)).enumerate() {
            let changed = word_of(a) ^ word_of(b);
            if changed != 0 {
                let at = block * BLOCK + word * WORD;
                let first = at + changed.trailing_zeros() as usize / 8;
                let end = at + WORD - changed.leading_zeros() as usize / 8;
                writer.changed(first, end);
            }
        }
        if writer.out.len() - start > LENGTH_MAX {
            out.truncate(start);
            return false;
        }
    }
    writer.flush();
    let fits = out.len() - start <= LENGTH_MAX;
    if !fits {
        out.truncate(start);
    }
    fits
}

/// Words that differ: a first look, many words to an instruction, at whether a closer one is worth it.
fn differing_words(old: &[u8; PAGE], new: &[u8; PAGE]) -> usize {
    let pairs = old.as_chunks::<WORD>().0.iter().zip(new.as_chunks::<WORD>().0);
    pairs.map(|(a, b)| u64::from(u64::from_ne_bytes(*a) != u64::from_ne_bytes(*b))).sum::<u64>() as usize
}

fn word_of(bytes: &[u8]) -> u64 {
    bytes.try_into().map(u64::from_le_bytes).unwrap_or_default()
}

struct Writer<'a> {
    new: &'a [u8; PAGE],
    out: &'a mut Vec<u8>,
    /// The page up to here is described.
    written: usize,
    run: Option<(usize, usize)>,
}

impl Writer<'_> {
    fn changed(&mut self, first: usize, end: usize) {
        match &mut self.run {
            Some((_, run_end)) if first - *run_end < GAP_MIN => *run_end = end,
            _ => {
                self.flush();
                self.run = Some((first, end));
            }
        }
    }

    fn flush(&mut self) {
        if let Some((first, end)) = self.run.take() {
            put_varint(self.out, (first - self.written) as u64);
            put_varint(self.out, (end - first) as u64);
            self.out.extend_from_slice(&self.new[first..end]);
            self.written = end;
        }
    }
}

/// Whether `delta` describes changes inside one page and nothing else.
pub(super) fn is_sound(delta: &[u8]) -> bool {
    let mut at = 0;
    walk(delta, |skip, bytes| {
        at += skip + bytes.len();
        at <= PAGE
    })
}

/// Applies a delta that [`is_sound`].
pub(super) fn apply(delta: &[u8], page: &mut [u8; PAGE]) {
    let mut at = 0;
    walk(delta, |skip, bytes| {
        at += skip;
        let Some(target) = page.get_mut(at..at + bytes.len()) else { return false };
        target.copy_from_slice(bytes);
        at += bytes.len();
        true
    });
}

/// Calls `run` for each run until it says no; whether all runs were read and accepted.
fn walk(delta: &[u8], mut run: impl FnMut(usize, &[u8]) -> bool) -> bool {
    let mut reader = Reader::new(delta);
    while !reader.is_empty() {
        let Some(skip) = reader.length(PAGE) else { return false };
        let Some(bytes) = reader.length(PAGE).and_then(|count| reader.take(count)) else { return false };
        if !run(skip, bytes) {
            return false;
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_difference_turns_old_into_new(
            fill in any::<u8>(),
            changes in prop::collection::vec((0_usize..PAGE, prop::collection::vec(any::<u8>(), 1..40)), 0..60),
        ) {
            let old = [fill; PAGE];
            let mut new = old;
            for (at, bytes) in changes {
                let end = PAGE.min(at + bytes.len());
                new[at..end].copy_from_slice(&bytes[..end - at]);
            }
            let mut delta = vec![7];
            if encode(&old, &new, &mut delta) {
                prop_assert!(is_sound(&delta[1..]) && delta.len() <= LENGTH_MAX + 1);
                let mut page = old;
                apply(&delta[1..], &mut page);
                prop_assert!(page == new);
            } else {
                prop_assert_eq!(delta, vec![7]);
            }
        }

        #[test]
        fn what_is_not_a_delta_is_told(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let sound = is_sound(&bytes);
            let mut page = [0; PAGE];
            apply(&bytes, &mut page);
            prop_assert!(sound || !bytes.is_empty());
        }
    }

    #[test]
    fn one_changed_byte_costs_four_bytes_at_most() {
        let (old, mut new, mut out) = ([5; PAGE], [5; PAGE], Vec::new());
        new[4095] = 6;
        assert!(encode(&old, &new, &mut out) && out.len() == 4, "{out:?}");
        assert!(!encode(&[1; PAGE], &[2; PAGE], &mut out) && out.len() == 4);
    }
}

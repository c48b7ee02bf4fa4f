//! Sets of completion indexes, written as `1,3-5,7`.

use std::collections::BTreeSet;
use std::fmt;

/// A set of indexes, held as ranges in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Indexes(Vec<(i32, i32)>);

impl Indexes {
    /// Reads the text form; what is beyond `completions` or makes no sense is left out.
    pub fn parse(text: &str, completions: i32) -> Self {
        let range = |part: &str| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last) = (first.trim().parse::<i32>().ok()?, last.trim().parse::<i32>().ok()?);
            (first >= 0 && first <= last && first < completions).then_some((first, last.min(completions - 1)))
        };
        Self::default().with_ranges(text.split(',').filter_map(range))
    }

    /// The set with more indexes in it.
    pub fn with(&self, more: &BTreeSet<i32>) -> Self {
        self.with_ranges(more.iter().map(|index| (*index, *index)))
    }

    fn with_ranges(&self, more: impl Iterator<Item = (i32, i32)>) -> Self {
        let mut all: Vec<_> = self.0.iter().copied().chain(more).collect();
        all.sort_unstable();
        let mut merged: Vec<(i32, i32)> = Vec::with_capacity(all.len());
        for (first, last) in all {
            match merged.last_mut() {
                Some(before) if first <= before.1.saturating_add(1) => before.1 = before.1.max(last),
                _ => merged.push((first, last)),
            }
        }
        Self(merged)
    }

    /// Whether an index is in the set.
    pub fn has(&self, index: i32) -> bool {
        let after = self.0.partition_point(|(first, _)| *first <= index);
        after > 0 && self.0[after - 1].1 >= index
    }

    /// How many there are.
    pub fn len(&self) -> i32 {
        self.0.iter().map(|(first, last)| last - first + 1).sum()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many of these are in another set, too.
    pub fn shared(&self, other: &Self) -> i32 {
        let overlap = |a: &(i32, i32), b: &(i32, i32)| (a.1.min(b.1) - a.0.max(b.0) + 1).max(0);
        self.0.iter().map(|a| other.0.iter().map(|b| overlap(a, b)).sum::<i32>()).sum()
    }
}

impl fmt::Display for Indexes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, (first, last)) in self.0.iter().enumerate() {
            let comma = if position > 0 { "," } else { "" };
            match last - first {
                0 => write!(f, "{comma}{first}")?,
                1 => write!(f, "{comma}{first},{last}")?,
                _ => write!(f, "{comma}{first}-{last}")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn text_and_set_agree(numbers in prop::collection::btree_set(0..40_i32, 0..30), others in prop::collection::btree_set(0..40_i32, 0..30)) {
            let set = Indexes::default().with(&numbers);
            prop_assert_eq!(&Indexes::parse(&set.to_string(), 40), &set);
            prop_assert!((0..40).all(|index| set.has(index) == numbers.contains(&index)));
            prop_assert_eq!(set.len() as usize, numbers.len());
            let other = Indexes::default().with(&others);
            prop_assert_eq!(set.shared(&other) as usize, numbers.intersection(&others).count());
            prop_assert_eq!(Indexes::parse(&set.to_string(), 20).len() as usize, numbers.range(..20).count());
        }

        #[test]
        fn no_text_does_harm(text in ".{0,40}") {
            let _ = Indexes::parse(&text, 10);
        }
    }

    #[test]
    fn short_ranges_are_written_one_by_one() {
        assert_eq!(Indexes::parse("0-3,7,8,10", 100).to_string(), "0-3,7,8,10");
    }
}

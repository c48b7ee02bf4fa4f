//! Copies of pages as they were last sent, for as many as the buffer has room for.
//!
//! The second-chance clock: a page whose delta paid is warm and survives the hand a few times; one that was sent once
//! and not again gives its place to the next. When a few steps of the hand find nothing cold, the newcomer is not
//! taken: a burst over all of memory does not push out what is written again and again.

use super::PAGE;

/// How often the hand passes a page that paid before it is cold.
const HEAT_MAX: u8 = 3;
/// Steps of the hand for one newcomer.
const STEPS_MAX: usize = 8;
/// Pages allocated at once.
const SLAB: usize = 64;
const NONE: u32 = u32::MAX;

struct Slot {
    owner: Option<u64>,
    heat: u8,
}

/// A bounded set of page copies, by local page number.
pub(super) struct Cache {
    /// For each page, its slot.
    places: Vec<u32>,
    slots: Vec<Slot>,
    slabs: Vec<Box<[[u8; PAGE]]>>,
    free: Vec<u32>,
    hand: usize,
    max: usize,
}

impl Cache {
    /// Room for `max` copies of pages with numbers below `pages`.
    pub(super) fn new(pages: u64, max: usize) -> Self {
        let places = vec![NONE; pages as usize];
        Self { places, slots: Vec::new(), slabs: Vec::new(), free: Vec::new(), hand: 0, max: max.min(NONE as usize) }
    }

    /// Bytes of copies it has allocated.
    pub(super) fn bytes(&self) -> usize {
        self.slabs.len() * SLAB * PAGE
    }

    /// Changes how many copies it may hold. Less than it holds: it forgets all of them, and fills up again.
    pub(super) fn resize(&mut self, max: usize) {
        let max = max.min(NONE as usize);
        if max < self.slots.len() {
            self.clear();
        }
        self.max = max;
    }

    /// Forgets everything and gives the memory back.
    pub(super) fn clear(&mut self) {
        self.places.fill(NONE);
        (self.slots, self.slabs, self.free) = (Vec::new(), Vec::new(), Vec::new());
        self.hand = 0;
    }

    /// The copy of `page`.
    pub(super) fn get(&self, page: u64) -> Option<&[u8; PAGE]> {
        let slot = *self.places.get(page as usize)? as usize;
        self.slabs.get(slot / SLAB)?.get(slot % SLAB)
    }

    /// Replaces the copy of `page`, taking it in if there is room. `paid`: the old copy saved bytes.
    pub(super) fn put(&mut self, page: u64, content: &[u8; PAGE], paid: bool) {
        let Some(place) = self.places.get(page as usize).copied() else { return };
        let slot = if place == NONE { self.place() } else { Some(place) };
        let Some(slot) = slot else { return };
        self.places[page as usize] = slot;
        let entry = &mut self.slots[slot as usize];
        entry.owner = Some(page);
        entry.heat = if paid { (entry.heat + 1).min(HEAT_MAX) } else { 0 };
        self.slabs[slot as usize / SLAB][slot as usize % SLAB] = *content;
    }

    /// Forgets `page`.
    pub(super) fn remove(&mut self, page: u64) {
        let Some(place) = self.places.get_mut(page as usize) else { return };
        let slot = std::mem::replace(place, NONE);
        if slot != NONE {
            self.slots[slot as usize] = Slot { owner: None, heat: 0 };
            self.free.push(slot);
        }
    }

    /// A slot for a newcomer.
    fn place(&mut self) -> Option<u32> {
        if let Some(slot) = self.free.pop() {
            return Some(slot);
        }
        if self.slots.len() < self.max {
            if self.slots.len() == self.slabs.len() * SLAB {
                self.slabs.push(vec![[0; PAGE]; SLAB].into_boxed_slice());
            }
            self.slots.push(Slot { owner: None, heat: 0 });
            return Some(self.slots.len() as u32 - 1);
        }
        for _ in 0..STEPS_MAX.min(self.slots.len()) {
            let at = self.hand;
            self.hand = (self.hand + 1) % self.slots.len();
            let slot = &mut self.slots[at];
            if slot.heat == 0 {
                if let Some(owner) = slot.owner.take() {
                    self.places[owner as usize] = NONE;
                }
                return Some(at as u32);
            }
            slot.heat -= 1;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn a_copy_is_the_last_one_put_and_the_bound_holds(
            max in 0_usize..80,
            steps in prop::collection::vec((0_u8..10, 0_u64..200, any::<u8>()), 1..400),
        ) {
            let mut cache = Cache::new(200, max);
            let mut last = HashMap::new();
            for (what, page, fill) in steps {
                match what {
                    0 => {
                        cache.remove(page);
                        last.remove(&page);
                    }
                    1 => cache.resize(max / 2 + usize::from(fill) % 40),
                    n => {
                        cache.put(page, &[fill; PAGE], n > 5);
                        last.insert(page, fill);
                    }
                }
                for near in page.saturating_sub(3)..page + 3 {
                    if let Some(copy) = cache.get(near) {
                        prop_assert_eq!(Some(&copy[17]), last.get(&near));
                    }
                }
                prop_assert!(cache.bytes() <= cache.max.next_multiple_of(SLAB) * PAGE);
            }
            for page in 0..200 {
                prop_assert!(cache.get(page).is_none_or(|copy| Some(&copy[17]) == last.get(&page)));
            }
        }
    }

    #[test]
    fn a_burst_does_not_push_out_what_pays() {
        let mut cache = Cache::new(10_000, 64);
        for round in 0..4 {
            for page in 0..32 {
                cache.put(page, &[round; PAGE], round > 0);
            }
        }
        for page in 100..160 {
            cache.put(page, &[9; PAGE], false);
        }
        assert!((0..32).filter(|page| cache.get(*page).is_some()).count() >= 30);
    }
}

//! Copies of pages, in buffers that are used again and again.

use std::sync::{Arc, Mutex, PoisonError};

use super::memory::PAGE;

/// Pages in one buffer.
pub(super) const CHUNK_PAGES: usize = 128;
/// Buffers that are kept when nobody uses them: 8 MiB.
const IDLE_CHUNKS: usize = 16;

/// Room for [`CHUNK_PAGES`] pages.
pub(super) type Chunk = Box<[u8]>;

/// Buffers at rest.
#[derive(Debug, Clone, Default)]
pub(super) struct Pool {
    idle: Arc<Mutex<Vec<Chunk>>>,
}

impl Pool {
    pub(super) fn take(&self) -> Chunk {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        idle.unwrap_or_else(|| vec![0; CHUNK_PAGES * PAGE].into_boxed_slice())
    }

    fn give_back(&self, chunks: Vec<Chunk>) {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let room = IDLE_CHUNKS.saturating_sub(idle.len());
        idle.extend(chunks.into_iter().take(room));
    }
}

/// Copies of some of a guest's pages, in ascending order. The buffers return to their pool when it is dropped.
#[derive(Debug, Default)]
pub struct Pages {
    /// Page number, and its place among the copies.
    index: Vec<(u64, u32)>,
    chunks: Vec<Chunk>,
    pool: Pool,
}

impl Pages {
    pub(super) fn new(pool: Pool) -> Pages {
        Pages { index: Vec::new(), chunks: Vec::new(), pool }
    }

    /// Copies of `pages`, for tests of what consumes them.
    pub fn from_pages<'a>(pages: impl IntoIterator<Item = (u64, &'a [u8; PAGE])>) -> Pages {
        let mut result = Pages::default();
        for (page, bytes) in pages {
            let mut chunk = result.pool.take();
            chunk[..PAGE].copy_from_slice(bytes);
            result.append(&[page], vec![chunk]);
        }
        result.finish();
        result
    }

    /// How many pages.
    pub fn len(&self) -> usize {
        self.index.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.index.is_empty()
    }

    /// Each page's number and bytes, in ascending order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (u64, &[u8; PAGE])> + Clone + '_ {
        self.index.iter().map(|(page, slot)| (*page, self.bytes(*slot)))
    }

    /// The copy of a page.
    pub fn get(&self, page: u64) -> Option<&[u8; PAGE]> {
        let at = self.index.binary_search_by_key(&page, |(page, _)| *page).ok()?;
        Some(self.bytes(self.index[at].1))
    }

    fn bytes(&self, slot: u32) -> &[u8; PAGE] {
        let (chunk, start) = place(slot);
        self.chunks[chunk][start..start + PAGE].try_into().expect("a slot is one page long")
    }

    /// Adds copies: `chunks` hold those of `pages`, one after another. [`Pages::finish`] must follow before they are read.
    pub(super) fn append(&mut self, pages: &[u64], chunks: Vec<Chunk>) {
        debug_assert_eq!(pages.len().div_ceil(CHUNK_PAGES), chunks.len());
        let base = u32::try_from(self.chunks.len() * CHUNK_PAGES).expect("fewer pages than 16 TiB");
        self.index.extend(pages.iter().copied().zip(base..));
        self.chunks.extend(chunks);
    }

    /// Puts the pages in order; of several copies of one page the one that was added last stays.
    pub(super) fn finish(&mut self) {
        self.index.sort_unstable();
        self.index.dedup_by(|later, earlier| {
            let same = later.0 == earlier.0;
            if same {
                earlier.1 = later.1;
            }
            same
        });
    }
}

fn place(slot: u32) -> (usize, usize) {
    (slot as usize / CHUNK_PAGES, slot as usize % CHUNK_PAGES * PAGE)
}

impl Drop for Pages {
    fn drop(&mut self) {
        self.pool.give_back(std::mem::take(&mut self.chunks));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_last_copy_of_each_page_is_found_in_order(added in prop::collection::vec((0_u64..200, any::<u8>()), 0..600)) {
            let pool = Pool::default();
            let mut pages = Pages::new(pool.clone());
            let mut expected = std::collections::BTreeMap::new();
            for some in added.chunks(CHUNK_PAGES + 7) {
                let mut chunks: Vec<Chunk> = (0..some.len().div_ceil(CHUNK_PAGES)).map(|_| pool.take()).collect();
                for (at, (page, byte)) in some.iter().enumerate() {
                    let (chunk, start) = place(u32::try_from(at).unwrap());
                    chunks[chunk][start..start + PAGE].fill(*byte);
                    expected.insert(*page, *byte);
                }
                pages.append(&some.iter().map(|(page, _)| *page).collect::<Vec<_>>(), chunks);
            }
            pages.finish();
            let found: Vec<_> = pages.iter().map(|(page, bytes)| (page, bytes[0])).collect();
            prop_assert_eq!(found, expected.iter().map(|(page, byte)| (*page, *byte)).collect::<Vec<_>>());
            for page in 0..200 {
                prop_assert_eq!(pages.get(page).map(|bytes| bytes[PAGE - 1]), expected.get(&page).copied());
            }
            let chunks = pages.chunks.len();
            drop(pages);
            prop_assert_eq!(pool.idle.lock().unwrap().len(), chunks.min(IDLE_CHUNKS));
        }
    }
}

//! Copying pages out of a guest's RAM, with helpers when there are many.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};

use super::memory::{GuestMemory, PAGE};
use super::staging::{CHUNK_PAGES, Chunk, Pages, Pool};

/// Waking helpers pays from this many buffers on.
const SHARED_FROM_CHUNKS: usize = 4;
/// More helpers than this only wait for the memory bus.
const HELPERS_MAX: usize = 3;

/// One set of pages that is being copied. Whoever has time takes a buffer and fills it.
struct Batch {
    memory: GuestMemory,
    pages: Vec<u64>,
    empty: Mutex<Vec<(usize, Chunk)>>,
}

impl Batch {
    fn fill_one(&self) -> Option<(usize, Chunk)> {
        let (number, mut chunk) = self.empty.lock().unwrap_or_else(PoisonError::into_inner).pop()?;
        let start = number * CHUNK_PAGES;
        let pages = &self.pages[start..self.pages.len().min(start + CHUNK_PAGES)];
        fill(&self.memory, pages, &mut chunk);
        Some((number, chunk))
    }
}

/// Copies pages. Neighbours are copied in one go.
fn fill(memory: &GuestMemory, pages: &[u64], chunk: &mut [u8]) {
    let mut at = 0;
    for run in pages.chunk_by(|a, b| a + 1 == *b) {
        let length = run.len() * PAGE;
        memory.copy_range(run[0] * PAGE as u64, &mut chunk[at..at + length]);
        at += length;
    }
}

type Order = (Arc<Batch>, Sender<(usize, Chunk)>);

/// Threads that help to copy. They end when it is dropped.
#[derive(Debug)]
pub(super) struct Copier {
    memory: GuestMemory,
    pool: Pool,
    helpers: Vec<Sender<Order>>,
}

impl Copier {
    pub(super) fn new(memory: GuestMemory) -> Copier {
        let processors = mycelium_linux::scheduling::processors().map_or(1, |processors| processors.len());
        let helpers = (1..processors.min(HELPERS_MAX + 1)).filter_map(|_| helper()).collect();
        Copier { memory, pool: Pool::default(), helpers }
    }

    /// An empty set.
    pub(super) fn empty(&self) -> Pages {
        Pages::new(self.pool.clone())
    }

    /// Adds copies of `wanted` to `pages`.
    pub(super) fn copy(&self, wanted: Vec<u64>, pages: &mut Pages) {
        if wanted.is_empty() {
            return;
        }
        let count = wanted.len().div_ceil(CHUNK_PAGES);
        let mut chunks: Vec<Chunk> = (0..count).map(|_| self.pool.take()).collect();
        if count < SHARED_FROM_CHUNKS || self.helpers.is_empty() {
            for (some, chunk) in wanted.chunks(CHUNK_PAGES).zip(&mut chunks) {
                fill(&self.memory, some, chunk);
            }
            pages.append(&wanted, chunks);
            return;
        }
        let empty = Mutex::new(chunks.into_iter().enumerate().collect());
        let batch = Arc::new(Batch { memory: self.memory.clone(), pages: wanted, empty });
        let mut full = self.fill_together(&batch, count);
        full.sort_unstable_by_key(|(number, _)| *number);
        pages.append(&batch.pages, full.into_iter().map(|(_, chunk)| chunk).collect());
    }

    fn fill_together(&self, batch: &Arc<Batch>, count: usize) -> Vec<(usize, Chunk)> {
        let (sender, filled) = channel();
        for helper in &self.helpers {
            let _ = helper.send((Arc::clone(batch), sender.clone()));
        }
        drop(sender);
        let mut full = Vec::with_capacity(count);
        full.extend(std::iter::from_fn(|| batch.fill_one()));
        // What a helper has begun arrives; a helper that died takes its buffer with it, and the count shows it.
        full.extend(filled);
        assert_eq!(full.len(), count, "a helper died while copying");
        full
    }
}

fn helper() -> Option<Sender<Order>> {
    let (sender, orders): (Sender<Order>, Receiver<Order>) = channel();
    let work = move || {
        for (batch, filled) in orders {
            while let Some(chunk) = batch.fill_one() {
                if filled.send(chunk).is_err() {
                    break;
                }
            }
        }
    };
    std::thread::Builder::new().name("page-copier".to_owned()).spawn(work).ok()?;
    Some(sender)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_pages_are_copied_as_they_are() {
        let folder = tempfile::tempdir().unwrap();
        let memory = GuestMemory::create(&folder.path().join("ram"), 8 << 20).unwrap();
        for page in 0..memory.pages() {
            memory.write_page(page, &[u8::try_from(page % 251).unwrap(); PAGE]);
        }
        let copier = Copier::new(memory.clone());
        for step in [1, 2, 3, 700] {
            let wanted: Vec<u64> = (0..memory.pages()).step_by(step).collect();
            let mut pages = copier.empty();
            copier.copy(wanted.clone(), &mut pages);
            pages.finish();
            assert_eq!(pages.iter().map(|(page, _)| page).collect::<Vec<_>>(), wanted);
            assert!(pages.iter().all(|(page, bytes)| *bytes == [u8::try_from(page % 251).unwrap(); PAGE]));
        }
    }
}

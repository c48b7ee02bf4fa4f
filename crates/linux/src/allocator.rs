//! Which allocator a process has (ADR 10): the engine mimalloc, every other one the C library's.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicU8, Ordering};

use libmimalloc_sys::{mi_option_set, mi_option_t};
use mimalloc::MiMalloc;

/// The verb that starts an engine.
const ENGINE_VERB: &[u8] = b"up";
/// `mi_option_purge_delay` of mimalloc 3, which the crate does not name: milliseconds until the kernel gets freed pages back.
const PURGE_DELAY: mi_option_t = 15;
/// A tenth of what it is by default. An engine with a hundred pods holds 4 MiB less, and is as fast.
const PURGE_AFTER_MS: std::ffi::c_long = 100;

const UNDECIDED: u8 = 0;
const C_LIBRARY: u8 = 1;
const MIMALLOC: u8 = 2;

static CHOICE: AtomicU8 = AtomicU8::new(UNDECIDED);

/// mimalloc where the command line says `up`, the C library's allocator everywhere else.
///
/// The first allocation decides, before there is a second thread: what one of them gave out never reaches the other.
pub struct Allocator;

impl Allocator {
    fn is_mimalloc() -> bool {
        match CHOICE.load(Ordering::Relaxed) {
            UNDECIDED => decide(),
            choice => choice == MIMALLOC,
        }
    }
}

#[cold]
fn decide() -> bool {
    let engine = is_engine();
    if engine {
        // SAFETY: sets an integer of the allocator's, before its first allocation.
        unsafe { mi_option_set(PURGE_DELAY, PURGE_AFTER_MS) };
    }
    CHOICE.store(if engine { MIMALLOC } else { C_LIBRARY }, Ordering::Relaxed);
    engine
}

/// Whether the first argument is the verb. Nothing here allocates; whatever cannot be read is no engine.
fn is_engine() -> bool {
    let mut line = [0; 4096];
    let Ok(file) = rustix::fs::open("/proc/self/cmdline", rustix::fs::OFlags::RDONLY, rustix::fs::Mode::empty()) else {
        return false;
    };
    let read = rustix::io::read(file, &mut line).unwrap_or(0);
    starts_engine(&line[..read])
}

/// Whether a command line, as the kernel tells it (each argument ends with a zero), begins with a program and the verb.
fn starts_engine(line: &[u8]) -> bool {
    line.split(|byte| *byte == 0).nth(1) == Some(ENGINE_VERB)
}

// SAFETY: each method hands its arguments to the one allocator that this process has, under the same contract.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promises are those asked for.
        unsafe { if Self::is_mimalloc() { MiMalloc.alloc(layout) } else { System.alloc(layout) } }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promises are those asked for.
        unsafe { if Self::is_mimalloc() { MiMalloc.alloc_zeroed(layout) } else { System.alloc_zeroed(layout) } }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the block came from the allocator of this process.
        unsafe { if Self::is_mimalloc() { MiMalloc.dealloc(block, layout) } else { System.dealloc(block, layout) } }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the block came from the allocator of this process.
        unsafe {
            if Self::is_mimalloc() {
                MiMalloc.realloc(block, layout, size)
            } else {
                System.realloc(block, layout, size)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_verb_up_starts_an_engine() {
        for (line, engine) in [
            ("/usr/bin/mycelium\0up\0--nodes\0up\0", true),
            ("mycelium\0up\0", true),
            ("mycelium\0vm\0up\0", false),
            ("mycelium\0upgrade\0", false),
            ("mycelium\0", false),
            ("up\0", false),
            ("", false),
        ] {
            assert_eq!(starts_engine(line.as_bytes()), engine, "{line:?}");
        }
        assert!(!is_engine(), "a test is none");
    }
}

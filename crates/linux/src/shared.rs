//! Memory that another process writes at the same time: a shared mapping of a file.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;

/// A shared, writable mapping of a file's first bytes.
///
/// There is never a reference into it: others write it whenever they like. Bytes are copied in and out, and a copy made while
/// somebody writes may hold some old and some new bytes, which is all that is promised.
#[derive(Debug)]
pub struct SharedMapping {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping is plain memory without thread affinity; it is only reached by bytewise copies.
unsafe impl Send for SharedMapping {}
// SAFETY: as above. Concurrent copies tear at worst, as documented, and every bit pattern is a valid byte.
unsafe impl Sync for SharedMapping {}

impl SharedMapping {
    /// Maps the first `len` bytes of `file`, which must be that long and must not be truncated while mapped.
    pub fn new(file: &File, len: usize) -> io::Result<SharedMapping> {
        if len == 0 || file.metadata()?.len() < len as u64 {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the file is shorter than the mapping asked for"));
        }
        // SAFETY: a new mapping at an address of the kernel's choice disturbs no memory of ours.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        NonNull::new(address.cast())
            .map(|start| SharedMapping { start, len })
            .ok_or_else(|| io::Error::other("mapped at zero"))
    }

    /// Its length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it is empty, which it never is.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Copies the bytes from `offset` on to `target`.
    ///
    /// # Panics
    /// When the range is not within the mapping.
    pub fn read(&self, offset: usize, target: &mut [u8]) {
        self.check(offset, target.len());
        // SAFETY: the range was checked; `target` is ours alone and so cannot overlap memory of the mapping, to which no
        // reference exists.
        unsafe { std::ptr::copy_nonoverlapping(self.start.as_ptr().add(offset), target.as_mut_ptr(), target.len()) }
    }

    /// Copies `source` to the bytes from `offset` on.
    ///
    /// # Panics
    /// When the range is not within the mapping.
    pub fn write(&self, offset: usize, source: &[u8]) {
        self.check(offset, source.len());
        // SAFETY: the range was checked; `source` cannot overlap the mapping, to which no reference exists.
        unsafe { std::ptr::copy_nonoverlapping(source.as_ptr(), self.start.as_ptr().add(offset), source.len()) }
    }

    fn check(&self, offset: usize, len: usize) {
        assert!(
            offset.checked_add(len).is_some_and(|end| end <= self.len),
            "{len} bytes at {offset} of a mapping of {}",
            self.len
        );
    }
}

impl Drop for SharedMapping {
    fn drop(&mut self) {
        // SAFETY: exactly what `new` mapped, and nothing refers to it any more.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
    }
}

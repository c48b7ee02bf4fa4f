//! Giving memory back.

/// Returns freed heap pages to the kernel. A shim calls it after the few moments in which it allocates much.
pub fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: `malloc_trim` takes the allocator's own lock and touches only free memory.
    unsafe {
        libc::malloc_trim(0);
    }
}

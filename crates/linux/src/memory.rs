//! How the C library keeps memory, and giving it back.

/// Returns freed heap pages to the kernel: for after the few moments in which much is allocated.
pub fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: `malloc_trim` takes the allocator's own lock and touches only free memory.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Keeps the allocator to two arenas: each thread's own would hold on to memory that others could use.
pub fn limit_arenas() {
    #[cfg(target_env = "gnu")]
    // SAFETY: `mallopt` takes two integers, and only changes the allocator's own settings.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 2);
    }
}

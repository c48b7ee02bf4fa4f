//! How the C library keeps memory, and giving it back.

/// A block of this many bytes has a mapping of its own.
#[cfg(target_env = "gnu")]
const LARGE: libc::c_int = 256 << 10;

/// Returns freed heap pages to the kernel: for after the few moments in which much is allocated.
pub fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: `malloc_trim` takes the allocator's own lock and touches only free memory.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Has the allocator give what is large back to the kernel as soon as it is freed. By itself it takes the largest block that
/// was ever freed, up to 32 MiB, for a size worth keeping, and then keeps twice as much.
pub fn return_large_blocks() {
    #[cfg(target_env = "gnu")]
    // SAFETY: `mallopt` takes two integers, and only changes the allocator's own settings.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 2 * LARGE);
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

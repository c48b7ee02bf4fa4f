//! What a program inherits of signals across `execve`.

/// Unblocks every signal and gives each its default action, as a freshly executed program expects.
///
/// Rust programs start with `SIGPIPE` ignored, and the shim blocks `SIGCHLD`; both would be inherited.
pub fn reset_for_exec() {
    for signal in 1..=libc::SIGRTMAX() {
        // SAFETY: `SIG_DFL` installs no code of ours; the kernel refuses signals that cannot be changed.
        unsafe {
            libc::signal(signal, libc::SIG_DFL);
        }
    }
    // SAFETY: an all-zero `sigset_t` is a valid object for `sigemptyset` to initialise, and both calls get
    // pointers to it that live until they return.
    unsafe {
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &none, std::ptr::null_mut());
    }
}

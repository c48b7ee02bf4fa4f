//! Terminal calls without a safe wrapper that fits.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Makes the terminal behind `fd` the controlling terminal of this session.
pub fn control(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: TIOCSCTTY takes an integer argument and touches no memory of ours.
    match unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCSCTTY, 0) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

//! Monotonic time as a value that is passed in.

use std::time::Duration;

/// Tells the time since an arbitrary moment in the past; it never goes back.
pub type Clock = fn() -> Duration;

/// The machine's monotonic clock.
pub fn monotonic() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    Duration::new(now.tv_sec.unsigned_abs(), now.tv_nsec.unsigned_abs() as u32)
}

//! Monotonic time as a value that is passed in.

use std::time::Duration;

/// Tells the time since an arbitrary moment in the past; it never goes back.
pub type Clock = fn() -> Duration;

/// The machine's monotonic clock.
pub fn monotonic() -> Duration {
    read(rustix::time::ClockId::Monotonic)
}

/// The processor time of the calling thread: what work costs, without what others took meanwhile.
pub fn thread_time() -> Duration {
    read(rustix::time::ClockId::ThreadCPUTime)
}

fn read(clock: rustix::time::ClockId) -> Duration {
    let now = rustix::time::clock_gettime(clock);
    Duration::new(now.tv_sec.unsigned_abs(), now.tv_nsec.unsigned_abs() as u32)
}

/// The machine's clock that also counts the time in which it was suspended. Leases run on it.
pub fn boottime() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    Duration::new(now.tv_sec.unsigned_abs(), now.tv_nsec.unsigned_abs() as u32)
}

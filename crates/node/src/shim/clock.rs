//! The shim's clock. A shim is a process of its own, outside the simulation: it reads the machine's clock directly.

use jiff::Timestamp;
use rustix::time::{ClockId, clock_gettime};

/// Now, to the nanosecond.
pub fn now() -> Timestamp {
    let time = clock_gettime(ClockId::Realtime);
    Timestamp::new(time.tv_sec, time.tv_nsec as i32).unwrap_or(Timestamp::UNIX_EPOCH)
}

/// `2026-11-21T02:24:38.123456789Z`: nine digits always, as log lines carry it.
pub fn rfc3339_nanos(time: Timestamp) -> String {
    format!("{}.{:09}Z", time.strftime("%Y-%m-%dT%H:%M:%S"), time.subsec_nanosecond())
}

//! Real time: what is measured here happens in other processes and on real threads, outside any simulation.

use std::time::Instant;

#[expect(clippy::disallowed_methods, reason = "pauses of a real process are measured, on real threads")]
pub(super) fn now() -> Instant {
    Instant::now()
}

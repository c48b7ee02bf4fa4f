//! Which thread runs first, and where.

use std::io;

/// Threads that go before all ordinary threads of the machine for a moment; dropped, they are as before.
///
/// A nice value would not do: where the kernel groups threads by session (autogroup) or control group, it only counts
/// within the group. Real-time threads run until they sleep, so this is for what is short and must be done at once.
#[derive(Debug, Default)]
pub struct Urgent {
    before: Vec<(u32, libc::c_int, libc::sched_param)>,
}

impl Urgent {
    /// Hurries `threads` (0: the calling one). Those of a higher `rank` (from 1) go before those of a lower; among equals one that
    /// does not sleep keeps a processor for a tenth of a second. Threads for which it is not allowed stay as they are.
    pub fn enter(rank: u8, threads: impl IntoIterator<Item = u32>) -> Urgent {
        let first = libc::sched_param { sched_priority: rank.into() };
        let hurry = |tid| {
            let before = policy(tid)?;
            set_policy(tid, libc::SCHED_RR, &first).then_some((tid, before.0, before.1))
        };
        Urgent { before: threads.into_iter().filter_map(hurry).collect() }
    }

    /// How many threads were hurried.
    pub fn count(&self) -> usize {
        self.before.len()
    }
}

impl Drop for Urgent {
    fn drop(&mut self) {
        for (tid, policy, parameter) in &self.before {
            // A thread that has ended needs nothing.
            set_policy(*tid, *policy, parameter);
        }
    }
}

fn policy(tid: u32) -> Option<(libc::c_int, libc::sched_param)> {
    let mut parameter = libc::sched_param { sched_priority: 0 };
    // SAFETY: the first takes an integer; the second fills the structure, which outlives the call.
    unsafe {
        let policy = libc::sched_getscheduler(tid.cast_signed());
        let known = policy >= 0 && libc::sched_getparam(tid.cast_signed(), &raw mut parameter) == 0;
        known.then_some((policy, parameter))
    }
}

fn set_policy(tid: u32, policy: libc::c_int, parameter: &libc::sched_param) -> bool {
    // SAFETY: the kernel reads the structure, which outlives the call.
    unsafe { libc::sched_setscheduler(tid.cast_signed(), policy, std::ptr::from_ref(parameter)) == 0 }
}

/// Sets the nice value of thread `tid` (0: the calling one).
pub fn nice(tid: u32, value: i32) -> io::Result<()> {
    // SAFETY: takes integers only.
    let outcome = unsafe { libc::setpriority(libc::PRIO_PROCESS, tid, value) };
    if outcome == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The processors that this process may use.
pub fn processors() -> io::Result<Vec<usize>> {
    let set = rustix::thread::sched_getaffinity(None)?;
    Ok((0..rustix::thread::CpuSet::MAX_CPU).filter(|cpu| set.is_set(*cpu)).collect())
}

/// Ties thread `tid` to one processor.
pub fn pin(tid: u32, processor: usize) -> io::Result<()> {
    let mut set = rustix::thread::CpuSet::new();
    set.set(processor);
    let thread = rustix::thread::Pid::from_raw(tid.cast_signed()).ok_or(io::ErrorKind::InvalidInput)?;
    Ok(rustix::thread::sched_setaffinity(Some(thread), &set)?)
}

//! Which thread runs first, and where.

use std::io;

/// Gives thread `tid` (0: the calling one) a place before all ordinary threads of the machine. Real-time threads run until
/// they sleep, so this is for threads that do little and must do it at once. Falls back to the lowest nice value; an error
/// means that neither was allowed.
pub fn hurry(tid: u32) -> io::Result<()> {
    let parameter = libc::sched_param { sched_priority: 1 };
    // SAFETY: the structure outlives the call, which reads it.
    let outcome = unsafe {
        libc::sched_setscheduler(tid.cast_signed(), libc::SCHED_RR | libc::SCHED_RESET_ON_FORK, &raw const parameter)
    };
    if outcome == 0 { Ok(()) } else { nice(tid, -20) }
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

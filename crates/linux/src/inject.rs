//! Making a stopped child execute system calls.

use std::io;
use std::os::fd::OwnedFd;

/// Makes child `pid`, which asked to be traced by this thread and has just executed its program, create a userfaultfd;
/// returns that descriptor and lets the child run.
#[cfg(target_arch = "x86_64")]
pub(crate) fn userfault_of_stopped(pid: u32) -> io::Result<OwnedFd> {
    use std::os::fd::RawFd;
    /// Only faults of user code are wanted; this is what an unprivileged process may have. Asynchronous protection is lifted by
    /// the kernel for its own writes too.
    const USER_MODE_ONLY: u64 = 1;
    let flags = (libc::O_CLOEXEC | libc::O_NONBLOCK).cast_unsigned().into();
    let stopped = Stopped::catch(pid)?;
    let number = match stopped.call(libc::SYS_userfaultfd, flags) {
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => {
            stopped.call(libc::SYS_userfaultfd, flags | USER_MODE_ONLY)
        }
        other => other,
    };
    let number = number.map_err(explain)?;
    let descriptor = crate::bound::descriptor_of(pid, RawFd::try_from(number).map_err(io::Error::other)?)?;
    // The child has no use for it.
    stopped.call(libc::SYS_close, number)?;
    stopped.release()?;
    Ok(descriptor)
}

/// Other machines need their own few lines of registers.
#[cfg(not(target_arch = "x86_64"))]
pub(crate) fn userfault_of_stopped(_pid: u32) -> io::Result<OwnedFd> {
    Err(io::Error::new(io::ErrorKind::Unsupported, "tracking a virtual machine's writes is only built for x86_64"))
}

#[cfg(target_arch = "x86_64")]
fn explain(error: io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(libc::ENOSYS) => io::Error::new(
            io::ErrorKind::Unsupported,
            "this kernel has no userfaultfd: Linux 6.7 or newer is needed, built with CONFIG_USERFAULTFD",
        ),
        Some(libc::EPERM) => io::Error::new(
            io::ErrorKind::PermissionDenied,
            "userfaultfd is forbidden here; run as root or allow it (sysctl vm.unprivileged_userfaultfd, a container's seccomp profile)",
        ),
        _ => error,
    }
}

/// A traced child, stopped at an instruction that was replaced by `syscall`.
#[cfg(target_arch = "x86_64")]
struct Stopped {
    pid: libc::pid_t,
    registers: libc::user_regs_struct,
    text: libc::c_long,
}

#[cfg(target_arch = "x86_64")]
impl Stopped {
    fn catch(pid: u32) -> io::Result<Stopped> {
        const SYSCALL: libc::c_long = 0x050f;
        let pid = pid.cast_signed();
        wait_for_trap(pid)?;
        let registers = get_registers(pid)?;
        let text = peek(pid, registers.rip)?;
        request(libc::PTRACE_POKETEXT, pid, registers.rip, (text & !0xffff) | SYSCALL)?;
        Ok(Stopped { pid, registers, text })
    }

    /// Has the child execute the call with one argument, and returns what it got.
    fn call(&self, number: libc::c_long, argument: u64) -> io::Result<u64> {
        let mut registers = self.registers;
        registers.rax = number.cast_unsigned();
        registers.orig_rax = u64::MAX;
        registers.rdi = argument;
        set_registers(self.pid, &registers)?;
        request(libc::PTRACE_SINGLESTEP, self.pid, 0, 0)?;
        wait_for_trap(self.pid)?;
        let result = get_registers(self.pid)?.rax.cast_signed();
        match i32::try_from(-result) {
            Ok(code @ 1..=4095) => Err(io::Error::from_raw_os_error(code)),
            _ => Ok(result.cast_unsigned()),
        }
    }

    /// Puts everything back and lets the child go.
    fn release(self) -> io::Result<()> {
        request(libc::PTRACE_POKETEXT, self.pid, self.registers.rip, self.text)?;
        set_registers(self.pid, &self.registers)?;
        request(libc::PTRACE_DETACH, self.pid, 0, 0)
    }
}

#[cfg(target_arch = "x86_64")]
fn wait_for_trap(pid: libc::pid_t) -> io::Result<()> {
    let mut status = 0;
    loop {
        // SAFETY: `status` outlives the call.
        let outcome = unsafe { libc::waitpid(pid, &raw mut status, libc::__WALL) };
        if outcome == pid {
            break;
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
    if libc::WIFSTOPPED(status) && libc::WSTOPSIG(status) == libc::SIGTRAP {
        Ok(())
    } else {
        Err(io::Error::other(format!("the child did not stop as expected (status {status:#x})")))
    }
}

#[cfg(target_arch = "x86_64")]
fn request(request: libc::c_uint, pid: libc::pid_t, address: u64, data: libc::c_long) -> io::Result<()> {
    // SAFETY: the requests used take an address in the child and an integer; no memory of ours is involved.
    let outcome = unsafe { libc::ptrace(request, pid, address, data) };
    if outcome < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(target_arch = "x86_64")]
fn peek(pid: libc::pid_t, address: u64) -> io::Result<libc::c_long> {
    // SAFETY: `__errno_location` points to this thread's own `errno`; a peek takes an address in the child.
    unsafe {
        *libc::__errno_location() = 0;
        let word = libc::ptrace(libc::PTRACE_PEEKTEXT, pid, address, 0);
        if *libc::__errno_location() == 0 { Ok(word) } else { Err(io::Error::last_os_error()) }
    }
}

#[cfg(target_arch = "x86_64")]
fn get_registers(pid: libc::pid_t) -> io::Result<libc::user_regs_struct> {
    // SAFETY: an all-zero value is valid for these integers; the kernel fills the structure, which outlives the call.
    unsafe {
        let mut registers: libc::user_regs_struct = std::mem::zeroed();
        let nothing = std::ptr::null_mut::<libc::c_void>();
        if libc::ptrace(libc::PTRACE_GETREGS, pid, nothing, &raw mut registers) < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(registers)
    }
}

#[cfg(target_arch = "x86_64")]
fn set_registers(pid: libc::pid_t, registers: &libc::user_regs_struct) -> io::Result<()> {
    // SAFETY: the kernel only reads the structure, which outlives the call.
    let outcome = unsafe {
        let nothing = std::ptr::null_mut::<libc::c_void>();
        libc::ptrace(libc::PTRACE_SETREGS, pid, nothing, std::ptr::from_ref(registers))
    };
    if outcome < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

//! What can go wrong with a machine.

use std::io;
use std::path::PathBuf;

/// Why something with a virtual machine failed.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// There is no QEMU.
    #[error(
        "qemu-system-x86_64 was not found; install QEMU 7.2 or newer (Debian, Ubuntu: apt install qemu-system-x86; Fedora: dnf install qemu-system-x86-core)"
    )]
    QemuMissing,
    /// QEMU is older than what works.
    #[error(
        "QEMU {found} is too old: install 7.2 or newer (Debian 12, Ubuntu 23.04 or newer: apt install qemu-system-x86; Debian 11: the same from bullseye-backports)"
    )]
    QemuTooOld {
        /// The version found.
        found: String,
    },
    /// KVM was asked for and does not work.
    #[error("KVM does not run guests here: {reason}; use another accelerator (tcg) or fix /dev/kvm")]
    NoKvm {
        /// What a trial showed.
        reason: String,
    },
    /// The configuration cannot be carried out.
    #[error("{field}: {reason}")]
    Config {
        /// The field at fault.
        field: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// QEMU ended.
    #[error("QEMU ended during `{during}`{}", said(.log))]
    Gone {
        /// What we were doing.
        during: String,
        /// The end of its own messages.
        log: String,
    },
    /// QEMU did not answer in time.
    #[error("QEMU did not finish `{during}` in {seconds} s")]
    Timeout {
        /// What we were doing.
        during: String,
        /// How long we waited.
        seconds: u64,
    },
    /// QEMU refused a command.
    #[error("QEMU refuses `{command}`: {reason}")]
    Refused {
        /// The command.
        command: String,
        /// QEMU's words.
        reason: String,
    },
    /// QEMU said something that is not its protocol.
    #[error("QEMU's answer to `{during}` is not understood")]
    Protocol {
        /// What we were doing.
        during: String,
    },
    /// Something with a file.
    #[error("{what} {}", path.display())]
    File {
        /// What was tried.
        what: &'static str,
        /// With which file.
        path: PathBuf,
        /// The reason.
        #[source]
        source: io::Error,
    },
    /// Something with the system.
    #[error("{what}")]
    System {
        /// What was tried.
        what: &'static str,
        /// The reason.
        #[source]
        source: io::Error,
    },
}

/// The result of anything with a machine.
pub type Result<T, E = MachineError> = std::result::Result<T, E>;

impl MachineError {
    pub(super) fn system(what: &'static str) -> impl FnOnce(io::Error) -> MachineError {
        move |source| MachineError::System { what, source }
    }

    pub(super) fn file(what: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> MachineError {
        move |source| MachineError::File { what, path: path.into(), source }
    }

    /// Whether QEMU is no longer there.
    pub fn is_gone(&self) -> bool {
        matches!(self, MachineError::Gone { .. })
    }
}

fn said(log: &str) -> String {
    if log.is_empty() { String::new() } else { format!("; it said: {log}") }
}

//! What this host can do for a machine.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::OnceLock;
use std::time::Duration;

use mycelium_linux::{process, scheduling};

use crate::clock::monotonic;

use super::config::{Accel, MachineConfig};
use super::error::{MachineError, Result};

/// The program.
const QEMU: &str = "qemu-system-x86_64";
/// The oldest version that works.
pub(super) const OLDEST: (u64, u64) = (7, 2);
/// How long a guest of five instructions may take.
const TRIAL_LIMIT: Duration = Duration::from_secs(5);
/// What QEMU exits with when the trial guest has written 0x10 to its exit port.
const TRIAL_PASSED: i32 = 0x10 << 1 | 1;

/// QEMU's place, from `PATH`.
pub(super) fn qemu() -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .map(|folder| folder.join(QEMU))
        .find(|program| program.is_file())
        .ok_or(MachineError::QemuMissing)
}

/// That the QEMU here is too old, if it is: by what it says of itself.
pub(super) fn too_old() -> Option<MachineError> {
    let output = process::command(qemu().ok()?).arg("--version").stdin(Stdio::null()).output().ok()?;
    let said = String::from_utf8_lossy(&output.stdout);
    let found = said.split_once("version ")?.1.split(|c: char| c != '.' && !c.is_ascii_digit()).next()?;
    let mut numbers = found.split('.').map_while(|number| number.parse().ok());
    let version = (numbers.next()?, numbers.next()?);
    (version < OLDEST).then(|| MachineError::QemuTooOld { found: found.to_owned() })
}

/// Whether a machine with this wish runs on KVM.
pub(super) fn use_kvm(accel: Accel) -> Result<bool> {
    match (accel, accel == Accel::Tcg || kvm_works().is_ok()) {
        (Accel::Tcg, _) => Ok(false),
        (Accel::Auto, works) => Ok(works),
        (Accel::Kvm, _) => match kvm_works() {
            Ok(()) => Ok(true),
            Err(reason) => Err(MachineError::NoKvm { reason: reason.to_owned() }),
        },
    }
}

/// Whether KVM runs guests here, found out by running one: a device file proves nothing. The answer is kept.
pub fn kvm_works() -> Result<(), &'static str> {
    static ANSWER: OnceLock<Result<(), String>> = OnceLock::new();
    ANSWER
        .get_or_init(|| if Path::new("/dev/kvm").exists() { try_kvm() } else { Err("there is no /dev/kvm".to_owned()) })
        .as_ref()
        .copied()
        .map_err(String::as_str)
}

/// Boots a guest with the processor that machines get, whose firmware is `mov al, 0x10; out 0xf4, al; hlt`, where 0xf4 is a port that ends QEMU.
fn try_kvm() -> Result<(), String> {
    let firmware = std::env::temp_dir().join(format!("mycelium-kvm-trial-{}", std::process::id()));
    let mut image = vec![0xf4_u8; 64 * 1024];
    let reset = image.len() - 16;
    image[reset..reset + 5].copy_from_slice(&[0xb0, 0x10, 0xe6, 0xf4, 0xf4]);
    std::fs::write(&firmware, image).map_err(|error| error.to_string())?;
    let outcome = run_trial(&firmware);
    let _ = std::fs::remove_file(&firmware);
    outcome
}

fn run_trial(firmware: &Path) -> Result<(), String> {
    let mut command = process::command(qemu().map_err(|error| error.to_string())?);
    command
        .args(["-nodefaults", "-no-user-config", "-display", "none", "-accel", "kvm", "-cpu", "host", "-m", "16M"])
        .args(["-machine", "pc-q35-7.2,sata=off", "-device", "isa-debug-exit,iobase=0xf4,iosize=1", "-bios"])
        .arg(firmware)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let mut child = mycelium_linux::bound::spawn(command, Vec::new()).map_err(|error| error.to_string())?;
    let started = monotonic();
    let status = loop {
        match child.try_wait().map_err(|error| error.to_string())? {
            Some(status) => break Some(status),
            None if monotonic() - started > TRIAL_LIMIT => {
                let _ = child.kill();
                let _ = child.wait();
                break None;
            }
            None => std::thread::sleep(Duration::from_millis(5)),
        }
    };
    if status.is_some_and(|status| status.code() == Some(TRIAL_PASSED)) {
        return Ok(());
    }
    let mut said = String::new();
    if let Some(stderr) = &mut child.stderr {
        let _ = stderr.read_to_string(&mut said);
    }
    let said = said.lines().next().unwrap_or("a trial guest did not run its first instructions").to_owned();
    Err(said)
}

/// What was asked for and this host cannot give; each is a sentence for the user. The machine runs without it.
pub fn shortfalls(config: &MachineConfig) -> Vec<String> {
    let mut shortfalls = Vec::new();
    let processors = scheduling::processors().map_or(1, |processors| processors.len());
    if config.cpu_pinning && processors <= config.cpus as usize {
        shortfalls.push(format!(
            "cpuPinning: {} virtual processors on {processors}: none is left for the rest, so nothing is pinned",
            config.cpus
        ));
    }
    shortfalls
}

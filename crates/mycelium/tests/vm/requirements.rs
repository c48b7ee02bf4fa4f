//! What a host must have: a QEMU, and one that is not too old.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::common::{command, output};
use crate::lab::said;

/// One of another time: it does not know the board, as it is.
const OLD: &str = r#"#!/bin/bash
[[ $1 != --version ]] || { echo "QEMU emulator version 6.2.0 (Debian 1:6.2+dfsg-2ubuntu6)"; exit; }
echo "qemu-system-x86_64: -machine pc-q35-7.2: unsupported machine type" >&2
exit 1
"#;
/// One that greets.
const POLITE: &str = r#"#!/bin/bash
for word; do case $word in socket,id=qmp,fd=*) fd=${word##*=} ;; esac; done
[[ -n ${fd:-} ]] || exit 1
echo '{"QMP": {"version": {"qemu": {"micro": 0, "minor": 2, "major": 6}, "package": ""}, "capabilities": []}}' >&"$fd"
exec /bin/sleep 60
"#;

/// What `vm run` says on a host that finds its programs here, and fails.
fn refused(folder: &Path) -> String {
    let mycelium = |words: &[&str]| {
        let mut program = command("/usr/bin/timeout");
        program.args(["120", env!("CARGO_BIN_EXE_mycelium"), "vm"]).args(words);
        program.env("PATH", folder.join("bin")).env("MYCELIUM_DATA_DIR", folder).env("MYCELIUM_NODE_NAME", "a");
        output(&mut program)
    };
    let made = mycelium(&["init"]);
    assert!(made.status.success() || said(&made).contains("exists already"), "{}", said(&made));
    let kernel = folder.join("kernel");
    fs::write(&kernel, "never started").expect("kernel");
    let run = mycelium(&["run", "--name", "tiny", "--kernel", &kernel.to_string_lossy(), "--memory", "64Mi"]);
    assert_eq!(run.status.code(), Some(1), "{}", said(&run));
    let _ = fs::remove_dir_all(folder.join("vm/tiny"));
    said(&run)
}

/// Each is a sentence with the package to install.
#[test]
fn a_missing_or_old_qemu_is_named_with_its_package() {
    let folder = tempfile::Builder::new().prefix("mycelium-bare-").tempdir().expect("temporary directory");
    let qemu = folder.path().join("bin/qemu-system-x86_64");
    fs::create_dir(folder.path().join("bin")).expect("folder");
    let told = refused(folder.path());
    assert!(told.contains("qemu-system-x86_64 was not found; install QEMU 7.2 or newer"), "{told}");
    assert!(told.contains("apt install qemu-system-x86"), "{told}");
    for program in [OLD, POLITE] {
        fs::write(&qemu, program).expect("program");
        fs::set_permissions(&qemu, fs::Permissions::from_mode(0o755)).expect("program");
        let told = refused(folder.path());
        assert!(told.contains("QEMU 6.2.0 is too old: install 7.2 or newer"), "{told}");
        assert!(told.contains("apt install qemu-system-x86"), "{told}");
    }
}

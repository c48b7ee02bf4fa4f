//! The two guests of these tests, and how they are started.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use crate::lab::{GUEST, Lab, command, run};

/// What tests call the machine.
pub const VM: &str = "legacy";

fn repository() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}

/// Where `scripts/setup.sh` keeps what it fetched.
fn cache() -> PathBuf {
    let home = || PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".cache");
    std::env::var_os("XDG_CACHE_HOME").map_or_else(home, PathBuf::from).join("mycelium")
}

fn kernel() -> String {
    let kernel = cache().join("guest-kernel/vmlinuz");
    assert!(kernel.exists(), "{} is missing: run scripts/setup.sh test", kernel.display());
    kernel.to_string_lossy().into_owned()
}

/// The initramfs of the numbering guest, made once per run of the tests.
fn numbering_initramfs() -> &'static Path {
    static MADE: OnceLock<tempfile::TempDir> = OnceLock::new();
    let folder = MADE.get_or_init(|| {
        let folder = tempfile::Builder::new().prefix("mycelium-guest-").tempdir().expect("temporary directory");
        let program = folder.path().join("guest");
        // One file without dependencies: the compiler alone does.
        let mut compile = command("rustc");
        compile.args(["--edition", "2024", "-O", "-C", "target-feature=+crt-static", "-o"]).arg(&program);
        run(compile.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/numbering-guest.rs")));
        let script = repository().join("scripts/vm/guest-numbers.sh");
        run(command("bash").arg(script).arg(folder.path().join("initrd")).arg(&program));
        folder
    });
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| folder.path().join("initrd"))
}

/// Starts the guest that numbers its packets on a host, with other hosts as its backups.
pub fn run_numbers(lab: &mut Lab, host: &str, backups: &[&str]) {
    run_numbers_with(lab, host, backups, &[]);
}

/// The same with more flags of `vm run`.
pub fn run_numbers_with(lab: &mut Lab, host: &str, backups: &[&str], flags: &[&str]) {
    let initramfs = numbering_initramfs().to_string_lossy().into_owned();
    let mut words = vec!["--initrd", &initramfs, "--memory", "96Mi"];
    words.extend(flags);
    start(lab, host, backups, &words);
}

/// Starts the guest with Debian's PostgreSQL on a host, with other hosts as its backups.
pub fn run_postgres(lab: &mut Lab, host: &str, backups: &[&str]) {
    run(command("bash").arg(repository().join("scripts/vm/guest-postgres.sh")));
    let at = |file: &str| cache().join("guests/postgres").join(file).to_string_lossy().into_owned();
    start(
        lab,
        host,
        backups,
        &["--initrd", &at("initrd"), "--disk", &at("disk.raw"), "--disk-size", "1Gi", "--memory", "192Mi"],
    );
}

fn start(lab: &mut Lab, host: &str, backups: &[&str], more: &[&str]) {
    let addresses: Vec<String> = backups.iter().map(|name| format!("{}:7400", lab.host(name).address)).collect();
    let (kernel, append) = (kernel(), format!("console=ttyS0 quiet guest.ip={GUEST}/24"));
    let mut words = vec!["vm", "run", "--name", VM, "--kernel", &kernel, "--append", &append, "--net", "tap:br0"];
    words.extend(more);
    words.extend(addresses.iter().flat_map(|address| ["--backup", address]));
    let listen = format!("{}:7400", lab.host(host).address);
    words.extend(["--listen", &listen]);
    lab.host(host).spawn(&words);
}

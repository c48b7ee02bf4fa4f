//! The two guests of these tests, and how they are started.

use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use crate::common::{PATIENCE, command, eventually, eventually_within, run};
use crate::lab::{CLIENT, GUEST, Lab, said};
use crate::numbers::Client;
use crate::random::Random;

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

/// An image that boots the numbering guest by itself, made once per run of the tests.
pub fn bootable_image() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| {
        let initramfs = numbering_initramfs();
        let image = initramfs.with_file_name("disk.qcow2");
        let script = repository().join("scripts/vm/guest-disk.sh");
        let mut make = command("bash");
        run(make.arg(script).arg(&image).arg(kernel()).arg(initramfs).arg(command_line()));
        image
    })
}

/// Firmware, a boot loader and a kernel: on a busy machine a translated guest that is checkpointed meanwhile takes long.
pub const BOOTS: Duration = Duration::from_secs(3 * PATIENCE.as_secs());

/// A manifest of the examples.
pub fn example(name: &str) -> String {
    repository().join("examples/vm").join(name).to_string_lossy().into_owned()
}

fn command_line() -> String {
    format!("console=ttyS0 quiet guest.ip={GUEST}/24")
}

/// Three hosts: the guest that numbers its packets on `a`, with `b` and `c` as its backups, and its client at work.
pub fn numbers(random: &mut Random, flags: &[&str]) -> (Lab, Client) {
    let mut lab = Lab::new(3);
    lab.host("b").stand_by();
    lab.host("c").stand_by();
    run_numbers_with(&mut lab, "a", &["b", "c"], flags);
    let client = Client::start(&lab, random);
    (lab, client)
}

/// Starts the guest that numbers its packets on a host, with other hosts as its backups.
pub fn run_numbers(lab: &mut Lab, host: &str, backups: &[&str]) {
    run_numbers_with(lab, host, backups, &[]);
}

/// The same with more flags of `vm run`.
pub fn run_numbers_with(lab: &mut Lab, host: &str, backups: &[&str], flags: &[&str]) {
    let initramfs = numbering_initramfs().to_string_lossy().into_owned();
    let mut words = vec!["--initrd", &initramfs];
    if !flags.contains(&"--memory") {
        words.extend(["--memory", "96Mi"]);
    }
    words.extend(flags);
    start(lab, host, backups, &words);
}

/// A document of the guest that numbers its packets, with this backup strategy and failure detection.
pub fn numbers_document(lab: &Lab, backups: &str, detection: &str) -> PathBuf {
    let (kernel, initrd) = (kernel(), numbering_initramfs().display());
    let text = format!(
        "apiVersion: mycelium.network/v1
kind: EndophyteVM
metadata: {{name: {VM}}}
spec:
  vmSpec:
    memorySize: 96Mi
    osConfig: {{kernel: {kernel}, initrd: {initrd}, commandLine: console=ttyS0 quiet guest.ip={GUEST}/24}}
    networkConfig: {{attachment: 'tap:br0'}}
  backupStrategy: {backups}
  failureDetection: {detection}
"
    );
    let path = lab.folder().join("vm.yaml");
    std::fs::write(&path, text).expect("document");
    path
}

/// Gives the guest that numbers its packets an order (`examples/numbering-guest.rs`), and waits until it has taken it.
pub fn order(lab: &Lab, what: &str, number: u64) {
    let socket = lab.at_client(|| UdpSocket::bind((CLIENT, 0)));
    socket.set_read_timeout(Some(Duration::from_millis(200))).expect("read timeout");
    let (words, mut answer) = (format!("{what} {number}"), [0; 64]);
    eventually("the guest takes an order", || {
        let _ = socket.send_to(words.as_bytes(), (GUEST, 7778));
        let length = socket.recv(&mut answer).map_err(|error| error.to_string())?;
        assert_ne!(&answer[..length], b"corrupt", "{words}: the guest's memory is not what was put there");
        if answer[..length] == *words.as_bytes() { Ok(()) } else { Err("it answered another".to_owned()) }
    });
}

/// Says an order once and does not wait.
pub fn hint(lab: &Lab, what: &str, number: u64) {
    let socket = lab.at_client(|| UdpSocket::bind((CLIENT, 0)));
    let _ = socket.send_to(format!("{what} {number}").as_bytes(), (GUEST, 7778));
}

/// The user data of the machine's seed, as the guest reads it from its disk now.
pub fn user_data(lab: &Lab) -> String {
    let socket = lab.at_client(|| UdpSocket::bind((CLIENT, 0)));
    socket.set_read_timeout(Some(Duration::from_secs(1))).expect("read timeout");
    let mut answer = [0; 2048];
    let length = eventually_within(BOOTS, "the guest tells its user data", || {
        let _ = socket.send_to(b"seed", (GUEST, 7778));
        socket.recv(&mut answer).map_err(|error| error.to_string())
    });
    String::from_utf8_lossy(&answer[..length]).into_owned()
}

/// Shuts a machine down where it runs: the guest hears its button, and obeys before its host loses patience.
pub fn shut_down(lab: &mut Lab, host: &str, vm: &str) {
    let stopped = lab.host(host).vm(&["stop", vm]);
    assert!(stopped.status.success(), "{}", said(&stopped));
    let console = lab.host(host).folder().join("vm").join(vm).join("console.log");
    let console = String::from_utf8_lossy(&std::fs::read(console).expect("console.log")).into_owned();
    assert!(console.contains("guest: off"), "it was ended without being asked:\n{console}");
    let log = lab.host(host).log();
    assert!(!log.contains("did not shut down in time"), "{log}");
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
    let (kernel, append) = (kernel(), command_line());
    let mut words = vec!["--name", VM, "--kernel", &kernel, "--append", &append];
    words.extend(more);
    run_vm(lab, host, backups, &words);
}

/// `mycelium vm run` on a host, with other hosts as backups and a card in its network.
pub fn run_vm(lab: &mut Lab, host: &str, backups: &[&str], more: &[&str]) {
    let addresses: Vec<String> = backups.iter().map(|name| format!("{}:7400", lab.host(name).address)).collect();
    let listen = format!("{}:7400", lab.host(host).address);
    let mut words = vec!["vm", "run", "--net", "tap:br0", "--listen", &listen];
    words.extend(more);
    words.extend(addresses.iter().flat_map(|address| ["--backup", address]));
    lab.host(host).spawn(&words);
}

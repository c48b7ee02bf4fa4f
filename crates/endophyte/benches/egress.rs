//! How long a frame takes through the guest's network card, and what a seal and a release cost.
//!
//! `cargo bench -p mycelium-endophyte --bench egress`

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use mycelium_api::endophyte::Mac;
use mycelium_endophyte::clock::monotonic;
use mycelium_endophyte::egress::{Mode, Nic, NicConfig, Port};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair};

const ROUNDS: usize = 5000;
const FRAME: usize = 1514;

struct Bench {
    nic: Nic,
    qemu: UnixStream,
    network: OwnedFd,
    _dir: tempfile::TempDir,
}

fn bench(mode: Mode) -> Bench {
    let dir = tempfile::tempdir().expect("a folder");
    let (network, port) =
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).expect("sockets");
    let mut config = NicConfig::new(dir.path().join("nic"), Port::Socket(port), Mac([2, 0, 0, 0, 0, 1]));
    config.mode = mode;
    let nic = Nic::start(config).expect("a card");
    let qemu = UnixStream::connect(dir.path().join("nic")).expect("a connection");
    Bench { nic, qemu, network, _dir: dir }
}

fn framed() -> Vec<u8> {
    [&(FRAME as u32).to_be_bytes()[..], &[7; FRAME]].concat()
}

fn print(what: &str, mut times: Vec<Duration>) {
    times.sort_unstable();
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize].as_nanos() as f64 / 1e3;
    println!("{what:<44} {:>8.1} {:>8.1} {:>8.1}", at(0.5), at(0.99), at(1.0));
}

fn timed(rounds: usize, mut work: impl FnMut(usize)) -> Vec<Duration> {
    let mut once = |round| {
        let start = monotonic();
        work(round);
        monotonic() - start
    };
    (0..rounds).map(&mut once).collect()
}

fn main() {
    let (frame, mut buffer) = (framed(), vec![0; 70_000]);
    println!("{:<44} {:>8} {:>8} {:>8}", "microseconds", "p50", "p99", "max");
    let mut held = bench(Mode::BestEffort);
    let times = timed(ROUNDS, |_| {
        held.qemu.write_all(&frame).expect("taken");
        recv(&held.network, &mut buffer[..], RecvFlags::empty()).expect("a frame");
    });
    print("guest to network, best effort", times);
    let times = timed(ROUNDS, |_| {
        send(&held.network, &frame[4..], SendFlags::empty()).expect("taken");
        held.qemu.read_exact(&mut buffer[..FRAME + 4]).expect("a frame");
    });
    print("network to guest", times);

    let mut bench = bench(Mode::OutputCommit);
    let times = timed(ROUNDS, |round| {
        bench.nic.seal(round as u64).expect("in order");
    });
    print("seal, nothing in the socket", times);
    let burst: Vec<u8> = std::iter::repeat_n(&frame, 32).flatten().copied().collect();
    let (mut seals, mut releases) = (Vec::new(), Vec::new());
    for round in ROUNDS..ROUNDS + 1000 {
        bench.qemu.write_all(&burst).expect("taken");
        seals.extend(timed(1, |_| {
            bench.nic.seal(round as u64).expect("in order");
        }));
        releases.extend(timed(1, |_| {
            bench.nic.release(round as u64);
        }));
        for _ in 0..32 {
            recv(&bench.network, &mut buffer[..], RecvFlags::empty()).expect("a frame");
        }
    }
    print("seal, 32 frames just written", seals);
    print("release of 32 frames", releases);
}

//! The queue against a model, and whole cards between a fake QEMU and a socket or a real tap device.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use mycelium_api::endophyte::{Attachment, Mac};
use mycelium_linux::{bridge, netlink, netns};
use proptest::prelude::*;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

use super::queue::{EgressQueue, Limits};
use super::*;

const MAC: Mac = Mac([0x52, 0x54, 0, 1, 2, 3]);

fn numbered(number: u32, length: usize) -> Vec<u8> {
    let mut frame = vec![number as u8; length.max(18)];
    frame[..6].fill(0xff);
    frame[6..12].copy_from_slice(&MAC.0);
    frame[12..14].copy_from_slice(&[0x88, 0xb5]);
    frame[14..18].copy_from_slice(&number.to_be_bytes());
    frame
}

fn framed(frame: &[u8]) -> Vec<u8> {
    [&(frame.len() as u32).to_be_bytes()[..], frame].concat()
}

#[derive(Clone, Debug)]
enum Step {
    Push(usize),
    Seal,
    Release(u64),
    ReleaseAny,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (18_usize..2000).prop_map(Step::Push),
        3 => Just(Step::Seal),
        3 => (0_u64..6).prop_map(Step::Release),
        1 => Just(Step::ReleaseAny),
    ]
}

proptest! {
    #[test]
    fn nothing_leaves_the_queue_before_its_epoch_and_nothing_is_lost_or_doubled(
        steps in prop::collection::vec(step(), 1..200),
    ) {
        let mut queue = EgressQueue::new(Limits::default());
        let (mut model, mut epoch, mut number) = (VecDeque::new(), 1, 0_u32);
        for step in steps {
            let mut left = Vec::new();
            match step {
                Step::Push(length) => {
                    queue.push(&numbered(number, length), Duration::ZERO);
                    model.push_back((None, number, length));
                    number += 1;
                }
                Step::Seal => {
                    queue.seal(epoch).unwrap();
                    prop_assert!(queue.seal(epoch).is_err());
                    model.iter_mut().filter(|(e, ..)| e.is_none()).for_each(|(e, ..)| *e = Some(epoch));
                    epoch += 1;
                }
                Step::Release(back) => {
                    let through = epoch.saturating_sub(back);
                    while let Some(segment) = queue.release(through) {
                        left.push(segment);
                    }
                    let safe = model.iter().take_while(|(e, ..)| e.is_some_and(|e| e <= through)).count();
                    check(&mut left, model.drain(..safe))?;
                }
                Step::ReleaseAny => {
                    while let Some(segment) = queue.release_any() {
                        left.push(segment);
                    }
                    check(&mut left, model.drain(..))?;
                }
            }
            left.into_iter().for_each(|segment| queue.recycle(segment));
            prop_assert_eq!(queue.frames(), model.len());
            prop_assert_eq!(queue.bytes(), model.iter().map(|(.., length)| length + 4).sum::<usize>());
        }
    }
}

fn check(
    segments: &mut [Segment],
    expected: impl Iterator<Item = (Option<u64>, u32, usize)>,
) -> Result<(), TestCaseError> {
    let mut found = Vec::new();
    for segment in segments {
        while let Some(frame) = segment.next() {
            found.push(frame.to_vec());
            segment.advance();
        }
    }
    let expected: Vec<_> = expected.map(|(_, number, length)| numbered(number, length)).collect();
    prop_assert!(found == expected);
    Ok(())
}

/// A card between a fake QEMU and a socket on which each message is a frame.
struct Bench {
    nic: Nic,
    qemu: UnixStream,
    network: OwnedFd,
    dir: tempfile::TempDir,
}

fn bench(mode: Mode, limits: Limits) -> Bench {
    let dir = tempfile::tempdir().unwrap();
    let (network, port) =
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
    rustix::net::sockopt::set_socket_timeout(
        &network,
        rustix::net::sockopt::Timeout::Recv,
        Some(Duration::from_secs(10)),
    )
    .unwrap();
    let mut config = NicConfig::new(dir.path().join("nic"), Port::Socket(port), MAC);
    (config.mode, config.limits) = (mode, limits);
    let nic = Nic::start(config).unwrap();
    let qemu = connect(&dir);
    Bench { nic, qemu, network, dir }
}

fn connect(dir: &tempfile::TempDir) -> UnixStream {
    let qemu = UnixStream::connect(dir.path().join("nic")).unwrap();
    qemu.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    qemu
}

impl Bench {
    /// The next frame on the network.
    fn next(&self) -> Vec<u8> {
        let mut frame = vec![0; 70_000];
        let (length, _) = rustix::net::recv(&self.network, &mut frame, RecvFlags::empty()).expect("a frame");
        frame.truncate(length);
        frame
    }

    fn silent(&self) -> bool {
        rustix::net::recv(&self.network, &mut [0; 100], RecvFlags::DONTWAIT | RecvFlags::PEEK).is_err()
    }
}

/// The next frame that QEMU gets.
fn ingress(qemu: &mut UnixStream) -> Vec<u8> {
    let mut length = [0; 4];
    qemu.read_exact(&mut length).expect("a frame for the guest");
    let mut frame = vec![0; u32::from_be_bytes(length) as usize];
    qemu.read_exact(&mut frame).unwrap();
    frame
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    /// The stream is cut anywhere, also inside a length. What was whole at a seal belongs to it, exactly.
    #[test]
    fn a_seal_takes_every_whole_frame_in_the_socket_and_a_release_lets_exactly_those_go(
        epochs in prop::collection::vec((prop::collection::vec(18_usize..3000, 0..12), 0_usize..2000), 1..10),
        lag in 0_u64..4,
    ) {
        let mut bench = bench(Mode::OutputCommit, Limits::default());
        let (mut number, mut backlog, mut waiting) = (0, Vec::new(), VecDeque::new());
        for (epoch, (frames, held_back)) in (1_u64..).zip(epochs) {
            let mut ends = Vec::new();
            for length in frames {
                backlog.extend(framed(&numbered(number, length)));
                ends.push(number);
                number += 1;
            }
            let cut = backlog.len().saturating_sub(held_back);
            bench.qemu.write_all(&backlog[..cut]).unwrap();
            let sealed = bench.nic.seal(epoch).unwrap();
            waiting.push_back((epoch, sealed));
            backlog.drain(..cut);
            prop_assert!(bench.silent() || epoch > lag);
            let through = epoch.saturating_sub(lag);
            let released = bench.nic.release(through);
            let safe: usize = waiting.iter().take_while(|(e, _)| *e <= through).map(|(_, s)| s.frames).sum();
            waiting.retain(|(e, _)| *e > through);
            prop_assert_eq!(released.frames, safe);
        }
        bench.qemu.write_all(&backlog).unwrap();
        bench.nic.seal(100).unwrap();
        bench.nic.release(100);
        for expected in 0..number {
            let frame = bench.next();
            prop_assert_eq!(&frame[14..18], &expected.to_be_bytes());
            prop_assert!(frame[18..].iter().all(|byte| *byte == expected as u8));
        }
        prop_assert!(bench.silent());
        prop_assert_eq!(bench.nic.stats().queued_frames, 0);
    }
}

#[test]
fn ingress_flows_while_egress_is_held_and_best_effort_lets_it_go() {
    let mut bench = bench(Mode::OutputCommit, Limits::default());
    bench.qemu.write_all(&framed(&numbered(1, 60))).unwrap();
    bench.nic.seal(1).unwrap();
    for number in 0..50 {
        rustix::net::send(&bench.network, &numbered(number, 1514), SendFlags::empty()).unwrap();
        assert_eq!(ingress(&mut bench.qemu), numbered(number, 1514));
    }
    assert!(bench.silent());
    assert_eq!(bench.nic.stats().queued_bytes, 64);
    bench.nic.set_mode(Mode::BestEffort);
    assert_eq!(bench.next(), numbered(1, 60));
    bench.qemu.write_all(&framed(&numbered(2, 60))).unwrap();
    assert_eq!(bench.next(), numbered(2, 60));
}

#[test]
fn the_first_frame_of_an_epoch_wakes_who_waits_for_it() {
    let mut bench = bench(Mode::OutputCommit, Limits::default());
    assert!(!bench.nic.wait_for_output(Duration::from_millis(5)));
    std::thread::scope(|scope| {
        let waiter = scope.spawn(|| bench.nic.wait_for_output(Duration::from_secs(10)));
        bench.qemu.write_all(&framed(&numbered(1, 60))).unwrap();
        assert!(waiter.join().unwrap());
    });
    bench.nic.seal(1).unwrap();
    assert!(!bench.nic.wait_for_output(Duration::from_millis(5)));
}

#[test]
fn a_full_queue_stops_reading_and_loses_nothing() {
    let limits = Limits { bytes: 1 << 20, frames: 1 << 20 };
    let mut bench = bench(Mode::OutputCommit, limits);
    let total = 3000_u32;
    let mut qemu = bench.qemu.try_clone().unwrap();
    let writer = std::thread::spawn(move || {
        (0..total).for_each(|number| qemu.write_all(&framed(&numbered(number, 1500))).unwrap());
    });
    let (mut epoch, mut seen) = (0, 0_u32);
    while seen < total {
        epoch += 1;
        let sealed = bench.nic.seal(epoch).unwrap();
        assert!(bench.nic.stats().queued_bytes <= limits.bytes as u64);
        // Slow acknowledgements: the queue fills up every now and then.
        if bench.nic.stats().full_events >= u64::from(seen / 500) || sealed.frames == 0 {
            bench.nic.release(epoch);
            while !bench.silent() {
                assert_eq!(bench.next()[14..18], seen.to_be_bytes());
                seen += 1;
            }
        }
    }
    writer.join().unwrap();
    assert!(bench.nic.stats().full_events > 0, "{:?}", bench.nic.stats());
    bench.qemu.write_all(&framed(&numbered(total, 60))).unwrap();
    bench.nic.seal(epoch + 1).unwrap();
    bench.nic.release(epoch + 1);
    assert_eq!(bench.next(), numbered(total, 60));
}

#[test]
fn qemu_may_connect_again_and_what_it_sent_whole_stays_in_its_epoch() {
    let mut bench = bench(Mode::OutputCommit, Limits::default());
    bench.qemu.write_all(&framed(&numbered(1, 60))).unwrap();
    bench.qemu.write_all(&framed(&numbered(2, 900))[..200]).unwrap();
    bench.nic.seal(1).unwrap();
    bench.qemu.write_all(&[framed(&numbered(2, 900))[200..].to_vec(), framed(&numbered(2, 60))].concat()).unwrap();
    bench.qemu = connect(&bench.dir);
    bench.qemu.write_all(&framed(&numbered(3, 60))).unwrap();
    bench.nic.seal(2).unwrap();
    bench.nic.release(2);
    for expected in [numbered(1, 60), numbered(2, 900), numbered(2, 60), numbered(3, 60)] {
        assert_eq!(bench.next(), expected);
    }
    // A frame that never becomes whole is nobody's.
    bench.qemu.write_all(&framed(&numbered(9, 900))[..200]).unwrap();
    bench.qemu = connect(&bench.dir);
    rustix::net::send(&bench.network, &numbered(4, 60), SendFlags::empty()).unwrap();
    assert_eq!(ingress(&mut bench.qemu), numbered(4, 60));
    assert_eq!(bench.nic.stats().connections, 3);
    // A stream that is not QEMU's is closed, and the next connection is served.
    bench.qemu.write_all(&[0xff; 8]).unwrap();
    assert_eq!(bench.qemu.read(&mut [0; 1]).unwrap(), 0);
    bench.qemu = connect(&bench.dir);
    bench.qemu.write_all(&framed(&numbered(5, 60))).unwrap();
    bench.nic.seal(3).unwrap();
    bench.nic.release(3);
    assert_eq!(bench.next(), numbered(5, 60));
}

#[test]
fn a_fenced_card_lets_nothing_out_ever_again() {
    let mut bench = bench(Mode::OutputCommit, Limits::default());
    bench.qemu.write_all(&framed(&numbered(1, 60))).unwrap();
    bench.nic.seal(1).unwrap();
    bench.qemu.write_all(&framed(&numbered(2, 60))).unwrap();
    bench.nic.fence();
    assert_eq!(bench.nic.release(5), Released::default());
    bench.nic.set_mode(Mode::BestEffort);
    bench.nic.announce();
    assert!(matches!(bench.nic.seal(2), Err(NicError::Fenced)));
    assert_eq!(rustix::net::recv(&bench.network, &mut [0; 10], RecvFlags::empty()).map(|r| r.0), Ok(0));
    assert!(!bench.dir.path().join("nic").exists());
    let stats = bench.nic.stats();
    assert!(stats.fenced && stats.fenced_frames >= 1 && stats.released_frames == 0, "{stats:?}");
}

/// `10.77.0.1/24` on the interface of this name.
fn give_address(socket: &mut netlink::Socket, name: &str) -> std::io::Result<()> {
    let mut header = [2, 24, 0, 0, 0, 0, 0, 0];
    header[4..].copy_from_slice(&bridge::find(socket, name)?.index.to_ne_bytes());
    let message = netlink::Message::new(20, netlink::CREATE, &header).attr(2, &[10, 77, 0, 1]).attr(1, &[10, 77, 0, 1]);
    socket.batch(&[message]).map_err(|error| error.source)
}

/// "Who has 10.77.0.1?", asked by the guest.
fn question() -> Vec<u8> {
    let mut frame = vec![0xff; 6];
    frame.extend_from_slice(&MAC.0);
    frame.extend_from_slice(&[8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    frame.extend_from_slice(&MAC.0);
    frame.extend_from_slice(&[10, 77, 0, 2, 0, 0, 0, 0, 0, 0, 10, 77, 0, 1]);
    frame.resize(60, 0);
    frame
}

fn tap_card(dir: &tempfile::TempDir, name: &str, mode: Mode) -> (Nic, UnixStream) {
    let port = Port::open(&format!("tap:br0,name={name}").parse::<Attachment>().unwrap()).unwrap();
    let mut config = NicConfig::new(dir.path().join(name), port, MAC);
    config.mode = mode;
    let nic = Nic::start(config).unwrap();
    let qemu = UnixStream::connect(dir.path().join(name)).unwrap();
    qemu.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    (nic, qemu)
}

/// The next frame of this kind that QEMU gets; the kernel has things of its own to say.
fn ingress_of(qemu: &mut UnixStream, ethertype: [u8; 2]) -> Vec<u8> {
    std::iter::repeat_with(|| ingress(qemu)).find(|frame| frame[12..14] == ethertype).expect("endless")
}

#[test]
fn a_real_tap_on_a_bridge_holds_releases_and_announces() {
    let Ok(namespace) = netns::create() else { return };
    netns::run_in(&namespace, || {
        let mut socket = netlink::Socket::open(netlink::Family::Route)?;
        bridge::create(&mut socket, "br0")?;
        give_address(&mut socket, "br0")?;
        let dir = tempfile::tempdir()?;
        let (nic, mut qemu) = tap_card(&dir, "primary", Mode::OutputCommit);
        qemu.write_all(&framed(&question()))?;
        assert_eq!(nic.seal(1).unwrap().frames, 1);
        assert_eq!(nic.stats().released_frames, 0);
        nic.release(1);
        // The answer comes only now, and at once.
        let answer = ingress_of(&mut qemu, [8, 6]);
        assert_eq!((&answer[..6], &answer[20..22], &answer[28..32]), (&MAC.0[..], &[0, 2][..], &[10, 77, 0, 1][..]));
        let learned = Learned::from_bytes(&nic.learned().to_bytes())?;
        assert_eq!(learned.addresses()[0].ip, IpAddr::from([10, 77, 0, 2]));

        // A card on standby is switched off; on taking over it announces, and others on the bridge hear it.
        let (standby, _waiting) = tap_card(&dir, "backup", Mode::Standby);
        assert!(!bridge::find(&mut socket, "backup")?.up);
        let (_other, mut other) = tap_card(&dir, "other", Mode::OutputCommit);
        nic.fence();
        assert!(bridge::find(&mut socket, "primary").is_err());
        standby.restore(learned);
        standby.set_mode(Mode::OutputCommit);
        standby.announce();
        assert_eq!(ingress_of(&mut other, [0x80, 0x35])[22..28], MAC.0);
        let gratuitous = ingress_of(&mut other, [8, 6]);
        assert_eq!((&gratuitous[28..32], &gratuitous[38..42]), (&[10, 77, 0, 2][..], &[10, 77, 0, 2][..]));
        Ok(())
    })
    .unwrap();
}

#[test]
fn a_port_that_cannot_be_made_says_what_to_do() {
    let Ok(namespace) = netns::create() else { return };
    netns::run_in(&namespace, || {
        let open = |text: &str| Port::open(&text.parse::<Attachment>().unwrap()).map(|_| ()).unwrap_err().to_string();
        let error = open("tap:nowhere,name=x");
        assert!(error.starts_with("cannot put x on bridge nowhere: there is no such bridge"), "{error}");
        let error = open("tap,name=lo");
        assert!(error.contains("cannot create a tap device lo"), "{error}");
        Ok(())
    })
    .unwrap();
}

//! The block server against a plain vector, its errors, and its bounds.

use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use mycelium_endophyte::disk::{Disk, DiskEpoch, DiskError, Payload, Protection};
use proptest::prelude::*;

use crate::client::{Client, FLUSH, FUA, NO_HOLE, READ, TRIM, WRITE, WRITE_ZEROES};

const SIZE: u64 = 1 << 20;

#[derive(Clone, Debug)]
enum Op {
    Read(u64, u64),
    Write(u64, u64, u8, bool),
    Zero(u64, u64, u16, bool),
    Flush,
    Seal,
    Reconnect,
}

fn range() -> impl Strategy<Value = (u64, u64)> {
    let any = (0..SIZE, 0..200_000_u64);
    let sectors = (0..SIZE / 512, 0..64_u64).prop_map(|(at, len)| (at * 512, len * 512));
    prop_oneof![any, sectors].prop_map(|(at, len)| (at, len.min(SIZE - at)))
}

fn op() -> impl Strategy<Value = Op> {
    let flags = prop_oneof![Just(0), Just(NO_HOLE)];
    let zero = (range(), flags, any::<bool>());
    prop_oneof![
        4 => range().prop_map(|(at, len)| Op::Read(at, len)),
        6 => (range(), any::<u8>(), any::<bool>()).prop_map(|((at, len), seed, fua)| Op::Write(at, len, seed, fua)),
        3 => zero.prop_map(|((at, len), flags, trim)| Op::Zero(at, len, flags, trim)),
        1 => Just(Op::Flush),
        1 => Just(Op::Seal),
        1 => Just(Op::Reconnect),
    ]
}

fn pattern(len: u64, seed: u8) -> Vec<u8> {
    (0..len).map(|at| (at as u8).wrapping_mul(31).wrapping_add(seed)).collect()
}

pub fn apply(image: &mut [u8], epoch: &DiskEpoch) {
    for write in &epoch.writes {
        let target = &mut image[write.offset as usize..write.end() as usize];
        match &write.payload {
            Payload::Data(data) => target.copy_from_slice(data),
            Payload::Zero(_) => target.fill(0),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// What is read is what was written, and a replica that applies the sealed epochs is equal at each boundary.
    #[test]
    fn like_a_vector(ops in proptest::collection::vec(op(), 1..60), protected: bool) {
        let dir = tempfile::tempdir().unwrap();
        let disk = Disk::open(dir.path(), None, Some(SIZE)).unwrap();
        let mut epoch = 7;
        if protected {
            disk.protect(Protection::new(1, epoch)).unwrap();
        }
        let socket = dir.path().join("nbd");
        let _server = disk.serve(&socket).unwrap();
        let mut client = Client::connect(&socket);
        prop_assert_eq!(client.size, SIZE);
        let (mut oracle, mut replica) = (vec![0; SIZE as usize], vec![0; SIZE as usize]);
        for op in ops {
            match op {
                Op::Read(at, len) => {
                    prop_assert!(client.read(at, len as u32) == oracle[at as usize..(at + len) as usize]);
                }
                Op::Write(at, len, seed, fua) => {
                    let data = pattern(len, seed);
                    client.call(u16::from(fua) * FUA, WRITE, at, len as u32, &data).unwrap();
                    oracle[at as usize..(at + len) as usize].copy_from_slice(&data);
                }
                Op::Zero(at, len, flags, trim) => {
                    let (command, flags) = if trim { (TRIM, 0) } else { (WRITE_ZEROES, flags) };
                    client.call(flags, command, at, len as u32, &[]).unwrap();
                    oracle[at as usize..(at + len) as usize].fill(0);
                }
                Op::Flush => drop(client.call(0, FLUSH, 0, 0, &[]).unwrap()),
                Op::Seal if protected => {
                    let sealed = DiskEpoch::decode(disk.seal(epoch).unwrap().to_bytes()).unwrap();
                    apply(&mut replica, &sealed);
                    prop_assert!(sealed.epoch == epoch && replica == oracle);
                    epoch += 1;
                }
                Op::Seal => {}
                Op::Reconnect => client = Client::connect(&socket),
            }
        }
        prop_assert!(client.read(0, SIZE as u32) == oracle);
    }

    /// Garbage from a client never brings the server down.
    #[test]
    fn garbage_is_survived(bytes: Vec<u8>, early: bool) {
        let dir = tempfile::tempdir().unwrap();
        let disk = Disk::open(dir.path(), None, Some(SIZE)).unwrap();
        let socket = dir.path().join("nbd");
        let _server = disk.serve(&socket).unwrap();
        let mut client = if early { Client::greet(&socket, 3) } else { Client::connect(&socket) };
        let _ = client.stream.write_all(&bytes);
        client.stream.shutdown(std::net::Shutdown::Write).unwrap();
        let _ = client.stream.read_to_end(&mut Vec::new());
        prop_assert_eq!(Client::connect(&socket).read(0, 16), [0; 16]);
    }
}

#[test]
fn the_handshake_knows_all_its_options() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Disk::open(dir.path(), None, Some(SIZE)).unwrap();
    let socket = dir.path().join("nbd");
    let _server = disk.serve(&socket).unwrap();
    let mut client = Client::greet(&socket, 3);
    assert_eq!(client.option(3, &[]), [(2, vec![0; 4]), (1, vec![])], "LIST");
    assert_eq!(client.option(3, &[1])[0].0, 1 << 31 | 3, "LIST with data");
    for unsupported in [5, 8, 10, 11, 77] {
        assert_eq!(client.option(unsupported, &[])[0].0, 1 << 31 | 1);
    }
    assert_eq!(client.option(6, &[0, 0, 0, 1, b'x', 0, 0])[0].0, 1 << 31 | 6, "INFO on an unknown export");
    assert_eq!(client.option(6, &[0, 0, 0, 9, 0, 0])[0].0, 1 << 31 | 3, "malformed INFO");
    assert_eq!(client.option(99, &vec![0; 100_000])[0].0, 1 << 31 | 9, "too long");
    assert_eq!(client.option(6, &[0; 6]).len(), 2, "INFO");
    assert_eq!(client.option(2, &[]), [(1, vec![])], "ABORT");
    assert_eq!(client.stream.read(&mut [0]).unwrap(), 0);
    for (flags, len) in [(1, 134), (3, 10)] {
        let mut client = Client::greet(&socket, flags);
        client.send_option(1, &[]);
        let mut answer = vec![0; len];
        client.stream.read_exact(&mut answer).unwrap();
        assert_eq!(answer[..8], SIZE.to_be_bytes());
        client.write(100, b"hello");
        assert_eq!(client.read(99, 7), b"\0hello\0");
    }
}

#[test]
fn errors_have_the_protocols_numbers() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Disk::open(dir.path(), None, Some(SIZE)).unwrap();
    let socket = dir.path().join("nbd");
    let _server = disk.serve(&socket).unwrap();
    let mut client = Client::connect(&socket);
    assert_eq!(client.call(0, READ, SIZE - 1, 2, &[]), Err(22));
    assert_eq!(client.call(0, READ, u64::MAX, 2, &[]), Err(22));
    assert_eq!(client.call(0, READ, 0, u32::MAX, &[]), Err(75));
    assert_eq!(client.call(0, WRITE, SIZE, 1, &[1]), Err(28));
    assert_eq!(client.call(0, WRITE_ZEROES, SIZE, 1, &[]), Err(28));
    assert_eq!(client.call(0, TRIM, SIZE, 1, &[]), Err(22));
    assert_eq!(client.call(0, 99, 0, 0, &[]), Err(22));
    assert_eq!(client.call(0x80, FLUSH, 0, 0, &[]), Err(22));
    client.send(0, WRITE, 0, u32::MAX, &[]);
    assert_eq!(client.stream.read(&mut [0]).unwrap_or(0), 0, "a payload beyond the bound ends the connection");
    assert_eq!(Client::connect(&socket).read(0, 1), [0]);
}

#[test]
fn several_connections_see_one_disk() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Disk::open(dir.path(), None, Some(SIZE)).unwrap();
    let socket = dir.path().join("nbd");
    let server = disk.serve(&socket).unwrap();
    let work = |lane: u64| {
        let mut client = Client::connect(&socket);
        for round in 0..50_u8 {
            let data = vec![round ^ lane as u8; 4096];
            client.write(lane * 65536, &data);
            client.call(0, FLUSH, 0, 0, &[]).unwrap();
            assert_eq!(client.read(lane * 65536, 4096), data);
        }
        client.write(lane * 65536, &[lane as u8; 4096]);
    };
    std::thread::scope(|scope| (0..8).for_each(|lane| drop(scope.spawn(move || work(lane)))));
    let mut client = Client::connect(&socket);
    assert!((0..8).all(|lane| client.read(u64::from(lane) * 65536, 4096) == [lane; 4096]));
    drop(server);
    assert!(!socket.exists());
    assert_eq!(client.stream.read(&mut [0]).unwrap_or(0), 0, "a dropped server hangs up");
}

#[test]
fn a_full_log_holds_writers_until_the_seal() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Disk::open(dir.path(), None, Some(SIZE)).unwrap();
    let told = Arc::new(AtomicUsize::new(0));
    let tells = Arc::clone(&told);
    let on_pressure = Some(Box::new(move || _ = tells.fetch_add(1, Ordering::SeqCst)) as _);
    disk.protect(Protection { log_max: 100_000, on_pressure, ..Protection::new(3, 1) }).unwrap();
    let writing = disk.clone();
    let writer =
        std::thread::spawn(move || (0..10_u64).for_each(|at| writing.write(&[1; 50_000], at * 50_000).unwrap()));
    let mut sealed = 0;
    for epoch in 1.. {
        let finished = writer.is_finished();
        let writes = disk.seal(epoch).unwrap();
        assert!(writes.data_bytes() <= 100_000);
        sealed += writes.data_bytes();
        if finished {
            break;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    writer.join().unwrap();
    let stats = disk.stats();
    assert_eq!((sealed, stats.log_overruns, stats.log_bytes), (500_000, 0, 0));
    assert!(told.load(Ordering::SeqCst) > 0 && stats.log_waits > 0);
    // While QEMU is stopping, what is in flight is let through.
    disk.begin_stop();
    (0..10_u64).for_each(|at| disk.write(&[2; 50_000], at * 50_000).unwrap());
    assert_eq!(disk.stats().log_overruns, 0);
    assert!(matches!(disk.seal(1), Err(DiskError::Gap { .. })));
}

#[test]
fn sizes_are_kept_grown_or_refused() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("image");
    std::fs::write(&image, pattern(100_000, 5)).unwrap();
    let vm = dir.path().join("vm");
    let refused = Disk::open(&vm, Some(&image), Some(99_000)).unwrap_err().to_string();
    assert!(refused.contains("99000") && refused.contains("100352"), "{refused}");
    let disk = Disk::open(&vm, Some(&image), Some(SIZE)).unwrap();
    let mut content = vec![0; 100_001];
    disk.read(&mut content, 0).unwrap();
    assert!(content[..100_000] == pattern(100_000, 5) && content[100_000] == 0 && disk.size() == SIZE);
    assert!(matches!(Disk::open(&vm, None, None), Err(DiskError::InUse { .. })));
    drop(disk);
    assert_eq!(Disk::open(&vm, None, None).unwrap().size(), SIZE);
    assert_eq!(Disk::open(&vm, None, Some(2 * SIZE)).unwrap().size(), 2 * SIZE);
    let refused = Disk::open(&vm, None, Some(SIZE)).unwrap_err().to_string();
    assert!(refused.contains("1048576") && refused.contains("2097152"), "{refused}");
    assert!(matches!(Disk::open(&dir.path().join("other"), None, None), Err(DiskError::NoSize { .. })));
}

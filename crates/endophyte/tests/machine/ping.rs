//! Load for a guest's network card: somebody who pings it with long packets, and counts what it answers.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use mycelium_api::endophyte::Mac;
use mycelium_endophyte::egress::{Nic, NicConfig, Port};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

/// The guest's card.
pub const GUEST: Mac = Mac([0x52, 0x54, 0, 1, 2, 3]);
const OURS: [u8; 6] = [0x52, 0x54, 0, 9, 9, 9];
const PAYLOAD: usize = 1400;

/// Pings 10.0.0.2 from 10.0.0.1 until it is dropped.
pub struct Pinger {
    answers: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Pinger {
    /// A card for the guest, with the pinger on its network's side.
    pub fn start(socket: &Path) -> (Nic, Self) {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (near, far) = rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
        let card = Nic::start(NicConfig::new(socket, Port::Socket(near), GUEST)).unwrap();
        let (answers, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (count, end) = (Arc::clone(&answers), Arc::clone(&stop));
        let thread = std::thread::spawn(move || ping(&far, &count, &end));
        (card, Self { answers, stop, thread: Some(thread) })
    }

    /// How many answers came.
    pub fn answers(&self) -> u64 {
        self.answers.load(Ordering::Relaxed)
    }
}

impl Drop for Pinger {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

fn ping(socket: &OwnedFd, answers: &AtomicU64, stop: &AtomicBool) {
    let mut buffer = [0; 2048];
    for number in (0..=u16::MAX).cycle() {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        // A full queue, or a card that is not there yet, loses packets as networks do.
        let _ = rustix::net::send(socket.as_fd(), &request(number), SendFlags::empty());
        while let Ok((length, _)) = rustix::net::recv(socket.as_fd(), &mut buffer[..], RecvFlags::empty()) {
            match (&buffer[12..14], buffer[23], buffer[34]) {
                // An echo, and who asks where we are.
                ([8, 0], 1, 0) if length > PAYLOAD => drop(answers.fetch_add(1, Ordering::Relaxed)),
                ([8, 6], ..) => drop(rustix::net::send(socket.as_fd(), &presence(), SendFlags::empty())),
                _ => {}
            }
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn framed(kind: [u8; 2], body: &[u8]) -> Vec<u8> {
    [&GUEST.0[..], &OURS, &kind, body].concat()
}

/// An ARP answer that says where 10.0.0.1 is.
fn presence() -> Vec<u8> {
    let body = [&[0, 1, 8, 0, 6, 4, 0, 2][..], &OURS, &[10, 0, 0, 1], &GUEST.0, &[10, 0, 0, 2]].concat();
    framed([8, 6], &body)
}

/// An ICMP echo request.
fn request(number: u16) -> Vec<u8> {
    let mut echo = [&[8, 0, 0, 0, 0, 1][..], &number.to_be_bytes(), &[number as u8; PAYLOAD]].concat();
    let sum = checksum(&echo);
    echo[2..4].copy_from_slice(&sum);
    let length = (20 + echo.len() as u16).to_be_bytes();
    let mut head = [&[0x45, 0][..], &length, &[0, 0, 0, 0, 64, 1, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]].concat();
    let sum = checksum(&head);
    head[10..12].copy_from_slice(&sum);
    head.extend(echo);
    framed([8, 0], &head)
}

/// The Internet checksum.
fn checksum(bytes: &[u8]) -> [u8; 2] {
    let words = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |low| u32::from(*low)));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!(sum as u16)).to_be_bytes()
}

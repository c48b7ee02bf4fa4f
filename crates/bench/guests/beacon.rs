//! The guest that `make bench` measures: says how far it is, many times a second, to a client outside, and works beside that
//! as the kernel's command line says. One file without dependencies, so that the compiler alone builds it.
//!
//! | word of the command line | means |
//! |---|---|
//! | `beacon.to=10.77.0.100:7777` | whom it tells |
//! | `beacon.us=2000` | how often, in microseconds |
//! | `beacon.load=light` | writes half a megabyte every 50 ms |
//! | `beacon.load=bound` | copies and hashes 4 MiB over and over, as fast as it can: rounds are counted |
//!
//! A packet is `number rounds microseconds`: the guest's own clock, which stands still while the guest does.

use std::hash::Hasher;
use std::net::UdpSocket;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

static ROUNDS: AtomicU64 = AtomicU64::new(0);

fn light() {
    let mut memory = vec![0_u8; 8 << 20];
    for round in 0_u64.. {
        let at = (round as usize % 16) * (512 << 10);
        memory[at..at + (512 << 10)].fill(round as u8);
        std::hint::black_box(&memory);
        ROUNDS.fetch_add(1, Ordering::Relaxed);
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn bound() {
    let mut from: Vec<u8> = (0..4_u32 << 20).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let mut to = vec![0; from.len()];
    loop {
        to.copy_from_slice(&from);
        let mut hasher = std::collections::hash_map::DefaultHasher::new();
        hasher.write(&to);
        from[..8].copy_from_slice(&hasher.finish().to_le_bytes());
        ROUNDS.fetch_add(1, Ordering::Relaxed);
    }
}

#[allow(clippy::disallowed_methods)]
fn main() {
    let line = std::fs::read_to_string("/proc/cmdline").unwrap_or_default();
    let word = |name: &str| line.split_whitespace().find_map(|word| word.strip_prefix(name)).map(str::to_owned);
    match word("beacon.load=").as_deref() {
        Some("light") => drop(std::thread::spawn(light)),
        Some("bound") => drop(std::thread::spawn(bound)),
        _ => {}
    }
    let every = Duration::from_micros(word("beacon.us=").and_then(|text| text.parse().ok()).unwrap_or(2000));
    let to = word("beacon.to=").unwrap_or_default();
    let socket = UdpSocket::bind("0.0.0.0:7777").expect("a socket");
    let begun = Instant::now();
    for number in 0_u64.. {
        let text = format!("{number} {} {}", ROUNDS.load(Ordering::Relaxed), begun.elapsed().as_micros());
        let _ = socket.send_to(text.as_bytes(), &to);
        std::thread::sleep(every);
    }
}

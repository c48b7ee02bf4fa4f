//! The program of a test guest: it numbers its packets so that a client outside can tell whether the machine ever
//! went back on something it had said.
//!
//! Packet `n` says `n chain content`. `content` is drawn from the clock and a counter, so a guest that ran the same
//! stretch twice would say something else. The client answers `n word`; the guest then moves to `n + 1`, its chain
//! being the hash of the chain before and the word. So for a client:
//! - numbers never go back, and a number always comes with the same content (nothing said is unsaid);
//! - the chain follows from the words it sent (nothing the guest acknowledged by moving on is lost).
//!
//! Every packet also covers a block of memory that the guest keeps rewriting, and checks.
//!
//! On another port it takes orders to work: `memory 8` rewrites 8 MiB over and over with bytes that do not compress,
//! `disk 4` does so with 4 MiB of its disk; 0 ends it. An order is answered with itself.

use std::collections::hash_map::DefaultHasher;
use std::fs::File;
use std::hash::{Hash, Hasher};
use std::net::UdpSocket;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Words of memory that are rewritten for each number: 64 pages.
const BLOCK: usize = 64 * 4096 / 8;

fn hash(parts: &[u64]) -> u64 {
    let mut hasher = DefaultHasher::new();
    parts.hash(&mut hasher);
    hasher.finish()
}

/// What is rewritten at a time.
const PIECE: usize = 64 << 10;
/// Pieces of memory and of the disk that are rewritten over and over.
static MEMORY: AtomicUsize = AtomicUsize::new(0);
static DISK: AtomicUsize = AtomicUsize::new(0);

/// What the guest knows.
struct State {
    number: u64,
    chain: u64,
    content: u64,
    block: Vec<u64>,
}

impl State {
    fn new() -> Self {
        let mut state = Self { number: 0, chain: 0, content: 0, block: vec![0; BLOCK] };
        state.enter();
        state
    }

    /// Draws the content of the present number and fills the block with it.
    fn enter(&mut self) {
        #[expect(clippy::disallowed_methods, reason = "a guest program has only the real clock")]
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_nanos() as u64);
        self.content = hash(&[now, self.number, self.content]);
        for (index, word) in self.block.iter_mut().enumerate() {
            *word = self.content ^ index as u64;
        }
    }

    /// Whether memory still holds what was put there.
    fn sound(&self) -> bool {
        self.block.iter().enumerate().all(|(index, word)| *word == self.content ^ index as u64)
    }

    fn step(&mut self, word: u64) {
        self.number += 1;
        self.chain = hash(&[self.chain, word]);
        self.enter();
    }

    fn packet(&self) -> String {
        let memory = if self.sound() { "sound" } else { "corrupt" };
        format!("{} {:016x} {:016x} {memory}", self.number, self.chain, self.content)
    }
}

/// Fills a piece with other bytes each time.
fn fill(piece: &mut [u64], state: &mut u64) {
    for word in piece {
        // xorshift: cheap, and nothing compresses it.
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        *word = *state;
    }
}

fn rewrite_memory() {
    let (mut memory, mut state) = (Vec::new(), 1);
    loop {
        memory.resize(MEMORY.load(Ordering::Relaxed) * PIECE / 8, 0_u64);
        if memory.is_empty() {
            std::thread::sleep(Duration::from_millis(10));
        }
        memory.chunks_mut(PIECE / 8).for_each(|piece| fill(piece, &mut state));
    }
}

fn rewrite_disk() -> std::io::Result<()> {
    let disk = File::options().write(true).open("/dev/vda")?;
    let (mut piece, mut state) = (vec![0_u64; PIECE / 8], 1);
    loop {
        let pieces = DISK.load(Ordering::Relaxed);
        if pieces == 0 {
            std::thread::sleep(Duration::from_millis(10));
        }
        for index in 0..pieces {
            fill(&mut piece, &mut state);
            let bytes: Vec<u8> = piece.iter().flat_map(|word| word.to_le_bytes()).collect();
            disk.write_all_at(&bytes, (index * PIECE) as u64)?;
            disk.sync_data()?;
        }
    }
}

fn take_orders() -> std::io::Result<()> {
    let socket = UdpSocket::bind("0.0.0.0:7778")?;
    let mut buffer = [0_u8; 128];
    loop {
        let (length, from) = socket.recv_from(&mut buffer)?;
        let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
        let (what, mebibytes) = text.split_once(' ').unwrap_or_default();
        let pieces = mebibytes.parse::<usize>().map(|number| (number << 20) / PIECE);
        match (what, pieces) {
            ("memory", Ok(pieces)) => MEMORY.store(pieces, Ordering::Relaxed),
            ("disk", Ok(pieces)) => DISK.store(pieces, Ordering::Relaxed),
            _ => continue,
        }
        let _ = socket.send_to(text.as_bytes(), from);
    }
}

fn main() -> std::io::Result<()> {
    std::thread::spawn(rewrite_memory);
    for work in [rewrite_disk, take_orders] {
        std::thread::spawn(move || work().inspect_err(|error| println!("guest: {error}")));
    }
    let socket = UdpSocket::bind("0.0.0.0:7777")?;
    socket.set_read_timeout(Some(Duration::from_millis(20)))?;
    println!("guest: ready");
    let mut state = State::new();
    let mut client = None;
    let mut buffer = [0_u8; 128];
    loop {
        if let Ok((length, from)) = socket.recv_from(&mut buffer) {
            client = Some(from);
            let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
            let mut words = text.split_whitespace().map(|word| word.parse::<u64>());
            if let (Some(Ok(number)), Some(Ok(word))) = (words.next(), words.next())
                && number == state.number
            {
                state.step(word);
            }
        }
        // Said again until the client has heard it: packets may be lost, and a failover loses what was not released.
        if let Some(client) = client {
            let _ = socket.send_to(state.packet().as_bytes(), client);
        }
    }
}

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

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::net::UdpSocket;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Words of memory that are rewritten for each number: 64 pages.
const BLOCK: usize = 64 * 4096 / 8;

fn hash(parts: &[u64]) -> u64 {
    let mut hasher = DefaultHasher::new();
    parts.hash(&mut hasher);
    hasher.finish()
}

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

fn main() -> std::io::Result<()> {
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

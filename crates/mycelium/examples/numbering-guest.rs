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
//! On TCP port 7779 it says back each line.
//!
//! On another port it takes orders to work: `memory 8` rewrites 8 MiB over and over with bytes that do not compress,
//! `repeat 8` with such that do,
//! `disk 4` does so with 4 MiB of its disk; 0 ends it. `keep 512` fills 512 MiB once; `check 1`, `check 2` and so on each
//! compare all of that with what was put there, and rewrite a part. An order is answered with itself, those of the kept
//! memory when they are done.
//! `seed` is answered with the user data of the machine's seed, read from its disk anew.
//!
//! A line on its console is answered with what was heard.

use std::collections::hash_map::DefaultHasher;
use std::fs::File;
use std::hash::{Hash, Hasher};
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, UdpSocket};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
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
/// Whether what memory is rewritten with repeats itself.
static REPEATING: AtomicBool = AtomicBool::new(false);

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

/// The same with words that are repeated: a page of them compresses to a tenth, and yet has no byte of the one before.
fn fill_repeating(piece: &mut [u64], state: &mut u64) {
    for words in piece.chunks_mut(64) {
        fill(&mut words[..1], state);
        let first = words[0];
        words.fill(first);
    }
}

fn rewrite_memory() {
    let (mut memory, mut state) = (Vec::new(), 1);
    loop {
        memory.resize(MEMORY.load(Ordering::Relaxed) * PIECE / 8, 0_u64);
        if memory.is_empty() {
            std::thread::sleep(Duration::from_millis(10));
        }
        let fill = if REPEATING.load(Ordering::Relaxed) { fill_repeating } else { fill };
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

/// Words of a page.
const PAGE: usize = 4096 / 8;
/// Every so many pages one is rewritten in a round.
const STRIDE: usize = 16;

/// Memory that is filled once, and then compared and partly rewritten, round by round.
#[derive(Default)]
struct Kept {
    pages: Vec<u64>,
    /// Checks made.
    round: usize,
}

impl Kept {
    /// The seed of a page's words after so many rounds: its place, and the last round that rewrote it.
    fn seed(page: usize, round: usize) -> u64 {
        let rewritten = (1..=round).rev().take(STRIDE).find(|round| round % STRIDE == page % STRIDE).unwrap_or(0);
        hash(&[page as u64, rewritten as u64])
    }

    /// Has so many mebibytes, each page with the words of its seed.
    fn keep(&mut self, mebibytes: usize) {
        if self.pages.len() == (mebibytes << 20) / 8 {
            return;
        }
        *self = Self { pages: vec![0; (mebibytes << 20) / 8], round: 0 };
        for (page, words) in self.pages.chunks_exact_mut(PAGE).enumerate() {
            fill(words, &mut Self::seed(page, 0));
        }
    }

    /// Compares everything and begins a new round. False if any word is not what was put there.
    fn check(&mut self, round: usize) -> bool {
        if round != self.round + 1 {
            return round == self.round;
        }
        let (before, mut expected) = (self.round, vec![0; PAGE]);
        self.round = round;
        let mut sound = true;
        for (page, words) in self.pages.chunks_exact_mut(PAGE).enumerate() {
            fill(&mut expected, &mut Self::seed(page, before));
            sound &= *words == *expected;
            if page % STRIDE == round % STRIDE {
                fill(words, &mut Self::seed(page, round));
            }
        }
        if !sound {
            // For ever: the answer may be lost on its way.
            self.round = usize::MAX - 1;
        }
        sound
    }
}

/// From the disk, not from memory.
fn user_data() -> std::io::Result<Vec<u8>> {
    std::fs::write("/proc/sys/vm/drop_caches", "3")?;
    std::fs::read("/seed/user-data")
}

fn answer_console() -> std::io::Result<()> {
    for line in std::io::stdin().lines() {
        println!("guest: heard {}", line?);
    }
    Ok(())
}

fn take_orders() -> std::io::Result<()> {
    let socket = UdpSocket::bind("0.0.0.0:7778")?;
    let (mut buffer, mut kept) = ([0_u8; 128], Kept::default());
    loop {
        let (length, from) = socket.recv_from(&mut buffer)?;
        let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
        if text == "seed" {
            let _ = socket.send_to(&user_data().unwrap_or_else(|error| error.to_string().into()), from);
            continue;
        }
        let (what, number) = text.split_once(' ').unwrap_or_default();
        let Ok(number) = number.parse::<usize>() else { continue };
        match what {
            "memory" | "repeat" => {
                REPEATING.store(what == "repeat", Ordering::Relaxed);
                MEMORY.store((number << 20) / PIECE, Ordering::Relaxed);
            }
            "disk" => DISK.store((number << 20) / PIECE, Ordering::Relaxed),
            "keep" => kept.keep(number),
            "check" if !kept.check(number) => {
                let _ = socket.send_to(b"corrupt", from);
                continue;
            }
            "check" => {}
            _ => continue,
        }
        let _ = socket.send_to(text.as_bytes(), from);
    }
}

fn say_back() -> std::io::Result<()> {
    for connection in TcpListener::bind("0.0.0.0:7779")?.incoming() {
        let mut writer = connection?;
        let reader = BufReader::new(writer.try_clone()?);
        std::thread::spawn(move || {
            for line in reader.lines().map_while(Result::ok) {
                if writeln!(writer, "{line}").is_err() {
                    break;
                }
            }
        });
    }
    Ok(())
}

fn main() -> std::io::Result<()> {
    std::thread::spawn(rewrite_memory);
    for work in [rewrite_disk, take_orders, say_back, answer_console] {
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

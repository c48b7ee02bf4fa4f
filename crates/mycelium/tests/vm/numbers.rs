//! The client of the numbering guest: it believes nothing. Each new number is acknowledged once, and again after silence.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::io::ErrorKind;
use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::time::Instant;

use crate::common::eventually;
use crate::lab::{CLIENT, GUEST, Lab};
use crate::random::Random;

/// After this long without a packet it speaks again.
const SILENCE: Duration = Duration::from_millis(30);

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    /// New numbers heard.
    heard: AtomicU64,
    packets: AtomicU64,
    longest_gap_us: AtomicU64,
    /// How often a guest that may go back did so.
    went_back: AtomicU64,
    faults: Mutex<Vec<String>>,
}

/// A client at work on a thread of its own.
pub struct Client {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Client {
    /// Speaks to the guest from the lab's client until it is dropped.
    pub fn start(lab: &Lab, random: &mut Random) -> Self {
        Self::begin(lab, random, false)
    }

    /// The same for a guest that may go back on what it said: it is believed again from there on.
    pub fn forgiving(lab: &Lab, random: &mut Random) -> Self {
        Self::begin(lab, random, true)
    }

    fn begin(lab: &Lab, random: &mut Random, forgiving: bool) -> Self {
        let socket = lab.at_client(|| UdpSocket::bind((CLIENT, 0)));
        socket.set_read_timeout(Some(SILENCE)).expect("read timeout");
        let shared = Arc::new(Shared::default());
        let (own, random) = (Arc::clone(&shared), Random::from(random.next()));
        let mut ledger = Ledger { socket, shared: own, random, forgiving, last: None };
        let thread = std::thread::Builder::new().name("client".into()).spawn(move || ledger.run()).expect("thread");
        Self { shared, thread: Some(thread) }
    }

    /// How many numbers it heard so far.
    pub fn heard(&self) -> u64 {
        self.shared.heard.load(Ordering::Relaxed)
    }

    /// Waits until the guest has moved on by some numbers from now, and checks what it said meanwhile.
    pub fn goes_on(&self) {
        let from = self.heard();
        eventually("the guest goes on", || match self.heard() {
            now if now >= from + 5 => Ok(()),
            now => Err(format!("it stands at {now}; faults: {:?}", self.shared.faults.lock())),
        });
        self.assert_sound();
    }

    /// Fails if the guest ever contradicted itself.
    pub fn assert_sound(&self) {
        let faults = self.shared.faults.lock().expect("faults");
        assert!(faults.is_empty(), "the guest contradicted itself:\n{}", faults.join("\n"));
    }

    /// The longest silence since this was asked before.
    pub fn longest_gap(&self) -> Duration {
        Duration::from_micros(self.shared.longest_gap_us.swap(0, Ordering::Relaxed))
    }

    /// How often a guest that may go back on what it said did so.
    pub fn went_back(&self) -> u64 {
        self.shared.went_back.load(Ordering::Relaxed)
    }

    /// Packets heard.
    pub fn packets(&self) -> u64 {
        self.shared.packets.load(Ordering::Relaxed)
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What the guest said last, and what was answered.
struct Last {
    number: u64,
    chain: u64,
    content: u64,
    word: u64,
}

impl Last {
    /// Whether this is of another life of the guest.
    fn contradicted_by(&self, number: u64, chain: u64, content: u64) -> bool {
        match number.checked_sub(self.number) {
            Some(0) => (chain, content) != (self.chain, self.content),
            Some(1) => chain != hash(&[self.chain, self.word]),
            _ => true,
        }
    }
}

struct Ledger {
    socket: UdpSocket,
    shared: Arc<Shared>,
    random: Random,
    forgiving: bool,
    last: Option<Last>,
}

/// As the guest computes it.
fn hash(parts: &[u64]) -> u64 {
    let mut hasher = DefaultHasher::new();
    parts.hash(&mut hasher);
    hasher.finish()
}

impl Ledger {
    fn run(&mut self) {
        let mut heard = Instant::now();
        let mut buffer = [0; 256];
        while !self.shared.stop.load(Ordering::Relaxed) {
            match self.socket.recv_from(&mut buffer) {
                Ok((length, _)) => {
                    let gap = heard.elapsed();
                    heard = Instant::now();
                    if self.last.is_some() {
                        self.shared.longest_gap_us.fetch_max(gap.as_micros() as u64, Ordering::Relaxed);
                    }
                    self.shared.packets.fetch_add(1, Ordering::Relaxed);
                    let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
                    self.hear(&text);
                }
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => self.speak(),
                // No host has the guest's address for the moment.
                Err(_) => std::thread::sleep(SILENCE),
            }
        }
    }

    fn speak(&self) {
        let text =
            self.last.as_ref().map_or_else(|| "hello".to_owned(), |last| format!("{} {}", last.number, last.word));
        let _ = self.socket.send_to(text.as_bytes(), (GUEST, 7777));
    }

    fn fault(&self, text: String) {
        self.shared.faults.lock().expect("faults").push(text);
    }

    fn hear(&mut self, text: &str) {
        let words: Vec<&str> = text.split_whitespace().collect();
        let [number, chain, content, memory] = words[..] else {
            return self.fault(format!("not understood: {text:?}"));
        };
        let parsed = (number.parse::<u64>(), u64::from_str_radix(chain, 16), u64::from_str_radix(content, 16));
        let (Ok(number), Ok(chain), Ok(content)) = parsed else {
            return self.fault(format!("not understood: {text:?}"));
        };
        if memory != "sound" {
            self.fault(format!("number {number}: the guest's memory is {memory}"));
        }
        if self.forgiving && self.last.as_ref().is_some_and(|last| last.contradicted_by(number, chain, content)) {
            self.shared.went_back.fetch_add(1, Ordering::Relaxed);
            self.last = None;
        }
        match &self.last {
            Some(last) if number < last.number => {
                return self.fault(format!("went back from {} to {number}", last.number));
            }
            Some(last) if number == last.number => {
                if (chain, content) != (last.chain, last.content) {
                    self.fault(format!(
                        "number {number} came with other content: {:016x} {:016x}, then {text}",
                        last.chain, last.content
                    ));
                }
                return;
            }
            Some(last) if number > last.number + 1 => {
                self.fault(format!("from {} to {number} without an answer", last.number))
            }
            Some(last) if chain != hash(&[last.chain, last.word]) => {
                self.fault(format!("number {number} does not follow from what was answered to {}", last.number));
            }
            _ => {}
        }
        self.last = Some(Last { number, chain, content, word: self.random.next() >> 1 });
        self.shared.heard.fetch_add(1, Ordering::Relaxed);
        self.speak();
    }
}

//! The other end of `numbering-guest`, for demonstrations: speaks with it, checks every word, and says twice a second what it
//! saw. Beside that it holds one TCP connection, over which each line it sends must come back. `numbering-client ADDRESS`. A
//! line with `FAULT` tells that the guest contradicted itself, or that the connection broke.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpStream, UdpSocket};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// After this long without a packet it speaks again.
const SILENCE: Duration = Duration::from_millis(30);

/// As the guest computes it.
fn hash(parts: &[u64]) -> u64 {
    let mut hasher = DefaultHasher::new();
    parts.hash(&mut hasher);
    hasher.finish()
}

/// What the guest said last, and what is answered to it.
#[derive(Clone, Copy)]
struct Last {
    number: u64,
    chain: u64,
    content: u64,
    word: u64,
}

/// What is wrong with a packet that came after `last`; `Ok` with what to remember if it is news.
fn check(last: Option<Last>, text: &str) -> Result<Option<Last>, String> {
    let words: Vec<&str> = text.split_whitespace().collect();
    let [number, chain, content, memory] = words[..] else { return Err(format!("not understood: {text:?}")) };
    let parsed = (number.parse::<u64>(), u64::from_str_radix(chain, 16), u64::from_str_radix(content, 16));
    let (Ok(number), Ok(chain), Ok(content)) = parsed else { return Err(format!("not understood: {text:?}")) };
    if memory != "sound" {
        return Err(format!("number {number}: the guest's memory is {memory}"));
    }
    match last {
        Some(last) if number < last.number => return Err(format!("went back from {} to {number}", last.number)),
        Some(last) if number == last.number => {
            let same = (chain, content) == (last.chain, last.content);
            return if same { Ok(None) } else { Err(format!("number {number} came again with other content")) };
        }
        Some(last) if number > last.number + 1 || chain != hash(&[last.chain, last.word]) => {
            return Err(format!("number {number} does not follow from what was answered to {}", last.number));
        }
        _ => {}
    }
    Ok(Some(Last { number, chain, content, word: hash(&[content, number]) >> 1 }))
}

#[expect(clippy::disallowed_methods, reason = "a program that measures silence on a real network")]
fn now() -> Instant {
    Instant::now()
}

/// Lines that came back over the one TCP connection.
static LINES: AtomicU64 = AtomicU64::new(0);

/// Sends line after line over one connection, each when the one before has come back. Ends only with a fault.
fn converse(mut connection: TcpStream) -> std::io::Result<()> {
    let (mut lines, mut answer) = (BufReader::new(connection.try_clone()?), String::new());
    loop {
        let line = format!("line {}\n", LINES.load(Ordering::Relaxed));
        connection.write_all(line.as_bytes())?;
        answer.clear();
        lines.read_line(&mut answer)?;
        if answer != line {
            return Err(std::io::Error::other(format!("{line:?} came back as {answer:?}")));
        }
        LINES.fetch_add(1, Ordering::Relaxed);
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The connection, as soon as the guest listens.
fn connect(address: &str) -> TcpStream {
    loop {
        match TcpStream::connect((address, 7779)) {
            Ok(connection) => return connection,
            Err(_) => std::thread::sleep(Duration::from_millis(100)),
        }
    }
}

fn main() -> std::io::Result<()> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "10.77.0.50".into());
    let of_the_connection = address.clone();
    std::thread::spawn(move || {
        let end = converse(connect(&of_the_connection));
        println!("FAULT the TCP connection broke: {end:?}");
    });
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.set_read_timeout(Some(SILENCE))?;
    let (mut last, mut heard, mut numbers): (Option<Last>, _, u64) = (None, now(), 0);
    let (mut longest, mut told) = (Duration::ZERO, now());
    let mut buffer = [0; 256];
    let mut speak = true;
    loop {
        if speak {
            let text = last.map_or_else(|| "hello".to_owned(), |last| format!("{} {}", last.number, last.word));
            // No host may have the guest's address for the moment.
            let _ = socket.send_to(text.as_bytes(), (address.as_str(), 7777));
        }
        speak = true;
        if let Ok((length, _)) = socket.recv_from(&mut buffer) {
            if last.is_some() {
                longest = longest.max(heard.elapsed());
            }
            heard = now();
            match check(last, &String::from_utf8_lossy(&buffer[..length])) {
                Ok(Some(news)) => {
                    last = Some(news);
                    numbers += 1;
                }
                Ok(None) => speak = false,
                Err(fault) => println!("FAULT {fault}"),
            }
        }
        if told.elapsed() > Duration::from_millis(500) {
            told = now();
            let (silence, lines) = (longest.as_millis(), LINES.load(Ordering::Relaxed));
            println!(
                "heard {numbers} numbers in order; longest silence {silence} ms; {lines} lines over one TCP connection"
            );
        }
    }
}

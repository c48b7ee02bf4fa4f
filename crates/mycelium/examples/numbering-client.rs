//! The other end of `numbering-guest`, for demonstrations: speaks with it, checks every word, and says once a second what it
//! saw. `numbering-client ADDRESS`. A line with `FAULT` tells that the guest contradicted itself.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::net::UdpSocket;
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

fn main() -> std::io::Result<()> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "10.77.0.50".into());
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
            println!("heard {numbers} numbers in order; longest silence {} ms", longest.as_millis());
        }
    }
}

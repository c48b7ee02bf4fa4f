//! The client outside: it notes when which packet of the guest arrived. A process of its own, in the client's network.

use std::io::{BufRead, BufReader, Write};
use std::net::UdpSocket;
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};

use super::lab::{CLIENT, Lab, eventually};

/// A packet of the guest.
#[derive(Debug, Clone, Copy)]
pub struct Beat {
    /// When it arrived, in seconds since 1970.
    pub at: f64,
    /// Its number.
    pub number: u64,
    /// The rounds of work that the guest had done.
    pub rounds: u64,
    /// The guest's own clock, in microseconds; it stands still while the guest does.
    pub guest_us: u64,
}

/// A client that listens until it is dropped.
pub struct Beats {
    child: Child,
    heard: Arc<Mutex<Vec<Beat>>>,
}

/// Seconds since 1970: the clock that the hosts' logs use, too.
#[allow(clippy::disallowed_methods, reason = "a measuring tool has only the real clock")]
pub fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |time| time.as_secs_f64())
}

/// What the client's process does: prints time and content of each packet.
pub fn listen(address: &str) -> Result<()> {
    let socket = UdpSocket::bind(address)?;
    let (mut buffer, mut out) = ([0; 256], std::io::stdout().lock());
    loop {
        let length = socket.recv(&mut buffer)?;
        writeln!(out, "{:.6} {}", now(), String::from_utf8_lossy(&buffer[..length]))?;
        out.flush()?;
    }
}

impl Beats {
    /// Begins to listen.
    pub fn start(lab: &Lab) -> Result<Self> {
        let mut command = lab.inside("client", std::env::current_exe()?);
        command.args([super::HELPER, "beats", &format!("{CLIENT}:7777")]);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
        let lines = BufReader::new(child.stdout.take().context("stdout")?).lines();
        let heard = Arc::new(Mutex::new(Vec::new()));
        let all = Arc::clone(&heard);
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let words: Vec<&str> = line.split(' ').collect();
                if let [at, number, rounds, guest_us] = words[..]
                    && let (Ok(at), Ok(number), Ok(rounds), Ok(guest_us)) =
                        (at.parse(), number.parse(), rounds.parse(), guest_us.parse())
                {
                    let beat = Beat { at, number, rounds, guest_us };
                    all.lock().unwrap_or_else(PoisonError::into_inner).push(beat);
                }
            }
        });
        Ok(Self { child, heard })
    }

    /// What was heard from `from` until `to`.
    pub fn between(&self, from: f64, to: f64) -> Vec<Beat> {
        let heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        heard.iter().filter(|beat| (from..to).contains(&beat.at)).copied().collect()
    }

    /// Waits until packets arrive that were sent after now.
    pub fn go_on(&self) -> Result<()> {
        let from = now();
        eventually("the guest is heard", || (self.between(from, f64::MAX).len() > 20).then_some(()))
    }

    /// Rounds per second over a stretch from now on.
    pub fn rate(&self, stretch: Duration) -> Result<f64> {
        let from = now();
        std::thread::sleep(stretch);
        let heard = self.between(from, f64::MAX);
        let (first, last) = (heard.first().context("nothing was heard")?, heard.last().context("nothing was heard")?);
        Ok((last.rounds - first.rounds) as f64 / (last.at - first.at))
    }

    /// What happened in a silence that began at this moment, as the guest sees it: packets that were lost, and by how much its
    /// clock went on.
    pub fn inside(&self, begun: f64) -> String {
        let heard = self.between(begun, f64::MAX);
        let [before, after, ..] = heard[..] else { return String::new() };
        let (lost, ms) =
            (after.number.saturating_sub(before.number + 1), after.guest_us.saturating_sub(before.guest_us));
        format!("{lost} packets lost, {:.1} ms by the guest's clock", ms as f64 / 1e3)
    }

    /// The longest silence that ended in a stretch, in milliseconds, and when it began.
    pub fn longest_silence(&self, from: f64, to: f64) -> (f64, f64) {
        let heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        let ended = heard.windows(2).filter(|pair| (from..to).contains(&pair[1].at));
        let gaps = ended.map(|pair| ((pair[1].at - pair[0].at) * 1e3, pair[0].at));
        gaps.max_by(|a, b| a.0.total_cmp(&b.0)).unwrap_or((0.0, from))
    }
}

impl Drop for Beats {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

//! Planned migration, as a client sees it, against QEMU's own of the same guest.
//!
//! Twice: with output commit, where what the guest says waits for its epoch at any time, and in best-effort mode, where it
//! leaves at once: there the client's silence is the guest's pause.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;

use super::beats::{Beats, now};
use super::failover::event;
use super::guest::Guest;
use super::lab::{Lab, address};
use super::{load, qemu, quantile, svg};
use crate::report::Report;

const MOVES: usize = 6;
const PEER_MOVES: usize = 3;

/// Silences in milliseconds: while it moved, and in stretches of the same kind when it did not.
struct Silences {
    moving: Vec<f64>,
    usual: Vec<f64>,
    /// How long the guest stood still, by the hosts' stamps.
    stood: Vec<f64>,
}

impl Silences {
    fn show(&mut self) -> String {
        format!(
            "the guest stood {:.1} / {:.1} ms; silence {:.0} / {:.0} ms (longest without a move, same span: {:.0} / {:.0})",
            quantile(&mut self.stood, 0.5),
            quantile(&mut self.stood, 1.0),
            quantile(&mut self.moving, 0.5),
            quantile(&mut self.moving, 1.0),
            quantile(&mut self.usual, 0.5),
            quantile(&mut self.usual, 1.0)
        )
    }
}

fn moves(binary: &Path, flags: &[&str]) -> Result<Silences> {
    let mut lab = Lab::new(binary, 2)?;
    lab.stand_by("b")?;
    Guest::beacon(&lab, "light", 2000)?.start_with(&mut lab, &["b"], (5, 100), "auto", flags)?;
    let beats = Beats::start(&lab)?;
    beats.go_on()?;
    let mut silences = Silences { moving: Vec::new(), usual: Vec::new(), stood: Vec::new() };
    for _ in 0..MOVES {
        let (from, _) = lab.protected(1)?;
        let to = if from == "a" { "b" } else { "a" };
        std::thread::sleep(Duration::from_secs(5));
        let asked = now();
        let said = lab.vm(&from, "migrate", &["--to", &format!("{}:7400", address(to))])?;
        beats.go_on()?;
        let span = now() - asked;
        let ((moving, begun), usual) =
            (beats.longest_silence(asked, now()), beats.longest_silence(asked - span, asked).0);
        let told = events(&lab, &from, to, asked);
        eprintln!(
            "    {from} to {to}: {moving:.1} ms (before it: {usual:.1}; {}); {}",
            beats.inside(begun),
            said.trim()
        );
        for (at, text) in &told {
            eprintln!("      {:+.1} ms {text}", (at - begun) * 1e3);
        }
        silences.stood.extend(stood(&told));
        draw(&beats, begun, moving / 1e3, told)?;
        silences.moving.push(moving);
        silences.usual.push(usual);
    }
    Ok(silences)
}

/// What both hosts say of a move, from the first silence on, in seconds since 1970.
fn events(lab: &Lab, from: &str, to: &str, asked: f64) -> Vec<(f64, String)> {
    let told = |host: &str, words: &[&str]| -> Vec<(f64, String)> {
        let status = lab.status(host).unwrap_or_default();
        let found = words.iter().filter_map(|text| event(&status, text, asked));
        found.filter(|(at, _)| *at > asked).map(|(at, text)| (at, format!("{host} {text}"))).collect()
    };
    let mut all = told(from, &["handed over"]);
    all.extend(told(to, &["takes over", "the guest runs here", "what the guest says may leave"]));
    all.sort_by(|a, b| a.0.total_cmp(&b.0));
    all
}

/// From the order to stop on one host until QEMU had started the guest on the other, in milliseconds.
fn stood(told: &[(f64, String)]) -> Option<f64> {
    let find = |text: &str| told.iter().find(|(_, said)| said.contains(text));
    let number = |said: &str, after: &str| said.split(after).nth(1)?.split(' ').next()?.parse::<f64>().ok();
    let ((left, said), (arrived, here)) = (find("stood still for ")?, find("runs here since ")?);
    Some((arrived - left) * 1e3 - number(here, "since ")? + number(said, "still for ")?)
}

/// The last move is the one that is kept.
fn draw(beats: &Beats, begun: f64, silence: f64, told: Vec<(f64, String)>) -> Result<()> {
    let mut marks = vec![(begun, "the last packet before".to_owned())];
    marks.extend(told);
    marks.push((begun + silence, "the client hears it again".to_owned()));
    let heard = beats.between(begun - 0.05, begun + silence + 0.05);
    let title = "A planned migration: each green line is a packet that the client got";
    svg::write("vm-migration.svg", &svg::timeline(&heard, begun, &marks, title))
}

fn peer(binary: &Path) -> Result<Vec<qemu::Migration>> {
    let mut all = Vec::new();
    for _ in 0..PEER_MOVES {
        let lab = Lab::new(binary, 2)?;
        let guest = Guest::beacon(&lab, "light", 2000)?;
        let beats = Beats::start(&lab)?;
        all.push(qemu::migrate(&lab, &guest, &beats)?);
        if let Some(last) = all.last() {
            eprintln!("    QEMU: {:.0} ms by its word, client {:.1} ms", last.downtime_ms, last.silence_ms);
        }
    }
    Ok(all)
}

/// Both, and the peer.
pub fn migration(binary: &Path, report: &mut Report) -> Result<()> {
    let load = load();
    let (mut at_once, mut commit) = (moves(binary, &["--best-effort"])?, moves(binary, &[])?);
    let peer = match peer(binary) {
        Ok(all) => {
            let median = |of: fn(&qemu::Migration) -> f64| quantile(&mut all.iter().map(of).collect::<Vec<_>>(), 0.5);
            let (word, silence) = (median(|m| m.downtime_ms), median(|m| m.silence_ms));
            format!(
                "QEMU's own: {word:.0} ms by its word, {silence:.0} ms of silence, {:.0} ms in all; ratios {:.2} and {:.2}",
                median(|m| m.total_ms),
                quantile(&mut at_once.stood, 0.5) / word,
                quantile(&mut at_once.moving, 0.5) / silence
            )
        }
        Err(error) => format!("QEMU's own failed: {error:#}"),
    };
    report.row(
        "planned migration: how long the guest stands, and the longest silence a client hears, p50 / max",
        at_once.show(),
        "<= 15 ms, and less than QEMU's",
        format!("{peer}; load before {load}"),
    );
    report.row("the same with output commit", commit.show(), "–", String::new());
    Ok(())
}

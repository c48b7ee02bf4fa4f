//! Planned migration, as a client sees it, against QEMU's own of the same guest.
//!
//! Twice: with output commit, where what the guest says waits for its epoch at any time, and in best-effort mode, where it
//! leaves at once: there the client's silence is the guest's pause.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;

use super::beats::{Beats, now};
use super::guest::Guest;
use super::lab::{Lab, address};
use super::{load, qemu, quantile};
use crate::report::Report;

const MOVES: usize = 6;
const PEER_MOVES: usize = 3;

/// Silences in milliseconds: while it moved, and in stretches of the same kind when it did not.
struct Silences {
    moving: Vec<f64>,
    usual: Vec<f64>,
}

impl Silences {
    fn show(&mut self) -> String {
        format!(
            "{:.0} / {:.0} ms (longest without a move, same span: {:.0} / {:.0})",
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
    let mut silences = Silences { moving: Vec::new(), usual: Vec::new() };
    for _ in 0..MOVES {
        let (from, _) = lab.protected(1)?;
        let to = if from == "a" { "b" } else { "a" };
        std::thread::sleep(Duration::from_secs(5));
        let asked = now();
        let said = lab.vm(&from, "migrate", &["--to", &format!("{}:7400", address(to))])?;
        beats.go_on()?;
        let span = now() - asked;
        let (moving, usual) = (beats.longest_silence(asked, now()).0, beats.longest_silence(asked - span, asked).0);
        eprintln!("    {from} to {to}: {moving:.1} ms (before it: {usual:.1}); {}", said.trim());
        silences.moving.push(moving);
        silences.usual.push(usual);
    }
    Ok(silences)
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
                "QEMU's own: {word:.0} ms by its word, {silence:.0} ms of silence, {:.0} ms in all; ratio of silences {:.2}",
                median(|m| m.total_ms),
                quantile(&mut at_once.moving, 0.5) / silence
            )
        }
        Err(error) => format!("QEMU's own failed: {error:#}"),
    };
    report.row(
        "planned migration, silence a client sees, p50 / max",
        at_once.show(),
        "<= 15 ms, and less than QEMU's",
        format!("{peer}; load before {load}"),
    );
    report.row("the same with output commit", commit.show(), "–", String::new());
    Ok(())
}

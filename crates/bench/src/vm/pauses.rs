//! How long the guest stands still per epoch, and how many epochs a second are kept up.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use tokio::time::Instant;

use super::beats::Beats;
use super::guest::Guest;
use super::lab::Lab;
use super::{load, number, quantile, svg};
use crate::report::Report;

/// Shorter than what a status remembers.
const LOOK_EVERY: Duration = Duration::from_secs(8);

/// A protected guest under light load, for a while: its pauses, and epochs per second.
fn observe(binary: &Path, epoch: (u32, u32), looks: u32) -> Result<(Vec<f64>, f64)> {
    let mut lab = Lab::new(binary, 2)?;
    lab.stand_by("b")?;
    Guest::beacon(&lab, "light", 2000)?.start(&mut lab, &["b"], epoch)?;
    let beats = Beats::start(&lab)?;
    beats.go_on()?;
    lab.protected(1)?;
    std::thread::sleep(Duration::from_secs(5));
    let mut before = number(&lab.protected(1)?.1, "/epochs/sealed");
    let (mut pauses, mut epochs, begun) = (Vec::new(), 0.0, Instant::now());
    for _ in 0..looks {
        std::thread::sleep(LOOK_EVERY);
        let (_, status) = lab.protected(1)?;
        let new = number(&status, "/epochs/sealed") - before;
        before += new;
        epochs += new;
        let recent = status["pause"]["recentMs"].as_array().cloned().unwrap_or_default();
        let new = recent.len().saturating_sub(new as usize);
        pauses.extend(recent[new..].iter().filter_map(serde_json::Value::as_f64));
    }
    Ok((pauses, epochs / begun.elapsed().as_secs_f64()))
}

/// The pause at 20 epochs a second.
pub fn pauses(binary: &Path, report: &mut Report) -> Result<()> {
    let load = load();
    let (mut all, rate) = observe(binary, (46, 46), 8)?;
    svg::write(
        "vm-pauses.svg",
        &svg::pauses(&all, &format!("The guest's pause at each checkpoint, {rate:.0} epochs/s")),
    )?;
    report.row(
        "pause per epoch, 256 MiB, light load, p50 / p99",
        format!(
            "{:.2} / {:.2} ms (max {:.1}; {} epochs, {rate:.1}/s)",
            quantile(&mut all, 0.5),
            quantile(&mut all, 0.99),
            quantile(&mut all, 1.0),
            all.len()
        ),
        "<= 3 / <= 10 ms",
        format!("load before {load}"),
    );
    Ok(())
}

/// Epochs per second when they may be as short as 15 ms.
pub fn rate(binary: &Path, report: &mut Report) -> Result<()> {
    let load = load();
    let (mut all, rate) = observe(binary, (5, 15), 4)?;
    report.row(
        "epochs per second sustained, at most 15 ms long",
        format!("{rate:.1}/s (pause p50 {:.2}, p99 {:.2} ms)", quantile(&mut all, 0.5), quantile(&mut all, 0.99)),
        ">= 40",
        format!("load before {load}"),
    );
    Ok(())
}

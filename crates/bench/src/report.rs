//! The table at the end of a run.

use std::time::Duration;

/// All figures of a run.
#[derive(Default)]
pub struct Report {
    rows: Vec<[String; 4]>,
}

impl Report {
    /// Adds a figure: what, measured, target, and what was measured of a peer.
    pub fn row(&mut self, what: &str, measured: String, target: &str, peer: String) {
        eprintln!("  {what}: {measured} {peer}");
        self.rows.push([what.to_owned(), measured, target.to_owned(), peer]);
    }

    /// Prints a Markdown table.
    pub fn print(&self) {
        println!("| what | measured | target | peers, same run |\n|---|---|---|---|");
        for row in &self.rows {
            println!("| {} |", row.join(" | "));
        }
    }
}

/// The load average of the last minute (proc(5)), which every figure is to be read with.
pub fn load() -> String {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().unwrap_or("?").to_owned()
}

/// The duration below which a share of the samples lies, by nearest rank; sorts in place.
pub fn quantile(samples: &mut [Duration], share: f64) -> Duration {
    samples.sort();
    let rank = (share * samples.len() as f64).ceil() as usize;
    samples.get(rank.clamp(1, samples.len().max(1)) - 1).copied().unwrap_or_default()
}

/// Minimum, median and 99th percentile in milliseconds; sorts in place.
pub fn spread(samples: &mut [Duration]) -> String {
    samples.sort();
    let at = |share: f64| samples[((samples.len() - 1) as f64 * share).round() as usize].as_secs_f64() * 1e3;
    format!("{:.1} / {:.1} / {:.1} ms (min / p50 / p99)", at(0.0), at(0.5), at(0.99))
}

/// The median of samples in milliseconds.
pub fn median_ms(samples: &mut [Duration]) -> f64 {
    samples.sort();
    samples[samples.len() / 2].as_secs_f64() * 1e3
}

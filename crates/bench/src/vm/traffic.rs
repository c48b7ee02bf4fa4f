//! Bytes sent per dirty byte under PostgreSQL, over links as fast as they are and over slower ones, and what the processes
//! hold in memory then.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Result;
use serde_json::Value;

use super::guest::Guest;
use super::lab::{Lab, eventually};
use super::postgres::Load;
use super::{load, number};
use crate::engine::cpu;
use crate::report::Report;

const STRETCH: Duration = Duration::from_secs(20);
const MIB: f64 = 1_048_576.0;

/// One guest over links that become slower, and one whose pages are packed whatever the link.
pub fn traffic(binary: &Path, report: &mut Report) -> Result<()> {
    let links = [(None, "this machine's memory"), (Some(1000), "1 Gbit/s"), (Some(200), "200 Mbit/s")];
    replicate(binary, "auto", &links, report)?;
    replicate(binary, "lz4", &links[..1], report)?;
    replicate(binary, "zstd", &links[..1], report)
}

/// A limit in Mbit/s, and what it is called.
type LinkSpeed = (Option<u32>, &'static str);

fn replicate(binary: &Path, compression: &str, links: &[LinkSpeed], report: &mut Report) -> Result<()> {
    let mut lab = Lab::new(binary, 2)?;
    let backup = lab.stand_by("b")?;
    let primary = Guest::postgres()?.start_with(&mut lab, &["b"], (5, 100), compression, &[])?;
    let highest = [primary, backup].map(Highest::watch);
    let postgres = Load::start(&lab)?;
    lab.protected(1)?;
    // The backup's disk and memory were copied meanwhile.
    let copying = highest.map(Highest::end);
    for (link, name) in links {
        if let Some(megabits) = link {
            lab.limit("a", *megabits)?;
        }
        std::thread::sleep(Duration::from_secs(8));
        let load = load();
        let stretch = Stretch::observe(&lab, &postgres, [primary, backup])?;
        let what = format!("bytes sent per dirty byte, PostgreSQL, packing {compression}, link: {name}");
        report.row(&what, stretch.show(), "<= 0.35", format!("load before {load}"));
    }
    if compression == "auto" { memory(&lab, [primary, backup], copying, report) } else { Ok(()) }
}

/// What one stretch showed.
struct Stretch {
    sent: f64,
    dirty: f64,
    disk: f64,
    /// Left the primary's interface, with what the guest and the transport say beside it.
    wire: f64,
    epochs: f64,
    transactions: u64,
    /// Processor time of the primary's and the backup's process.
    busy: [f64; 2],
    bandwidth: f64,
}

impl Stretch {
    fn observe(lab: &Lab, postgres: &Load, pids: [u32; 2]) -> Result<Self> {
        let look = || eventually("a status", || lab.status("a"));
        let (before, done, cpus) = (look()?, postgres.transactions(), pids.map(cpu));
        let wire = lab.sent_bytes("a")?;
        std::thread::sleep(STRETCH);
        let after = look()?;
        let wire = lab.sent_bytes("a")? - wire;
        let since = |path: &str| number(&after, path) - number(&before, path);
        let busy = |at: usize| (cpu(pids[at]) - cpus[at]).as_secs_f64() / STRETCH.as_secs_f64();
        Ok(Self {
            sent: since("/traffic/sentBytes"),
            dirty: since("/traffic/dirtyBytes"),
            disk: since("/traffic/diskBytes"),
            wire,
            epochs: since("/epochs/sealed"),
            transactions: postgres.transactions() - done,
            busy: [busy(0), busy(1)],
            bandwidth: bandwidth(&after),
        })
    }

    fn show(&self) -> String {
        let seconds = STRETCH.as_secs_f64();
        format!(
            "{:.3} ({:.2} of {:.1} MiB/s, disk {:.2}, all that left the interface {:.2}; {:.0} epochs/s, {:.0} transactions/s; processes {:.0} % and {:.0} % of a core; bandwidth measured {:.0} MiB/s)",
            self.sent / self.dirty,
            self.sent / MIB / seconds,
            self.dirty / MIB / seconds,
            self.disk / MIB / seconds,
            self.wire / MIB / seconds,
            self.epochs / seconds,
            self.transactions as f64 / seconds,
            self.busy[0] * 100.0,
            self.busy[1] * 100.0,
            self.bandwidth / MIB
        )
    }
}

/// What the connections to the first peer carry together.
fn bandwidth(status: &Value) -> f64 {
    let connections = status["peers"][0]["connections"].as_array().into_iter().flatten();
    connections.filter_map(|connection| connection["bandwidthBytesPerS"].as_f64()).sum()
}

/// The highest anonymous memory of a process (proc(5), status: `RssAnon`), looked at often, in MiB.
struct Highest {
    ended: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<f64>,
}

impl Highest {
    fn watch(pid: u32) -> Self {
        let ended = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&ended);
        let look = move || {
            let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            let line = text.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap_or_default();
            line.trim().trim_end_matches(" kB").parse::<f64>().unwrap_or(0.0) / 1024.0
        };
        let thread = std::thread::spawn(move || {
            let mut highest = 0.0_f64;
            while !told.load(Ordering::Relaxed) {
                highest = highest.max(look());
                std::thread::sleep(Duration::from_millis(20));
            }
            highest
        });
        Self { ended, thread }
    }

    fn end(self) -> f64 {
        self.ended.store(true, Ordering::Relaxed);
        self.thread.join().unwrap_or(f64::NAN)
    }
}

fn memory(lab: &Lab, [primary, backup]: [u32; 2], copying: [f64; 2], report: &mut Report) -> Result<()> {
    let status = eventually("a status", || lab.status("a"))?;
    let buffer = (number(&status, "/buffer/bytes") + number(&status, "/buffer/pageCopiesBytes")) / MIB;
    let (ours, theirs) = (beyond_ram(primary), beyond_ram(backup));
    report.row(
        "memory beyond guest RAM and buffer, primary and backup",
        format!(
            "{:.0} and {theirs:.0} MiB (primary: {ours:.0} MiB with {buffer:.0} MiB of buffer); highest anonymous memory while memory and disk were copied, buffer included: {:.0} and {:.0} MiB",
            ours - buffer, copying[0], copying[1]
        ),
        "<= 40 MiB",
        "each with its share of the binary's pages; QEMU not counted".to_owned(),
    );
    Ok(())
}

/// What a process has in memory (proc(5), smaps: `Pss`), without the guest's RAM, in MiB.
fn beyond_ram(pid: u32) -> f64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap_or_default();
    let (mut sum, mut counts) = (0.0, true);
    for line in text.lines() {
        match line.strip_prefix("Pss:") {
            Some(size) if counts => sum += size.trim().trim_end_matches(" kB").parse().unwrap_or(0.0),
            Some(_) => {}
            // The line that a mapping begins with: its range in hexadecimal numbers.
            None if line.split(' ').next().is_some_and(|word| word.contains('-')) => {
                counts = !line.contains("/dev/shm/mycelium-");
            }
            None => {}
        }
    }
    sum / 1024.0
}

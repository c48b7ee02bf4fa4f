//! What checkpoints cost a guest that computes and copies, against the same guest unprotected a moment before and after.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;

use super::beats::Beats;
use super::guest::Guest;
use super::lab::{Lab, VM, address, eventually};
use super::{load, number};
use crate::report::Report;

const STRETCH: Duration = Duration::from_secs(10);
/// Protected stretches; there is one more without protection.
const ROUNDS: usize = 3;

/// How far the guest came.
struct Stretch {
    /// Rounds per second.
    rate: f64,
    /// Rounds per second that its virtual processor had a real one: what others do on the machine does not enter, nor do the
    /// pauses.
    per_busy_second: f64,
}

impl Stretch {
    fn observe(lab: &Lab, beats: &Beats) -> Result<Self> {
        let before = lab.processor_seconds("a")?;
        let rate = beats.rate(STRETCH)?;
        let busy = lab.processor_seconds("a")? - before;
        Ok(Self { rate, per_busy_second: rate * STRETCH.as_secs_f64() / busy })
    }
}

/// Unprotected and protected in turn.
pub fn slow_down(binary: &Path, report: &mut Report) -> Result<()> {
    let load = load();
    let mut lab = Lab::new(binary, 2)?;
    lab.stand_by("b")?;
    let primary = Guest::beacon(&lab, "bound", 20_000)?.start(&mut lab, &[], (46, 46))?;
    let beats = Beats::start(&lab)?;
    beats.go_on()?;
    std::thread::sleep(Duration::from_secs(5));
    let mut free = vec![Stretch::observe(&lab, &beats)?];
    let (mut protected, mut epochs, mut pauses, mut dirty, mut busy) = (Vec::new(), 0.0, Vec::new(), 0.0, 0.0);
    for _ in 0..ROUNDS {
        lab.vm("a", "protect", &["--backup", &format!("{}:7400", address("b"))])?;
        let (_, before) = lab.protected(1)?;
        let cpu = crate::engine::cpu(primary);
        protected.push(Stretch::observe(&lab, &beats)?);
        busy += (crate::engine::cpu(primary) - cpu).as_secs_f64();
        let (_, after) = lab.protected(1)?;
        epochs += number(&after, "/epochs/sealed") - number(&before, "/epochs/sealed");
        dirty += number(&after, "/traffic/dirtyBytes") - number(&before, "/traffic/dirtyBytes");
        pauses.push(number(&after, "/pause/p50Ms"));
        lab.vm("a", "forget", &["b"])?;
        eventually("the guest is unprotected", || {
            lab.status("a")?["peers"].as_array().is_some_and(Vec::is_empty).then_some(())
        })?;
        // A backup that was let go is to be asked again as one that knows nothing.
        lab.kill("b")?;
        let _ = std::fs::remove_dir_all(lab.folder().join("b/vm").join(VM));
        lab.stand_by("b")?;
        free.push(Stretch::observe(&lab, &beats)?);
    }
    let mean = |all: &[Stretch], of: fn(&Stretch) -> f64| all.iter().map(of).sum::<f64>() / all.len() as f64;
    let slower = |of| (mean(&free, of) / mean(&protected, of) - 1.0) * 100.0;
    let each = |all: &[Stretch], of: fn(&Stretch) -> f64| {
        all.iter().map(|one| format!("{:.0}", of(one))).collect::<Vec<_>>().join(" ")
    };
    let stretches = |of| format!("{} unprotected, {} protected", each(&free, of), each(&protected, of));
    let span = STRETCH.as_secs_f64() * ROUNDS as f64;
    report.row(
        "slow-down of a guest that computes and copies, at 20 epochs/s",
        format!(
            "{:+.1} % run time (its pauses alone: {:.1} %), {:+.1} % processor time of the guest for the same work ({:.1} epochs/s, {:.0} MiB/s dirty, pause p50 {:.1} ms, our process {:.0} % of a core)",
            slower(|one| one.rate),
            pauses.iter().sum::<f64>() / ROUNDS as f64 * epochs / span / 10.0,
            slower(|one| one.per_busy_second),
            epochs / span,
            dirty / span / 1_048_576.0,
            pauses.iter().sum::<f64>() / ROUNDS as f64,
            busy / span * 100.0,
        ),
        "<= 10 %",
        format!(
            "itself, rounds/s by stretch: {}; per second of processor: {}; load before {load}",
            stretches(|one| one.rate),
            stretches(|one| one.per_busy_second)
        ),
    );
    Ok(())
}

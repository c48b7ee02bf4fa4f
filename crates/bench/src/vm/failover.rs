//! From the loss of the host to the guest running on another, by the hosts' own stamps and as a client sees it.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::beats::{Beats, now};
use super::guest::Guest;
use super::lab::Lab;
use super::{load, quantile, svg};
use crate::report::Report;

const KILLS: usize = 8;

/// One loss of a host, in milliseconds from the cut.
struct Loss {
    decided: f64,
    runs: f64,
    silence: f64,
}

/// Cuts the power of the primary again and again.
pub fn failover(binary: &Path, report: &mut Report) -> Result<()> {
    let load = load();
    let mut lab = Lab::new(binary, 3)?;
    lab.stand_by("b")?;
    lab.stand_by("c")?;
    Guest::beacon(&lab, "light", 2000)?.start(&mut lab, &["b", "c"], (5, 100))?;
    let beats = Beats::start(&lab)?;
    beats.go_on()?;
    let mut losses = Vec::new();
    // On a busy machine a backup may take over by itself a moment before the kill: such a round says nothing.
    for attempt in 0..2 * KILLS {
        lab.protected(2)?;
        // Not in step with epochs and heartbeats.
        std::thread::sleep(Duration::from_millis(3000 + 37 * attempt as u64));
        let (victim, _) = lab.protected(2)?;
        let loss = lose(&mut lab, &beats, &victim, losses.len() + 1 == KILLS)?;
        lab.power_on(&victim)?;
        losses.extend(loss);
        if losses.len() == KILLS {
            break;
        }
    }
    let kills = losses.len();
    let spread = |of: fn(&Loss) -> f64| {
        let mut values: Vec<f64> = losses.iter().map(of).collect();
        format!("{:.0} / {:.0} ms", quantile(&mut values, 0.5), quantile(&mut values, 1.0))
    };
    report.row(
        "last sign of life to the guest running on the backup, p50 / max",
        format!("{} ({kills} kills; decided after {})", spread(|loss| loss.runs), spread(|loss| loss.decided)),
        "<= 150 ms",
        format!("load before {load}"),
    );
    report.row(
        "the same as a client hears it: longest silence, p50 / max",
        spread(|loss| loss.silence),
        "–",
        String::new(),
    );
    Ok(())
}

fn lose(lab: &mut Lab, beats: &Beats, victim: &str, draw: bool) -> Result<Option<Loss>> {
    let cut = now();
    lab.power_off(victim)?;
    beats.go_on()?;
    let (heir, status) = lab.protected(1)?;
    ensure!(heir != victim, "{victim} was killed and still has the guest");
    let (decided, _) = event(&status, "takes over", cut).context("no host said that it takes over")?;
    let (runs, start) = event(&status, "the guest runs here", cut).context("no host said that the guest runs")?;
    if decided < cut {
        eprintln!("    {victim} was not the primary any more when it was killed; not counted");
        return Ok(None);
    }
    let (silence, begun) = beats.longest_silence(cut - 0.3, now());
    let heard = begun + silence / 1e3;
    if draw {
        let marks = [
            (cut, format!("{victim} loses its power")),
            (decided, format!("{heir} takes over")),
            (runs, format!("the guest runs on {heir}")),
            (heard, "the client hears it".to_owned()),
        ];
        let picture = svg::timeline(
            &beats.between(cut - 0.3, heard + 0.3),
            cut,
            &marks,
            "A failover: each green line is a packet that the client got",
        );
        svg::write("vm-failover.svg", &picture)?;
    }
    let ms = |at: f64| (at - cut) * 1e3;
    eprintln!(
        "    {victim} to {heir}: decided {:.0}, runs {:.0}, silence {silence:.0} ms; {start}",
        ms(decided),
        ms(runs)
    );
    Ok(Some(Loss { decided: ms(decided), runs: ms(runs), silence }))
}

/// When a host's latest event that begins with `text` was, in seconds since 1970 on the day of `near`, and what it says.
pub fn event(status: &Value, text: &str, near: f64) -> Option<(f64, String)> {
    let mut events = status["events"].as_array()?.iter().rev();
    let event = events.find(|event| event["text"].as_str().is_some_and(|said| said.starts_with(text)))?;
    Some((seconds(&event["time"], near)?, event["text"].as_str()?.to_owned()))
}

/// The time of day of an RFC 3339 stamp (UTC), on the day of `near`, in seconds since 1970.
fn seconds(stamp: &Value, near: f64) -> Option<f64> {
    let time = stamp.as_str()?.split_once('T')?.1.trim_end_matches('Z');
    let parts: Vec<f64> = time.split(':').filter_map(|part| part.parse().ok()).collect();
    let [hours, minutes, seconds] = parts[..] else { return None };
    const DAY: f64 = 86_400.0;
    Some((near / DAY).floor() * DAY + hours * 3600.0 + minutes * 60.0 + seconds)
}

//! What is on disk of a pod's containers: written by the worker and the shim, read by the next engine.

use std::fs;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use jiff::Timestamp;

use super::model::{Exit, Life, Record, Run};
use crate::shim::protocol::{CONTAINERS, ContainerState, STATE};

const RECORD: &str = "record.json";
/// The kubelet shows this much of a container's last words …
const MESSAGE_BYTES_MAX: u64 = 4096;
/// … or this much and so many lines of its log.
const LOG_MESSAGE_BYTES_MAX: usize = 2048;
const LOG_MESSAGE_LINES_MAX: usize = 80;

/// A run's bundle.
pub fn bundle(dir: &Path, id: &str) -> PathBuf {
    dir.join(CONTAINERS).join(id)
}

/// A run's log.
pub fn log(dir: &Path, name: &str, attempt: u32) -> PathBuf {
    dir.join("logs").join(name).join(format!("{attempt}.log"))
}

/// A run's last words, as it may leave them itself.
pub fn termination_log(dir: &Path, id: &str) -> PathBuf {
    bundle(dir, id).join("termination-log")
}

/// Writes a run's record.
pub fn save(dir: &Path, record: &Record) -> io::Result<()> {
    let bundle = bundle(dir, &record.id);
    fs::create_dir_all(&bundle)?;
    let temporary = bundle.join("record.json.new");
    fs::write(&temporary, serde_json::to_vec(record)?)?;
    fs::rename(temporary, bundle.join(RECORD))
}

/// Every run that is on disk, by container and attempt.
pub fn load(dir: &Path) -> Vec<Run> {
    let mut runs: Vec<Run> = fs::read_dir(dir.join(CONTAINERS))
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let record: Record = serde_json::from_slice(&fs::read(entry.path().join(RECORD)).ok()?).ok()?;
            let life = life(dir, &record, state(dir, &record.id).as_ref());
            Some(Run { record, life })
        })
        .collect();
    runs.sort_by(|a, b| (&a.record.name, a.record.attempt).cmp(&(&b.record.name, b.record.attempt)));
    runs
}

/// What its shim wrote of a run.
pub fn state(dir: &Path, id: &str) -> Option<ContainerState> {
    fs::read(bundle(dir, id).join(STATE)).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok())
}

/// Where a run is, from what its shim wrote.
pub fn life(dir: &Path, record: &Record, state: Option<&ContainerState>) -> Life {
    if let Some(error) = &record.start_error {
        return Life::Exited(Exit {
            code: 128,
            signal: 0,
            reason: "StartError".into(),
            message: error.clone(),
            started: Some(Timestamp::UNIX_EPOCH),
            finished: record.failed_at.unwrap_or(Timestamp::UNIX_EPOCH),
        });
    }
    match state {
        Some(state) if state.exited() => Life::Exited(exit(dir, record, state)),
        Some(state) if state.running() => Life::Running(state.started_at.parse().unwrap_or(Timestamp::UNIX_EPOCH)),
        _ => Life::Created,
    }
}

fn exit(dir: &Path, record: &Record, state: &ContainerState) -> Exit {
    let reason = match (state.oom_killed, state.exit_code) {
        (true, code) if code != 0 => "OOMKilled",
        (_, 0) => "Completed",
        _ => "Error",
    };
    let time = |text: &str| text.parse::<Timestamp>().ok();
    Exit {
        code: state.exit_code,
        signal: 0,
        reason: reason.into(),
        message: last_words(dir, record),
        started: time(&state.started_at),
        finished: time(&state.finished_at).unwrap_or(Timestamp::UNIX_EPOCH),
    }
}

/// The end of a run whose shim is gone: nobody saw it.
pub fn lost(started: Option<Timestamp>, now: Timestamp) -> Exit {
    Exit {
        code: 137,
        signal: 0,
        reason: "ContainerStatusUnknown".into(),
        message: "The container could not be located when the pod was terminated".into(),
        started,
        finished: now,
    }
}

fn last_words(dir: &Path, record: &Record) -> String {
    let mut text = String::new();
    if let Ok(file) = fs::File::open(termination_log(dir, &record.id)) {
        let mut bytes = Vec::new();
        let _ = file.take(MESSAGE_BYTES_MAX).read_to_end(&mut bytes);
        text = String::from_utf8_lossy(&bytes).into_owned();
    }
    text
}

/// The end of a run's log, for `FallbackToLogsOnError`.
pub fn log_tail(dir: &Path, name: &str, attempt: u32) -> String {
    let Ok(mut file) = fs::File::open(log(dir, name, attempt)) else { return String::new() };
    let size = file.metadata().map(|m| m.len()).unwrap_or(0);
    // Every line carries a prefix of about 45 bytes.
    let _ = file.seek(SeekFrom::Start(size.saturating_sub(4 * LOG_MESSAGE_BYTES_MAX as u64)));
    let mut bytes = Vec::new();
    let _ = file.read_to_end(&mut bytes);
    let text = String::from_utf8_lossy(&bytes);
    let mut tail = last_lines(&text);
    let cut = tail.len().saturating_sub(LOG_MESSAGE_BYTES_MAX);
    let cut = (cut..tail.len()).find(|i| tail.is_char_boundary(*i)).unwrap_or(0);
    tail.split_off(cut)
}

/// What was written on the last lines of a log. A piece marked `P` had no line break behind it.
fn last_lines(log: &str) -> String {
    let pieces: Vec<(&str, &str)> = log
        .lines()
        .filter_map(|line| {
            let mut parts = line.splitn(4, ' ').skip(2);
            parts.next().zip(parts.next())
        })
        .collect();
    let from = pieces.len().saturating_sub(LOG_MESSAGE_LINES_MAX);
    let text = |(mark, piece): &(&str, &str)| format!("{piece}{}", if *mark == "P" { "" } else { "\n" });
    pieces[from..].iter().map(text).collect()
}

/// Forgets a run: its bundle and its logs.
pub fn forget(dir: &Path, record: &Record) {
    let _ = fs::remove_dir_all(bundle(dir, &record.id));
    let path = log(dir, &record.name, record.attempt);
    for index in 1..crate::shim::log::FILES_MAX {
        let _ = fs::remove_file(crate::shim::log::rotated(&path, index));
    }
    let _ = fs::remove_file(path);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_words_end_as_they_were_written() {
        let line = |mark: &str, text: &str| format!("2026-01-01T00:00:00.000000000Z stdout {mark} {text}\n");
        assert_eq!(last_lines(&line("P", "DONE")), "DONE");
        assert_eq!(last_lines(&(line("P", "a") + &line("F", "b") + &line("F", "c d"))), "ab\nc d\n");
        assert_eq!(last_lines(""), "");
    }
}

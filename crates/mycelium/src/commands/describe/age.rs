//! How long ago, as people say it.

use jiff::Timestamp;

/// `5s`, `3m20s`, `2h5m`, `4d`; empty if the time is not one.
pub(super) fn since(time: &str, now: Timestamp) -> String {
    let Ok(then) = time.parse::<Timestamp>() else { return String::new() };
    let seconds = now.as_second().saturating_sub(then.as_second()).max(0);
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    match () {
        () if seconds < 120 => format!("{seconds}s"),
        () if minutes < 10 && seconds % 60 > 0 => format!("{minutes}m{}s", seconds % 60),
        () if minutes < 180 => format!("{minutes}m"),
        () if hours < 8 && minutes % 60 > 0 => format!("{hours}h{}m", minutes % 60),
        () if hours < 48 => format!("{hours}h"),
        () if days < 8 && hours % 24 > 0 => format!("{days}d{}h", hours % 24),
        () => format!("{days}d"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_get_coarser() {
        let now: Timestamp = "2026-11-21T12:00:00Z".parse().unwrap();
        for (then, expected) in [
            ("2026-11-21T11:59:55Z", "5s"),
            ("2026-11-21T11:56:40Z", "3m20s"),
            ("2026-11-21T09:55:00Z", "125m"),
            ("2026-11-21T06:55:00Z", "5h5m"),
            ("2026-11-01T12:00:00.5Z", "20d"),
            ("2026-11-21T12:00:05Z", "0s"),
            ("?", ""),
        ] {
            assert_eq!(since(then, now), expected);
        }
    }
}

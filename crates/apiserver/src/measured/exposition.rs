//! The text in which programs expose their metrics: Prometheus' format, and OpenMetrics as far as it is the same.
//!
//! ```text
//! # TYPE http_requests_total counter
//! http_requests_total{code="200",path="/a \"b\""} 1027 1395066363000
//! ```
//!
//! A line that is not understood is passed over: one bad series must not hide the others.

use std::collections::BTreeMap;

/// What a series means.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kind {
    /// It only grows, until its program starts anew.
    Counter,
    /// It goes up and down.
    Gauge,
    /// Nobody said.
    #[default]
    Unknown,
}

/// One series.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    /// Its name.
    pub name: String,
    /// What tells it from others of its name.
    pub labels: BTreeMap<String, String>,
    /// Its value now.
    pub value: f64,
}

/// What a program exposes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Exposition {
    /// All series that are numbers.
    pub series: Vec<Series>,
    kinds: BTreeMap<String, Kind>,
}

/// More series than these of one program are not kept.
const SERIES_MAX: usize = 100_000;

impl Exposition {
    /// Reads a text.
    pub fn parse(text: &str) -> Self {
        let mut found = Self::default();
        for line in text.lines().map(str::trim) {
            match line.strip_prefix('#') {
                Some(comment) => found.comment(comment),
                None if found.series.len() < SERIES_MAX => found.series.extend(series(line)),
                None => break,
            }
        }
        found
    }

    fn comment(&mut self, comment: &str) {
        let mut words = comment.split_whitespace();
        if words.next() != Some("TYPE") {
            return;
        }
        let (Some(name), Some(kind)) = (words.next(), words.next()) else { return };
        let parts: &[(&str, Kind)] = match kind {
            "counter" => &[("", Kind::Counter), ("_total", Kind::Counter)],
            "gauge" => &[("", Kind::Gauge)],
            "histogram" => &[("_sum", Kind::Counter), ("_count", Kind::Counter), ("_bucket", Kind::Counter)],
            "summary" => &[("", Kind::Gauge), ("_sum", Kind::Counter), ("_count", Kind::Counter)],
            _ => return,
        };
        for (end, kind) in parts {
            self.kinds.entry(format!("{name}{end}")).or_insert(*kind);
        }
    }

    /// What the series of a name mean. One that is called `_total` grows, whatever is not said of it.
    pub fn kind(&self, name: &str) -> Kind {
        match self.kinds.get(name) {
            Some(kind) => *kind,
            None if name.ends_with("_total") => Kind::Counter,
            None => Kind::Unknown,
        }
    }

    /// The sum of all series of a name whose labels are wanted, if there are any.
    pub fn sum(&self, name: &str, wanted: impl Fn(&BTreeMap<String, String>) -> bool) -> Option<f64> {
        let mut values = self.series.iter().filter(|s| s.name == name && wanted(&s.labels)).map(|s| s.value).peekable();
        values.peek()?;
        Some(values.sum())
    }
}

fn is_name(byte: u8, first: bool) -> bool {
    byte.is_ascii_alphabetic() || matches!(byte, b'_' | b':') || (!first && byte.is_ascii_digit())
}

/// A line with a value that is a number.
fn series(line: &str) -> Option<Series> {
    let end = line.bytes().enumerate().find(|(at, byte)| !is_name(*byte, *at == 0)).map_or(line.len(), |(at, _)| at);
    let (name, rest) = line.split_at(end);
    if name.is_empty() {
        return None;
    }
    let rest = rest.trim_start();
    let (labels, rest) = match rest.strip_prefix('{') {
        Some(rest) => labels(rest)?,
        None => (BTreeMap::new(), rest),
    };
    let value: f64 = rest.split_whitespace().next()?.parse().ok()?;
    value.is_finite().then(|| Series { name: name.to_owned(), labels, value })
}

/// What stands between braces, and what follows them.
fn labels(mut text: &str) -> Option<(BTreeMap<String, String>, &str)> {
    let mut labels = BTreeMap::new();
    loop {
        text = text.trim_start_matches([' ', '\t', ',']);
        if let Some(rest) = text.strip_prefix('}') {
            return Some((labels, rest));
        }
        let (name, rest) = text.split_once('=')?;
        let (value, rest) = quoted(rest.trim_start())?;
        labels.insert(name.trim().to_owned(), value);
        text = rest;
    }
}

/// A text in quotes, in which `\\`, `\"` and `\n` stand for themselves, and what follows it.
fn quoted(text: &str) -> Option<(String, &str)> {
    let inner = text.strip_prefix('"')?;
    let mut value = String::new();
    let mut letters = inner.char_indices();
    while let Some((at, letter)) = letters.next() {
        match letter {
            '"' => return Some((value, &inner[at + 1..])),
            '\\' => match letters.next()?.1 {
                'n' => value.push('\n'),
                other => value.push(other),
            },
            other => value.push(other),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TEXT: &str = "\
# HELP http_requests_total Requests so far.
# TYPE http_requests_total counter
http_requests_total{code=\"200\",path=\"/a \\\"b\\\"\\n\\\\\"} 1027 1395066363000
http_requests_total{code=\"500\"} 3
# TYPE queue gauge
queue 4.5e1
# TYPE took_seconds histogram
took_seconds_bucket{le=\"+Inf\"} 7
took_seconds_count 7 # {trace=\"x\"} 1
nothing NaN
2bad 1
broken{a=\"b 1
# EOF
";

    #[test]
    fn the_format_is_read() {
        let found = Exposition::parse(TEXT);
        let all = |_: &BTreeMap<String, String>| true;
        assert_eq!(found.sum("http_requests_total", all), Some(1030.0));
        assert_eq!(found.sum("http_requests_total", |labels| labels["code"] == "500"), Some(3.0));
        assert_eq!(found.series[0].labels["path"], "/a \"b\"\n\\");
        assert_eq!(found.sum("queue", all), Some(45.0));
        assert_eq!((found.sum("nothing", all), found.sum("broken", all), found.sum("bad", all)), (None, None, None));
        let kinds =
            ["http_requests_total", "queue", "took_seconds_count", "other_total", "other"].map(|n| found.kind(n));
        assert_eq!(kinds, [Kind::Counter, Kind::Gauge, Kind::Counter, Kind::Counter, Kind::Unknown]);
    }

    fn written(series: &Series) -> String {
        let escaped = |text: &str| text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
        let labels: Vec<String> = series.labels.iter().map(|(k, v)| format!("{k}=\"{}\"", escaped(v))).collect();
        format!("{}{{{}}} {}\n", series.name, labels.join(","), series.value)
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(
            all in prop::collection::vec(
                ("[a-z_:][a-z0-9_:]{0,8}", prop::collection::btree_map("[a-z_][a-z0-9_]{0,5}", "[^\\r]{0,12}", 0..4), -1e12..1e12f64),
                0..20,
            )
        ) {
            let all: Vec<Series> = all.into_iter().map(|(name, labels, value)| Series { name, labels, value }).collect();
            let text: String = all.iter().map(written).collect();
            // A line ends where Rust's lines do; a label's value holds none of the other ends of lines.
            prop_assert_eq!(Exposition::parse(&text).series, all);
        }

        #[test]
        fn no_bytes_are_too_strange(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let text = String::from_utf8_lossy(&bytes).into_owned();
            for series in Exposition::parse(&text).series {
                prop_assert!(series.value.is_finite() && !series.name.is_empty());
            }
        }
    }
}

//! Columns and cells of server-side tables: what `kubectl get` shows.

use jiff::Timestamp;
use mycelium_api::selector::Selector;
use serde_json::Value;

use crate::value::{at, entries, list, text};

/// A column of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Column {
    /// The heading; clients show it in capitals.
    pub name: &'static str,
    /// `string`, `integer`, `boolean` or `date`.
    pub type_: &'static str,
    /// `name` for the column that identifies the object, otherwise empty.
    pub format: &'static str,
    /// What the column shows.
    pub description: &'static str,
    /// 0 shows always, more only with `-o wide`.
    pub priority: i32,
}

impl Column {
    /// A column of text.
    pub const fn text(name: &'static str, description: &'static str) -> Self {
        Self { name, type_: "string", format: "", description, priority: 0 }
    }

    /// A column of numbers.
    pub const fn integer(name: &'static str, description: &'static str) -> Self {
        Self { type_: "integer", ..Self::text(name, description) }
    }

    /// A column of truth values.
    pub const fn boolean(name: &'static str, description: &'static str) -> Self {
        Self { type_: "boolean", ..Self::text(name, description) }
    }

    /// The same column, shown with `-o wide` only.
    pub const fn wide(self) -> Self {
        Self { priority: 1, ..self }
    }
}

/// The column that names the object.
pub const NAME: Column = Column { format: "name", ..Column::text("Name", "Name of the object, unique in its scope.") };
/// The column with the time since creation.
pub const AGE_COLUMN: Column = Column::text("Age", "Time since the object was created.");
/// The wide column with the names of a template's containers.
pub const CONTAINERS: Column = Column::text("Containers", "Names of the containers in the template.").wide();
/// The wide column with the images of a template's containers.
pub const IMAGES: Column = Column::text("Images", "Images of the containers in the template.").wide();
/// The wide column with a label selector.
pub const SELECTOR: Column = Column::text("Selector", "Labels by which pods belong to the object.").wide();

/// Name and creation time: kinds without columns of their own.
pub const CREATED_AT: &[Column] =
    &[NAME, Column { type_: "date", ..Column::text("Created At", "When the object was created.") }];
/// Name and age: custom resources without columns of their own.
pub const AGE: &[Column] = &[NAME, Column { type_: "date", ..AGE_COLUMN }];

/// The cells of [`CREATED_AT`].
pub fn created_at(object: &Value, _: Timestamp) -> Vec<Value> {
    vec![name(object), object["metadata"]["creationTimestamp"].clone()]
}

/// The cells of [`AGE`]: clients compute the age from the time.
pub fn age_only(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![name(object), age(object, now)]
}

/// The object's name.
pub fn name(object: &Value) -> Value {
    text(object, &["metadata", "name"]).into()
}

/// The time since the object's creation.
pub fn age(object: &Value, now: Timestamp) -> Value {
    since(object, &["metadata", "creationTimestamp"], now).into()
}

/// The time since the time at a path, or `<unknown>`.
pub fn since(object: &Value, path: &[&str], now: Timestamp) -> String {
    time(object, path).map_or_else(|| "<unknown>".to_owned(), |then| human_duration(seconds_between(then, now)))
}

/// The time at a path.
pub fn time(object: &Value, path: &[&str]) -> Option<Timestamp> {
    text(object, path).parse().ok()
}

/// Whole seconds from one time to a later one.
pub fn seconds_between(from: Timestamp, to: Timestamp) -> i64 {
    i64::try_from((to.as_nanosecond() - from.as_nanosecond()) / 1_000_000_000).unwrap_or_default()
}

/// A duration with two or three significant figures: `45s`, `3m12s`, `5h2m`, `5d3h`, `2y10d`.
pub fn human_duration(seconds: i64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86400);
    let pair = |big: i64, unit: &str, small: i64, small_unit: &str| {
        if small == 0 { format!("{big}{unit}") } else { format!("{big}{unit}{small}{small_unit}") }
    };
    match seconds {
        ..-1 => "<invalid>".to_owned(),
        -1 => "0s".to_owned(),
        0..120 => format!("{seconds}s"),
        _ if minutes < 10 => pair(minutes, "m", seconds % 60, "s"),
        _ if minutes < 180 => format!("{minutes}m"),
        _ if hours < 8 => pair(hours, "h", minutes % 60, "m"),
        _ if hours < 48 => format!("{hours}h"),
        _ if hours < 24 * 8 => pair(days, "d", hours % 24, "h"),
        _ if hours < 24 * 365 * 2 => format!("{days}d"),
        _ if hours < 24 * 365 * 8 => pair(days / 365, "y", days % 365, "d"),
        _ => format!("{}y", days / 365),
    }
}

/// Names and images of the containers of a pod spec, each joined with commas.
pub fn containers(pod_spec: &Value) -> [Value; 2] {
    let join = |field: &str| {
        let parts: Vec<&str> = list(pod_spec, &["containers"]).iter().map(|c| text(c, &[field])).collect();
        Value::from(parts.join(","))
    };
    [join("name"), join("image")]
}

/// A map of labels as `a=b,c=d`, or `<none>`.
pub fn labels(object: &Value, path: &[&str]) -> Value {
    let pairs: Vec<String> =
        entries(object, path).map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default())).collect();
    if pairs.is_empty() { "<none>".into() } else { pairs.join(",").into() }
}

/// A label selector as text, or `<none>`.
pub fn selector(object: &Value, path: &[&str]) -> Value {
    match Selector::from_value(at(object, path)) {
        Ok(selector) if selector.is_empty() || selector.requirements().is_empty() => "<none>".into(),
        Ok(selector) => selector.to_string().into(),
        Err(_) => "<error>".into(),
    }
}

/// Text at a path, or a stand-in where there is none.
pub fn text_or(object: &Value, path: &[&str], stand_in: &str) -> Value {
    match text(object, path) {
        "" => stand_in.into(),
        found => found.into(),
    }
}

/// A number or text at a path as text, or a stand-in.
pub fn scalar_or(object: &Value, path: &[&str], stand_in: &str) -> Value {
    match at(object, path) {
        Value::String(text) => text.clone().into(),
        Value::Number(number) => number.to_string().into(),
        _ => stand_in.into(),
    }
}

/// A number at a path, or 0.
pub fn number(object: &Value, path: &[&str]) -> Value {
    at(object, path).as_i64().unwrap_or_default().into()
}

/// At most three of the items, and how many there are besides.
pub fn some_of(items: &[String], stand_in: &str) -> Value {
    const SHOWN: usize = 3;
    match items.len() {
        0 => stand_in.into(),
        count if count > SHOWN => format!("{} + {} more...", items[..SHOWN].join(","), count - SHOWN).into(),
        _ => items.join(",").into(),
    }
}

/// The type-or-status of the condition of a type.
pub fn condition<'a>(object: &'a Value, type_: &str) -> Option<&'a Value> {
    list(object, &["status", "conditions"]).iter().find(|condition| text(condition, &["type"]) == type_)
}

/// Whether the condition of a type is `True`.
pub fn condition_true(object: &Value, type_: &str) -> bool {
    condition(object, type_).is_some_and(|condition| text(condition, &["status"]) == "True")
}

#[cfg(test)]
mod tests {
    use super::human_duration;

    #[test]
    fn durations_read_as_in_kubectl() {
        let minute = 60;
        let hour = 60 * minute;
        let day = 24 * hour;
        for (seconds, expected) in [
            (-5, "<invalid>"),
            (-1, "0s"),
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (3 * minute + 12, "3m12s"),
            (10 * minute + 5, "10m"),
            (179 * minute, "179m"),
            (3 * hour, "3h"),
            (5 * hour + 2 * minute, "5h2m"),
            (8 * hour + 30 * minute, "8h"),
            (47 * hour, "47h"),
            (48 * hour, "2d"),
            (5 * day + 3 * hour, "5d3h"),
            (8 * day + 3 * hour, "8d"),
            (400 * day, "400d"),
            (2 * 365 * day + 10 * day, "2y10d"),
            (9 * 365 * day + 10 * day, "9y"),
        ] {
            assert_eq!(human_duration(seconds), expected, "{seconds}");
        }
    }
}

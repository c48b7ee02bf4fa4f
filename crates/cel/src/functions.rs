//! The functions of the language itself, and of its extension for strings.

use std::cmp::Ordering;
use std::sync::Arc;

use base64::Engine;
use jiff::{SignedDuration, Timestamp};

use crate::ast::Operator;
use crate::eval::{EvalError, Run, fail};
use crate::kubernetes;
use crate::value::Value;

type Outcome<'a> = Result<Value<'a>, EvalError>;

/// Lengths beyond this are not made: a text that doubles itself is stopped by its cost long before.
const TEXT_MAX: usize = 4 << 20;

/// Calls a function on values; with `method`, the first is its target.
pub fn call<'a>(run: &Run<'_, 'a>, method: bool, function: &str, values: &[Value<'a>]) -> Outcome<'a> {
    for value in values {
        run.pay(value.size().filter(|_| matches!(value, Value::Text(_))).unwrap_or(0) as u64 / 10)?;
    }
    if let Some(outcome) = plain(run, function, values) {
        return outcome;
    }
    if let (true, [target, rest @ ..]) = (method, values) {
        if let Value::Host(host) = target
            && let Some(outcome) = host.call(function, rest)
        {
            return outcome.map_err(EvalError::Failed);
        }
        if let (Value::Text(text), Some(outcome)) = (target, text_method(run, function, values)) {
            let _ = text;
            return outcome;
        }
        if let Some(outcome) = time_method(function, target, rest) {
            return outcome;
        }
        if let Some(outcome) = optional_method(function, target) {
            return outcome;
        }
    }
    kubernetes::call(run, method, function, values).unwrap_or_else(|| fail("no such overload"))
}

fn plain<'a>(run: &Run<'_, 'a>, function: &str, values: &[Value<'a>]) -> Option<Outcome<'a>> {
    Some(match (function, values) {
        ("size", [value]) => match value.size() {
            Some(size) => Ok(Value::Int(i64::try_from(size).unwrap_or(i64::MAX))),
            None => fail("no such overload"),
        },
        ("dyn", [value]) => Ok(value.clone()),
        ("type", [value]) => Ok(Value::Type(value.type_name())),
        ("int", [value]) => int(value),
        ("uint", [value]) => match int(value) {
            Ok(Value::Int(number)) if number >= 0 => Ok(Value::Uint(number as u64)),
            _ => match value {
                Value::Uint(number) => Ok(Value::Uint(*number)),
                _ => fail("unsigned integer overflow"),
            },
        },
        ("double", [value]) => double(value),
        ("string", [value]) => string(value),
        ("bool", [Value::Bool(flag)]) => Ok(Value::Bool(*flag)),
        ("bool", [Value::Text(text)]) => match text.as_ref() {
            "true" | "True" | "TRUE" | "t" | "1" => Ok(Value::Bool(true)),
            "false" | "False" | "FALSE" | "f" | "0" => Ok(Value::Bool(false)),
            _ => fail(format!("Type conversion error from 'string' to 'bool': {text}")),
        },
        ("bytes", [Value::Text(text)]) => Ok(Value::Bytes(text.as_bytes().into())),
        ("bytes", [Value::Bytes(bytes)]) => Ok(Value::Bytes(bytes.clone())),
        ("timestamp", [Value::Text(text)]) => match text.parse() {
            Ok(time) => Ok(Value::Timestamp(time)),
            Err(_) => fail(format!("invalid timestamp {text:?}")),
        },
        ("timestamp", [Value::Timestamp(time)]) => Ok(Value::Timestamp(*time)),
        ("timestamp", [Value::Int(seconds)]) => {
            Timestamp::from_second(*seconds).map_or_else(|_| fail("timestamp overflow"), |t| Ok(Value::Timestamp(t)))
        }
        ("duration", [Value::Text(text)]) => match duration(text) {
            Some(nanos) => Ok(Value::Duration(nanos)),
            None => fail(format!("invalid duration {text:?}")),
        },
        ("duration", [Value::Duration(nanos)]) => Ok(Value::Duration(*nanos)),
        ("matches", [Value::Text(text), Value::Text(pattern)]) => matches(run, text, pattern).map(Value::Bool),
        ("optional.of", [value]) => Ok(Value::Optional(Some(value.clone().into()))),
        ("optional.none", []) => Ok(Value::Optional(None)),
        ("optional.ofNonZeroValue", [value]) => Ok(Value::Optional((!is_zero(value)).then(|| value.clone().into()))),
        ("strings.quote", [Value::Text(text)]) => Ok(Value::text(format!("{text:?}"))),
        _ => return None,
    })
}

fn is_zero(value: &Value<'_>) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(flag) => !flag,
        Value::Int(number) => *number == 0,
        Value::Uint(number) => *number == 0,
        Value::Double(number) => *number == 0.0,
        Value::Duration(nanos) => *nanos == 0,
        Value::Optional(inner) => inner.is_none(),
        other => other.size() == Some(0),
    }
}

fn int<'a>(value: &Value<'a>) -> Outcome<'a> {
    let number = match value {
        Value::Int(number) => Some(*number),
        Value::Uint(number) => i64::try_from(*number).ok(),
        Value::Double(number) if number.is_finite() && number.abs() < 9.2e18 => Some(*number as i64),
        Value::Text(text) => text.parse().ok(),
        Value::Timestamp(time) => Some(time.as_second()),
        Value::Duration(_) | Value::Double(_) => None,
        _ => return fail("no such overload"),
    };
    match (number, value) {
        (Some(number), _) => Ok(Value::Int(number)),
        (None, Value::Text(text)) => fail(format!("strconv.ParseInt: parsing {text:?}: invalid syntax")),
        (None, _) => fail("integer overflow"),
    }
}

fn double<'a>(value: &Value<'a>) -> Outcome<'a> {
    match value {
        Value::Int(number) => Ok(Value::Double(*number as f64)),
        Value::Uint(number) => Ok(Value::Double(*number as f64)),
        Value::Double(number) => Ok(Value::Double(*number)),
        Value::Text(text) => text.parse().map_or_else(
            |_| fail(format!("strconv.ParseFloat: parsing {text:?}: invalid syntax")),
            |n| Ok(Value::Double(n)),
        ),
        _ => fail("no such overload"),
    }
}

fn string<'a>(value: &Value<'a>) -> Outcome<'a> {
    match value {
        Value::Bytes(bytes) => match std::str::from_utf8(bytes) {
            Ok(text) => Ok(Value::text(text)),
            Err(_) => fail("invalid UTF-8 in bytes, cannot convert to string"),
        },
        Value::List(_) | Value::Map(_) | Value::Node(_) | Value::Optional(_) | Value::Null => fail("no such overload"),
        other => Ok(Value::text(show(other))),
    }
}

/// A value as text.
pub fn show(value: &Value<'_>) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Bool(flag) => flag.to_string(),
        Value::Int(number) => number.to_string(),
        Value::Uint(number) => number.to_string(),
        Value::Double(number) => number.to_string(),
        Value::Text(text) => text.to_string(),
        Value::Bytes(bytes) => base64::engine::general_purpose::STANDARD.encode(bytes),
        Value::Timestamp(time) => time.to_string(),
        Value::Duration(nanos) => seconds(*nanos),
        Value::Type(name) => name.clone(),
        Value::Quantity(quantity) => quantity.to_string(),
        Value::Url(url) => format!(
            "{}://{}{}{}{}",
            url.scheme,
            url.host,
            url.path,
            if url.query.is_empty() { "" } else { "?" },
            url.query
        ),
        Value::Ip(ip) => ip.to_string(),
        Value::Cidr(cidr) => cidr.to_string(),
        Value::Semver(version) => format!("{}.{}.{}{}", version.0, version.1, version.2, version.3),
        other => other.to_json().to_string(),
    }
}

fn seconds(nanos: i64) -> String {
    let (sign, nanos) = (if nanos < 0 { "-" } else { "" }, nanos.unsigned_abs());
    let fraction = format!("{:09}", nanos % 1_000_000_000);
    let fraction = fraction.trim_end_matches('0');
    let dot = if fraction.is_empty() { "" } else { "." };
    format!("{sign}{}{dot}{fraction}s", nanos / 1_000_000_000)
}

/// A duration in Go's notation, `1h30m`, in nanoseconds.
pub fn duration(text: &str) -> Option<i64> {
    let (sign, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (-1.0, rest),
        None => (1.0, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Some(0);
    }
    let mut total = 0.0_f64;
    let mut parts = 0;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..end].parse().ok()?;
        rest = &rest[end..];
        let end = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        total += number
            * match &rest[..end] {
                "h" => 3.6e12,
                "m" => 6e10,
                "s" => 1e9,
                "ms" => 1e6,
                "us" | "µs" => 1e3,
                "ns" => 1.0,
                _ => return None,
            };
        rest = &rest[end..];
        parts += 1;
    }
    (parts > 0 && total < 9.2e18).then_some((sign * total) as i64)
}

/// A pattern on a text. Linear in the text, whatever the pattern.
pub fn regex(run: &Run<'_, '_>, pattern: &str, text: &str) -> Result<regex::Regex, EvalError> {
    run.pay(1 + (text.len() as u64 / 10).max(1) * (pattern.len() as u64 / 4).max(1))?;
    let compiled = regex::RegexBuilder::new(pattern).size_limit(1 << 20).dfa_size_limit(1 << 20).build();
    compiled.map_err(|_| EvalError::Failed(format!("error parsing regexp: {pattern:?}")))
}

fn matches(run: &Run<'_, '_>, text: &str, pattern: &str) -> Result<bool, EvalError> {
    Ok(regex(run, pattern, text)?.is_match(text))
}

fn position(index: Option<usize>) -> Value<'static> {
    Value::Int(index.and_then(|index| i64::try_from(index).ok()).unwrap_or(-1))
}

fn find(chars: &[char], wanted: &[char], from: usize) -> Option<usize> {
    if wanted.is_empty() {
        return (from <= chars.len()).then_some(from);
    }
    (from..(chars.len() + 1).saturating_sub(wanted.len())).find(|at| chars[*at..].starts_with(wanted))
}

fn find_last(chars: &[char], wanted: &[char], from: usize) -> Option<usize> {
    let last = chars.len().checked_sub(wanted.len())?;
    (0..=last.min(from)).rev().find(|at| chars[*at..].starts_with(wanted))
}

fn text_method<'a>(run: &Run<'_, 'a>, function: &str, values: &[Value<'a>]) -> Option<Outcome<'a>> {
    let Some(Value::Text(text)) = values.first() else { return None };
    let chars = || text.chars().collect::<Vec<char>>();
    let letters = |text: &str| text.chars().collect::<Vec<char>>();
    let index = |number: &i64| usize::try_from(*number).ok();
    let out = |at: &i64| fail(format!("index out of range: {at}"));
    Some(match (function, &values[1..]) {
        ("contains", [Value::Text(part)]) => Ok(Value::Bool(text.contains(part.as_ref()))),
        ("startsWith", [Value::Text(part)]) => Ok(Value::Bool(text.starts_with(part.as_ref()))),
        ("endsWith", [Value::Text(part)]) => Ok(Value::Bool(text.ends_with(part.as_ref()))),
        ("lowerAscii", []) => Ok(Value::text(text.to_ascii_lowercase())),
        ("upperAscii", []) => Ok(Value::text(text.to_ascii_uppercase())),
        ("trim", []) => Ok(Value::text(text.trim())),
        ("reverse", []) => Ok(Value::text(text.chars().rev().collect::<String>())),
        ("charAt", [Value::Int(at)]) => {
            let chars = chars();
            match index(at).filter(|at| *at <= chars.len()) {
                Some(at) => Ok(Value::text(chars.get(at).map(char::to_string).unwrap_or_default())),
                None => out(at),
            }
        }
        ("indexOf", [Value::Text(part)]) => Ok(position(find(&chars(), &letters(part), 0))),
        ("indexOf", [Value::Text(part), Value::Int(from)]) => match index(from) {
            Some(from) => Ok(position(find(&chars(), &letters(part), from))),
            None => out(from),
        },
        ("lastIndexOf", [Value::Text(part)]) => Ok(position(find_last(&chars(), &letters(part), usize::MAX))),
        ("lastIndexOf", [Value::Text(part), Value::Int(from)]) => match index(from) {
            Some(from) => Ok(position(find_last(&chars(), &letters(part), from))),
            None => out(from),
        },
        ("replace", [Value::Text(part), Value::Text(new)]) => replaced(run, text, part, new, usize::MAX),
        ("replace", [Value::Text(part), Value::Text(new), Value::Int(most)]) => {
            replaced(run, text, part, new, index(most).unwrap_or(usize::MAX))
        }
        ("split", [Value::Text(by)]) => Ok(split(text, by, usize::MAX)),
        ("split", [Value::Text(by), Value::Int(most)]) => Ok(split(text, by, index(most).unwrap_or(usize::MAX))),
        ("substring", [Value::Int(from)]) => substring(&chars(), *from, None),
        ("substring", [Value::Int(from), Value::Int(to)]) => substring(&chars(), *from, Some(*to)),
        ("format", [list]) => format_text(run, text, &list.elements().unwrap_or_default()),
        ("find", [Value::Text(pattern)]) => {
            regex(run, pattern, text).map(|regex| Value::text(regex.find(text).map_or("", |found| found.as_str())))
        }
        ("findAll", [Value::Text(pattern)]) => find_all(run, text, pattern, usize::MAX),
        ("findAll", [Value::Text(pattern), Value::Int(most)]) => {
            find_all(run, text, pattern, index(most).unwrap_or(usize::MAX))
        }
        _ => return None,
    })
}

fn find_all<'a>(run: &Run<'_, 'a>, text: &str, pattern: &str, most: usize) -> Outcome<'a> {
    let regex = regex(run, pattern, text)?;
    Ok(Value::List(Arc::new(regex.find_iter(text).take(most).map(|found| Value::text(found.as_str())).collect())))
}

fn replaced<'a>(run: &Run<'_, 'a>, text: &str, part: &str, new: &str, most: usize) -> Outcome<'a> {
    let hits = text.matches(part).take(most).count();
    let size = text.len() + hits * new.len();
    run.pay(size as u64 / 10)?;
    if size > TEXT_MAX { fail("the text is too long") } else { Ok(Value::text(text.replacen(part, new, most))) }
}

fn split<'a>(text: &str, by: &str, most: usize) -> Value<'a> {
    let parts: Vec<Value<'a>> = match (most, by) {
        (0, _) => Vec::new(),
        (_, "") => text.chars().map(|c| Value::text(c.to_string())).collect(),
        _ => text.splitn(most, by).map(Value::text).collect(),
    };
    Value::List(parts.into())
}

fn substring<'a>(chars: &[char], from: i64, to: Option<i64>) -> Outcome<'a> {
    let length = i64::try_from(chars.len()).unwrap_or(i64::MAX);
    let to = to.unwrap_or(length);
    if !(0..=length).contains(&from) {
        return fail(format!("index out of range: {from}"));
    }
    if !(0..=length).contains(&to) {
        return fail(format!("index out of range: {to}"));
    }
    if from > to {
        return fail(format!("invalid substring range. start: {from}, end: {to}"));
    }
    Ok(Value::text(chars[from as usize..to as usize].iter().collect::<String>()))
}

/// `"%s is %d".format([a, b])`
fn format_text<'a>(run: &Run<'_, 'a>, pattern: &str, values: &[Value<'a>]) -> Outcome<'a> {
    let mut out = String::new();
    let mut values = values.iter();
    let mut chars = pattern.chars().peekable();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        if chars.peek() == Some(&'%') {
            chars.next();
            out.push('%');
            continue;
        }
        let mut precision = None;
        if chars.peek() == Some(&'.') {
            chars.next();
            let mut digits = String::new();
            while let Some(digit) = chars.next_if(char::is_ascii_digit) {
                digits.push(digit);
            }
            precision = digits.parse::<usize>().ok().filter(|digits| *digits <= 100);
        }
        let Some(clause) = chars.next() else { return fail("unexpected end of string") };
        let Some(value) = values.next() else { return fail("index out of range: too few arguments") };
        run.pay_for(value)?;
        let digits = precision.unwrap_or(6);
        match (clause, value) {
            ('s', value) => out.push_str(&pretty(value)),
            ('d', Value::Int(_) | Value::Uint(_)) => out.push_str(&show(value)),
            ('f' | 'e', value) => match double(value)? {
                Value::Double(number) if clause == 'f' => out.push_str(&format!("{number:.digits$}")),
                Value::Double(number) => out.push_str(&format!("{number:.digits$e}")),
                _ => {}
            },
            ('b', Value::Int(number)) => out.push_str(&format!("{number:b}")),
            ('b', Value::Bool(flag)) => out.push(if *flag { '1' } else { '0' }),
            ('o', Value::Int(number)) => out.push_str(&format!("{number:o}")),
            ('x', Value::Int(number)) => out.push_str(&format!("{number:x}")),
            ('X', Value::Int(number)) => out.push_str(&format!("{number:X}")),
            ('x' | 'X', Value::Text(text)) => out.extend(text.bytes().map(|byte| format!("{byte:02x}"))),
            ('d' | 'b' | 'o' | 'x' | 'X', other) => {
                return fail(format!(
                    "error during formatting: {clause} clause cannot be used on {}",
                    other.type_name()
                ));
            }
            _ => return fail(format!("could not parse formatting clause: unrecognized formatting clause {clause:?}")),
        }
        if out.len() > TEXT_MAX {
            return fail("the text is too long");
        }
    }
    Ok(Value::text(out))
}

fn pretty(value: &Value<'_>) -> String {
    if let Some(items) = value.elements() {
        return format!("[{}]", items.iter().map(pretty).collect::<Vec<_>>().join(", "));
    }
    show(value)
}

fn time_method<'a>(function: &str, target: &Value<'a>, rest: &[Value<'a>]) -> Option<Outcome<'a>> {
    let number = |number: i64| Some(Ok(Value::Int(number)));
    if let Value::Duration(nanos) = target {
        return match function {
            "getHours" => number(nanos / 3_600_000_000_000),
            "getMinutes" => number(nanos / 60_000_000_000),
            "getSeconds" => number(nanos / 1_000_000_000),
            "getMilliseconds" => number(nanos / 1_000_000 % 1000),
            _ => None,
        };
    }
    let Value::Timestamp(time) = target else { return None };
    let offset = match rest {
        [] => jiff::tz::Offset::UTC,
        [Value::Text(zone)] => match offset(zone) {
            Some(offset) => offset,
            None => return Some(fail(format!("unknown time zone {zone}"))),
        },
        _ => return None,
    };
    let date = offset.to_datetime(*time);
    match function {
        "getFullYear" => number(date.year().into()),
        "getMonth" => number(i64::from(date.month()) - 1),
        "getDate" => number(date.day().into()),
        "getDayOfMonth" => number(i64::from(date.day()) - 1),
        "getDayOfWeek" => number(date.weekday().to_sunday_zero_offset().into()),
        "getDayOfYear" => number(i64::from(date.day_of_year()) - 1),
        "getHours" => number(date.hour().into()),
        "getMinutes" => number(date.minute().into()),
        "getSeconds" => number(date.second().into()),
        "getMilliseconds" => number(date.millisecond().into()),
        _ => None,
    }
}

fn offset(zone: &str) -> Option<jiff::tz::Offset> {
    if zone == "UTC" {
        return Some(jiff::tz::Offset::UTC);
    }
    let (sign, rest) = match zone.strip_prefix('-') {
        Some(rest) => (-1, rest),
        None => (1, zone.strip_prefix('+').unwrap_or(zone)),
    };
    let (hours, minutes) = rest.split_once(':')?;
    let seconds = hours.parse::<i32>().ok()? * 3600 + minutes.parse::<i32>().ok()? * 60;
    jiff::tz::Offset::from_seconds(sign * seconds).ok()
}

fn optional_method<'a>(function: &str, target: &Value<'a>) -> Option<Outcome<'a>> {
    let Value::Optional(inner) = target else { return None };
    match function {
        "hasValue" => Some(Ok(Value::Bool(inner.is_some()))),
        "value" => Some(inner.as_ref().map_or_else(|| fail("optional.none() dereference"), |v| Ok((**v).clone()))),
        _ => None,
    }
}

fn as_number(value: &Value<'_>) -> Option<f64> {
    match value {
        Value::Int(number) => Some(*number as f64),
        Value::Uint(number) => Some(*number as f64),
        Value::Double(number) => Some(*number),
        _ => None,
    }
}

fn whole(value: &Value<'_>) -> Option<i128> {
    match value {
        Value::Int(number) => Some((*number).into()),
        Value::Uint(number) => Some((*number).into()),
        _ => None,
    }
}

/// The order of two values that have one.
pub fn compare(left: &Value<'_>, right: &Value<'_>) -> Option<Ordering> {
    if let (Some(a), Some(b)) = (whole(left), whole(right)) {
        return Some(a.cmp(&b));
    }
    if let (Some(a), Some(b)) = (as_number(left), as_number(right)) {
        return a.partial_cmp(&b);
    }
    match (left, right) {
        (Value::Bool(a), Value::Bool(b)) => Some(a.cmp(b)),
        (Value::Text(a), Value::Text(b)) => Some(a.cmp(b)),
        (Value::Bytes(a), Value::Bytes(b)) => Some(a.cmp(b)),
        (Value::Timestamp(a), Value::Timestamp(b)) => Some(a.cmp(b)),
        (Value::Duration(a), Value::Duration(b)) => Some(a.cmp(b)),
        (Value::Quantity(a), Value::Quantity(b)) => Some(a.cmp(b)),
        (Value::Semver(a), Value::Semver(b)) => Some(kubernetes::compare_versions(a, b)),
        _ => None,
    }
}

/// Equality of values that are neither lists nor maps.
pub fn scalars_equal(left: &Value<'_>, right: &Value<'_>) -> bool {
    match (left, right) {
        (Value::Null, Value::Null) => true,
        (Value::Type(a), Value::Type(b)) => a == b,
        (Value::Ip(a), Value::Ip(b)) => a == b,
        (Value::Cidr(a), Value::Cidr(b)) => a == b,
        (Value::Url(a), Value::Url(b)) => a == b,
        (Value::Format(a), Value::Format(b)) => a == b,
        (Value::Optional(None), Value::Optional(None)) => true,
        (Value::Optional(Some(a)), Value::Optional(Some(b))) => a.to_json() == b.to_json(),
        _ => compare(left, right) == Some(Ordering::Equal),
    }
}

/// `left + right`
pub fn add<'a>(left: Value<'a>, right: Value<'a>) -> Outcome<'a> {
    match (left, right) {
        (Value::Text(a), Value::Text(b)) if a.len() + b.len() <= TEXT_MAX => Ok(Value::text(format!("{a}{b}"))),
        (Value::Text(_), Value::Text(_)) => fail("the text is too long"),
        (Value::Bytes(a), Value::Bytes(b)) if a.len() + b.len() <= TEXT_MAX => {
            Ok(Value::Bytes([&*a, &*b].concat().into()))
        }
        (Value::Timestamp(time), Value::Duration(nanos)) | (Value::Duration(nanos), Value::Timestamp(time)) => {
            shifted(time, SignedDuration::from_nanos(nanos))
        }
        (left, right) => match (left.elements(), right.elements()) {
            (Some(mut a), Some(b)) => {
                a.extend(b);
                Ok(Value::List(a.into()))
            }
            _ => arithmetic(Operator::Add, &left, &right),
        },
    }
}

fn shifted<'a>(time: Timestamp, by: SignedDuration) -> Outcome<'a> {
    time.checked_add(by).map_or_else(|_| fail("timestamp overflow"), |time| Ok(Value::Timestamp(time)))
}

/// Arithmetic of two values of one type.
pub fn arithmetic<'a>(operator: Operator, left: &Value<'a>, right: &Value<'a>) -> Outcome<'a> {
    let overflow = || EvalError::Failed("integer overflow".to_owned());
    let by_zero =
        matches!(operator, Operator::Divide | Operator::Remainder) && matches!(right, Value::Int(0) | Value::Uint(0));
    if by_zero && matches!(left, Value::Int(_) | Value::Uint(_)) {
        return fail(if operator == Operator::Divide { "division by zero" } else { "modulus by zero" });
    }
    match (left, right) {
        (Value::Int(a), Value::Int(b)) => match operator {
            Operator::Add => a.checked_add(*b),
            Operator::Subtract => a.checked_sub(*b),
            Operator::Multiply => a.checked_mul(*b),
            Operator::Divide => a.checked_div(*b),
            _ => a.checked_rem(*b),
        }
        .map(Value::Int)
        .ok_or_else(overflow),
        (Value::Uint(a), Value::Uint(b)) => match operator {
            Operator::Add => a.checked_add(*b),
            Operator::Subtract => a.checked_sub(*b),
            Operator::Multiply => a.checked_mul(*b),
            Operator::Divide => a.checked_div(*b),
            _ => a.checked_rem(*b),
        }
        .map(Value::Uint)
        .ok_or_else(|| EvalError::Failed("unsigned integer overflow".to_owned())),
        (Value::Double(a), Value::Double(b)) => match operator {
            Operator::Add => Ok(Value::Double(a + b)),
            Operator::Subtract => Ok(Value::Double(a - b)),
            Operator::Multiply => Ok(Value::Double(a * b)),
            Operator::Divide => Ok(Value::Double(a / b)),
            _ => fail("no such overload"),
        },
        (Value::Duration(a), Value::Duration(b)) if operator == Operator::Add => {
            a.checked_add(*b).map(Value::Duration).ok_or_else(overflow)
        }
        (Value::Duration(a), Value::Duration(b)) if operator == Operator::Subtract => {
            a.checked_sub(*b).map(Value::Duration).ok_or_else(overflow)
        }
        (Value::Timestamp(a), Value::Duration(b)) if operator == Operator::Subtract => {
            shifted(*a, SignedDuration::from_nanos(b.saturating_neg()))
        }
        (Value::Timestamp(a), Value::Timestamp(b)) if operator == Operator::Subtract => {
            i64::try_from(a.duration_since(*b).as_nanos()).map(Value::Duration).map_err(|_| overflow())
        }
        _ => fail("no such overload"),
    }
}

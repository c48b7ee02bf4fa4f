//! The libraries that Kubernetes adds: lists, sets, quantities, URLs, addresses, versions, formats.

use std::cmp::Ordering;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use mycelium_api::names;
use mycelium_api::quantity::Quantity;

use crate::ast::Operator;
use crate::eval::{EvalError, Run, fail};
use crate::functions::{self, compare};
use crate::value::{Url, Value};

type Outcome<'a> = Result<Value<'a>, EvalError>;

/// Calls a function of one of the libraries; none where there is none of that name for these values.
pub fn call<'a>(run: &Run<'_, 'a>, method: bool, function: &str, values: &[Value<'a>]) -> Option<Outcome<'a>> {
    if !method {
        return construct(run, function, values);
    }
    let (target, rest) = values.split_first()?;
    match target {
        Value::List(_) | Value::Node(_) => list(run, function, target, rest),
        Value::Quantity(quantity) => amount(function, quantity, rest),
        Value::Url(url) => locator(function, url),
        Value::Ip(ip) => address(function, *ip),
        Value::Cidr(cidr) => network(function, cidr, rest),
        Value::Semver(version) => version_method(function, version, rest),
        Value::Format(name) => match (function, rest) {
            ("validate", [Value::Text(text)]) => Some(Ok(validated(name, text))),
            _ => None,
        },
        _ => None,
    }
}

fn made<'a, T>(value: Option<T>, wrap: impl FnOnce(T) -> Value<'a>, why: String) -> Option<Outcome<'a>> {
    Some(value.map_or_else(|| fail(why), |value| Ok(wrap(value))))
}

fn construct<'a>(run: &Run<'_, 'a>, function: &str, values: &[Value<'a>]) -> Option<Outcome<'a>> {
    let yes = |flag: bool| Some(Ok(Value::Bool(flag)));
    match (function, values) {
        ("quantity", [Value::Text(text)]) => {
            let why = "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'";
            made(text.parse().ok(), Value::Quantity, why.to_owned())
        }
        ("isQuantity", [Value::Text(text)]) => yes(text.parse::<Quantity>().is_ok()),
        ("url", [Value::Text(text)]) => made(
            parse_url(text),
            |url| Value::Url(url.into()),
            format!("URL parse error during conversion from string: parse {text:?}: invalid URI for request"),
        ),
        ("isURL", [Value::Text(text)]) => yes(parse_url(text).is_some()),
        ("ip", [Value::Text(text)]) => {
            made(parse_ip(text), Value::Ip, format!("IP Address {text:?} parse error during conversion from string"))
        }
        ("isIP", [Value::Text(text)]) => yes(parse_ip(text).is_some()),
        ("ip.isCanonical", [Value::Text(text)]) => {
            let why = format!("IP Address {text:?} parse error during conversion from string");
            made(parse_ip(text), |ip| Value::Bool(ip.to_string() == text.as_ref()), why)
        }
        ("cidr", [Value::Text(text)]) => made(
            text.parse::<IpNet>().ok(),
            Value::Cidr,
            format!("network address parse error during conversion from string: {text}"),
        ),
        ("isCIDR", [Value::Text(text)]) => yes(text.parse::<IpNet>().is_ok()),
        ("semver", [Value::Text(text)]) => made(
            parse_version(text, false),
            |v| Value::Semver(v.into()),
            format!("No Major.Minor.Patch elements found in {text:?}"),
        ),
        ("semver", [Value::Text(text), Value::Bool(loose)]) => made(
            parse_version(text, *loose),
            |v| Value::Semver(v.into()),
            format!("No Major.Minor.Patch elements found in {text:?}"),
        ),
        ("isSemver", [Value::Text(text)]) => yes(parse_version(text, false).is_some()),
        ("isSemver", [Value::Text(text), Value::Bool(loose)]) => yes(parse_version(text, *loose).is_some()),
        ("sets.contains", [list, parts]) => Some(each_among(run, parts, list)),
        ("sets.equivalent", [a, b]) => Some(each_among(run, a, b).and_then(|first| match first {
            Value::Bool(true) => each_among(run, b, a),
            other => Ok(other),
        })),
        ("sets.intersects", [a, b]) => Some(intersects(run, a, b)),
        ("format.named", [Value::Text(name)]) => {
            Some(Ok(Value::Optional(named(name).map(|name| Box::new(Value::Format(name))))))
        }
        (name, []) => name.strip_prefix("format.").and_then(named).map(|name| Ok(Value::Format(name))),
        _ => None,
    }
}

fn each_among<'a>(run: &Run<'_, 'a>, parts: &Value<'a>, list: &Value<'a>) -> Outcome<'a> {
    let (Some(parts), Some(list)) = (parts.elements(), list.elements()) else { return fail("no such overload") };
    for part in &parts {
        if !run.among(&list, part)? {
            return Ok(Value::Bool(false));
        }
    }
    Ok(Value::Bool(true))
}

fn intersects<'a>(run: &Run<'_, 'a>, a: &Value<'a>, b: &Value<'a>) -> Outcome<'a> {
    let (Some(a), Some(b)) = (a.elements(), b.elements()) else { return fail("no such overload") };
    for item in &a {
        if run.among(&b, item)? {
            return Ok(Value::Bool(true));
        }
    }
    Ok(Value::Bool(false))
}

fn list<'a>(run: &Run<'_, 'a>, function: &str, target: &Value<'a>, rest: &[Value<'a>]) -> Option<Outcome<'a>> {
    let items = target.elements()?;
    if let Err(error) = run.pay(items.len() as u64) {
        return Some(Err(error));
    }
    let ordered = |pick: Ordering| -> Outcome<'a> {
        let mut best: Option<&Value<'a>> = None;
        for item in &items {
            let better = match best {
                None => true,
                Some(best) => match compare(item, best) {
                    Some(order) => order == pick,
                    None => return fail("no such overload"),
                },
            };
            if better {
                best = Some(item);
            }
        }
        let name = if pick == Ordering::Less { "min" } else { "max" };
        best.cloned().map_or_else(|| fail(format!("{name} called on empty list")), Ok)
    };
    let index = |found: Option<usize>| Ok(Value::Int(found.and_then(|at| i64::try_from(at).ok()).unwrap_or(-1)));
    let place = |mut indices: Box<dyn Iterator<Item = usize>>, wanted: &Value<'a>| -> Outcome<'a> {
        for at in indices.by_ref() {
            if run.equal(&items[at], wanted)? {
                return index(Some(at));
            }
        }
        index(None)
    };
    Some(match (function, rest) {
        ("isSorted", []) => {
            Ok(Value::Bool(items.windows(2).all(|pair| compare(&pair[0], &pair[1]).is_some_and(Ordering::is_le))))
        }
        ("sum", []) => items.iter().skip(1).try_fold(items.first().cloned().unwrap_or(Value::Int(0)), |sum, item| {
            functions::arithmetic(Operator::Add, &sum, item)
        }),
        ("min", []) => ordered(Ordering::Less),
        ("max", []) => ordered(Ordering::Greater),
        ("indexOf", [wanted]) => place(Box::new(0..items.len()), wanted),
        ("lastIndexOf", [wanted]) => place(Box::new((0..items.len()).rev()), wanted),
        ("join", []) => joined(run, &items, ""),
        ("join", [Value::Text(by)]) => joined(run, &items, by),
        ("flatten", []) => Ok(Value::List(
            items
                .iter()
                .flat_map(|item| item.elements().unwrap_or_else(|| vec![item.clone()]))
                .collect::<Vec<_>>()
                .into(),
        )),
        ("reverse", []) => Ok(Value::List(items.iter().rev().cloned().collect::<Vec<_>>().into())),
        _ => return None,
    })
}

fn joined<'a>(run: &Run<'_, 'a>, items: &[Value<'a>], by: &str) -> Outcome<'a> {
    let mut parts = Vec::with_capacity(items.len());
    for item in items {
        run.pay_for(item)?;
        match item {
            Value::Text(text) => parts.push(text.as_ref()),
            _ => return fail("no such overload"),
        }
    }
    Ok(Value::text(parts.join(by)))
}

fn amount<'a>(function: &str, quantity: &Quantity, rest: &[Value<'a>]) -> Option<Outcome<'a>> {
    let other = match rest.first() {
        Some(Value::Quantity(other)) => Some(*other),
        Some(Value::Int(number)) => Some(Quantity::from_value(*number, quantity.format())),
        _ => None,
    };
    let small = || i64::try_from(quantity.value()).ok().filter(|_| quantity.is_integer());
    Some(match (function, other) {
        ("add", Some(other)) => Ok(Value::Quantity(*quantity + other)),
        ("sub", Some(other)) => Ok(Value::Quantity(*quantity - other)),
        ("isGreaterThan", Some(other)) => Ok(Value::Bool(*quantity > other)),
        ("isLessThan", Some(other)) => Ok(Value::Bool(*quantity < other)),
        ("compareTo", Some(other)) => Ok(Value::Int(quantity.cmp(&other) as i64)),
        ("sign", None) => Ok(Value::Int(quantity.cmp(&Quantity::default()) as i64)),
        ("isInteger", None) => Ok(Value::Bool(small().is_some())),
        ("asInteger", None) => {
            small().map_or_else(|| fail("cannot convert value to integer"), |number| Ok(Value::Int(number)))
        }
        ("asApproximateFloat", None) => Ok(Value::Double(quantity.as_f64())),
        _ => return None,
    })
}

fn parse_url(text: &str) -> Option<Url> {
    if text.starts_with('/') {
        let (path, query) = text.split_once('?').unwrap_or((text, ""));
        return Some(Url { scheme: String::new(), host: String::new(), path: path.into(), query: query.into() });
    }
    let (scheme, rest) = text.split_once("://")?;
    let mut letters = scheme.chars();
    let fits = letters.next().is_some_and(|c| c.is_ascii_alphabetic())
        && letters.all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c));
    let unfit = rest.chars().any(|c| c.is_control() || c == ' ');
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (host, tail) = rest.split_at(end);
    let host = host.rsplit('@').next().unwrap_or(host);
    let port = host.rsplit_once(':').filter(|(before, _)| !before.contains('[') || before.ends_with(']'));
    let port_fits = port.is_none_or(|(_, port)| port.chars().all(|c| c.is_ascii_digit()));
    if !fits || unfit || !port_fits {
        return None;
    }
    let tail = tail.split('#').next().unwrap_or_default();
    let (path, query) = tail.split_once('?').unwrap_or((tail, ""));
    Some(Url { scheme: scheme.into(), host: host.into(), path: path.into(), query: query.into() })
}

fn locator<'a>(function: &str, url: &Url) -> Option<Outcome<'a>> {
    let port = url.host.rsplit_once(':').filter(|(before, _)| !before.contains('[') || before.ends_with(']'));
    let text = |text: &str| Some(Ok(Value::text(text)));
    match function {
        "getScheme" => text(&url.scheme),
        "getHost" => text(&url.host),
        "getHostname" => text(port.map_or(url.host.as_str(), |(host, _)| host).trim_matches(['[', ']'])),
        "getPort" => text(port.map_or("", |(_, port)| port)),
        "getEscapedPath" => text(&url.path),
        "getQuery" => {
            let mut query = std::collections::BTreeMap::<String, Vec<Value<'a>>>::new();
            for (key, value) in
                url.query.split('&').filter(|p| !p.is_empty()).map(|p| p.split_once('=').unwrap_or((p, "")))
            {
                query.entry(key.to_owned()).or_default().push(Value::text(value));
            }
            let entries =
                query.into_iter().map(|(key, values)| (crate::value::Key::Text(key), Value::List(values.into())));
            Some(Ok(Value::Map(Arc::new(entries.collect()))))
        }
        _ => None,
    }
}

fn parse_ip(text: &str) -> Option<IpAddr> {
    let ip: IpAddr = text.parse().ok()?;
    // Addresses of one family in the clothes of the other are refused.
    let mapped = matches!(ip, IpAddr::V6(ip) if ip.to_ipv4_mapped().is_some());
    (!mapped && !text.contains('%')).then_some(ip)
}

fn address<'a>(function: &str, ip: IpAddr) -> Option<Outcome<'a>> {
    let yes = |flag: bool| Some(Ok(Value::Bool(flag)));
    let link_local = match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.segments()[0] & 0xffc0 == 0xfe80,
    };
    let multicast = match ip {
        IpAddr::V4(ip) => ip.octets()[..3] == [224, 0, 0],
        IpAddr::V6(ip) => ip.segments()[0] & 0xff0f == 0xff02,
    };
    match function {
        "family" => Some(Ok(Value::Int(if ip.is_ipv4() { 4 } else { 6 }))),
        "isUnspecified" => yes(ip.is_unspecified()),
        "isLoopback" => yes(ip.is_loopback()),
        "isLinkLocalMulticast" => yes(multicast),
        "isLinkLocalUnicast" => yes(link_local),
        "isGlobalUnicast" => yes(!ip.is_unspecified() && !ip.is_loopback() && !ip.is_multicast() && !link_local),
        _ => None,
    }
}

fn network<'a>(function: &str, cidr: &IpNet, rest: &[Value<'a>]) -> Option<Outcome<'a>> {
    Some(match (function, rest) {
        ("containsIP", [Value::Ip(ip)]) => Ok(Value::Bool(cidr.contains(ip))),
        ("containsIP", [Value::Text(text)]) => match parse_ip(text) {
            Some(ip) => Ok(Value::Bool(cidr.contains(&ip))),
            None => fail(format!("IP Address {text:?} parse error during conversion from string")),
        },
        ("containsCIDR", [Value::Cidr(other)]) => Ok(Value::Bool(cidr.contains(other))),
        ("containsCIDR", [Value::Text(text)]) => match text.parse::<IpNet>() {
            Ok(other) => Ok(Value::Bool(cidr.contains(&other))),
            Err(_) => fail(format!("network address parse error during conversion from string: {text}")),
        },
        ("ip", []) => Ok(Value::Ip(cidr.addr())),
        ("masked", []) => Ok(Value::Cidr(cidr.trunc())),
        ("prefixLength", []) => Ok(Value::Int(cidr.prefix_len().into())),
        _ => return None,
    })
}

type Version = (u64, u64, u64, String);

fn parse_version(text: &str, loose: bool) -> Option<Version> {
    let text = if loose { text.strip_prefix('v').unwrap_or(text) } else { text };
    let end = text.find(['-', '+']).unwrap_or(text.len());
    let (numbers, rest) = text.split_at(end);
    let mut numbers: Vec<&str> = numbers.split('.').collect();
    while loose && numbers.len() < 3 {
        numbers.push("0");
    }
    let [major, minor, patch] = numbers[..] else { return None };
    let number = |text: &str| {
        let zero = text.len() > 1 && text.starts_with('0') && !loose;
        (!zero && !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit())).then(|| text.parse().ok()).flatten()
    };
    Some((number(major)?, number(minor)?, number(patch)?, rest.to_owned()))
}

/// Precedence of versions: build metadata does not count, a pre-release comes before its release.
pub fn compare_versions(a: &Version, b: &Version) -> Ordering {
    let pre = |version: &Version| -> String {
        let rest = version.3.split('+').next().unwrap_or_default();
        rest.strip_prefix('-').unwrap_or_default().to_owned()
    };
    let numbers = (a.0, a.1, a.2).cmp(&(b.0, b.1, b.2));
    numbers.then_with(|| match (pre(a), pre(b)) {
        (a, b) if a == b => Ordering::Equal,
        (a, _) if a.is_empty() => Ordering::Greater,
        (_, b) if b.is_empty() => Ordering::Less,
        (a, b) => compare_parts(&a, &b),
    })
}

fn compare_parts(a: &str, b: &str) -> Ordering {
    let (mut a, mut b) = (a.split('.'), b.split('.'));
    loop {
        let order = match (a.next(), b.next()) {
            (None, None) => return Ordering::Equal,
            (None, Some(_)) => Ordering::Less,
            (Some(_), None) => Ordering::Greater,
            (Some(x), Some(y)) => match (x.parse::<u64>(), y.parse::<u64>()) {
                (Ok(x), Ok(y)) => x.cmp(&y),
                (Ok(_), Err(_)) => Ordering::Less,
                (Err(_), Ok(_)) => Ordering::Greater,
                _ => x.cmp(y),
            },
        };
        if order != Ordering::Equal {
            return order;
        }
    }
}

fn version_method<'a>(function: &str, version: &Version, rest: &[Value<'a>]) -> Option<Outcome<'a>> {
    let number = |number: u64| Some(Ok(Value::Int(i64::try_from(number).unwrap_or(i64::MAX))));
    match (function, rest) {
        ("major", []) => number(version.0),
        ("minor", []) => number(version.1),
        ("patch", []) => number(version.2),
        ("isGreaterThan", [Value::Semver(other)]) => Some(Ok(Value::Bool(compare_versions(version, other).is_gt()))),
        ("isLessThan", [Value::Semver(other)]) => Some(Ok(Value::Bool(compare_versions(version, other).is_lt()))),
        ("compareTo", [Value::Semver(other)]) => Some(Ok(Value::Int(compare_versions(version, other) as i64))),
        _ => None,
    }
}

const FORMATS: [&str; 12] = [
    "dns1123Label",
    "dns1123Subdomain",
    "dns1035Label",
    "dns1123LabelPrefix",
    "dns1123SubdomainPrefix",
    "dns1035LabelPrefix",
    "qualifiedName",
    "labelValue",
    "uri",
    "uuid",
    "byte",
    "date",
];

fn named(name: &str) -> Option<&'static str> {
    FORMATS.iter().copied().chain(["datetime"]).find(|known| *known == name)
}

fn validated<'a>(name: &str, text: &str) -> Value<'a> {
    let faults: Vec<String> = match name {
        "dns1123Label" => names::is_dns1123_label(text),
        "dns1123Subdomain" => names::is_dns1123_subdomain(text),
        "dns1035Label" => names::is_dns1035_label(text),
        "dns1123LabelPrefix" => names::is_dns1123_label(&names::mask_generated(text)),
        "dns1123SubdomainPrefix" => names::is_dns1123_subdomain(&names::mask_generated(text)),
        "dns1035LabelPrefix" => names::is_dns1035_label(&names::mask_generated(text)),
        "qualifiedName" => names::is_qualified_name(text),
        "labelValue" => names::is_label_value(text),
        other => {
            let fits = match other {
                "uri" => parse_url(text).is_some(),
                "uuid" => text.len() == 36 && text.chars().all(|c| c.is_ascii_hexdigit() || c == '-'),
                "date" => format!("{text}T00:00:00Z").parse::<jiff::Timestamp>().is_ok(),
                "datetime" => text.parse::<jiff::Timestamp>().is_ok(),
                _ => base64::Engine::decode(&base64::engine::general_purpose::STANDARD, text).is_ok(),
            };
            if fits { Vec::new() } else { vec![format!("invalid {other}")] }
        }
    };
    if faults.is_empty() {
        return Value::Optional(None);
    }
    Value::Optional(Some(Box::new(Value::List(faults.into_iter().map(Value::text).collect::<Vec<_>>().into()))))
}

//! The values of annotations: booleans, times, sizes, counts, address ranges. Pure.

use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;

/// Longest time that means anything here: ten years.
const TIME_MAX_S: u64 = 10 * 365 * 86_400;

/// A boolean as Go's `strconv.ParseBool` reads it.
pub fn boolean(text: &str) -> Option<bool> {
    match text.trim() {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// A positive number of seconds, or a time with units as nginx writes it: `90`, `90s`, `1m 30s`, `500ms`.
pub fn time(text: &str) -> Option<Duration> {
    let text = text.trim();
    if let Ok(seconds) = text.parse::<u64>() {
        return (1..=TIME_MAX_S).contains(&seconds).then(|| Duration::from_secs(seconds));
    }
    let mut total_ms = 0_u64;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).filter(|at| *at > 0)?;
        let number: u64 = rest[..digits].parse().ok()?;
        let unit_len = rest[digits..].find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(rest.len() - digits);
        let unit_ms = unit_ms(&rest[digits..digits + unit_len])?;
        total_ms = total_ms.checked_add(number.checked_mul(unit_ms)?)?;
        rest = rest[digits + unit_len..].trim_start();
    }
    (total_ms > 0 && total_ms <= TIME_MAX_S * 1000).then(|| Duration::from_millis(total_ms))
}

fn unit_ms(unit: &str) -> Option<u64> {
    Some(match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        "w" => 7 * 86_400_000,
        _ => return None,
    })
}

/// A number of bytes, with `k`, `m` or `g` for powers of 1024.
pub fn size(text: &str) -> Option<u64> {
    let text = text.trim();
    let (digits, factor) = match text.as_bytes().last()? {
        b'k' | b'K' => (&text[..text.len() - 1], 1 << 10),
        b'm' | b'M' => (&text[..text.len() - 1], 1 << 20),
        b'g' | b'G' => (&text[..text.len() - 1], 1 << 30),
        _ => (text, 1),
    };
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    digits.parse::<u64>().ok()?.checked_mul(factor)
}

/// A count; none of something is a count too.
pub fn count(text: &str) -> Option<u32> {
    text.trim().parse().ok()
}

/// Address ranges, separated by commas; an address alone is a range of one.
pub fn ranges(text: &str) -> Option<Vec<IpNet>> {
    let range = |text: &str| {
        let text = text.trim();
        text.parse::<IpNet>().ok().map(|net| net.trunc()).or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from))
    };
    let found: Option<Vec<IpNet>> = text.split(',').map(range).collect();
    found.filter(|ranges| !ranges.is_empty())
}

/// What stands between commas, trimmed; nothing if one of them is empty.
pub fn list(text: &str) -> Option<Vec<String>> {
    let items: Vec<String> = text.split(',').map(|item| item.trim().to_owned()).collect();
    items.iter().all(|item| !item.is_empty()).then_some(items)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn values_as_people_write_them() {
        assert_eq!(time("3600"), Some(Duration::from_secs(3600)));
        assert_eq!(time("1m 30s"), Some(Duration::from_secs(90)));
        assert_eq!(time("1h30m"), Some(Duration::from_secs(5400)));
        assert_eq!(time("500ms"), Some(Duration::from_millis(500)));
        for bad in ["", "0", "-1", "s", "1x", "1 fortnight", "99999999999999999999", "1s2", "٣"] {
            assert_eq!(time(bad), None, "{bad:?}");
        }
        assert_eq!(size("8m"), Some(8 << 20));
        assert_eq!(size("0"), Some(0));
        for bad in ["", "m", "-1", "1.5m", "8mb", "99999999999999999999g", "+1"] {
            assert_eq!(size(bad), None, "{bad:?}");
        }
        assert_eq!(ranges("10.0.0.0/8, 192.0.2.1,::1/128").map(|all| all.len()), Some(3));
        for bad in ["", ",", "10.0.0.0/33", "10.0.0", "10.0.0.0/8,", "localhost"] {
            assert_eq!(ranges(bad), None, "{bad:?}");
        }
        assert_eq!((boolean("true"), boolean("F"), boolean("yes")), (Some(true), Some(false), None));
    }

    proptest! {
        #[test]
        fn nothing_makes_a_parser_fail(text in "\\PC*") {
            let _ = (boolean(&text), time(&text), size(&text), count(&text), ranges(&text), list(&text));
        }

        #[test]
        fn what_is_written_is_read(number in 1_u64..100_000, unit in 0_usize..4) {
            let (size_unit, factor) = [("", 1), ("k", 1 << 10), ("M", 1 << 20), ("g", 1 << 30)][unit];
            prop_assert_eq!(size(&format!("{number}{size_unit}")), Some(number * factor));
            let (time_unit, ms) = [("ms", 1), ("s", 1000), ("m", 60_000), ("h", 3_600_000)][unit];
            let wanted = (number * ms <= TIME_MAX_S * 1000).then(|| Duration::from_millis(number * ms));
            prop_assert_eq!(time(&format!("{number}{time_unit}")), wanted);
        }

        #[test]
        fn a_range_holds_the_addresses_it_is_made_of(bits in any::<u32>(), prefix in 0_u8..=32) {
            let address = IpAddr::from(std::net::Ipv4Addr::from(bits));
            let found = ranges(&format!("{address}/{prefix}, {address}")).expect("valid");
            prop_assert!(found.iter().all(|range| range.contains(&address)));
        }
    }
}

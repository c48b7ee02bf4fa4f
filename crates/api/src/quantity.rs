//! Resource quantities: `500m`, `1Gi`, `12e6`.
//!
//! A quantity is a fixed-point number with a resolution of one billionth, and remembers the family of suffixes
//! it was written with, because its canonical text uses the same family. Numbers finer than the resolution are
//! rounded away from zero; numbers beyond what a signed 64-bit integer holds are capped there, as Kubernetes does.

use std::fmt;
use std::ops::{Add, AddAssign, Neg, Sub, SubAssign};
use std::str::FromStr;

use serde_json::Value;

const NANO: i128 = 1_000_000_000;
const MAX: i128 = i64::MAX as i128 * NANO;

/// Which family of suffixes a quantity was written with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// `m`, `k`, `M`, `G` ...
    #[default]
    DecimalSi,
    /// `Ki`, `Mi`, `Gi` ...
    BinarySi,
    /// `e3`, `e6` ...
    DecimalExponent,
}

/// An amount of something: cores, bytes, pods.
#[derive(Clone, Copy, Debug, Default)]
pub struct Quantity {
    nanos: i128,
    format: Format,
}

/// Why a text is not a quantity. The texts are those Kubernetes answers with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// The text has not the shape of a quantity.
    #[error("quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'")]
    Format,
    /// The number is malformed.
    #[error("unable to parse numeric part of quantity")]
    Numeric,
    /// The suffix is not one of those known.
    #[error("unable to parse quantity's suffix")]
    Suffix,
}

impl Quantity {
    /// Nothing.
    pub const ZERO: Self = Self { nanos: 0, format: Format::DecimalSi };

    /// A whole number of units.
    pub fn from_value(value: i64, format: Format) -> Self {
        Self { nanos: i128::from(value) * NANO, format }
    }

    /// A number of thousandths.
    pub fn from_milli(milli: i64) -> Self {
        Self { nanos: i128::from(milli) * (NANO / 1000), format: Format::DecimalSi }
    }

    /// The quantity in a JSON value: a string or a number.
    pub fn from_json(value: &Value) -> Result<Self, ParseError> {
        match value {
            Value::String(text) => text.trim().parse(),
            Value::Number(number) => number.to_string().parse(),
            _ => Err(ParseError::Format),
        }
    }

    /// Units, a fraction rounded away from zero.
    pub fn value(&self) -> i128 {
        divide_away(self.nanos, NANO)
    }

    /// Thousandths, a finer fraction rounded away from zero.
    pub fn milli_value(&self) -> i128 {
        divide_away(self.nanos, NANO / 1000)
    }

    /// As a floating point number, for ratios shown to people.
    pub fn as_f64(&self) -> f64 {
        self.nanos as f64 / NANO as f64
    }

    /// Whether this is nothing.
    pub fn is_zero(&self) -> bool {
        self.nanos == 0
    }

    /// Whether this is below nothing.
    pub fn is_negative(&self) -> bool {
        self.nanos < 0
    }

    /// Whether this has no fraction of a unit.
    pub fn is_integer(&self) -> bool {
        self.nanos % NANO == 0
    }

    /// Whether this is finer than a thousandth.
    pub fn is_finer_than_milli(&self) -> bool {
        self.nanos % (NANO / 1000) != 0
    }

    /// The family of suffixes.
    pub fn format(&self) -> Format {
        self.format
    }

    fn with(self, other: Self, nanos: i128) -> Self {
        let format = if self.nanos == 0 { other.format } else { self.format };
        Self { nanos, format }
    }
}

fn divide_away(number: i128, by: i128) -> i128 {
    let quotient = number / by;
    if number % by == 0 { quotient } else { quotient + number.signum() }
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.nanos == other.nanos
    }
}

impl Eq for Quantity {}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.nanos.cmp(&other.nanos)
    }
}

impl Add for Quantity {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        self.with(other, self.nanos.saturating_add(other.nanos))
    }
}

impl Sub for Quantity {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        self.with(other, self.nanos.saturating_sub(other.nanos))
    }
}

impl AddAssign for Quantity {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl SubAssign for Quantity {
    fn sub_assign(&mut self, other: Self) {
        *self = *self - other;
    }
}

impl Neg for Quantity {
    type Output = Self;
    fn neg(self) -> Self {
        Self { nanos: self.nanos.saturating_neg(), format: self.format }
    }
}

impl std::iter::Sum for Quantity {
    fn sum<I: Iterator<Item = Self>>(iter: I) -> Self {
        iter.fold(Self::ZERO, Add::add)
    }
}

/// The scale a suffix stands for.
enum Scale {
    Ten(i32),
    Two(u32),
}

fn scale(suffix: &str) -> Result<(Scale, Format), ParseError> {
    let decimal = |power| Ok((Scale::Ten(power), Format::DecimalSi));
    let binary = |power| Ok((Scale::Two(power), Format::BinarySi));
    match suffix {
        "n" => decimal(-9),
        "u" => decimal(-6),
        "m" => decimal(-3),
        "" => decimal(0),
        "k" => decimal(3),
        "M" => decimal(6),
        "G" => decimal(9),
        "T" => decimal(12),
        "P" => decimal(15),
        "E" => decimal(18),
        "Ki" => binary(10),
        "Mi" => binary(20),
        "Gi" => binary(30),
        "Ti" => binary(40),
        "Pi" => binary(50),
        "Ei" => binary(60),
        other => {
            let exponent = other.strip_prefix(['e', 'E']).ok_or(ParseError::Suffix)?;
            let power: i64 = exponent.parse().map_err(|_| ParseError::Suffix)?;
            // Beyond a thousand every number has long been capped or rounded.
            Ok((Scale::Ten(power.clamp(-1000, 1000) as i32), Format::DecimalExponent))
        }
    }
}

/// `digits × 10^(nano_power - 9)` in nanos, capped above and rounded away from zero below.
fn scaled_decimal(digits: &str, nano_power: i64) -> i128 {
    let digits = digits.trim_start_matches('0');
    if digits.is_empty() {
        return 0;
    }
    let kept = digits.len() as i64 + nano_power;
    if kept <= 0 {
        return 1;
    }
    if kept > 29 {
        return MAX;
    }
    let split = (kept as usize).min(digits.len());
    let (whole, rest) = digits.split_at(split);
    let mut number: i128 = whole.parse().unwrap_or(MAX);
    for _ in 0..(kept as usize - split) {
        number *= 10;
    }
    if rest.bytes().any(|digit| digit != b'0') {
        number += 1;
    }
    number.min(MAX)
}

/// `digits / 10^decimals × 2^power` in nanos.
fn scaled_binary(digits: &str, decimals: usize, power: u32) -> i128 {
    // 10^9 = 2^9 · 5^9: shift first, in pieces that stay inside 128 bits.
    let digits = digits.trim_start_matches('0');
    if digits.is_empty() {
        return 0;
    }
    let whole_len = digits.len().saturating_sub(decimals);
    if whole_len > 19 {
        return MAX;
    }
    let whole: i128 = digits[..whole_len].parse().unwrap_or(0);
    let whole_nanos = whole.checked_mul(1 << power).filter(|units| *units <= i128::from(i64::MAX)).map(|u| u * NANO);
    let Some(whole_nanos) = whole_nanos else { return MAX };
    // The fraction to 18 digits is exact enough: any remainder rounds up.
    let fraction = format!("{:0>width$}", &digits[whole_len..], width = decimals);
    let (seen, rest) = fraction.split_at(fraction.len().min(18));
    let mut numerator: i128 = if seen.is_empty() { 0 } else { seen.parse().unwrap_or(0) };
    if rest.bytes().any(|digit| digit != b'0') {
        numerator += 1;
    }
    let denominator = 10_i128.pow(seen.len() as u32);
    let units = numerator << power;
    let nanos = (units / denominator) * NANO + divide_away((units % denominator) * NANO, denominator);
    (whole_nanos + nanos).min(MAX)
}

impl FromStr for Quantity {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let (negative, unsigned) = match text.as_bytes().first() {
            None => return Err(ParseError::Format),
            Some(b'-') => (true, &text[1..]),
            Some(b'+') => (false, &text[1..]),
            Some(_) => (false, text),
        };
        let number_end = unsigned.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(unsigned.len());
        let (number, suffix) = unsigned.split_at(number_end);
        check_suffix_shape(suffix)?;
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if fraction.contains('.') || whole.len() + fraction.len() == 0 {
            return Err(if number.is_empty() { ParseError::Format } else { ParseError::Numeric });
        }
        let (scale, mut format) = scale(suffix)?;
        let digits = format!("{whole}{fraction}");
        let nanos = match scale {
            Scale::Ten(power) => scaled_decimal(&digits, i64::from(power) + 9 - fraction.len() as i64),
            Scale::Two(power) => scaled_binary(&digits, fraction.len(), power),
        };
        if format == Format::BinarySi && nanos > 0 && nanos < NANO {
            format = Format::DecimalSi;
        }
        Ok(Self { nanos: if negative { -nanos } else { nanos }, format })
    }
}

/// The suffix must be letters of the known set, then perhaps a sign and digits.
fn check_suffix_shape(suffix: &str) -> Result<(), ParseError> {
    let letters_end = suffix.find(|c: char| !"eEinumkKMGTP".contains(c)).unwrap_or(suffix.len());
    let rest = &suffix[letters_end..];
    let rest = rest.strip_prefix(['-', '+']).unwrap_or(rest);
    if rest.bytes().all(|byte| byte.is_ascii_digit()) { Ok(()) } else { Err(ParseError::Format) }
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let small = self.nanos > -1024 * NANO && self.nanos < 1024 * NANO;
        if self.format == Format::BinarySi && !small && self.is_integer() {
            return f.pad(&binary_text(self.nanos / NANO));
        }
        f.pad(&decimal_text(self.nanos, self.format))
    }
}

fn binary_text(mut number: i128) -> String {
    const SUFFIXES: [&str; 7] = ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"];
    let mut step = 0;
    while number % 1024 == 0 && step + 1 < SUFFIXES.len() {
        number /= 1024;
        step += 1;
    }
    format!("{number}{}", SUFFIXES[step])
}

fn decimal_text(nanos: i128, format: Format) -> String {
    const SUFFIXES: [&str; 10] = ["n", "u", "m", "", "k", "M", "G", "T", "P", "E"];
    if nanos == 0 {
        return "0".to_owned();
    }
    let (mut number, mut step) = (nanos, 0);
    while number % 1000 == 0 && step + 1 < SUFFIXES.len() {
        number /= 1000;
        step += 1;
    }
    match format {
        Format::DecimalExponent if step != 3 => format!("{number}e{}", step as i32 * 3 - 9),
        Format::DecimalExponent => number.to_string(),
        _ => format!("{number}{}", SUFFIXES[step]),
    }
}

impl serde::Serialize for Quantity {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Quantity {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(deserializer)?;
        Self::from_json(&value).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn canonical(text: &str) -> String {
        text.parse::<Quantity>().map_or_else(|error| error.to_string(), |quantity| quantity.to_string())
    }

    #[test]
    fn canonical_forms_are_those_of_kubernetes() {
        for (given, expected) in [
            ("0", "0"),
            ("0Mi", "0"),
            ("100m", "100m"),
            ("0.1", "100m"),
            ("1000m", "1"),
            ("1.5", "1500m"),
            (".5", "500m"),
            ("1.", "1"),
            ("1000", "1k"),
            ("1200", "1200"),
            ("1024", "1024"),
            ("1024Mi", "1Gi"),
            ("1.5Gi", "1536Mi"),
            ("0.5Gi", "512Mi"),
            ("1Ki", "1Ki"),
            ("1000Ki", "1000Ki"),
            ("0.5Ki", "512"),
            ("0.0001Ki", "102400u"),
            ("1e3", "1e3"),
            ("1E3", "1e3"),
            ("12e6", "12e6"),
            ("1E", "1E"),
            ("-1", "-1"),
            ("+1", "1"),
            ("1n", "1n"),
            ("0.1n", "1n"),
            ("99999999999999999999", "9223372036854775807"),
            ("100e-3", "100e-3"),
            ("123456789", "123456789"),
            ("3.2Ti", "3518437208883200m"),
        ] {
            assert_eq!(canonical(given), expected, "{given}");
        }
    }

    #[test]
    fn errors_name_the_part_that_is_wrong() {
        for (given, expected) in [
            ("", ParseError::Format),
            ("abc", ParseError::Format),
            ("1 Gi", ParseError::Format),
            ("1.1.1", ParseError::Numeric),
            (".", ParseError::Numeric),
            ("1mm", ParseError::Suffix),
            ("1ki", ParseError::Suffix),
            ("5e", ParseError::Suffix),
            ("1K", ParseError::Suffix),
        ] {
            assert_eq!(given.parse::<Quantity>(), Err(expected), "{given}");
        }
    }

    #[test]
    fn values_round_away_from_zero() {
        let quantity: Quantity = "1500500u".parse().expect("valid");
        assert_eq!((quantity.value(), quantity.milli_value()), (2, 1501));
        assert_eq!((-quantity).value(), -2);
    }

    #[test]
    fn sums_keep_the_family_of_the_first_that_is_not_zero() {
        let sum: Quantity = ["0", "512Mi", "1G"].iter().map(|t| t.parse::<Quantity>().expect("valid")).sum();
        assert_eq!(sum.format(), Format::BinarySi);
        assert_eq!(sum.value(), 512 * 1024 * 1024 + 1_000_000_000);
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "\\PC*") {
            let _ = text.parse::<Quantity>();
        }

        #[test]
        fn canonical_text_parses_to_itself(text in "[+-]?[0-9]{1,22}(\\.[0-9]{0,25})?(n|u|m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei|e-?[0-9]{1,3})?") {
            if let Ok(quantity) = text.parse::<Quantity>() {
                let shown = quantity.to_string();
                let again: Quantity = shown.parse().expect("canonical text is valid");
                prop_assert_eq!(again, quantity, "{}", shown);
                prop_assert_eq!(again.to_string(), shown);
            }
        }

        #[test]
        fn binary_and_decimal_agree(units in 0_i64..1 << 33, power in 0_usize..3) {
            let suffix = ["Ki", "Mi", "Gi"][power];
            let binary: Quantity = format!("{units}{suffix}").parse().expect("valid");
            prop_assert_eq!(binary.value(), (i128::from(units) << (10 * (power + 1))).min(i128::from(i64::MAX)));
        }
    }
}

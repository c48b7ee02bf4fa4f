//! The syntax of JSON numbers.

use serde_json::Number;

/// Where a number literal is broken: the position of the bad byte and what the scanner was doing there.
pub(super) struct Broken {
    pub at: usize,
    pub context: &'static str,
}

/// The end of the number literal that starts at `start`.
pub(super) fn end(input: &[u8], start: usize) -> Result<usize, Broken> {
    let digit = |at: usize| input.get(at).is_some_and(u8::is_ascii_digit);
    let run = |mut at: usize, context| {
        if !digit(at) {
            return Err(Broken { at, context });
        }
        while digit(at) {
            at += 1;
        }
        Ok(at)
    };
    let mut at = start + usize::from(input[start] == b'-');
    at = if input.get(at) == Some(&b'0') { at + 1 } else { run(at, "in numeric literal")? };
    if input.get(at) == Some(&b'.') {
        at = run(at + 1, "after decimal point in numeric literal")?;
    }
    if matches!(input.get(at), Some(b'e' | b'E')) {
        let sign = usize::from(matches!(input.get(at + 1), Some(b'+' | b'-')));
        at = run(at + 1 + sign, "in exponent of numeric literal")?;
    }
    Ok(at)
}

/// The value of a literal; none if it is beyond every number type.
pub(super) fn value(literal: &str) -> Option<Number> {
    if let Ok(n) = literal.parse::<i64>() {
        return Some(n.into());
    }
    if let Ok(n) = literal.parse::<u64>() {
        return Some(n.into());
    }
    literal.parse::<f64>().ok().and_then(Number::from_f64)
}

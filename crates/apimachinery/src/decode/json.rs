//! A JSON parser that tells duplicate fields with their path and words its errors as Go's `encoding/json` does.
//!
//! Where Go is lenient this is too: bytes that are no UTF-8 and lone surrogates become U+FFFD.

use std::collections::BTreeMap;

use serde_json::map::Entry;
use serde_json::{Map, Value};

use super::number;
use super::{DecodeError, Limits, MAX_WARNINGS, Warning};

/// Parses one JSON value. The last of several equal keys wins, and each repetition is reported.
pub fn json(bytes: &[u8], limits: Limits) -> Result<(Value, Vec<Warning>), DecodeError> {
    let mut parser = Parser::new(bytes, limits);
    let value = parser.value(&Path::Root)?;
    match parser.peek() {
        None => Ok((value, parser.warnings)),
        Some(_) => Err(parser.invalid("after top-level value")),
    }
}

/// Nobody has to know the order of what comes after so much: paths can be as long as the document is.
const PATHS_BYTES_MAX: usize = 4 << 20;

/// Puts duplicate and unknown fields of a document into its order, in which Go's decoder meets them.
pub fn in_document_order(bytes: &[u8], limits: Limits, notes: &mut [String]) {
    let mut parser = Parser { room: PATHS_BYTES_MAX, ..Parser::new(bytes, limits) };
    let _ = parser.value(&Path::Root);
    let mut places: BTreeMap<String, usize> = BTreeMap::new();
    for (place, path) in parser.members.iter().enumerate() {
        // A field is unknown where it is first, and a duplicate where it is again.
        if *places.entry(unknown_field(path)).or_insert(place) != place {
            places.entry(duplicate_field(path)).or_insert(place);
        }
    }
    notes.sort_by_key(|note| places.get(note).copied().unwrap_or(usize::MAX));
}

fn duplicate_field(path: &str) -> String {
    format!("duplicate field {path:?}")
}

/// How a field that a type does not have is told of.
pub(super) fn unknown_field(path: &str) -> String {
    format!("unknown field {path:?}")
}

/// Where the parser is, as a list of stack frames.
#[derive(Clone, Copy)]
enum Path<'a> {
    Root,
    Key(&'a Path<'a>, &'a str),
    Index(&'a Path<'a>, usize),
}

impl Path<'_> {
    fn text(&self) -> String {
        let mut text = String::new();
        self.write(&mut text);
        text
    }

    fn write(&self, out: &mut String) {
        match self {
            Path::Root => {}
            Path::Key(parent, key) => {
                parent.write(out);
                if !out.is_empty() {
                    out.push('.');
                }
                out.push_str(key);
            }
            Path::Index(parent, index) => {
                parent.write(out);
                out.push_str(&format!("[{index}]"));
            }
        }
    }
}

struct Parser<'a> {
    input: &'a [u8],
    at: usize,
    depth_left: usize,
    warnings: Vec<Warning>,
    /// The path of every field, in order, as long as there is room.
    members: Vec<String>,
    room: usize,
}

impl<'a> Parser<'a> {
    fn new(input: &'a [u8], limits: Limits) -> Self {
        Self { input, at: 0, depth_left: limits.depth, warnings: Vec::new(), members: Vec::new(), room: 0 }
    }

    /// The next byte that is no blank, without taking it.
    fn peek(&mut self) -> Option<u8> {
        while let Some(b' ' | b'\t' | b'\r' | b'\n') = self.input.get(self.at) {
            self.at += 1;
        }
        self.input.get(self.at).copied()
    }

    /// The error for the byte at the current position.
    fn invalid(&self, context: &str) -> DecodeError {
        DecodeError::Syntax(match self.input.get(self.at) {
            None => "unexpected end of JSON input".to_owned(),
            Some(&byte) => format!("invalid character {} {context}", quote(byte)),
        })
    }

    fn value(&mut self, path: &Path<'_>) -> Result<Value, DecodeError> {
        match self.peek() {
            Some(b'{') => self.nested(|p| p.object(path)),
            Some(b'[') => self.nested(|p| p.array(path)),
            Some(b'"') => Ok(Value::String(self.string()?)),
            Some(b'-' | b'0'..=b'9') => self.number(),
            Some(b't') => self.literal("true", Value::Bool(true)),
            Some(b'f') => self.literal("false", Value::Bool(false)),
            Some(b'n') => self.literal("null", Value::Null),
            _ => Err(self.invalid("looking for beginning of value")),
        }
    }

    fn nested(&mut self, parse: impl FnOnce(&mut Self) -> Result<Value, DecodeError>) -> Result<Value, DecodeError> {
        self.depth_left = self.depth_left.checked_sub(1).ok_or(DecodeError::TooDeep)?;
        self.at += 1;
        let value = parse(self)?;
        self.depth_left += 1;
        Ok(value)
    }

    fn object(&mut self, path: &Path<'_>) -> Result<Value, DecodeError> {
        let mut map = Map::new();
        if self.peek() == Some(b'}') {
            self.at += 1;
            return Ok(Value::Object(map));
        }
        loop {
            if self.peek() != Some(b'"') {
                return Err(self.invalid("looking for beginning of object key string"));
            }
            let key = self.string()?;
            if self.peek() != Some(b':') {
                return Err(self.invalid("after object key"));
            }
            self.at += 1;
            if self.room > 0 {
                let member = Path::Key(path, &key).text();
                self.room = self.room.saturating_sub(member.len() + 1);
                self.members.push(member);
            }
            let value = self.value(&Path::Key(path, &key))?;
            match map.entry(key) {
                Entry::Vacant(entry) => {
                    entry.insert(value);
                }
                Entry::Occupied(mut entry) => {
                    self.duplicate(&Path::Key(path, entry.key()));
                    entry.insert(value);
                }
            }
            match self.peek() {
                Some(b',') => self.at += 1,
                Some(b'}') => break,
                _ => return Err(self.invalid("after object key:value pair")),
            }
        }
        self.at += 1;
        Ok(Value::Object(map))
    }

    fn duplicate(&mut self, path: &Path<'_>) {
        let warning = Warning(duplicate_field(&path.text()));
        if self.warnings.len() < MAX_WARNINGS && !self.warnings.contains(&warning) {
            self.warnings.push(warning);
        }
    }

    fn array(&mut self, path: &Path<'_>) -> Result<Value, DecodeError> {
        let mut items = Vec::new();
        if self.peek() == Some(b']') {
            self.at += 1;
            return Ok(Value::Array(items));
        }
        loop {
            items.push(self.value(&Path::Index(path, items.len()))?);
            match self.peek() {
                Some(b',') => self.at += 1,
                Some(b']') => break,
                _ => return Err(self.invalid("after array element")),
            }
        }
        self.at += 1;
        Ok(Value::Array(items))
    }

    fn literal(&mut self, word: &str, value: Value) -> Result<Value, DecodeError> {
        for expected in word.bytes() {
            if self.input.get(self.at) != Some(&expected) {
                return Err(self.invalid(&format!("in literal {word} (expecting {})", quote(expected))));
            }
            self.at += 1;
        }
        Ok(value)
    }

    fn number(&mut self) -> Result<Value, DecodeError> {
        let start = self.at;
        self.at = number::end(self.input, start).map_err(|broken| {
            self.at = broken.at;
            self.invalid(broken.context)
        })?;
        let literal = str::from_utf8(&self.input[start..self.at]).unwrap_or_default();
        number::value(literal).map(Value::Number).ok_or_else(|| {
            DecodeError::Syntax(format!("json: cannot unmarshal number {literal} into Go value of type float64"))
        })
    }

    /// A string, the opening quote of which is at the current position.
    fn string(&mut self) -> Result<String, DecodeError> {
        self.at += 1;
        let start = self.at;
        while let Some(&byte) = self.input.get(self.at) {
            match byte {
                b'"' => {
                    let bytes = &self.input[start..self.at];
                    // Looking for bytes that are no UTF-8 is much slower than finding that there are none.
                    let text = str::from_utf8(bytes)
                        .map_or_else(|_| String::from_utf8_lossy(bytes).into_owned(), str::to_owned);
                    self.at += 1;
                    return Ok(text);
                }
                b'\\' => return self.escaped(start),
                0..=0x1f => return Err(self.invalid("in string literal")),
                _ => self.at += 1,
            }
        }
        Err(self.invalid(""))
    }

    /// The rest of a string that has escapes; what lies between `start` and the current position has none.
    fn escaped(&mut self, start: usize) -> Result<String, DecodeError> {
        let mut bytes = self.input[start..self.at].to_vec();
        loop {
            match self.input.get(self.at) {
                Some(b'"') => break,
                Some(b'\\') => {
                    self.at += 1;
                    let mut buffer = [0; 4];
                    bytes.extend_from_slice(self.escape()?.encode_utf8(&mut buffer).as_bytes());
                }
                None | Some(0..=0x1f) => return Err(self.invalid("in string literal")),
                Some(&byte) => {
                    bytes.push(byte);
                    self.at += 1;
                }
            }
        }
        self.at += 1;
        Ok(String::from_utf8(bytes).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned()))
    }

    /// One escape; the backslash is taken.
    fn escape(&mut self) -> Result<char, DecodeError> {
        let character = match self.input.get(self.at) {
            Some(b'u') => {
                self.at += 1;
                return self.unicode();
            }
            Some(byte @ (b'"' | b'\\' | b'/')) => char::from(*byte),
            Some(b'b') => '\u{8}',
            Some(b'f') => '\u{c}',
            Some(b'n') => '\n',
            Some(b'r') => '\r',
            Some(b't') => '\t',
            _ => return Err(self.invalid("in string escape code")),
        };
        self.at += 1;
        Ok(character)
    }

    fn unicode(&mut self) -> Result<char, DecodeError> {
        let first = self.hex()?;
        if (0xd800..0xdc00).contains(&first) && self.input[self.at..].starts_with(b"\\u") {
            let back = self.at;
            self.at += 2;
            let second = self.hex()?;
            if (0xdc00..0xe000).contains(&second) {
                let code = 0x10000 + ((first - 0xd800) << 10) + (second - 0xdc00);
                return Ok(char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER));
            }
            self.at = back;
        }
        Ok(char::from_u32(first).unwrap_or(char::REPLACEMENT_CHARACTER))
    }

    fn hex(&mut self) -> Result<u32, DecodeError> {
        let mut code = 0;
        for _ in 0..4 {
            let digit = self.input.get(self.at).and_then(|b| char::from(*b).to_digit(16));
            code = code * 16 + digit.ok_or_else(|| self.invalid("in \\u hexadecimal character escape"))?;
            self.at += 1;
        }
        Ok(code)
    }
}

/// A byte as Go's scanner quotes it.
fn quote(byte: u8) -> String {
    match byte {
        b'\'' => r"'\''".to_owned(),
        b'"' => "'\"'".to_owned(),
        b'\\' => r"'\\'".to_owned(),
        b'\n' => r"'\n'".to_owned(),
        b'\t' => r"'\t'".to_owned(),
        b'\r' => r"'\r'".to_owned(),
        0x20..=0x7e => format!("'{}'", char::from(byte)),
        0..=0x1f | 0x7f => format!("'\\x{byte:02x}'"),
        0x80..=0xa0 | 0xad => format!("'\\u{:04x}'", u32::from(byte)),
        _ => format!("'{}'", char::from(byte)),
    }
}

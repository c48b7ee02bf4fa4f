//! Request bodies in protocol buffers, which typed clients (`kubectl create namespace`) send without asking.
//!
//! Decoded to the JSON value that the same client would have sent as JSON; answers are always JSON, which every client
//! reads. Field numbers come from `data/protobuf.txt` (`cargo xtask protobuf`), whose lines read `number name mark+type`:
//!
//! | mark | the field is | | type | value |
//! |---|---|---|---|---|
//! | `!` | always written, its zero means nothing | | `s b i d y` | string, bool, integer, double, bytes |
//! | `=` | always written, its zero is shown in JSON | | `m<name>` | message |
//! | `?` | written if it is set | | `t u` | time, time with microseconds |
//! | `*` | repeated | | `q o j l` | quantity, integer or string, JSON, list of strings |
//! | `%` | a map from strings | | `B A S` | a JSON schema, or a boolean, a list of schemas, a list of strings |
//! | `~` | a message whose fields belong to the outer one | | | |

use std::collections::BTreeMap;
use std::sync::OnceLock;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde_json::{Map, Value, json};

const MAGIC: &[u8] = b"k8s\0";
const MAX_DEPTH: usize = 64;
const SCHEMA: &str = "apiextensions.v1.JSONSchemaProps";

/// Why bytes are not an object.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProtobufError {
    /// Something else.
    #[error("provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]")]
    Magic,
    /// Cut off or garbled.
    #[error("unexpected EOF")]
    Truncated,
    /// A kind whose fields are not known.
    #[error("no protobuf form of kind {kind:?} in version {version:?} is known")]
    Unknown {
        /// API version.
        version: String,
        /// Kind.
        kind: String,
    },
    /// A value is not what its field holds.
    #[error("field {0} holds a malformed value")]
    Value(&'static str),
}

struct Field {
    number: u64,
    name: &'static str,
    mark: u8,
    kind: &'static str,
}

type Messages = BTreeMap<&'static str, Vec<Field>>;

fn messages() -> &'static Messages {
    static MESSAGES: OnceLock<Messages> = OnceLock::new();
    MESSAGES.get_or_init(|| {
        let mut messages = Messages::new();
        let mut current = "";
        for line in include_str!("../data/protobuf.txt").lines().filter(|l| !l.starts_with('#')) {
            let Some(field) = line.strip_prefix(' ') else {
                current = line;
                messages.insert(current, Vec::new());
                continue;
            };
            let mut parts = field.splitn(3, ' ');
            if let (Some(number), Some(name), Some(kind)) = (parts.next(), parts.next(), parts.next())
                && let (Ok(number), Some(fields)) = (number.parse(), messages.get_mut(current))
            {
                fields.push(Field { number, name, mark: kind.as_bytes()[0], kind: &kind[1..] });
            }
        }
        messages
    })
}

/// Decodes the envelope and the object in it.
pub fn decode(bytes: &[u8]) -> Result<Value, ProtobufError> {
    let bytes = bytes.strip_prefix(MAGIC).ok_or(ProtobufError::Magic)?;
    let (mut version, mut kind, mut raw) = (String::new(), String::new(), [].as_slice());
    for field in Wire(bytes) {
        match field? {
            (1, Item::Bytes(meta)) => {
                for field in Wire(meta) {
                    match field? {
                        (1, Item::Bytes(text)) => version = string(text),
                        (2, Item::Bytes(text)) => kind = string(text),
                        _ => {}
                    }
                }
            }
            (2, Item::Bytes(body)) => raw = body,
            _ => {}
        }
    }
    let name = message_name(&version, &kind);
    let Some((name, _)) = messages().get_key_value(name.as_str()) else {
        return Err(ProtobufError::Unknown { version, kind });
    };
    let mut object = message(name, raw, 0)?;
    object.insert("apiVersion".into(), version.into());
    object.insert("kind".into(), kind.into());
    Ok(Value::Object(object))
}

/// `apps.v1.Deployment` for `apps/v1` and `Deployment`.
fn message_name(version: &str, kind: &str) -> String {
    if kind == "DeleteOptions" {
        return "meta.v1.DeleteOptions".to_owned();
    }
    let (group, version) = version.split_once('/').unwrap_or(("core", version));
    format!("{}.{version}.{kind}", group.split('.').next().unwrap_or_default())
}

fn message(name: &str, bytes: &[u8], depth: usize) -> Result<Map<String, Value>, ProtobufError> {
    let mut object = Map::new();
    if depth > MAX_DEPTH {
        return Err(ProtobufError::Truncated);
    }
    let Some(fields) = messages().get(name) else { return Ok(object) };
    for item in Wire(bytes) {
        let (number, item) = item?;
        let Some(field) = fields.iter().find(|f| f.number == number) else { continue };
        match (field.mark, item) {
            (b'~', Item::Bytes(inner)) => object.extend(message(&field.kind[1..], inner, depth + 1)?),
            (b'%', Item::Bytes(entry)) => {
                let (key, value) = map_entry(field, entry, depth)?;
                if let Some(map) = object.entry(field.name).or_insert_with(|| json!({})).as_object_mut() {
                    map.insert(key, value);
                }
            }
            (b'*', item) => {
                let value = value(field, &item, depth)?;
                if let Some(list) = object.entry(field.name).or_insert_with(|| json!([])).as_array_mut() {
                    list.push(value);
                }
            }
            (mark, item) => {
                let value = value(field, &item, depth)?;
                if matches!(mark, b'?' | b'=') && !value.is_null() || !is_zero(&value) {
                    object.insert(field.name.to_owned(), value);
                }
            }
        }
    }
    Ok(object)
}

/// Zero values that clients leave out of JSON. Empty messages stay: JSON shows them too.
fn is_zero(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(flag) => !flag,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(_) | Value::Object(_) => false,
    }
}

fn map_entry(field: &Field, bytes: &[u8], depth: usize) -> Result<(String, Value), ProtobufError> {
    let mut key = String::new();
    let mut content = match field.kind.as_bytes()[0] {
        b's' | b'y' => json!(""),
        b'm' => json!({}),
        b'q' => json!("0"),
        b'l' => json!([]),
        _ => Value::Null,
    };
    for item in Wire(bytes) {
        match item? {
            (1, Item::Bytes(text)) => key = string(text),
            (2, item) => content = value(field, &item, depth)?,
            _ => {}
        }
    }
    Ok((key, content))
}

fn value(field: &Field, item: &Item<'_>, depth: usize) -> Result<Value, ProtobufError> {
    let wrong = || ProtobufError::Value(field.name);
    match (field.kind.as_bytes()[0], item) {
        (b'i', Item::Number(number)) => Ok(json!(*number as i64)),
        (b'b', Item::Number(number)) => Ok(json!(*number != 0)),
        (b'd', Item::Number(bits)) => Ok(json!(f64::from_bits(*bits))),
        (b's', Item::Bytes(text)) => Ok(json!(std::str::from_utf8(text).map_err(|_| wrong())?)),
        (b'y', Item::Bytes(bytes)) => Ok(json!(STANDARD.encode(bytes))),
        (b'm', Item::Bytes(bytes)) => Ok(Value::Object(message(&field.kind[1..], bytes, depth + 1)?)),
        (b't' | b'u', Item::Bytes(bytes)) => time(bytes, field.kind == "u").ok_or_else(wrong),
        (b'q', Item::Bytes(bytes)) => Ok(first(bytes, 1).map_or(json!("0"), |text| json!(string(text)))),
        (b'j', Item::Bytes(bytes)) => match first(bytes, 1) {
            Some(raw) => serde_json::from_slice(raw).map_err(|_| wrong()),
            None => Ok(Value::Null),
        },
        (b'o', Item::Bytes(bytes)) => int_or_string(bytes),
        (b'l', Item::Bytes(bytes)) => strings(bytes, 1),
        (b'B', Item::Bytes(bytes)) => match first(bytes, 2) {
            Some(schema) => schema_of(schema, depth),
            None => Ok(json!(number(bytes, 1) != 0)),
        },
        (b'A', Item::Bytes(bytes)) => {
            let mut list = Vec::new();
            for item in Wire(bytes) {
                if let (2, Item::Bytes(schema)) = item? {
                    list.push(schema_of(schema, depth)?);
                }
            }
            if list.is_empty() {
                first(bytes, 1).map_or(Ok(Value::Null), |s| schema_of(s, depth))
            } else {
                Ok(json!(list))
            }
        }
        (b'S', Item::Bytes(bytes)) => match first(bytes, 1) {
            Some(schema) => schema_of(schema, depth),
            None => strings(bytes, 2),
        },
        _ => Err(wrong()),
    }
}

fn schema_of(bytes: &[u8], depth: usize) -> Result<Value, ProtobufError> {
    message(SCHEMA, bytes, depth + 1).map(Value::Object)
}

fn strings(bytes: &[u8], wanted: u64) -> Result<Value, ProtobufError> {
    let mut list = Vec::new();
    for item in Wire(bytes) {
        match item? {
            (number, Item::Bytes(text)) if number == wanted => list.push(json!(string(text))),
            _ => {}
        }
    }
    Ok(json!(list))
}

fn int_or_string(bytes: &[u8]) -> Result<Value, ProtobufError> {
    Ok(match number(bytes, 1) {
        0 => json!(number(bytes, 2)),
        _ => json!(first(bytes, 3).map(string).unwrap_or_default()),
    })
}

/// A time as JSON; nothing for the zero time.
fn time(bytes: &[u8], micros: bool) -> Option<Value> {
    let (seconds, nanos) = (number(bytes, 1), number(bytes, 2));
    if seconds == 0 && nanos == 0 {
        return Some(Value::Null);
    }
    let time = Timestamp::new(seconds, i32::try_from(nanos).ok()?).ok()?;
    let format = if micros { "%Y-%m-%dT%H:%M:%S.%6fZ" } else { "%Y-%m-%dT%H:%M:%SZ" };
    Some(json!(time.strftime(format).to_string()))
}

fn first(bytes: &[u8], wanted: u64) -> Option<&[u8]> {
    Wire(bytes).flatten().find_map(|item| match item {
        (number, Item::Bytes(bytes)) if number == wanted => Some(bytes),
        _ => None,
    })
}

fn number(bytes: &[u8], wanted: u64) -> i64 {
    let found = Wire(bytes).flatten().find_map(|item| match item {
        (number, Item::Number(value)) if number == wanted => Some(value as i64),
        _ => None,
    });
    found.unwrap_or(0)
}

fn string(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// One value on the wire.
enum Item<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

/// The fields of a message, as they come. Ends after the first error.
struct Wire<'a>(&'a [u8]);

impl<'a> Wire<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(head)
    }

    fn varint(&mut self) -> Option<u64> {
        let mut value = 0u64;
        for shift in (0..70).step_by(7) {
            let byte = self.take(1)?[0];
            if shift < 64 {
                value |= u64::from(byte & 0x7f) << shift;
            }
            if byte < 0x80 {
                return Some(value);
            }
        }
        None
    }

    fn item(&mut self) -> Option<(u64, Item<'a>)> {
        let key = self.varint()?;
        let item = match key & 7 {
            0 => Item::Number(self.varint()?),
            1 => Item::Number(u64::from_le_bytes(self.take(8)?.try_into().ok()?)),
            2 => {
                let length = usize::try_from(self.varint()?).ok()?;
                Item::Bytes(self.take(length)?)
            }
            5 => Item::Number(u64::from(u32::from_le_bytes(self.take(4)?.try_into().ok()?))),
            _ => return None,
        };
        Some((key >> 3, item))
    }
}

impl<'a> Iterator for Wire<'a> {
    type Item = Result<(u64, Item<'a>), ProtobufError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        match self.item() {
            Some(item) => Some(Ok(item)),
            None => {
                self.0 = &[];
                Some(Err(ProtobufError::Truncated))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bytes(number: u8, content: &[u8]) -> Vec<u8> {
        let mut out = vec![number << 3 | 2, u8::try_from(content.len()).expect("short")];
        out.extend_from_slice(content);
        out
    }

    fn envelope(version: &str, kind: &str, raw: &[u8]) -> Vec<u8> {
        let meta = [bytes(1, version.as_bytes()), bytes(2, kind.as_bytes())].concat();
        [MAGIC.to_vec(), bytes(1, &meta), bytes(2, raw)].concat()
    }

    #[test]
    fn objects_decode_to_what_json_would_say() {
        let metadata = bytes(1, &[bytes(1, b"a"), bytes(2, b""), bytes(8, b"")].concat());
        let data = bytes(2, &[bytes(1, b"k"), bytes(2, b"v")].concat());
        let object = decode(&envelope("v1", "ConfigMap", &[metadata.clone(), data].concat())).expect("decodes");
        assert_eq!(
            object,
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": {"k": "v"}})
        );
        // Replicas of zero are set, minReadySeconds of zero are not.
        let spec = bytes(2, &[8, 0, 40, 0]);
        let object = decode(&envelope("apps/v1", "Deployment", &[metadata, spec].concat())).expect("decodes");
        assert_eq!(object["spec"], json!({"replicas": 0}));
    }

    /// Without nulls, which mean nothing in built-in kinds, but for those in a JSON value of its own.
    fn without_nulls(value: &mut Value) {
        match value {
            Value::Object(map) => {
                map.retain(|_, value| !value.is_null());
                map.values_mut().for_each(without_nulls);
            }
            Value::Array(list) => list.iter_mut().for_each(without_nulls),
            _ => {}
        }
    }

    #[test]
    fn both_encodings_of_an_object_are_one() {
        let mut count = 0;
        for line in include_str!("../tests/data/protobuf.jsonl").lines() {
            let mut sample: Value = serde_json::from_str(line).expect("a sample");
            let bytes = STANDARD.decode(sample["protobuf"].as_str().expect("bytes")).expect("base64");
            let mut expected = sample["json"].take();
            let mut decoded = decode(&bytes).expect("decodes");
            without_nulls(&mut expected);
            without_nulls(&mut decoded);
            assert_eq!(decoded, expected, "{}", expected["kind"]);
            count += 1;
        }
        assert!(count >= 40, "{count} samples");
    }

    #[test]
    fn what_is_no_message_is_refused() {
        assert_eq!(decode(b"{}"), Err(ProtobufError::Magic));
        assert_eq!(decode(b"k8s\0\x0a\x7f"), Err(ProtobufError::Truncated));
        assert!(matches!(decode(&envelope("v9", "Nothing", b"")), Err(ProtobufError::Unknown { .. })));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(raw in proptest::collection::vec(any::<u8>(), 0..100)) {
            for (version, kind) in [("v1", "Pod"), ("apps/v1", "Deployment"), ("v1", "DeleteOptions")] {
                let _ = decode(&envelope(version, kind, &raw));
            }
        }
    }
}

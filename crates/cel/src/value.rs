//! Values: scalars, JSON read in place, and what Kubernetes' libraries add.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use jiff::Timestamp;
use mycelium_api::quantity::Quantity;
use serde_json::Value as Json;

/// A list or object of JSON, with the schema that describes it, if there is one.
#[derive(Clone, Copy, Debug)]
pub struct Node<'a> {
    /// The JSON.
    pub json: &'a Json,
    /// Its OpenAPI schema.
    pub schema: Option<&'a Json>,
}

/// A key of a map that an expression made.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    /// A boolean.
    Bool(bool),
    /// Any whole number: they are equal across their types.
    Int(i128),
    /// A text.
    Text(String),
}

/// An object of the program around: the authorizer of admission policies.
pub trait Host: fmt::Debug + Send + Sync {
    /// Calls a function on it; none where it has none of that name.
    fn call(&self, function: &str, arguments: &[Value<'_>]) -> Option<Result<Value<'static>, String>>;
    /// The name of its type.
    fn type_name(&self) -> &'static str;
}

/// Parts of a URL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Url {
    pub scheme: String,
    pub host: String,
    pub path: String,
    pub query: String,
}

/// A value of the language.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub enum Value<'a> {
    Null,
    Bool(bool),
    Int(i64),
    Uint(u64),
    Double(f64),
    Text(Cow<'a, str>),
    Bytes(Arc<[u8]>),
    List(Arc<Vec<Value<'a>>>),
    Map(Arc<BTreeMap<Key, Value<'a>>>),
    /// A list or object from outside.
    Node(Node<'a>),
    Timestamp(Timestamp),
    /// Nanoseconds.
    Duration(i64),
    Type(String),
    Optional(Option<Box<Value<'a>>>),
    Quantity(Quantity),
    Url(Arc<Url>),
    Ip(std::net::IpAddr),
    Cidr(ipnet::IpNet),
    Semver(Arc<(u64, u64, u64, String)>),
    Format(&'static str),
    Host(Arc<dyn Host>),
}

impl<'a> Value<'a> {
    /// JSON from outside, described by a schema or by itself.
    pub fn json(json: &'a Json, schema: Option<&'a Json>) -> Self {
        match json {
            Json::Null => Self::Null,
            Json::Bool(flag) => Self::Bool(*flag),
            Json::Number(number) => number_of(number, schema),
            Json::String(text) => text_of(text, schema),
            Json::Array(_) | Json::Object(_) => Self::Node(Node { json, schema }),
        }
    }

    /// A text.
    pub fn text(text: impl Into<String>) -> Self {
        Self::Text(Cow::Owned(text.into()))
    }

    /// The name of its type, as `type()` and errors show it.
    pub fn type_name(&self) -> String {
        match self {
            Self::Null => "null_type",
            Self::Bool(_) => "bool",
            Self::Int(_) => "int",
            Self::Uint(_) => "uint",
            Self::Double(_) => "double",
            Self::Text(_) => "string",
            Self::Bytes(_) => "bytes",
            Self::List(_) => "list",
            Self::Node(node) if node.json.is_array() => "list",
            Self::Map(_) | Self::Node(_) => "map",
            Self::Timestamp(_) => "google.protobuf.Timestamp",
            Self::Duration(_) => "google.protobuf.Duration",
            Self::Type(_) => "type",
            Self::Optional(_) => "optional_type",
            Self::Quantity(_) => "kubernetes.Quantity",
            Self::Url(_) => "kubernetes.URL",
            Self::Ip(_) => "net.IP",
            Self::Cidr(_) => "net.CIDR",
            Self::Semver(_) => "kubernetes.Semver",
            Self::Format(_) => "kubernetes.NamedFormat",
            Self::Host(host) => return host.type_name().to_owned(),
        }
        .to_owned()
    }

    /// The elements of a list; none if it is no list.
    pub fn elements(&self) -> Option<Vec<Value<'a>>> {
        match self {
            Self::List(items) => Some(items.to_vec()),
            Self::Node(node) => {
                let schema = node.schema.and_then(|schema| schema.get("items"));
                Some(node.json.as_array()?.iter().map(|item| Self::json(item, schema)).collect())
            }
            _ => None,
        }
    }

    /// The keys of a map; none if it is no map.
    pub fn keys(&self) -> Option<Vec<Value<'a>>> {
        match self {
            Self::Map(entries) => Some(entries.keys().map(Key::to_value).collect()),
            Self::Node(node) => {
                Some(node.json.as_object()?.keys().map(|key| Self::Text(Cow::Borrowed(key.as_str()))).collect())
            }
            _ => None,
        }
    }

    /// The length of a text, list or map.
    pub fn size(&self) -> Option<usize> {
        match self {
            Self::Text(text) => Some(text.chars().count()),
            Self::Bytes(bytes) => Some(bytes.len()),
            Self::List(items) => Some(items.len()),
            Self::Map(entries) => Some(entries.len()),
            Self::Node(node) => {
                node.json.as_array().map(Vec::len).or_else(|| node.json.as_object().map(serde_json::Map::len))
            }
            _ => None,
        }
    }

    /// The member of a map under a name.
    pub fn member(&self, name: &str) -> Option<Value<'a>> {
        match self {
            Self::Map(entries) => entries.get(&Key::Text(name.to_owned())).cloned(),
            Self::Node(node) => {
                let json = node.json.as_object()?.get(name)?;
                let property = node.schema.and_then(|schema| schema.get("properties")?.get(name));
                let schema = property.or_else(|| node.schema?.get("additionalProperties"));
                Some(Self::json(json, schema))
            }
            _ => None,
        }
    }

    /// The same value as JSON.
    pub fn to_json(&self) -> Json {
        match self {
            Self::Null => Json::Null,
            Self::Bool(flag) => (*flag).into(),
            Self::Int(number) => (*number).into(),
            Self::Uint(number) => (*number).into(),
            Self::Double(number) => (*number).into(),
            Self::Text(text) => text.as_ref().into(),
            Self::List(items) => items.iter().map(Self::to_json).collect(),
            Self::Map(entries) => entries.iter().map(|(key, value)| (key.to_string(), value.to_json())).collect(),
            Self::Node(node) => node.json.clone(),
            Self::Optional(inner) => inner.as_ref().map_or(Json::Null, |inner| inner.to_json()),
            other => crate::functions::show(other).into(),
        }
    }
}

fn number_of<'a>(number: &serde_json::Number, schema: Option<&Json>) -> Value<'a> {
    let double = schema.is_some_and(|schema| schema["type"] == "number");
    match number.as_i64() {
        Some(whole) if !double => Value::Int(whole),
        _ => Value::Double(number.as_f64().unwrap_or_default()),
    }
}

fn text_of<'a>(text: &'a str, schema: Option<&Json>) -> Value<'a> {
    let plain = Value::Text(Cow::Borrowed(text));
    match schema.and_then(|schema| schema.get("format")?.as_str()) {
        Some("date-time") => text.parse().map_or(plain, Value::Timestamp),
        Some("date") => format!("{text}T00:00:00Z").parse().map_or(plain, Value::Timestamp),
        Some("duration") => crate::functions::duration(text).map_or(plain, Value::Duration),
        Some("byte") => {
            use base64::Engine;
            let decoded = base64::engine::general_purpose::STANDARD.decode(text);
            decoded.map_or(plain, |bytes| Value::Bytes(bytes.into()))
        }
        _ => plain,
    }
}

impl Key {
    /// The key as a value.
    pub fn to_value<'a>(&self) -> Value<'a> {
        match self {
            Self::Bool(flag) => Value::Bool(*flag),
            Self::Int(number) => i64::try_from(*number).map_or_else(|_| Value::Uint(*number as u64), Value::Int),
            Self::Text(text) => Value::text(text.as_str()),
        }
    }

    /// A value as a key, if it can be one.
    pub fn of(value: &Value<'_>) -> Option<Self> {
        Some(match value {
            Value::Bool(flag) => Self::Bool(*flag),
            Value::Int(number) => Self::Int((*number).into()),
            Value::Uint(number) => Self::Int((*number).into()),
            Value::Double(number) if number.fract() == 0.0 && number.abs() < 1e18 => Self::Int(*number as i128),
            Value::Text(text) => Self::Text(text.to_string()),
            _ => return None,
        })
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bool(flag) => write!(f, "{flag}"),
            Self::Int(number) => write!(f, "{number}"),
            Self::Text(text) => f.write_str(text),
        }
    }
}

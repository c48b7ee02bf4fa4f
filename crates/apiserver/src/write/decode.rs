//! Request bodies to objects, with the refusals of Kubernetes' decoder.

use mycelium_apimachinery::decode::{self, DecodeError, Limits};
use mycelium_apimachinery::schema::Type;
use serde_json::{Value, json};

use super::options::FieldValidation;
use crate::error::ApiError;
use crate::media::{self, BodyFormat};
use crate::protobuf;
use crate::route::Context;

/// What a body must be.
pub struct Expected<'a> {
    /// API version.
    pub api_version: String,
    /// Kind.
    pub kind: &'a str,
    /// Its schema.
    pub schema: &'static Type,
    /// Whether types are checked later, by a schema of its own.
    pub custom: bool,
}

impl Expected<'static> {
    /// An object of the resource.
    pub fn of(cx: &Context<'_>) -> Self {
        Self {
            api_version: cx.resource.api_version(),
            kind: cx.resource.kind(),
            schema: cx.resource.schema,
            custom: cx.resource.custom.is_some(),
        }
    }

    /// An object of another kind, by the built-in schema.
    pub fn kind(group: &'static str, version: &'static str, kind: &'static str) -> Self {
        use mycelium_apimachinery::schema;
        let schema = schema::types().for_gvk(group, version, kind).unwrap_or(&schema::ANY);
        Self { api_version: schema::api_version(group, version), kind, schema, custom: false }
    }
}

impl Expected<'_> {
    fn refuse(&self, why: impl std::fmt::Display) -> ApiError {
        let version = &self.api_version;
        ApiError::bad(format!("{0} in version {version:?} cannot be handled as a {0}: {why}", self.kind))
    }
}

/// Decodes a body that is an object.
pub fn object(
    cx: &Context<'_>,
    body: &[u8],
    expected: &Expected<'_>,
    validation: FieldValidation,
) -> Result<(Value, Vec<String>), ApiError> {
    let (mut value, mut notes) = syntax(media::body_format(cx.headers)?, body, expected.kind)?;
    check_kind(&mut value, expected)?;
    notes.extend(typed(&mut value, expected)?);
    Ok((value, judge(notes, expected, validation)?))
}

/// Text to a value; also returns what strict validation dislikes.
pub fn syntax(format: BodyFormat, body: &[u8], kind: &str) -> Result<(Value, Vec<String>), ApiError> {
    let decoded = match format {
        BodyFormat::Protobuf => {
            let object = protobuf::decode(body).map_err(|error| unrecognized(kind, &error.to_string(), body))?;
            return Ok((object, Vec::new()));
        }
        BodyFormat::Json => decode::json(body, Limits::default()),
        BodyFormat::Yaml => decode::yaml(body, Limits::default()),
    };
    match decoded {
        Ok((value @ Value::Object(_), notes)) => Ok((value, notes.into_iter().map(|n| n.0).collect())),
        Ok((value, _)) => {
            let why = format!(
                "couldn't get version/kind; json parse error: json: cannot unmarshal {} into Go value of type struct \
                 {{ APIVersion string \"json:\\\"apiVersion,omitempty\\\"\"; Kind string \"json:\\\"kind,omitempty\\\"\" }}",
                decode::json_kind(&value)
            );
            Err(unrecognized(kind, &why, body))
        }
        Err(DecodeError::TooDeep) => Err(unrecognized(kind, &DecodeError::TooDeep.to_string(), body)),
        Err(error) => Err(unrecognized(kind, &format!("couldn't get version/kind; json parse error: {error}"), body)),
    }
}

fn unrecognized(kind: &str, why: &str, body: &[u8]) -> ApiError {
    ApiError::bad(format!("the object provided is unrecognized (must be of type {kind}): {why} ({})", summary(body)))
}

/// The beginning of a body, for error messages.
fn summary(body: &[u8]) -> String {
    const SHOWN: usize = 30;
    let cut = &body[..body.len().min(SHOWN)];
    let more = if body.len() > SHOWN { " ..." } else { "" };
    match body.first() {
        None => "<empty>".to_owned(),
        Some(b'{') => format!("{}{more}", String::from_utf8_lossy(cut)),
        Some(_) => format!("{}{more}", cut.iter().map(|b| format!("{b:02x}")).collect::<String>()),
    }
}

/// Fills in version and kind where they are missing, and refuses others.
pub fn check_kind(value: &mut Value, expected: &Expected<'_>) -> Result<(), ApiError> {
    let text = |v: &Value| v.as_str().unwrap_or_default().to_owned();
    let (version, kind) = (text(&value["apiVersion"]), text(&value["kind"]));
    if !version.is_empty() && version != expected.api_version {
        return Err(ApiError::bad(format!(
            "the API version in the data ({version}) does not match the expected API version ({})",
            expected.api_version
        )));
    }
    if !kind.is_empty() && kind != expected.kind {
        return Err(ApiError::bad(format!(
            "{kind} in version {:?} cannot be handled as a {}: converting (v1.{kind}) to (core.{}): unknown conversion",
            expected.api_version, expected.kind, expected.kind
        )));
    }
    value["apiVersion"] = json!(expected.api_version);
    value["kind"] = json!(expected.kind);
    Ok(())
}

/// Checks types, lists unknown fields, and keeps what a typed decoder keeps.
pub fn typed(value: &mut Value, expected: &Expected<'_>) -> Result<Vec<String>, ApiError> {
    if !expected.custom {
        decode::check_types(expected.schema, value).map_err(|error| expected.refuse(error))?;
    }
    let unknown = decode::check_strict(expected.schema, value);
    decode::prune(expected.schema, value);
    if !value["metadata"].is_object() {
        value["metadata"] = json!({});
    }
    Ok(unknown)
}

/// Refuses, warns or keeps silent about what strict validation dislikes.
pub fn judge(
    notes: Vec<String>,
    expected: &Expected<'_>,
    validation: FieldValidation,
) -> Result<Vec<String>, ApiError> {
    match validation {
        FieldValidation::Ignore => Ok(Vec::new()),
        FieldValidation::Strict if !notes.is_empty() => {
            Err(expected.refuse(format!("strict decoding error: {}", notes.join(", "))))
        }
        _ => Ok(notes),
    }
}

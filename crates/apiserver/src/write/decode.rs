//! Request bodies to objects, with the refusals of Kubernetes' decoder.

use mycelium_apimachinery::decode::{self, DecodeError, Limits, TypeError};
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
    pub schema: &'a Type,
    /// Whether types are checked later, by a schema of its own.
    pub custom: bool,
}

impl<'a> Expected<'a> {
    /// An object of the resource.
    pub fn of(cx: &Context<'a>) -> Self {
        Self {
            api_version: cx.resource.api_version(),
            kind: cx.resource.kind(),
            schema: &cx.resource.schema,
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
    /// The refusal of a body that says that it is of a kind in a version, or does not say.
    fn refuse(&self, kind: &str, api_version: &str, why: impl std::fmt::Display) -> ApiError {
        let version = group_version(api_version).1;
        ApiError::bad(format!("{kind} in version {version:?} cannot be handled as a {}: {why}", self.kind))
    }
}

fn group_version(api_version: &str) -> (&str, &str) {
    api_version.split_once('/').unwrap_or(("", api_version))
}

/// Decodes a body that is an object.
pub fn object(
    cx: &Context<'_>,
    body: &[u8],
    expected: &Expected<'_>,
    validation: FieldValidation,
) -> Result<(Value, Vec<String>), ApiError> {
    let format = media::body_format(cx.headers)?;
    let (mut value, mut notes) = syntax(format, body, expected.kind)?;
    check_kind(&mut value, expected)?;
    notes
        .extend(typed(&mut value, expected).map_err(|why| expected.refuse(expected.kind, &expected.api_version, why))?);
    if notes.len() > 1 && format == BodyFormat::Json && !expected.custom {
        decode::in_document_order(body, Limits::default(), &mut notes);
    }
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
        // Nothing is an object of which everything is left open.
        Ok((Value::Null, _)) => Ok((json!({}), Vec::new())),
        Ok((value, _)) => {
            let why = format!(
                "couldn't get version/kind; json parse error: json: cannot unmarshal {} into Go value of type struct \
                 {{ APIVersion string \"json:\\\"apiVersion,omitempty\\\"\"; Kind string \"json:\\\"kind,omitempty\\\"\" }}",
                decode::json_kind(&value)
            );
            Err(unrecognized(kind, &why, body))
        }
        Err(DecodeError::TooDeep) => Err(unrecognized(kind, &DecodeError::TooDeep.to_string(), body)),
        Err(DecodeError::Syntax(text)) if format == BodyFormat::Yaml => {
            Err(unrecognized(kind, text.strip_prefix(YAML_PREFIX).unwrap_or(&text), body))
        }
        Err(error) => Err(unrecognized(kind, &format!("couldn't get version/kind; json parse error: {error}"), body)),
    }
}

/// How errors of YAML begin where it is read into a value at once.
pub const YAML_PREFIX: &str = "error converting YAML to JSON: ";

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
    let text = |field: &str, default: &str| match value[field].as_str() {
        None | Some("") => default.to_owned(),
        Some(given) => given.to_owned(),
    };
    let (version, kind) = (text("apiVersion", &expected.api_version), text("kind", expected.kind));
    if expected.custom && kind != expected.kind && version == expected.api_version {
        let path = mycelium_api::field::Path::new("kind");
        let why = format!("must be {}", expected.kind);
        let (group, _) = group_version(&expected.api_version);
        return Err(ApiError::Invalid {
            group: group.to_owned(),
            kind: expected.kind.to_owned(),
            name: value["metadata"]["name"].as_str().unwrap_or_default().to_owned(),
            errors: vec![mycelium_api::field::FieldError::invalid(&path, kind, why)],
        });
    }
    if kind != expected.kind || version != expected.api_version {
        match kind_fault(&version, &kind, expected) {
            Some(why) => return Err(expected.refuse(&kind, &version, why)),
            None => {
                return Err(ApiError::bad(format!(
                    "the API version in the data ({version}) does not match the expected API version ({})",
                    expected.api_version
                )));
            }
        }
    }
    value["apiVersion"] = json!(expected.api_version);
    value["kind"] = json!(expected.kind);
    Ok(())
}

/// Why an object cannot become one of the expected kind; none if it could, were its version served here.
pub fn kind_fault(api_version: &str, kind: &str, expected: &Expected<'_>) -> Option<String> {
    const SCHEME: &str = "pkg/api/legacyscheme/scheme.go:30";
    let (group, version) = group_version(api_version);
    let wanted = group_version(&expected.api_version).0;
    let inner = |group: &str| match group {
        "" | "events.k8s.io" => "core".to_owned(),
        group => group.split('.').next().unwrap_or_default().to_owned(),
    };
    if !expected.custom && mycelium_apimachinery::schema::types().for_gvk(group, version, kind).is_none() {
        return Some(format!("no kind {kind:?} is registered for version {api_version:?} in scheme {SCHEME:?}"));
    }
    if kind == expected.kind && inner(group) == inner(wanted) {
        return None;
    }
    let (to, target) = (inner(wanted), expected.kind);
    Some(format!("converting ({version}.{kind}) to ({to}.{target}): unknown conversion"))
}

/// Checks types, lists unknown fields, and keeps what a typed decoder keeps.
pub fn typed(value: &mut Value, expected: &Expected<'_>) -> Result<Vec<String>, TypeError> {
    if !expected.custom {
        decode::check_types(expected.schema, value)?;
    }
    Ok(kept(value, expected))
}

/// Drops and lists what a typed decoder does not keep.
pub fn kept(value: &mut Value, expected: &Expected<'_>) -> Vec<String> {
    let unknown = decode::check_strict(expected.schema, value);
    decode::prune(expected.schema, value);
    if !value["metadata"].is_object() {
        value["metadata"] = json!({});
    }
    unknown
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
            let why = format!("strict decoding error: {}", notes.join(", "));
            Err(expected.refuse(expected.kind, &expected.api_version, why))
        }
        _ => Ok(notes.iter().flat_map(|note| warnings(note)).collect()),
    }
}

/// What a fault is as warnings: YAML's comes as lines below a title.
pub fn warnings(note: &str) -> Vec<String> {
    let plain = note.strip_prefix(YAML_PREFIX).unwrap_or(note);
    match plain.strip_prefix("yaml: unmarshal errors:\n") {
        Some(lines) => lines.lines().map(|line| line.trim().to_owned()).collect(),
        None => vec![note.to_owned()],
    }
}

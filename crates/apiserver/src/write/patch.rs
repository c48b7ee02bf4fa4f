//! Patches: JSON, merge, strategic merge, and server-side apply.

use http::{Response, StatusCode};
use mycelium_api::field::{FieldError, Path};
use mycelium_apimachinery::{apply, decode as syntax, patch};
use serde_json::{Value, json};

use super::create;
use super::decode::{self, Expected};
use super::options::{FieldValidation, WriteOptions};
use super::update::{self, Change, Ownership};
use crate::body::Body;
use crate::error::{ApiError, Cause};
use crate::media::{self, PatchFormat};
use crate::read::shape;
use crate::route::Context;

/// Answers a PATCH.
pub async fn patch(cx: &Context<'_>, body: &[u8]) -> Result<Response<Body>, ApiError> {
    let options = WriteOptions::parse(cx, "PatchOptions")?;
    let format = media::patch_format(cx.headers)?;
    if format == PatchFormat::Strategic && cx.resource.custom.is_some() {
        return Err(ApiError::UnsupportedMediaType(media::CUSTOM_PATCH_TYPES));
    }
    if format != PatchFormat::Apply && options.force.is_some() {
        return Err(options_error("force", "may not be specified for non-apply patch"));
    }
    if format == PatchFormat::Apply && cx.query.get("fieldManager").is_none() {
        let error = FieldError::required(&Path::new("fieldManager"), "is required for apply patch");
        return Err(patch_options_invalid(error));
    }
    if format == PatchFormat::Apply && cx.subresource() != Some("scale") {
        return apply(cx, body, &options).await;
    }
    let patch = Patch::parse(format, body, options.validation)?;
    let entry = update::modify(cx, &options, |old| {
        let object = if cx.subresource() == Some("scale") {
            let mut scale = update::scale_of(cx, old);
            scale["metadata"]["resourceVersion"] = Value::Null;
            update::with_scale(cx, old, &patch.outcome(cx, &Expected::kind("autoscaling", "v1", "Scale"), scale)?)?
        } else {
            let mut seen = old.clone();
            // Only a patch that sets the resource version asks for one.
            seen["metadata"]["resourceVersion"].take();
            let mut object = patch.outcome(cx, &Expected::of(cx), seen)?;
            if object["metadata"]["resourceVersion"].is_null() {
                object["metadata"]["resourceVersion"] = json!("");
            }
            update::check_url(cx, &object)?;
            object
        };
        Ok(Change { object, ownership: Ownership::Update })
    })
    .await?;
    match cx.subresource() {
        Some("scale") => update::scale_answer(cx, &entry).await,
        _ => shape::answer(cx, StatusCode::OK, &entry).await,
    }
}

fn options_error(field: &str, why: &str) -> ApiError {
    patch_options_invalid(FieldError::forbidden(&Path::new(field), why))
}

fn patch_options_invalid(error: FieldError) -> ApiError {
    let (group, kind) = ("meta.k8s.io".into(), "PatchOptions".into());
    ApiError::Invalid { group, kind, name: String::new(), errors: vec![error] }
}

/// A patch other than server-side apply.
struct Patch {
    format: PatchFormat,
    value: Value,
    /// What strict validation dislikes about the patch itself.
    faults: Vec<String>,
    validation: FieldValidation,
}

impl Patch {
    fn parse(format: PatchFormat, body: &[u8], validation: FieldValidation) -> Result<Self, ApiError> {
        let start = if format == PatchFormat::Strategic { "" } else { "error decoding patch: " };
        let (value, notes) =
            syntax::json(body, syntax::Limits::default()).map_err(|error| ApiError::bad(format!("{start}{error}")))?;
        if format != PatchFormat::Json && !value.is_object() {
            let kind = syntax::json_kind(&value);
            let text = format!("{start}json: cannot unmarshal {kind} into Go value of type map[string]interface {{}}");
            return Err(ApiError::BadRequest(text));
        }
        let title = if format == PatchFormat::Json { "json patch " } else { "" };
        let mut faults: Vec<String> = notes.into_iter().map(|note| format!("{title}{note}")).collect();
        if format == PatchFormat::Json {
            faults.extend(unknown_members(&value));
        }
        Ok(Self { format, value, faults, validation })
    }

    /// Applies the patch to an object, and checks the outcome as a body would be.
    fn outcome(&self, cx: &Context<'_>, expected: &Expected<'_>, mut object: Value) -> Result<Value, ApiError> {
        match self.format {
            PatchFormat::Merge => patch::merge(&mut object, &self.value),
            PatchFormat::Json => patch::json(&mut object, &self.value).map_err(patch_failure)?,
            _ => patch::strategic(expected.schema, &mut object, &self.value).map_err(patch_failure)?,
        }
        let unknown = self.check(expected, &mut object)?;
        let faults: Vec<String> = self.faults.iter().cloned().chain(unknown).collect();
        match self.validation {
            FieldValidation::Ignore => {}
            FieldValidation::Warn => cx.warnings.extend(faults),
            FieldValidation::Strict if faults.is_empty() => {}
            FieldValidation::Strict => {
                return Err(self.refuse(&object, &format!("strict decoding error: {}", faults.join(", "))));
            }
        }
        decode::kept(&mut object, expected);
        Ok(object)
    }

    /// Checks kind and types; returns the unknown fields.
    fn check(&self, expected: &Expected<'_>, object: &mut Value) -> Result<Vec<String>, ApiError> {
        let checked = if expected.custom { Ok(()) } else { self.types(expected, object) };
        checked.map_err(|why| self.refuse(object, &why))?;
        object["apiVersion"] = json!(expected.api_version);
        object["kind"] = json!(expected.kind);
        Ok(syntax::check_strict(expected.schema, object))
    }

    fn types(&self, expected: &Expected<'_>, object: &Value) -> Result<(), String> {
        if self.format == PatchFormat::Strategic {
            return syntax::check_conversion(expected.schema, object).map_err(|why| why.to_string());
        }
        let text = |field: &str| object[field].as_str().unwrap_or_default();
        let (version, kind) = (text("apiVersion"), text("kind"));
        if (version, kind) != (expected.api_version.as_str(), expected.kind)
            && let Some(why) = decode::kind_fault(version, kind, expected)
        {
            return Err(why);
        }
        syntax::check_types(expected.schema, object).map_err(|why| why.to_string())
    }

    /// The refusal of an outcome that is no object of its kind. Kubernetes names neither kind nor object here.
    fn refuse(&self, object: &Value, why: &str) -> ApiError {
        let shown = match self.format {
            PatchFormat::Strategic => patch::go_text(&self.value),
            _ => {
                let mut shown = object.clone();
                if let Some(metadata) = shown["metadata"].as_object_mut() {
                    metadata.retain(|_, value| !value.is_null());
                }
                shown.to_string()
            }
        };
        let fault = FieldError::invalid(&Path::new("patch"), shown, why);
        ApiError::Invalid { group: String::new(), kind: String::new(), name: String::new(), errors: vec![fault] }
    }
}

/// Members that operations of a JSON patch do not have.
fn unknown_members(patch: &Value) -> Vec<String> {
    let operations = patch.as_array().map(Vec::as_slice).unwrap_or_default().iter().enumerate();
    let members = operations.flat_map(|(at, op)| op.as_object().into_iter().flatten().map(move |(name, _)| (at, name)));
    members
        .filter(|(_, name)| !matches!(name.as_str(), "op" | "path" | "from" | "value"))
        .map(|(at, name)| format!("json patch unknown field \"[{at}].{name}\""))
        .collect()
}

fn patch_failure(error: patch::PatchError) -> ApiError {
    match error {
        patch::PatchError::Malformed(text) => ApiError::BadRequest(text),
        patch::PatchError::Failed(_) => {
            ApiError::Unprocessable("the server rejected our request due to an error in our request".to_owned())
        }
        patch::PatchError::Unfit(text) => ApiError::Typed(text),
        patch::PatchError::TooLarge(_) => ApiError::TooLarge(error.to_string()),
    }
}

/// Server-side apply: creates the object where it is missing.
async fn apply(cx: &Context<'_>, body: &[u8], options: &WriteOptions) -> Result<Response<Body>, ApiError> {
    let expected = Expected::of(cx);
    let (config, faults) = configuration(body)?;
    let text = |field: &str| config[field].as_str().unwrap_or_default();
    let (version, kind) = (text("apiVersion"), text("kind"));
    if version != expected.api_version {
        let wanted = &expected.api_version;
        return Err(ApiError::bad(format!(
            "Incorrect version specified in apply patch. Specified patch version: {version}, expected: {wanted}"
        )));
    }
    if kind != expected.kind {
        let (namespace, name) = (&config["metadata"]["namespace"], &config["metadata"]["name"]);
        let (namespace, name) = (namespace.as_str().unwrap_or_default(), name.as_str().unwrap_or_default());
        let core = if version.contains('/') { "" } else { "/" };
        return Err(ApiError::Typed(format!(
            "failed to create typed patch object ({namespace}/{name}; {version}, Kind={kind}): no corresponding type \
             for {core}{version}, Kind={kind}"
        )));
    }
    let (code, entry) = apply_or_create(cx, &config, &faults, options).await?;
    shape::answer(cx, code, &entry).await
}

/// The configuration in a body, and what strict validation dislikes about it.
fn configuration(body: &[u8]) -> Result<(Value, Vec<String>), ApiError> {
    let failed = |why: String| ApiError::bad(format!("error decoding YAML: {why}"));
    match syntax::yaml(body, syntax::Limits::default()) {
        Ok((Value::Null, _)) => Ok((json!({}), Vec::new())),
        Ok((value @ Value::Object(_), notes)) => {
            Ok((value, notes.into_iter().map(|note| format!("{}{note}", decode::YAML_PREFIX)).collect()))
        }
        Ok((value, _)) => Err(failed(format!(
            "error unmarshaling JSON: while decoding JSON: json: cannot unmarshal {} into Go value of type \
             map[string]interface {{}}",
            syntax::json_kind(&value)
        ))),
        Err(error) => Err(failed(error.to_string())),
    }
}

async fn apply_or_create(
    cx: &Context<'_>,
    config: &Value,
    faults: &[String],
    options: &WriteOptions,
) -> Result<(StatusCode, mycelium_store::Entry), ApiError> {
    for _ in 0..4 {
        if cx.server.store.get(&cx.key()).is_none() && cx.subresource().is_none() {
            if config["metadata"]["uid"].as_str().is_some_and(|uid| !uid.is_empty()) {
                let message = "uid mismatch: the provided object specified uid, and no existing object was found";
                return Err(ApiError::Conflict { subject: cx.subject(), message: message.to_owned() });
            }
            let object = merged(cx, None, config, faults, options)?;
            update::check_url(cx, &object)?;
            match create::object_from(cx, object, options, Ownership::Applied).await {
                Err(ApiError::AlreadyExists(_)) => continue,
                created => return Ok((StatusCode::CREATED, created?)),
            }
        }
        let updated = update::modify(cx, options, |old| {
            let mut object = merged(cx, Some(old), config, faults, options)?;
            update::check_url(cx, &object)?;
            object["metadata"]["resourceVersion"] = config["metadata"]["resourceVersion"].clone();
            Ok(Change { object, ownership: Ownership::Applied })
        })
        .await;
        match updated {
            Err(ApiError::NotFound(_)) if cx.subresource().is_none() => {}
            updated => return Ok((StatusCode::OK, updated?)),
        }
    }
    Err(ApiError::NotFound(cx.subject()))
}

/// The object that results. Unknown fields are refused whatever is asked of validation: nobody could own them.
fn merged(
    cx: &Context<'_>,
    live: Option<&Value>,
    config: &Value,
    faults: &[String],
    options: &WriteOptions,
) -> Result<Value, ApiError> {
    let operation = create::operation(cx, options);
    let mut object = apply::apply(&cx.resource.schema, live, config, &operation).map_err(refused)?;
    match options.validation {
        FieldValidation::Strict if !faults.is_empty() => {
            return Err(ApiError::bad(format!("error strict decoding YAML: {}", faults.join(", "))));
        }
        FieldValidation::Warn => cx.warnings.extend(faults.iter().flat_map(|fault| decode::warnings(fault))),
        _ => {}
    }
    if cx.resource.custom.is_none() {
        syntax::check_types(&cx.resource.schema, &object).map_err(|why| unconvertible(cx, config, &why.to_string()))?;
    }
    decode::kept(&mut object, &Expected::of(cx));
    Ok(object)
}

fn unconvertible(cx: &Context<'_>, config: &Value, why: &str) -> ApiError {
    let text = |field: &str| config["metadata"][field].as_str().unwrap_or_default();
    ApiError::Typed(format!(
        "failed to convert new object ({}/{}; {}, Kind={}) to proper version: {why}",
        text("namespace"),
        text("name"),
        cx.resource.api_version(),
        cx.resource.kind()
    ))
}

fn refused(error: apply::ApplyError) -> ApiError {
    match error {
        apply::ApplyError::Conflicts(conflicts) => conflict(&conflicts),
        apply::ApplyError::BadRequest(text) => ApiError::BadRequest(text),
        apply::ApplyError::Typed(text) => ApiError::Typed(text),
    }
}

fn conflict(conflicts: &apply::Conflicts) -> ApiError {
    let causes = conflicts.causes().into_iter().map(|conflict| Cause {
        reason: "FieldManagerConflict".into(),
        message: conflict.message(),
        field: conflict.path,
    });
    ApiError::ApplyConflict { message: conflicts.to_string(), causes: causes.collect() }
}

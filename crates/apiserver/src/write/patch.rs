//! Patches: JSON, merge, strategic merge, and server-side apply.

use http::{Response, StatusCode};
use mycelium_apimachinery::{apply, decode as syntax, patch};
use serde_json::{Value, json};

use super::create;
use super::decode::{self, Expected};
use super::options::WriteOptions;
use super::update::{self, Change, Ownership};
use crate::body::Body;
use crate::error::{ApiError, Cause};
use crate::media::{self, BodyFormat, PatchFormat};
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
        let error = mycelium_api::field::FieldError::required(
            &mycelium_api::field::Path::new("fieldManager"),
            "is required for apply patch",
        );
        return Err(patch_options_invalid(error));
    }
    if format == PatchFormat::Apply && cx.subresource() != Some("scale") {
        return apply(cx, body, &options).await;
    }
    let patch = parse(format, body)?;
    let entry = update::modify(cx, &options, |old| {
        let object = if cx.subresource() == Some("scale") {
            let mut scale = mycelium_kinds::scale::of(old);
            let expected = Expected::kind("autoscaling", "v1", "Scale");
            scale["metadata"]["resourceVersion"] = Value::Null;
            let scale = patched(format, &expected, scale, &patch)?;
            cx.warnings.extend(decode::judge(scale.1, &expected, options.validation)?);
            update::with_scale(cx, old, &scale.0)?
        } else {
            let mut seen = old.clone();
            // Only a patch that sets the resource version asks for one.
            seen["metadata"]["resourceVersion"].take();
            let (mut object, notes) = patched(format, &Expected::of(cx), seen, &patch)?;
            cx.warnings.extend(decode::judge(notes, &Expected::of(cx), options.validation)?);
            if object["metadata"]["resourceVersion"].is_null() {
                object["metadata"]["resourceVersion"] = json!("");
            }
            object
        };
        if cx.subresource() != Some("scale") {
            update::check_url(cx, &object)?;
        }
        Ok(Change { object, ownership: Ownership::Update })
    })
    .await?;
    match cx.subresource() {
        Some("scale") => update::scale_answer(cx, &entry),
        _ => shape::stored(cx, StatusCode::OK, &entry.value, entry.mod_revision),
    }
}

fn options_error(field: &str, why: &str) -> ApiError {
    patch_options_invalid(mycelium_api::field::FieldError::forbidden(&mycelium_api::field::Path::new(field), why))
}

fn patch_options_invalid(error: mycelium_api::field::FieldError) -> ApiError {
    let (group, kind) = ("meta.k8s.io".into(), "PatchOptions".into());
    ApiError::Invalid { group, kind, name: String::new(), errors: vec![error] }
}

fn parse(format: PatchFormat, body: &[u8]) -> Result<Value, ApiError> {
    let (patch, _) = syntax::json(body, syntax::Limits::default())
        .map_err(|error| ApiError::bad(format!("error decoding patch: {error}")))?;
    let fits = if format == PatchFormat::Json { patch.is_array() } else { patch.is_object() };
    if fits {
        return Ok(patch);
    }
    Err(ApiError::bad(match format {
        PatchFormat::Json => {
            "error decoding patch: json: cannot unmarshal object into Go value of type jsonpatch.Patch".to_owned()
        }
        _ => "error decoding patch: json: cannot unmarshal array into Go value of type map[string]interface {}"
            .to_owned(),
    }))
}

/// Applies a patch to an object and checks the outcome as a body would be.
fn patched(
    format: PatchFormat,
    expected: &Expected<'_>,
    mut object: Value,
    patch: &Value,
) -> Result<(Value, Vec<String>), ApiError> {
    match format {
        PatchFormat::Merge => patch::merge(&mut object, patch),
        PatchFormat::Json => patch::json(&mut object, patch).map_err(patch_failure)?,
        _ => patch::strategic(expected.schema, &mut object, patch).map_err(patch_failure)?,
    }
    decode::check_kind(&mut object, expected)?;
    let notes = decode::typed(&mut object, expected)?;
    Ok((object, notes))
}

fn patch_failure(error: patch::PatchError) -> ApiError {
    match error {
        patch::PatchError::Malformed(text) => ApiError::BadRequest(text),
        patch::PatchError::Failed(_) => {
            ApiError::Unprocessable(format!("the server rejected our request due to an error in our request: {error}"))
        }
        patch::PatchError::TooLarge(_) => ApiError::TooLarge { limit: crate::body::MAX_BODY_BYTES },
    }
}

/// Server-side apply: creates the object where it is missing.
async fn apply(cx: &Context<'_>, body: &[u8], options: &WriteOptions) -> Result<Response<Body>, ApiError> {
    let expected = Expected::of(cx);
    let (mut config, mut notes) = decode::syntax(BodyFormat::Yaml, body, expected.kind)?;
    for field in ["apiVersion", "kind"] {
        if config[field].as_str().is_none_or(str::is_empty) {
            return Err(ApiError::bad(format!("Object '{field}' is missing")));
        }
    }
    decode::check_kind(&mut config, &expected)?;
    if config["metadata"]["managedFields"].as_array().is_some_and(|fields| !fields.is_empty()) {
        return Err(ApiError::bad("metadata.managedFields must be nil"));
    }
    if config["metadata"]["name"].is_null() {
        config["metadata"]["name"] = json!(cx.path.name);
    }
    update::check_url(cx, &config)?;
    notes.extend(decode::typed(&mut config, &expected)?);
    let warnings = decode::judge(notes, &expected, options.validation)?;
    cx.warnings.extend(warnings);
    let (code, entry) = apply_or_create(cx, &config, options).await?;
    shape::stored(cx, code, &entry.value, entry.mod_revision)
}

async fn apply_or_create(
    cx: &Context<'_>,
    config: &Value,
    options: &WriteOptions,
) -> Result<(StatusCode, mycelium_store::Entry), ApiError> {
    for _ in 0..4 {
        if cx.server.store.get(&cx.key()).is_none() && cx.subresource().is_none() {
            if config["metadata"]["uid"].as_str().is_some_and(|uid| !uid.is_empty()) {
                let message = "uid mismatch: the provided object specified uid, and no existing object was found";
                return Err(ApiError::Conflict { subject: cx.subject(), message: message.to_owned() });
            }
            match create::object_from(cx, merged(cx, None, config, options)?, options, Ownership::Applied).await {
                Err(ApiError::AlreadyExists(_)) => continue,
                created => return Ok((StatusCode::CREATED, created?)),
            }
        }
        let updated = update::modify(cx, options, |old| {
            let mut object = merged(cx, Some(old), config, options)?;
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

fn merged(cx: &Context<'_>, live: Option<&Value>, config: &Value, options: &WriteOptions) -> Result<Value, ApiError> {
    let operation = create::operation(cx, options);
    apply::apply(cx.resource.schema, live, config, &operation).map_err(refused)
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

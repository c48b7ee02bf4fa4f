//! Mutating and validating webhooks: which are asked, in which order, and what becomes of their answers.

use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use serde_json::{Value, json};

use super::environment::Environment;
use super::{Write, call, matching, stored};
use crate::error::ApiError;
use crate::route::Context;
use crate::write::decode::{self, Expected};

/// Lets the mutating webhooks change an object. `object` and `old` are in storage form, and stay so.
pub async fn mutate(
    cx: &Context<'_>,
    operation: &'static str,
    object: Option<&mut Value>,
    old: Option<&Value>,
    dry_run: bool,
) -> Result<(), ApiError> {
    let Some(mut write) = Write::new(cx, operation, object.as_deref(), old, dry_run) else { return Ok(()) };
    let hooks = hooks(cx, "mutatingwebhookconfigurations")?;
    let before = write.object.clone();
    // For each hook that was asked: how many changes there had been when it answered.
    let mut asked: Vec<Option<usize>> = vec![None; hooks.len()];
    let mut changes = 0;
    for round in 0..2 {
        for (index, (configuration, hook)) in hooks.iter().enumerate() {
            let again = round == 1
                && hook["reinvocationPolicy"] == "IfNeeded"
                && asked[index].is_some_and(|seen| seen < changes);
            if round == 1 && !again {
                continue;
            }
            let Some(answer) = ask(&write, configuration, hook).await? else { continue };
            let patched = patched(&write, hook, &answer)?;
            if patched != write.object {
                write.object = patched;
                changes += 1;
            }
            asked[index] = Some(changes);
        }
    }
    if let (Some(object), true) = (object, write.object != before) {
        let mut changed = write.object;
        cx.resource.fill_defaults(&mut changed);
        *object = crate::write::create::to_storage(cx, changed);
    }
    Ok(())
}

/// Asks all webhooks about a connection: none can change it.
pub async fn connect(write: &Write<'_>) -> Result<(), ApiError> {
    for (configuration, hook) in hooks(write.cx, "mutatingwebhookconfigurations")? {
        ask(write, &configuration, &hook).await?;
    }
    validate(write).await
}

/// Asks the validating webhooks, all at once; the first that refuses decides.
pub async fn validate(write: &Write<'_>) -> Result<(), ApiError> {
    let hooks = hooks(write.cx, "validatingwebhookconfigurations")?;
    let mut asked: FuturesUnordered<_> =
        hooks.iter().map(|(configuration, hook)| ask(write, configuration, hook)).collect();
    while let Some(answer) = asked.next().await {
        answer?;
    }
    Ok(())
}

/// Every webhook, by the name of its configuration, in the order of those names.
fn hooks(cx: &Context<'_>, resource: &str) -> Result<Vec<(String, Value)>, ApiError> {
    let mut hooks = Vec::new();
    for configuration in stored(cx, resource)? {
        let name = configuration["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        let list = configuration["webhooks"].as_array().into_iter().flatten();
        hooks.extend(list.map(|hook| (name.clone(), hook.clone())));
    }
    Ok(hooks)
}

/// Asks one webhook, if the request is its business. None: it was not asked, or failed and may.
async fn ask(write: &Write<'_>, configuration: &str, hook: &Value) -> Result<Option<Value>, ApiError> {
    let name = hook["name"].as_str().unwrap_or_default();
    if !matching::fits(hook, "rules", write) {
        return Ok(None);
    }
    let tolerant = hook["failurePolicy"] == "Ignore";
    if hook["matchConditions"].as_array().is_some_and(|conditions| !conditions.is_empty()) {
        let environment = Environment::new(write, Value::Null);
        match matching::conditions_hold(&hook["matchConditions"], &environment) {
            Ok(true) => {}
            Ok(false) => return Ok(None),
            Err(_) if tolerant => return Ok(None),
            Err(why) => return Err(ApiError::forbidden(write.cx.subject_named(&write.name), why)),
        }
    }
    let silent = matches!(hook["sideEffects"].as_str(), Some("None" | "NoneOnDryRun"));
    if write.dry_run && !silent {
        return Err(ApiError::bad(format!("admission webhook {name:?} does not support dry run")));
    }
    match review(write, hook).await {
        Ok(answer) => judge(write, configuration, name, answer).map(Some),
        Err(why) if tolerant => {
            tracing::warn!(webhook = name, %why, "failed calling webhook, failing open");
            Ok(None)
        }
        Err(why) => Err(ApiError::Internal(format!("failed calling webhook {name:?}: {why}"))),
    }
}

/// The `response` of a webhook, or why there is none.
async fn review(write: &Write<'_>, hook: &Value) -> Result<Value, String> {
    let seconds = hook["timeoutSeconds"].as_u64().unwrap_or(10).clamp(1, 30);
    let versions = hook["admissionReviewVersions"].as_array().map(Vec::as_slice).unwrap_or_default();
    let version = versions.iter().filter_map(Value::as_str).find(|v| matches!(*v, "v1" | "v1beta1")).unwrap_or("v1");
    let mut request = write.request();
    request["object"] = write.object.clone();
    request["oldObject"] = write.old.clone();
    let uid = request["uid"].clone();
    let api_version = format!("admission.k8s.io/{version}");
    let body = json!({"kind": "AdmissionReview", "apiVersion": api_version, "request": request});
    let timeout = Duration::from_secs(seconds);
    let answer = call::post(write.cx.server, &hook["clientConfig"], body, timeout)
        .await
        .map_err(|why| format!("failed to call webhook: {why}"))?;
    let (given, kind) =
        (answer["apiVersion"].as_str().unwrap_or_default(), answer["kind"].as_str().unwrap_or_default());
    if version == "v1" && (given != api_version || kind != "AdmissionReview") {
        return Err(format!(
            "received invalid webhook response: expected webhook response of {api_version}, Kind=AdmissionReview, got \
             {given}, Kind={kind}"
        ));
    }
    let response = answer["response"].clone();
    if !response.is_object() {
        return Err("received invalid webhook response: webhook response was absent".to_owned());
    }
    if version == "v1" && response["uid"] != uid {
        return Err(format!(
            "received invalid webhook response: expected response.uid={uid}, got {}",
            response["uid"].as_str().map_or_else(|| "\"\"".to_owned(), |uid| format!("{uid:?}"))
        ));
    }
    let (patch, kind) = (response["patch"].is_string(), response["patchType"].as_str());
    if version == "v1" && patch != kind.is_some() {
        let missing = if patch { "response.patchType" } else { "response.patch" };
        let given = if patch { "response.patch" } else { "response.patchType" };
        return Err(format!("received invalid webhook response: webhook returned {given} but not {missing}"));
    }
    if kind.is_some_and(|kind| kind != "JSONPatch") {
        return Err(format!("received invalid webhook response: invalid patch type {:?}", kind.unwrap_or_default()));
    }
    Ok(response)
}

/// Passes on warnings and notes, and makes a refusal of one.
fn judge(write: &Write<'_>, configuration: &str, name: &str, response: Value) -> Result<Value, ApiError> {
    let warnings = response["warnings"].as_array().into_iter().flatten().filter_map(Value::as_str);
    write.cx.warnings.extend(warnings.map(str::to_owned));
    for (key, value) in response["auditAnnotations"].as_object().into_iter().flatten() {
        write.cx.audit(&format!("{name}/{key}"), || value.as_str().unwrap_or_default().to_owned());
    }
    if response["allowed"] == true {
        return Ok(response);
    }
    write.cx.audit("webhook.admission.k8s.io/denied-by", || configuration.to_owned());
    let mut status = if response["status"].is_object() { response["status"].clone() } else { json!({}) };
    let text = |key: &str| status[key].as_str().unwrap_or_default().to_owned();
    let denied = format!("admission webhook {name:?} denied the request");
    let message = match (text("message"), text("reason")) {
        (message, _) if !message.is_empty() => format!("{denied}: {message}"),
        (_, reason) if !reason.is_empty() => format!("{denied}: {reason}"),
        _ => format!("{denied} without explanation"),
    };
    let code = status["code"].as_u64().filter(|code| (400..600).contains(code)).unwrap_or(400);
    status["kind"] = json!("Status");
    status["apiVersion"] = json!("v1");
    status["status"] = json!("Failure");
    status["metadata"] = json!({});
    status["message"] = json!(message);
    status["code"] = json!(code);
    Err(ApiError::Verbatim(Box::new(status)))
}

/// The object as a webhook's patch leaves it.
fn patched(write: &Write<'_>, hook: &Value, response: &Value) -> Result<Value, ApiError> {
    let Some(patch) = response["patch"].as_str() else { return Ok(write.object.clone()) };
    let name = hook["name"].as_str().unwrap_or_default();
    let failed = |why: String| ApiError::Internal(format!("failed calling webhook {name:?}: {why}"));
    let bytes = base64::Engine::decode(&base64::engine::general_purpose::STANDARD, patch);
    let bytes = bytes.map_err(|why| failed(format!("invalid patch: {why}")))?;
    let patch: Value = serde_json::from_slice(&bytes).map_err(|why| failed(format!("invalid patch: {why}")))?;
    if !write.object.is_object() {
        return Err(failed("may not patch a deletion".to_owned()));
    }
    let mut object = write.object.clone();
    mycelium_apimachinery::patch::json(&mut object, &patch).map_err(|why| ApiError::Internal(why.to_string()))?;
    let expected = Expected::of(write.cx);
    if write.cx.subresource() != Some("scale") {
        decode::typed(&mut object, &expected).map_err(|why| ApiError::Internal(why.to_string()))?;
    }
    Ok(object)
}

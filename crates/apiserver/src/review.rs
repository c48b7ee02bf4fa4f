//! Resources that are only answered: access reviews, token reviews, token requests, bindings.

use http::{Response, StatusCode};
use mycelium_api::field::{FieldError, Path};
use serde_json::{Value, json};

use crate::auth::Identity;
use crate::auth::rbac::Attributes;
use crate::auth::tokens::{Bound, ISSUER, ObjectRef};
use crate::authn;
use crate::body::Body;
use crate::codec;
use crate::error::{ApiError, Subject};
use crate::media::Shape;
use crate::read::shape;
use crate::route::Context;
use crate::write::decode::{self, Expected};
use crate::write::options::WriteOptions;
use crate::write::pods;

const DEFAULT_TOKEN_SECONDS: i64 = 3600;
const SHORTEST_TOKEN_SECONDS: i64 = 600;
const LONGEST_TOKEN_SECONDS: i64 = 1 << 32;

/// Answers a POST to a resource that is not stored.
pub async fn create(cx: &Context<'_>, body: &[u8]) -> Result<Response<Body>, ApiError> {
    if cx.resource.is_core("bindings") {
        return pods::bind_named(cx, body).await;
    }
    // Kubernetes has no columns for these.
    if cx.accept.shape == Shape::Table && cx.resource.name() != "selfsubjectreviews" {
        return Err(ApiError::NotAcceptable("application/json, application/yaml, application/vnd.kubernetes.protobuf"));
    }
    let options = WriteOptions::parse(cx, "CreateOptions")?;
    let (mut review, _) = decode::object(cx, body, &Expected::of(cx), options.validation)?;
    review["status"] = match cx.resource.name() {
        "selfsubjectreviews" => json!({"userInfo": authn::user_info(cx.who)}),
        "tokenreviews" => token_review(cx, &review["spec"]),
        "selfsubjectaccessreviews" => access(cx, cx.who, &review["spec"], "")?,
        "selfsubjectrulesreviews" => {
            let namespace = review["spec"]["namespace"].as_str().unwrap_or_default();
            cx.server.rbac.rules(&cx.server.store).review(cx.who, namespace)
        }
        "subjectaccessreviews" => access(cx, &subject_of(&review["spec"]), &review["spec"], "")?,
        "localsubjectaccessreviews" => access(cx, &subject_of(&review["spec"]), &review["spec"], &cx.path.namespace)?,
        _ => return Err(ApiError::MethodNotAllowed),
    };
    shape::value(cx, StatusCode::CREATED, &review)
}

fn subject_of(spec: &Value) -> Identity {
    let groups = spec["groups"].as_array().map(Vec::as_slice).unwrap_or_default();
    Identity {
        user: spec["user"].as_str().unwrap_or_default().to_owned(),
        groups: groups.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
        uid: spec["uid"].as_str().unwrap_or_default().to_owned(),
        ..Identity::default()
    }
}

fn access(cx: &Context<'_>, who: &Identity, spec: &Value, namespace: &str) -> Result<Value, ApiError> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let (resource, path) = (&spec["resourceAttributes"], &spec["nonResourceAttributes"]);
    let want = if resource.is_object() {
        let inside = text(&resource["namespace"]);
        if !namespace.is_empty() && inside != namespace {
            return Err(ApiError::bad(format!(
                "spec.resourceAttributes.namespace must match namespace: {inside:?} != {namespace:?}"
            )));
        }
        Attributes {
            verb: text(&resource["verb"]),
            group: text(&resource["group"]),
            resource: text(&resource["resource"]),
            subresource: text(&resource["subresource"]),
            namespace: inside,
            name: text(&resource["name"]),
            path: None,
        }
    } else if path.is_object() {
        Attributes { verb: text(&path["verb"]), path: Some(text(&path["path"])), ..Attributes::default() }
    } else {
        let why = "exactly one of nonResourceAttributes or resourceAttributes must be specified";
        let errors = vec![FieldError::invalid(&Path::new("spec").child("resourceAttributes"), Value::Null, why)];
        let (group, kind) = (cx.resource.group().into(), cx.resource.kind().into());
        return Err(ApiError::Invalid { group, kind, name: String::new(), errors });
    };
    let allowed = cx.server.rbac.rules(&cx.server.store).allows(who, &want);
    Ok(json!({"allowed": allowed}))
}

fn token_review(cx: &Context<'_>, spec: &Value) -> Value {
    let token = spec["token"].as_str().unwrap_or_default();
    let audiences: Vec<&str> = spec["audiences"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let audiences = if audiences.is_empty() { vec![ISSUER] } else { audiences };
    let found = audiences.iter().find_map(|a| authn::verify(cx.server, token, a).ok());
    match found {
        Some((who, claims)) => {
            let shared: Vec<&str> = audiences.into_iter().filter(|a| claims.aud.iter().any(|c| c == a)).collect();
            json!({"authenticated": true, "user": authn::user_info(&who), "audiences": shared})
        }
        None => json!({"user": {}, "error": "invalid bearer token"}),
    }
}

/// Answers a POST to `serviceaccounts/<name>/token`.
pub fn token_request(cx: &Context<'_>, body: &[u8]) -> Result<Response<Body>, ApiError> {
    let options = WriteOptions::parse(cx, "CreateOptions")?;
    let expected = Expected::kind("authentication.k8s.io", "v1", "TokenRequest");
    let (mut request, _) = decode::object(cx, body, &expected, options.validation)?;
    let entry = cx.server.store.get(&cx.key()).ok_or_else(|| ApiError::NotFound(cx.subject()))?;
    let account = codec::parse_entry(&entry)?;
    let seconds = request["spec"]["expirationSeconds"].as_i64().unwrap_or(DEFAULT_TOKEN_SECONDS);
    check_seconds(cx, seconds)?;
    let uid = account["metadata"]["uid"].as_str().unwrap_or_default().to_owned();
    let mut bound = Bound {
        namespace: cx.path.namespace.clone(),
        serviceaccount: ObjectRef { name: cx.path.name.clone(), uid },
        ..Bound::default()
    };
    bind(cx, &request["spec"]["boundObjectRef"], &mut bound)?;
    let audiences = request["spec"]["audiences"].as_array().into_iter().flatten();
    let audiences: Vec<String> = audiences.filter_map(Value::as_str).map(str::to_owned).collect();
    let (token, claims) = cx.server.tokens.issue(&audiences, seconds, bound).map_err(ApiError::internal)?;
    let end = jiff::Timestamp::from_second(claims.exp).map_err(ApiError::internal)?;
    request["metadata"] = json!({"name": cx.path.name, "namespace": cx.path.namespace,
        "creationTimestamp": cx.server.env.now_rfc3339()});
    request["spec"]["audiences"] = json!(claims.aud);
    request["spec"]["expirationSeconds"] = json!(seconds);
    request["status"] = json!({"token": token, "expirationTimestamp": mycelium_api::env::rfc3339_seconds(end)});
    shape::value(cx, StatusCode::CREATED, &request)
}

fn check_seconds(cx: &Context<'_>, seconds: i64) -> Result<(), ApiError> {
    let path = Path::new("spec").child("expirationSeconds");
    let why = if seconds < SHORTEST_TOKEN_SECONDS {
        "may not specify a duration less than 10 minutes"
    } else if seconds > LONGEST_TOKEN_SECONDS {
        "may not specify a duration larger than 2^32 seconds"
    } else {
        return Ok(());
    };
    let (group, kind) = ("authentication.k8s.io".into(), "TokenRequest".into());
    let errors = vec![FieldError::invalid(&path, seconds, why)];
    Err(ApiError::Invalid { group, kind, name: cx.path.name.clone(), errors })
}

/// Binds a token to a pod or secret, which must exist and be of this account.
fn bind(cx: &Context<'_>, reference: &Value, bound: &mut Bound) -> Result<(), ApiError> {
    let Some(kind) = reference["kind"].as_str() else { return Ok(()) };
    let name = reference["name"].as_str().unwrap_or_default();
    let resource = match kind {
        "Pod" => "pods",
        "Secret" => "secrets",
        other => return Err(ApiError::bad(format!("cannot bind token for serviceaccount to type {other}"))),
    };
    let key = format!("/registry/core/{resource}/{}/{name}", cx.path.namespace);
    let missing = || ApiError::NotFound(Subject::new("", resource, name));
    let object = codec::parse_entry(&cx.server.store.get(&key).ok_or_else(missing)?)?;
    let uid = object["metadata"]["uid"].as_str().unwrap_or_default().to_owned();
    if let Some(wanted) = reference["uid"].as_str().filter(|wanted| !wanted.is_empty() && *wanted != uid) {
        let message = format!(
            "the UID in the bound object reference ({wanted}) does not match the UID in record. The \
            object might have been deleted and then recreated"
        );
        return Err(ApiError::Conflict { subject: Subject::new("", resource, name), message });
    }
    let target = Some(ObjectRef { name: name.to_owned(), uid });
    if resource == "secrets" {
        bound.secret = target;
        return Ok(());
    }
    let account = object["spec"]["serviceAccountName"].as_str().unwrap_or("default");
    if account != cx.path.name {
        return Err(ApiError::bad(format!(
            "cannot bind token for serviceaccount {:?} to pod running with different serviceaccount name.",
            cx.path.name
        )));
    }
    bound.pod = target;
    bound.node = object["spec"]["nodeName"].as_str().filter(|n| !n.is_empty()).map(|node| {
        let entry = cx.server.store.get(&format!("/registry/core/nodes/{node}"));
        let uid = entry.and_then(|e| codec::parse_entry(&e).ok()).map(|n| n["metadata"]["uid"].clone());
        ObjectRef { name: node.to_owned(), uid: uid.and_then(|u| u.as_str().map(str::to_owned)).unwrap_or_default() }
    });
    Ok(())
}

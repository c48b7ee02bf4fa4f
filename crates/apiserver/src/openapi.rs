//! OpenAPI documents: v2 as JSON and as protobuf, which is what kubectl asks for, and v3 as JSON.

use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use mycelium_apimachinery::openapi;

use crate::answer;
use crate::body::{self, Body};
use crate::custom;
use crate::error::ApiError;
use crate::resources::Table;

const V2_PROTOBUF: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";
const V2_ACCEPTED: &str = "application/json, application/com.github.proto-openapi.spec.v2@v1.0+protobuf";

/// The v2 document, in the form that the client accepts: JSON unless it asks for protobuf only.
pub fn v2(table: &Table, headers: &HeaderMap) -> Result<Response<Body>, ApiError> {
    let accepted: Vec<&str> = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok()).collect();
    let names = |what: &str| accepted.iter().any(|value| value.contains(what));
    let (media, document) = if names("proto-openapi.spec.v2") {
        (V2_PROTOBUF, table.openapi_v2.get_or_init(|| openapi::v2_protobuf(&customs(table)).into()))
    } else if accepted.is_empty() || names("json") || names("*/*") {
        let make = || openapi::v2_json(&customs(table)).to_string().into();
        ("application/json", table.openapi_v2_json.get_or_init(make))
    } else {
        return Err(ApiError::NotAcceptable(V2_ACCEPTED));
    };
    let tag = format!("\"{:016X}\"", openapi::hash(document));
    if headers.get(header::IF_NONE_MATCH).is_some_and(|known| known.as_bytes() == tag.as_bytes()) {
        return Ok(answer::with_type(StatusCode::NOT_MODIFIED, media, body::empty()));
    }
    let mut response = answer::with_type(StatusCode::OK, media, body::full(document.clone()));
    if let Ok(tag) = HeaderValue::from_str(&tag) {
        response.headers_mut().insert(header::ETAG, tag);
    }
    Ok(response)
}

fn customs(table: &Table) -> Vec<openapi::Custom<'_>> {
    table.customs().iter().filter_map(|resource| custom::described(resource)).collect()
}

/// The list of v3 documents.
pub fn v3_index(table: &Table) -> Result<Response<Body>, ApiError> {
    Ok(answer::json(StatusCode::OK, &openapi::v3_index(&customs(table))))
}

/// One v3 document: `api/v1`, `apis/apps/v1`. Asked for with the hash from the list, it may be kept for ever.
pub fn v3(table: &Table, path: &str, hashed: bool) -> Result<Response<Body>, ApiError> {
    let parts: Vec<&str> = path.split('/').collect();
    let (group, version) = match parts[..] {
        ["api", version] => ("", version),
        ["apis", group, version] => (group, version),
        _ => return Err(ApiError::NoSuchPath),
    };
    let document = openapi::v3_document(group, version, &customs(table)).ok_or(ApiError::NoSuchPath)?;
    let mut response = answer::json(StatusCode::OK, &document);
    if hashed {
        let forever = HeaderValue::from_static("public, max-age=31536000, immutable");
        response.headers_mut().insert(header::CACHE_CONTROL, forever);
    }
    Ok(response)
}

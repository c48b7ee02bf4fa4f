//! OpenAPI documents: v2 as protobuf, which is what kubectl asks for, and v3 as JSON.

use std::sync::OnceLock;

use bytes::Bytes;
use http::{HeaderMap, Response, StatusCode, header};
use mycelium_apimachinery::openapi;

use crate::answer;
use crate::body::{self, Body};
use crate::custom;
use crate::error::ApiError;
use crate::resources::Table;

const V2_PROTOBUF: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";
const V2_ACCEPTED: &str = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";

/// The v2 document. It exists as protobuf only.
pub fn v2(table: &Table, headers: &HeaderMap) -> Result<Response<Body>, ApiError> {
    static BUILTIN: OnceLock<Bytes> = OnceLock::new();
    let accepts = |value: &http::HeaderValue| {
        let text = value.to_str().unwrap_or_default();
        text.contains("proto-openapi.spec.v2") || text.contains("*/*")
    };
    let asked = headers.contains_key(header::ACCEPT);
    if asked && !headers.get_all(header::ACCEPT).iter().any(accepts) {
        return Err(ApiError::NotAcceptable(V2_ACCEPTED));
    }
    let customs = customs(table);
    let document = if customs.is_empty() {
        BUILTIN.get_or_init(|| openapi::v2_protobuf(&[]).into()).clone()
    } else {
        openapi::v2_protobuf(&customs).into()
    };
    Ok(answer::with_type(StatusCode::OK, V2_PROTOBUF, body::full(document)))
}

fn customs(table: &Table) -> Vec<openapi::Custom<'_>> {
    table.customs().iter().filter_map(|resource| custom::described(resource)).collect()
}

/// The list of v3 documents.
pub fn v3_index(table: &Table) -> Result<Response<Body>, ApiError> {
    Ok(answer::json(StatusCode::OK, &openapi::v3_index(&customs(table))))
}

/// One v3 document: `api/v1`, `apis/apps/v1`.
pub fn v3(table: &Table, path: &str) -> Result<Response<Body>, ApiError> {
    let parts: Vec<&str> = path.split('/').collect();
    let (group, version) = match parts[..] {
        ["api", version] => ("", version),
        ["apis", group, version] => (group, version),
        _ => return Err(ApiError::NoSuchPath),
    };
    let document = openapi::v3_document(group, version, &customs(table)).ok_or(ApiError::NoSuchPath)?;
    Ok(answer::json(StatusCode::OK, &document))
}

//! Reading one object.

use http::{Response, StatusCode};

use super::shape;
use crate::answer;
use crate::body::Body;
use crate::codec;
use crate::error::ApiError;
use crate::media::{Accept, Shape};
use crate::route::Context;

/// Answers a GET of an object or a subresource.
pub async fn get(cx: &Context<'_>) -> Result<Response<Body>, ApiError> {
    if let Some(revision) = cx.query.get("resourceVersion") {
        super::options::check_reached(cx, super::options::parse_revision(revision)?)?;
    }
    let entry = cx.server.store.get(&cx.key()).ok_or_else(|| ApiError::NotFound(cx.subject()))?;
    match cx.subresource() {
        Some("scale") => {
            let object = codec::parse_entry(&entry)?;
            let object = crate::custom::conversion::to_request(cx.server, cx.resource, object).await?;
            let scale = crate::write::update::scale_of(cx, &object);
            // Scale has columns of its own nowhere; clients take it as it is.
            let plain = Context { accept: Accept { shape: Shape::Object, ..cx.accept }, ..*cx };
            shape::value(&plain, StatusCode::OK, &scale)
        }
        _ if cx.accept == Accept::JSON && cx.resource.is_storage_version() => {
            Ok(answer::json_bytes(StatusCode::OK, codec::response_bytes(&entry.value, entry.mod_revision)))
        }
        _ => shape::answer(cx, StatusCode::OK, &entry).await,
    }
}

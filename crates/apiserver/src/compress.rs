//! Large answers, compressed for clients that take them so: from the size on from which Kubernetes does it.

use std::io::Write;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use futures::TryStreamExt;
use http::header::{ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_LENGTH, HeaderMap, HeaderValue, VARY};
use http::{Response, StatusCode};
use http_body::{Body as _, Frame};
use http_body_util::{BodyExt, StreamBody};

use crate::body::{Body, BoxError};

/// Smaller answers are sent as they are.
const THRESHOLD: u64 = 128 * 1024;
/// Compressed bytes that are sent together.
const PIECE: usize = 64 * 1024;

/// Whether the client takes gzip.
pub fn accepts(headers: &HeaderMap) -> bool {
    let values = headers.get_all(ACCEPT_ENCODING).iter().filter_map(|value| value.to_str().ok());
    let mut codings = values.flat_map(|value| value.split(','));
    codings.any(|coding| coding.split(';').next().is_some_and(|name| name.trim() == "gzip"))
}

/// Compresses an answer that is large, or so long that its size is not known. Not for answers without an end.
pub fn large(response: Response<Body>) -> Response<Body> {
    let small = response.body().size_hint().exact().is_some_and(|size| size < THRESHOLD);
    if small || !response.status().is_success() || response.status() == StatusCode::NO_CONTENT {
        return response;
    }
    let (mut parts, body) = response.into_parts();
    parts.headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    parts.headers.append(VARY, HeaderValue::from_static("Accept-Encoding"));
    parts.headers.remove(CONTENT_LENGTH);
    Response::from_parts(parts, compressed(body))
}

fn compressed(body: Body) -> Body {
    let encoder = GzEncoder::new(Vec::new(), Compression::fast());
    let pieces = futures::stream::try_unfold(Some((body, encoder)), |state| async {
        let Some((mut body, mut encoder)) = state else { return Ok(None) };
        while let Some(frame) = body.frame().await {
            if let Ok(data) = frame?.into_data() {
                encoder.write_all(&data)?;
            }
            if encoder.get_ref().len() >= PIECE {
                let piece = Bytes::from(std::mem::take(encoder.get_mut()));
                return Ok(Some((piece, Some((body, encoder)))));
            }
        }
        Ok::<_, BoxError>(Some((Bytes::from(encoder.finish()?), None)))
    });
    StreamBody::new(pieces.map_ok(Frame::data)).boxed_unsync()
}

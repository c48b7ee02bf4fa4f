//! Request and response bodies.

use std::error::Error;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::{FutureExt, Stream};
use http_body::Frame;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited, StreamBody};

use crate::error::ApiError;

/// Any error, as bodies carry it.
pub type BoxError = Box<dyn Error + Send + Sync>;

/// The body type of every request and response inside the server.
pub type Body = UnsyncBoxBody<Bytes, BoxError>;

/// The largest request body that is read, as in Kubernetes.
pub const MAX_BODY_BYTES: usize = 3 * 1024 * 1024;

/// A body that is there in full.
pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

/// No body.
pub fn empty() -> Body {
    full(Bytes::new())
}

/// A body produced piece by piece.
pub fn stream(chunks: impl Stream<Item = Bytes> + Send + 'static) -> Body {
    use futures::StreamExt;
    StreamBody::new(chunks.map(|chunk| Ok(Frame::data(chunk)))).boxed_unsync()
}

/// Any HTTP body as ours.
pub fn boxed<B>(body: B) -> Body
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    body.map_err(Into::into).boxed_unsync()
}

/// Reads a whole body, up to [`MAX_BODY_BYTES`].
pub fn read(body: Body) -> BoxFuture<'static, Result<Bytes, ApiError>> {
    read_up_to(body, MAX_BODY_BYTES)
}

/// Reads a whole body that is not larger than `max` bytes.
pub fn read_up_to(body: Body, max: usize) -> BoxFuture<'static, Result<Bytes, ApiError>> {
    Box::pin(Limited::new(body, max).collect().map(move |read| match read {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(ApiError::TooLarge(format!("limit is {max}"))),
        Err(error) => Err(ApiError::BadRequest(format!("unable to read the request body: {error}"))),
    }))
}

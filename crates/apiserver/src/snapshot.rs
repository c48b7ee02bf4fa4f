//! `GET /mycelium/state`: the whole state as a store's file, for backups.
//!
//! The path is no resource; only members of `system:masters`, or who is given it by a rule on `nonResourceURLs`, may read it:
//! it holds every Secret.

use std::io::{Read, Seek, SeekFrom};

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, HeaderName};
use http::{Response, StatusCode};

use crate::answer;
use crate::body::{self, Body};
use crate::error::ApiError;
use crate::server::Inner;

/// Where it is.
pub const PATH: &str = "/mycelium/state";
/// The header of the answer that tells the store's revision.
pub const REVISION: HeaderName = HeaderName::from_static("mycelium-revision");
/// How much is read from the copy at a time.
const PIECE: usize = 256 << 10;

/// Answers with a copy of the store as it is now.
pub async fn answer(server: &Inner) -> Result<Response<Body>, ApiError> {
    let (store, folder) = (server.store.clone(), server.scratch.clone());
    let copied = tokio::task::spawn_blocking(move || {
        let (mut file, revision) = store.copy(&folder).map_err(ApiError::internal)?;
        let length = file.seek(SeekFrom::End(0)).map_err(ApiError::internal)?;
        file.rewind().map_err(ApiError::internal)?;
        Ok::<_, ApiError>((file, length, revision))
    });
    let (file, length, revision) = copied.await.map_err(ApiError::internal)??;
    let pieces = futures::stream::unfold(file, |mut file| async move {
        let read = tokio::task::spawn_blocking(move || {
            let mut piece = vec![0; PIECE];
            let length = file.read(&mut piece).ok()?;
            piece.truncate(length);
            Some((Bytes::from(piece), file))
        });
        // An answer that ends too early is shorter than its length says: the reader notices.
        read.await.ok().flatten().filter(|(piece, _)| !piece.is_empty())
    });
    let mut response = answer::with_type(StatusCode::OK, "application/octet-stream", body::stream(pieces));
    response.headers_mut().insert(CONTENT_LENGTH, length.into());
    response.headers_mut().insert(REVISION, revision.into());
    Ok(response)
}

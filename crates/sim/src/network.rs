//! What lies between a client and the server: delays, and watches that are lost, late or silent.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body::{Body, Frame};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use tokio::time::{Instant, sleep, sleep_until};
use tower::{BoxError, Service, ServiceExt};

use crate::plan::Faults;

type Answer = UnsyncBoxBody<Bytes, BoxError>;

/// Complaints about the server that are no client's business to judge.
#[derive(Clone, Debug, Default)]
pub struct Complaints(Arc<Mutex<Vec<String>>>);

impl Complaints {
    /// Adds one.
    pub fn add(&self, text: String) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(text);
    }

    /// The first one.
    pub fn first(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).first().cloned()
    }
}

/// A connection to the server with faults.
#[derive(Clone)]
pub struct Network<S> {
    inner: S,
    faults: Faults,
    complaints: Complaints,
}

impl<S> Network<S> {
    /// Puts faults in front of a service.
    pub fn new(inner: S, faults: Faults, complaints: Complaints) -> Self {
        Self { inner, faults, complaints }
    }
}

impl<S, B, C> Service<Request<B>> for Network<S>
where
    B: Send + 'static,
    S: Service<Request<B>, Response = Response<C>> + Clone + Send + 'static,
    S::Future: Send,
    S::Error: Into<BoxError>,
    C: Body<Data = Bytes> + Send + Unpin + 'static,
    C::Error: Into<BoxError>,
{
    type Response = Response<Answer>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let Self { inner, faults, complaints } = self.clone();
        Box::pin(async move {
            sleep(faults.request_delay()).await;
            let is_watch =
                request.uri().query().is_some_and(|query| query.split('&').any(|part| part.starts_with("watch=")));
            let what = format!("{} {}", request.method(), request.uri());
            let response = inner.oneshot(request).await.map_err(Into::into)?;
            let (parts, body) = response.into_parts();
            if is_watch && parts.status == StatusCode::OK {
                return Ok(Response::from_parts(parts, watch(body, faults)));
            }
            let bytes = body.collect().await.map_err(Into::into)?.to_bytes();
            if parts.status.is_server_error() && find(&bytes, b"unexpected condition") {
                complaints.add(format!("the server panicked at {what}"));
            }
            sleep(faults.request_delay()).await;
            Ok(Response::from_parts(parts, Full::new(bytes).map_err(|never| match never {}).boxed_unsync()))
        })
    }
}

fn find(bytes: &[u8], text: &[u8]) -> bool {
    bytes.windows(text.len()).any(|window| window == text)
}

/// A watch stream with faults: in order, but late, cut off, or silent.
fn watch<C>(body: C, faults: Faults) -> Answer
where
    C: Body<Data = Bytes> + Send + Unpin + 'static,
    C::Error: Into<BoxError>,
{
    let end = faults.watch_end().map(|(after, silent)| (Instant::now() + after, silent));
    let stream = futures::stream::unfold((body, faults), move |(mut body, faults)| async move {
        let cut = async {
            match end {
                Some((at, silent)) => {
                    sleep_until(at).await;
                    if silent {
                        std::future::pending::<()>().await;
                    }
                }
                None => std::future::pending().await,
            }
        };
        let frame = async {
            // A stalled stream delivers nothing after its time, even if there is something.
            let frame = body.frame().await.map(|frame| frame.map_err(Into::into));
            sleep(faults.watch_pause()).await;
            if end.is_some_and(|(at, silent)| silent && Instant::now() >= at) {
                std::future::pending::<()>().await;
            }
            frame
        };
        let frame = tokio::select! {
            biased;
            () = cut => None,
            frame = frame => frame,
        };
        let frame: Result<Frame<Bytes>, BoxError> = frame?;
        Some((frame, (body, faults)))
    });
    StreamBody::new(stream).boxed_unsync()
}

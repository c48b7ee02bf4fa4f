//! Bodies on their way up and down. Nothing is held back: each piece goes on as it comes, trailers too.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::{Instant, Sleep};

use crate::limit::Present;
use crate::proxy::upstream::Lease;

/// Why a body ends before its time.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    /// The request is longer than allowed.
    #[error("the request's body is longer than {0} bytes")]
    TooLarge(u64),
    /// The backend was silent for too long.
    #[error("the backend sent nothing for {0:?}")]
    Silent(Duration),
    /// The other side broke off.
    #[error("the connection broke off")]
    Broken(#[from] hyper::Error),
}

/// How far a request's body is, for whoever waits for the answer.
#[derive(Debug)]
pub struct Progress {
    begun: Instant,
    /// Milliseconds after the beginning at which the last piece went on; all ones once it is whole.
    at_ms: AtomicU64,
    too_large: AtomicU64,
}

impl Progress {
    const WHOLE: u64 = 1 << 63;

    fn new() -> Arc<Self> {
        Arc::new(Self { begun: Instant::now(), at_ms: AtomicU64::new(0), too_large: AtomicU64::new(0) })
    }

    fn note(&self, whole: bool) {
        let at = u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(0);
        self.at_ms.store(if whole { at | Self::WHOLE } else { at }, Ordering::Relaxed);
    }

    /// When the last piece went on, and whether it was the last of all.
    pub fn last(&self) -> (Instant, bool) {
        let at = self.at_ms.load(Ordering::Relaxed);
        (self.begun + Duration::from_millis(at & !Self::WHOLE), at & Self::WHOLE != 0)
    }

    /// Whether the body turned out too long.
    pub fn too_large(&self) -> bool {
        self.too_large.load(Ordering::Relaxed) != 0
    }
}

/// The body of a request, on its way to a backend.
#[derive(Debug, Default)]
pub struct Upload {
    /// None for no body.
    incoming: Option<Incoming>,
    /// Bytes that may still come; none for any.
    left: Option<u64>,
    max: u64,
    progress: Option<Arc<Progress>>,
}

impl Upload {
    /// The body of a client's request, of at most `max` bytes; 0 for any.
    pub fn new(incoming: Incoming, max: u64) -> Self {
        if incoming.is_end_stream() {
            return Self::default();
        }
        Self { incoming: Some(incoming), left: (max > 0).then_some(max), max, progress: Some(Progress::new()) }
    }

    /// How far it is; none if there is no body.
    pub fn progress(&self) -> Option<Arc<Progress>> {
        self.progress.clone()
    }

    fn note(&self, whole: bool) {
        if let Some(progress) = &self.progress {
            progress.note(whole);
        }
    }
}

impl Body for Upload {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let Some(incoming) = &mut self.incoming else { return Poll::Ready(None) };
        let frame = ready!(Pin::new(incoming).poll_frame(cx)?);
        let Some(frame) = frame else {
            self.note(true);
            return Poll::Ready(None);
        };
        if let (Some(data), Some(left)) = (frame.data_ref(), self.left) {
            match left.checked_sub(data.len() as u64) {
                Some(left) => self.left = Some(left),
                None => {
                    if let Some(progress) = &self.progress {
                        progress.too_large.store(1, Ordering::Relaxed);
                    }
                    return Poll::Ready(Some(Err(BodyError::TooLarge(self.max))));
                }
            }
        }
        let whole = self.is_end_stream();
        self.note(whole);
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.as_ref().map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}

/// The body of an answer, on its way to a client.
#[derive(Debug)]
pub enum Download {
    /// Our own text.
    Own(Option<Bytes>),
    /// A backend's.
    Passed(Box<Passed>),
}

/// What a backend sends.
#[derive(Debug)]
pub struct Passed {
    incoming: Incoming,
    /// The connection, given back at the end.
    lease: Option<Lease>,
    /// How long it may be silent.
    silence_max: Duration,
    alarm: Option<Pin<Box<Sleep>>>,
    /// Runs while it is awaited.
    armed: bool,
    _present: Option<Present>,
}

impl Download {
    /// Passes on what a backend sends.
    pub fn passed(incoming: Incoming, lease: Option<Lease>, silence_max: Duration, present: Option<Present>) -> Self {
        let mut lease = lease;
        if incoming.is_end_stream()
            && let Some(lease) = lease.take()
        {
            lease.give_back();
        }
        let passed = Passed { incoming, lease, silence_max, alarm: None, armed: false, _present: present };
        Self::Passed(Box::new(passed))
    }

    /// Nothing.
    pub fn empty() -> Self {
        Self::Own(None)
    }
}

impl Passed {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self.incoming_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                self.armed = false;
                if self.incoming.is_end_stream() {
                    self.give_back();
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(None) => {
                self.give_back();
                Poll::Ready(None)
            }
            Poll::Ready(Some(Err(error))) => Poll::Ready(Some(Err(error.into()))),
            Poll::Pending => {
                if !self.armed {
                    let at = Instant::now() + self.silence_max;
                    match &mut self.alarm {
                        Some(alarm) => alarm.as_mut().reset(at),
                        None => self.alarm = Some(Box::pin(tokio::time::sleep_until(at))),
                    }
                    self.armed = true;
                }
                let Some(alarm) = &mut self.alarm else { return Poll::Pending };
                ready!(alarm.as_mut().poll(cx));
                Poll::Ready(Some(Err(BodyError::Silent(self.silence_max))))
            }
        }
    }

    /// The next piece; if there is none, whatever the connection brings now.
    fn incoming_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = Pin::new(&mut self.incoming).poll_frame(cx);
        match (&frame, &mut self.lease) {
            (Poll::Pending, Some(lease)) => {
                lease.drive(cx);
                Pin::new(&mut self.incoming).poll_frame(cx)
            }
            _ => frame,
        }
    }

    fn give_back(&mut self) {
        if let Some(lease) = self.lease.take() {
            lease.give_back();
        }
    }
}

impl Body for Download {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match &mut *self {
            Self::Own(text) => Poll::Ready(text.take().map(|text| Ok(Frame::data(text)))),
            Self::Passed(passed) => passed.poll(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Own(text) => text.is_none(),
            Self::Passed(passed) => passed.incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Own(text) => SizeHint::with_exact(text.as_ref().map_or(0, |text| text.len() as u64)),
            Self::Passed(passed) => passed.incoming.size_hint(),
        }
    }
}

//! Watching: a stream of changes from a revision on.
//!
//! ```text
//!  initial objects ─► end-of-initial bookmark ─► changes, bookmarks ─► time is up │ client too slow │ shutdown
//! ```
//!
//! Stored bytes are copied into the stream as they are; an object is parsed only where a selector, a table or another
//! version needs it, and then once for all watchers. A client that reads too slowly fills the store's bounded queue and
//! gets a 410.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::stream;
use http::{Response, StatusCode};
use mycelium_store::{Entry, Event, EventKind, Revision, Watch, WatchError};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::filter::{Filter, Parsed};
use super::options::{ListOptions, check_reached};
use super::shape::Shaper;
use crate::answer;
use crate::body::{self, Body};
use crate::codec;
use crate::custom::conversion;
use crate::error::ApiError;
use crate::media::{Accept, Shape};
use crate::metrics::WatchGauge;
use crate::resources::Resource;
use crate::route::Context;
use crate::server::Inner;

const BOOKMARK_EVERY: Duration = Duration::from_secs(60);
const SHORTEST: Duration = Duration::from_secs(1800);
const CHUNK_BYTES: usize = 64 * 1024;
/// About what a line has beside the stored object.
const LINE_FRAME: usize = 96;

/// Answers a watch.
pub fn watch(cx: &Context<'_>) -> Result<Response<Body>, ApiError> {
    if cx.accept.yaml {
        return Err(ApiError::NotAcceptable("application/json, application/vnd.kubernetes.protobuf;stream=watch"));
    }
    let options = ListOptions::parse(cx.query, true)?;
    let filter = Filter::new(cx.resource, cx.query, &cx.path.name)?;
    Shaper::new(cx)?;
    let start = match begin(cx, &options, &filter) {
        Ok(start) => start,
        Err(error @ ApiError::Expired { .. }) => {
            let line = format!("{}\n", json!({"type": "ERROR", "object": error.status()}));
            return Ok(answer::json_bytes(StatusCode::OK, line));
        }
        Err(error) => return Err(error),
    };
    let now = Instant::now();
    let seconds = cx.query.number("timeoutSeconds")?.and_then(|s| u64::try_from(s).ok()).filter(|s| *s > 0);
    let spread = Duration::from_millis(cx.server.env.random() % 1_800_000);
    let feed = Feed {
        writer: Writer {
            server: cx.server.clone(),
            resource: cx.resource.clone(),
            accept: cx.accept,
            include: cx.query.get("includeObject").map(str::to_owned),
            filter,
            columns_sent: false,
            converted: BTreeMap::new(),
        },
        initial: start.initial.into_iter(),
        initial_end: start.initial_end,
        watch: start.watch,
        shutdown: cx.server.shutdown.subscribe(),
        deadline: now + seconds.map_or(SHORTEST + spread, Duration::from_secs),
        bookmarks: cx.query.flag("allowWatchBookmarks").then_some(now + BOOKMARK_EVERY),
        done: false,
        _gauge: cx.server.metrics.watch(),
    };
    // On the heap: it is moved for every piece.
    let chunks = stream::unfold(Box::new(feed), |mut feed| async { feed.next().await.map(|chunk| (chunk, feed)) });
    Ok(answer::with_type(StatusCode::OK, "application/json", body::stream(chunks)))
}

struct Start {
    initial: Vec<Entry>,
    initial_end: Option<Revision>,
    watch: Watch,
}

/// Which objects a watch begins with, and from where it goes on.
fn begin(cx: &Context<'_>, options: &ListOptions, filter: &Filter) -> Result<Start, ApiError> {
    let store = &cx.server.store;
    let mut prefix = cx.resource.prefix(&cx.path.namespace);
    if let Some(revision) = options.revision {
        check_reached(cx, revision)?;
    }
    let from_state = match options.send_initial_events {
        Some(wanted) => wanted,
        None => options.revision.is_none_or(|r| r == 0),
    };
    let named = filter.name().filter(|_| !cx.resource.namespaced() || !cx.path.namespace.is_empty());
    if let Some(name) = named {
        // Other names with this beginning are sorted out by the filter.
        prefix = cx.resource.key(&cx.path.namespace, name);
    }
    let (initial, from) = if from_state {
        let page = store.range(&prefix, None, 0, None).map_err(|e| ApiError::too_old(e.requested, e.compacted))?;
        (page.entries, page.revision)
    } else {
        (Vec::new(), options.revision.filter(|r| *r > 0).unwrap_or_else(|| store.revision()))
    };
    let watch = store.watch(&prefix, from).map_err(|e| ApiError::too_old(from, e.compacted))?;
    let bookmark = options.send_initial_events == Some(true) && cx.query.flag("allowWatchBookmarks");
    Ok(Start { initial, initial_end: bookmark.then_some(from), watch })
}

struct Feed {
    writer: Writer,
    initial: std::vec::IntoIter<Entry>,
    initial_end: Option<Revision>,
    watch: Watch,
    shutdown: tokio::sync::watch::Receiver<bool>,
    deadline: Instant,
    bookmarks: Option<Instant>,
    done: bool,
    _gauge: WatchGauge,
}

enum Woken {
    Events(Result<Vec<Arc<Event>>, WatchError>),
    Bookmark,
    End,
}

impl Feed {
    /// The next piece of the stream; `None` ends it.
    async fn next(&mut self) -> Option<Bytes> {
        if self.done {
            return None;
        }
        let mut out = Vec::new();
        if conversion::is_foreign(&self.writer.resource) {
            let initial = self.initial.as_slice().iter().map(|entry| (entry, entry.mod_revision)).collect();
            if let Err(error) = self.writer.convert(initial).await {
                self.fail(&error, &mut out);
                return Some(Bytes::from(out));
            }
        }
        self.write_initial(&mut out);
        while out.is_empty() {
            let wake_at = self.bookmarks.map_or(self.deadline, |at| at.min(self.deadline));
            let woken = tokio::select! {
                biased;
                _ = self.shutdown.changed() => Woken::End,
                events = self.watch.next() => Woken::Events(events),
                () = tokio::time::sleep_until(wake_at) => {
                    if wake_at >= self.deadline { Woken::End } else { Woken::Bookmark }
                }
            };
            match woken {
                Woken::End | Woken::Events(Err(WatchError::Closed)) => return None,
                Woken::Events(Ok(events)) if conversion::is_foreign(&self.writer.resource) => {
                    // An object that ceases to match is shown as it was.
                    let selective = !self.writer.filter.is_all();
                    let seen = events.iter().flat_map(|event| {
                        let new = (event.kind == EventKind::Put).then_some(&event.entry);
                        let old = event.prev.as_ref().filter(|_| selective || new.is_none());
                        new.into_iter().chain(old).map(|entry| (entry, event.revision))
                    });
                    match self.writer.convert(seen.collect()).await {
                        Ok(()) => self.write_events(&events, &mut out),
                        Err(error) => self.fail(&error, &mut out),
                    }
                    self.writer.converted.clear();
                }
                Woken::Events(Ok(events)) => self.write_events(&events, &mut out),
                Woken::Events(Err(WatchError::Lagged)) => self.fail(&lagged(self.watch.revision()), &mut out),
                Woken::Bookmark => {
                    self.bookmarks = Some(Instant::now() + BOOKMARK_EVERY);
                    self.writer.bookmark(self.watch.revision(), false, &mut out);
                }
            }
        }
        Some(Bytes::from(out))
    }

    fn write_initial(&mut self, out: &mut Vec<u8>) {
        for entry in self.initial.by_ref() {
            if let Err(error) = self.writer.initial(&entry, out) {
                self.fail(&error, out);
                return;
            }
            if out.len() >= CHUNK_BYTES {
                return;
            }
        }
        self.writer.converted.clear();
        if let Some(revision) = self.initial_end.take() {
            self.writer.bookmark(revision, true, out);
        }
    }

    fn write_events(&mut self, events: &[Arc<Event>], out: &mut Vec<u8>) {
        for event in events {
            if let Err(error) = self.writer.event(event, out) {
                self.fail(&error, out);
                return;
            }
        }
    }

    fn fail(&mut self, error: &ApiError, out: &mut Vec<u8>) {
        let _ = serde_json::to_writer(&mut *out, &json!({"type": "ERROR", "object": error.status()}));
        out.push(b'\n');
        self.done = true;
    }
}

fn lagged(revision: Revision) -> ApiError {
    ApiError::too_old(revision, revision + 1)
}

/// Writes events as lines of JSON.
struct Writer {
    server: Arc<Inner>,
    resource: Arc<Resource>,
    accept: Accept,
    include: Option<String>,
    filter: Filter,
    columns_sent: bool,
    /// The objects that are about to be written, made over for the request.
    converted: BTreeMap<Shown, Arc<Value>>,
}

/// A state of an object: its key, the revision it was written at, and the one as of which it is shown.
type Shown = (Arc<str>, Revision, Revision);

fn shown(entry: &Entry, revision: Revision) -> Shown {
    (entry.key.clone(), entry.mod_revision, revision)
}

impl Writer {
    fn parsed(&self, entry: &Entry, revision: Revision) -> Result<Arc<Value>, ApiError> {
        let cache: &Parsed = &self.server.parsed;
        cache.get(&entry.key, &entry.value, revision)
    }

    /// Has what is about to be written made over.
    async fn convert(&mut self, entries: Vec<(&Entry, Revision)>) -> Result<(), ApiError> {
        if self.accept.shape == Shape::Metadata && !self.filter.is_late() {
            return Ok(());
        }
        let missing: Vec<_> =
            entries.into_iter().filter(|(entry, at)| !self.converted.contains_key(&shown(entry, *at))).collect();
        let objects =
            missing.iter().map(|(entry, at)| codec::parse(&entry.value, *at)).collect::<Result<Vec<_>, _>>()?;
        let objects = conversion::all_to_request(&self.server, &self.resource, objects).await?;
        let objects = objects.into_iter().map(Arc::new);
        self.converted.extend(missing.into_iter().map(|(entry, at)| shown(entry, at)).zip(objects));
        Ok(())
    }

    fn passes(&self, entry: &Entry, revision: Revision) -> Result<bool, ApiError> {
        let late = |object: &Arc<Value>| self.filter.passes_late(object);
        Ok(self.filter.passes_key(&entry.key)
            && self.filter.passes_text(&entry.value, || self.parsed(entry, entry.mod_revision))?
            && (!self.filter.is_late() || self.converted.get(&shown(entry, revision)).is_some_and(late)))
    }

    fn initial(&mut self, entry: &Entry, out: &mut Vec<u8>) -> Result<(), ApiError> {
        if self.passes(entry, entry.mod_revision)? {
            self.line("ADDED", entry, entry.mod_revision, out)
        } else {
            Ok(())
        }
    }

    /// An object that begins to match was added, one that ceases to match was deleted, as far as the client can see.
    fn event(&mut self, event: &Event, out: &mut Vec<u8>) -> Result<(), ApiError> {
        let before = match &event.prev {
            Some(prev) => self.passes(prev, event.revision)?,
            None => false,
        };
        let after = event.kind == EventKind::Put && self.passes(&event.entry, event.revision)?;
        match (before, after, &event.prev) {
            (true, true, _) => self.line("MODIFIED", &event.entry, event.revision, out),
            (false, true, _) => self.line("ADDED", &event.entry, event.revision, out),
            (true, false, Some(prev)) => self.line("DELETED", prev, event.revision, out),
            _ => Ok(()),
        }
    }

    fn line(&mut self, kind: &str, entry: &Entry, revision: Revision, out: &mut Vec<u8>) -> Result<(), ApiError> {
        let splice = match self.accept.shape {
            Shape::Object if self.resource.is_storage_version() => Some(codec::splice as fn(&[u8], u64, &mut Vec<u8>)),
            Shape::Metadata => Some(codec::splice_metadata as _),
            _ => None,
        };
        if let Some(splice) = splice {
            out.reserve(entry.value.len() + LINE_FRAME);
            out.extend_from_slice(b"{\"type\":\"");
            out.extend_from_slice(kind.as_bytes());
            out.extend_from_slice(b"\",\"object\":");
            splice(&entry.value, revision, out);
            out.extend_from_slice(b"}\n");
            return Ok(());
        }
        let object = match self.converted.get(&shown(entry, revision)) {
            Some(converted) => converted.clone(),
            None => self.parsed(entry, revision)?,
        };
        let shaper = self.shaper();
        let mut shown = shaper.element(&object);
        if self.accept.shape == Shape::Table {
            let metadata = json!({"resourceVersion": revision.to_string()});
            shown = shaper.table(vec![shown], metadata, !self.columns_sent);
            self.columns_sent = true;
        }
        let _ = serde_json::to_writer(&mut *out, &json!({"type": kind, "object": shown}));
        out.push(b'\n');
        Ok(())
    }

    fn shaper(&self) -> Shaper<'_> {
        Shaper::for_stream(&self.resource, self.accept, self.include.as_deref(), self.server.env.now())
    }

    fn bookmark(&mut self, revision: Revision, initial_end: bool, out: &mut Vec<u8>) {
        let mut metadata = json!({"resourceVersion": revision.to_string()});
        if initial_end {
            metadata["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        let object = match self.accept.shape {
            Shape::Table => {
                let row = json!({"cells": [], "object": {"kind": "PartialObjectMetadata",
                    "apiVersion": "meta.k8s.io/v1", "metadata": metadata.clone()}});
                let columns = !std::mem::replace(&mut self.columns_sent, true);
                self.shaper().table(vec![row], json!({"resourceVersion": revision.to_string()}), columns)
            }
            Shape::Metadata => json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1",
                "metadata": metadata}),
            Shape::Object => json!({"kind": self.resource.kind(), "apiVersion": self.resource.api_version(),
                "metadata": metadata}),
        };
        let _ = serde_json::to_writer(&mut *out, &json!({"type": "BOOKMARK", "object": object}));
        out.push(b'\n');
    }
}

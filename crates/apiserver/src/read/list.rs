//! Reading many objects: one consistent snapshot, possibly in pages.

use bytes::Bytes;
use http::{Response, StatusCode};
use mycelium_store::{Compacted, Entry, Page, Revision};
use serde_json::{Map, Value, json};

use super::filter::Filter;
use super::options::{Continue, ListOptions, check_reached};
use super::shape::{self, Shaper};
use crate::answer;
use crate::body::{self, Body};
use crate::codec;
use crate::custom::conversion;
use crate::error::ApiError;
use crate::media::Shape;
use crate::resources::Resource;
use crate::route::Context;

const CHUNK_BYTES: usize = 64 * 1024;
const SCAN: usize = 1000;

const CONTINUE_EXPIRED: &str = "The provided continue parameter is too old to display a consistent list result. You can \
    start a new list without the continue parameter, or use the continue token in this response to retrieve the \
    remainder of the results. Continuing with the provided token results in an inconsistent list - objects that were \
    created, modified, or deleted between the time the first chunk was returned and now may show up in the list.";

/// What a list found.
pub struct Listed {
    /// Objects that passed.
    pub entries: Vec<Entry>,
    /// The snapshot.
    pub revision: Revision,
    /// Token of the next page.
    pub next: Option<String>,
    /// How many objects follow, where that is known.
    pub remaining: Option<usize>,
}

/// Answers a list.
pub async fn list(cx: &Context<'_>) -> Result<Response<Body>, ApiError> {
    if !cx.resource.stored() {
        return empty(cx);
    }
    let options = ListOptions::parse(cx.query, false)?;
    let filter = Filter::new(cx.resource, cx.query, "")?;
    let listed = find(cx, &options, &filter).await?;
    let metadata = list_metadata(&listed);
    let shaper = Shaper::new(cx)?;
    if shaper.is_raw() && !cx.accept.yaml {
        return Ok(raw(cx.resource, listed.entries, &metadata));
    }
    let mut items = Vec::with_capacity(listed.entries.len());
    if conversion::is_foreign(cx.resource) && shaper.shape() != Shape::Metadata {
        let objects = listed.entries.iter().map(codec::parse_entry).collect::<Result<Vec<_>, _>>()?;
        let objects = conversion::all_to_request(cx.server, cx.resource, objects).await?;
        items.extend(objects.iter().map(|object| shaper.element(object)));
    } else {
        for entry in &listed.entries {
            items.push(shaper.element(&codec::parse_entry(entry)?));
        }
    }
    let value = match shaper.shape() {
        Shape::Table => shaper.table(items, metadata, true),
        Shape::Metadata => json!({"kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1",
            "metadata": metadata, "items": items}),
        Shape::Object => json!({"kind": cx.resource.facts.list_kind(), "apiVersion": cx.resource.api_version(),
            "metadata": metadata, "items": items}),
    };
    shape::value(cx, StatusCode::OK, &value)
}

fn list_metadata(listed: &Listed) -> Value {
    let mut metadata = Map::new();
    metadata.insert("resourceVersion".into(), listed.revision.to_string().into());
    if let Some(next) = &listed.next {
        metadata.insert("continue".into(), next.clone().into());
        if let Some(remaining) = listed.remaining.filter(|r| *r > 0) {
            metadata.insert("remainingItemCount".into(), remaining.into());
        }
    }
    Value::Object(metadata)
}

/// Resources without objects, such as component statuses.
fn empty(cx: &Context<'_>) -> Result<Response<Body>, ApiError> {
    let metadata = json!({"resourceVersion": cx.server.store.revision().to_string()});
    let list = json!({"kind": cx.resource.facts.list_kind(), "apiVersion": cx.resource.api_version(),
        "metadata": metadata, "items": []});
    shape::value(cx, StatusCode::OK, &list)
}

/// Finds the objects of a page.
pub async fn find(cx: &Context<'_>, options: &ListOptions, filter: &Filter) -> Result<Listed, ApiError> {
    let mut listed = find_stored(cx, options, filter)?;
    if filter.is_late() {
        let objects = listed.entries.iter().map(codec::parse_entry).collect::<Result<Vec<_>, _>>()?;
        let objects = conversion::all_to_request(cx.server, cx.resource, objects).await?;
        let mut passing = objects.iter().map(|object| filter.passes_late(object));
        listed.entries.retain(|_| passing.next() == Some(true));
    }
    Ok(listed)
}

fn find_stored(cx: &Context<'_>, options: &ListOptions, filter: &Filter) -> Result<Listed, ApiError> {
    if let Some(revision) = options.revision {
        check_reached(cx, revision)?;
    }
    let prefix = cx.resource.prefix(&cx.path.namespace);
    let mut at = if options.exact { options.revision } else { None };
    let mut after = None;
    if let Some(from) = &options.from {
        at = from.revision;
        after = Some(format!("{prefix}{}", from.after));
    }
    if let (Some(name), None) = (filter.name(), at)
        && !cx.path.namespace.is_empty() | !cx.resource.namespaced()
    {
        return one(cx, filter, &cx.resource.key(&cx.path.namespace, name));
    }
    scan(cx, options, filter, &prefix, after, at)
}

/// A list that can hold one name only reads one key.
fn one(cx: &Context<'_>, filter: &Filter, key: &str) -> Result<Listed, ApiError> {
    let revision = cx.server.store.revision();
    let mut entries = Vec::new();
    if let Some(entry) = cx.server.store.get(key)
        && filter.passes_text(&entry.value, || codec::parse_entry(&entry))?
    {
        entries.push(entry);
    }
    let revision = entries.iter().map(|e: &Entry| e.mod_revision).fold(revision, u64::max);
    Ok(Listed { entries, revision, next: None, remaining: None })
}

fn scan(
    cx: &Context<'_>,
    options: &ListOptions,
    filter: &Filter,
    prefix: &str,
    mut after: Option<String>,
    mut at: Option<Revision>,
) -> Result<Listed, ApiError> {
    let store = &cx.server.store;
    let selective = !filter.is_all();
    let batch = match (options.limit, selective) {
        (0, _) => 0,
        (limit, false) => limit,
        (limit, true) => limit.max(SCAN),
    };
    let mut found: Vec<Entry> = Vec::new();
    loop {
        let page = store.range(prefix, after.as_deref(), batch, at).map_err(|e| expired(cx, options, e))?;
        let Page { entries, revision, remaining } = page;
        // The pages of one list, also the inner ones, all show the same snapshot.
        at = at.or((batch > 0).then_some(revision));
        let last_of_batch = entries.last().map(|e| e.key.clone());
        for entry in entries {
            if selective && !passes(filter, &entry)? {
                continue;
            }
            if options.limit > 0 && found.len() == options.limit {
                return Ok(page_of(found, prefix, revision, None));
            }
            found.push(entry);
        }
        match last_of_batch {
            Some(last) if remaining > 0 && found.len() < options.limit => after = Some(last.to_string()),
            Some(_) if remaining > 0 => {
                return Ok(page_of(found, prefix, revision, (!selective).then_some(remaining)));
            }
            _ => return Ok(Listed { entries: found, revision, next: None, remaining: None }),
        }
    }
}

fn passes(filter: &Filter, entry: &Entry) -> Result<bool, ApiError> {
    Ok(filter.passes_key(&entry.key) && filter.passes_text(&entry.value, || codec::parse_entry(entry))?)
}

fn page_of(entries: Vec<Entry>, prefix: &str, revision: Revision, remaining: Option<usize>) -> Listed {
    let after = entries.last().and_then(|e| e.key.strip_prefix(prefix)).unwrap_or_default().to_owned();
    let next = Continue { revision: Some(revision), after }.encode();
    Listed { entries, revision, next: Some(next), remaining }
}

/// The 410 of a snapshot that is gone, with a token that goes on without it.
fn expired(cx: &Context<'_>, options: &ListOptions, error: Compacted) -> ApiError {
    match &options.from {
        None => ApiError::too_old(error.requested, cx.server.store.compacted().max(error.compacted)),
        Some(from) => {
            let token = Continue { revision: None, after: from.after.clone() }.encode();
            ApiError::Expired { message: CONTINUE_EXPIRED.to_owned(), continue_token: Some(token) }
        }
    }
}

/// A list straight from stored bytes, sent in chunks when it is long.
fn raw(resource: &Resource, entries: Vec<Entry>, metadata: &Value) -> Response<Body> {
    let head = format!(
        "{{\"kind\":\"{}\",\"apiVersion\":\"{}\",\"metadata\":{metadata},\"items\":[",
        resource.facts.list_kind(),
        resource.api_version()
    );
    let total: usize = entries.iter().map(|e| e.value.len() + 48).sum();
    let mut items = entries.into_iter();
    let mut first = true;
    let mut write = move |out: &mut Vec<u8>, limit: usize| -> bool {
        for entry in items.by_ref() {
            if !std::mem::take(&mut first) {
                out.push(b',');
            }
            codec::splice(&entry.value, entry.mod_revision, out);
            if out.len() >= limit {
                return true;
            }
        }
        out.extend_from_slice(b"]}\n");
        false
    };
    let mut out = Vec::with_capacity(head.len() + total.min(CHUNK_BYTES) + 64);
    out.extend_from_slice(head.as_bytes());
    if total < CHUNK_BYTES {
        write(&mut out, usize::MAX);
        return answer::json_bytes(StatusCode::OK, out);
    }
    let mut more = write(&mut out, CHUNK_BYTES);
    let mut pending = Some(Bytes::from(out));
    let chunks = std::iter::from_fn(move || {
        if let Some(chunk) = pending.take() {
            return Some(chunk);
        }
        if !more {
            return None;
        }
        let mut out = Vec::with_capacity(CHUNK_BYTES + 8192);
        more = write(&mut out, CHUNK_BYTES);
        Some(Bytes::from(out))
    });
    answer::with_type(StatusCode::OK, "application/json", body::stream(futures::stream::iter(chunks)))
}

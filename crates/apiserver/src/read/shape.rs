//! How objects are answered: as they are, as table rows, or as metadata only; in the version that was asked for.

use bytes::Bytes;
use http::{Response, StatusCode};
use jiff::Timestamp;
use mycelium_store::{Entry, Revision};
use serde_json::{Value, json};

use crate::answer;
use crate::body::Body;
use crate::codec;
use crate::custom::conversion;
use crate::error::ApiError;
use crate::media::{Accept, Shape};
use crate::resources::Resource;
use crate::route::Context;

/// What rows of a table carry besides their cells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Include {
    /// Nothing.
    None,
    /// The metadata.
    Metadata,
    /// The object.
    Object,
}

/// How to write the objects of a request.
#[derive(Clone, Copy)]
pub struct Shaper<'a> {
    resource: &'a Resource,
    accept: Accept,
    include: Include,
    now: Timestamp,
}

impl<'a> Shaper<'a> {
    /// The shape a request asks for.
    pub fn new(cx: &Context<'a>) -> Result<Self, ApiError> {
        let include = match cx.query.get("includeObject") {
            None | Some("Metadata") => Include::Metadata,
            Some("None") => Include::None,
            Some("Object") => Include::Object,
            Some(other) => return Err(ApiError::bad(format!("unrecognized includeObject value: {other:?}"))),
        };
        Ok(Self { resource: cx.resource, accept: cx.accept, include, now: cx.server.env.now() })
    }

    /// The shape of a stream whose options were checked before.
    pub fn for_stream(resource: &'a Resource, accept: Accept, include: Option<&str>, now: Timestamp) -> Self {
        let include = match include {
            Some("None") => Include::None,
            Some("Object") => Include::Object,
            _ => Include::Metadata,
        };
        Self { resource, accept, include, now }
    }

    /// Whether stored bytes can be answered without parsing.
    pub fn is_raw(&self) -> bool {
        self.accept.shape == Shape::Object && self.resource.is_storage_version()
    }

    /// The shape.
    pub fn shape(&self) -> Shape {
        self.accept.shape
    }

    /// A stored object in the version that was asked for.
    pub fn convert(&self, object: Value) -> Value {
        to_request_version(self.resource, object)
    }

    /// One element of a list or watch: the object, its metadata, or its table row.
    pub fn element(&self, object: &Value) -> Value {
        match self.accept.shape {
            Shape::Object => self.convert(object.clone()),
            Shape::Metadata => partial(object),
            Shape::Table => self.row(object),
        }
    }

    fn row(&self, object: &Value) -> Value {
        let mut row = json!({"cells": self.resource.cells(object, self.now)});
        match self.include {
            Include::None => {}
            Include::Metadata => row["object"] = partial(object),
            Include::Object => row["object"] = self.convert(object.clone()),
        }
        row
    }

    /// A table around rows; without columns when they were sent before.
    pub fn table(&self, rows: Vec<Value>, metadata: Value, columns: bool) -> Value {
        let columns: Vec<Value> = if columns { self.resource.columns() } else { Vec::new() };
        json!({"kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": metadata, "columnDefinitions": columns,
            "rows": rows})
    }
}

/// `PartialObjectMetadata` of an object.
pub fn partial(object: &Value) -> Value {
    json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": object["metadata"]})
}

/// A stored object in the version of a resource.
pub fn to_request_version(resource: &Resource, mut object: Value) -> Value {
    if !resource.is_storage_version() {
        mycelium_kinds::convert::to_version(&mut object, resource.group(), resource.version());
    }
    object
}

/// Answers one stored object, converted if need be.
pub async fn answer(cx: &Context<'_>, code: StatusCode, entry: &Entry) -> Result<Response<Body>, ApiError> {
    if !conversion::is_foreign(cx.resource) {
        return stored(cx, code, &entry.value, entry.mod_revision);
    }
    parsed(cx, code, conversion::to_request(cx.server, cx.resource, codec::parse_entry(entry)?).await?)
}

/// Answers one stored value.
pub fn stored(
    cx: &Context<'_>,
    code: StatusCode,
    value: &Bytes,
    revision: Revision,
) -> Result<Response<Body>, ApiError> {
    let shaper = Shaper::new(cx)?;
    if shaper.is_raw() && !cx.accept.yaml {
        return Ok(answer::json_bytes(code, codec::response_bytes(value, revision)));
    }
    parsed(cx, code, codec::parse(value, revision)?)
}

/// Answers one object in storage version.
pub fn parsed(cx: &Context<'_>, code: StatusCode, object: Value) -> Result<Response<Body>, ApiError> {
    let shaper = Shaper::new(cx)?;
    let answer = match shaper.shape() {
        Shape::Table => {
            let metadata = json!({"resourceVersion": object["metadata"]["resourceVersion"]});
            shaper.table(vec![shaper.row(&object)], metadata, true)
        }
        Shape::Metadata => partial(&object),
        Shape::Object => shaper.convert(object),
    };
    value(cx, code, &answer)
}

/// Answers any value in JSON or YAML.
pub fn value(cx: &Context<'_>, code: StatusCode, value: &Value) -> Result<Response<Body>, ApiError> {
    if cx.accept.yaml { answer::yaml(code, value) } else { Ok(answer::json(code, value)) }
}

//! Content negotiation.

use http::header::{ACCEPT, CONTENT_TYPE, HeaderMap};

use crate::error::ApiError;

const BODY_TYPES: &str = "application/json, application/yaml, application/vnd.kubernetes.protobuf";
const ANSWER_TYPES: &str = "application/json, application/yaml, application/vnd.kubernetes.protobuf";
const PATCH_TYPES: &str = "application/json-patch+json, application/merge-patch+json, \
    application/strategic-merge-patch+json, application/apply-patch+yaml";

/// The patches that custom resources take.
pub const CUSTOM_PATCH_TYPES: &str =
    "application/json-patch+json, application/merge-patch+json, application/apply-patch+yaml";

/// In which shape objects are answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// As they are.
    Object,
    /// As rows of a `meta.k8s.io/v1` Table.
    Table,
    /// As `meta.k8s.io/v1` PartialObjectMetadata.
    Metadata,
}

/// What the client accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Accept {
    /// The shape.
    pub shape: Shape,
    /// YAML rather than JSON.
    pub yaml: bool,
    /// Aggregated discovery (`apidiscovery.k8s.io/v2`).
    pub aggregated: bool,
}

impl Accept {
    /// Plain JSON.
    pub const JSON: Self = Self { shape: Shape::Object, yaml: false, aggregated: false };

    /// Takes the first acceptable alternative. Protobuf alone is answered with JSON, which every client reads.
    pub fn parse(headers: &HeaderMap) -> Result<Self, ApiError> {
        let mut asked = false;
        for value in headers.get_all(ACCEPT) {
            for alternative in value.to_str().unwrap_or("").split(',').map(str::trim).filter(|a| !a.is_empty()) {
                asked = true;
                if let Some(accept) = Self::alternative(alternative) {
                    return Ok(accept);
                }
            }
        }
        if asked { Err(ApiError::NotAcceptable(ANSWER_TYPES)) } else { Ok(Self::JSON) }
    }

    fn alternative(text: &str) -> Option<Self> {
        let mut parts = text.split(';').map(str::trim);
        let media = parts.next()?;
        let (mut kind, mut group, mut version) = ("", "", "");
        for part in parts {
            match part.split_once('=') {
                Some(("as", value)) => kind = value,
                Some(("g", value)) => group = value,
                Some(("v", value)) => version = value,
                _ => {}
            }
        }
        let yaml = match media {
            "application/json" | "application/*" | "*/*" | "application/vnd.kubernetes.protobuf" | "text/plain" => {
                false
            }
            "application/yaml" => true,
            _ => return None,
        };
        let plain = Self { shape: Shape::Object, yaml, aggregated: false };
        match (kind, group, version) {
            ("", _, _) => Some(plain),
            // A transformed object in protobuf is left to the client's next alternative.
            _ if media == "application/vnd.kubernetes.protobuf" => None,
            ("Table", "meta.k8s.io", "v1") => Some(Self { shape: Shape::Table, ..plain }),
            ("PartialObjectMetadata" | "PartialObjectMetadataList", "meta.k8s.io", "v1") => {
                Some(Self { shape: Shape::Metadata, ..plain })
            }
            ("APIGroupDiscoveryList", "apidiscovery.k8s.io", "v2") => Some(Self { aggregated: true, ..plain }),
            _ => None,
        }
    }
}

/// How a request body is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyFormat {
    /// JSON.
    Json,
    /// YAML.
    Yaml,
    /// Protocol buffers, in Kubernetes' envelope.
    Protobuf,
}

/// The format of a body that is an object.
pub fn body_format(headers: &HeaderMap) -> Result<BodyFormat, ApiError> {
    match media_type(headers) {
        "" | "application/json" | "*/*" => Ok(BodyFormat::Json),
        "application/yaml" => Ok(BodyFormat::Yaml),
        "application/vnd.kubernetes.protobuf" => Ok(BodyFormat::Protobuf),
        _ => Err(ApiError::UnsupportedMediaType(BODY_TYPES)),
    }
}

/// The four ways to write a patch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PatchFormat {
    /// RFC 6902.
    Json,
    /// RFC 7386.
    Merge,
    /// Kubernetes' strategic merge.
    Strategic,
    /// Server-side apply.
    Apply,
}

/// The format of a patch.
pub fn patch_format(headers: &HeaderMap) -> Result<PatchFormat, ApiError> {
    match media_type(headers) {
        "application/json-patch+json" => Ok(PatchFormat::Json),
        "application/merge-patch+json" => Ok(PatchFormat::Merge),
        "application/strategic-merge-patch+json" => Ok(PatchFormat::Strategic),
        "application/apply-patch+yaml" => Ok(PatchFormat::Apply),
        _ => Err(ApiError::UnsupportedMediaType(PATCH_TYPES)),
    }
}

fn media_type(headers: &HeaderMap) -> &str {
    let text = headers.get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or("");
    text.split(';').next().unwrap_or("").trim()
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn accept(text: &'static str) -> Result<Accept, ApiError> {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, HeaderValue::from_static(text));
        Accept::parse(&headers)
    }

    #[test]
    fn kubectl_gets_what_it_asks_for() {
        let table = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,\
                     application/json";
        assert_eq!(accept(table).expect("accepted").shape, Shape::Table);
        let discovery = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json";
        assert!(accept(discovery).expect("accepted").aggregated);
        assert_eq!(accept("application/vnd.kubernetes.protobuf").expect("accepted"), Accept::JSON);
        assert!(accept("application/yaml").expect("accepted").yaml);
        assert_eq!(accept("text/html, */*").expect("accepted"), Accept::JSON);
        assert!(accept("image/png").is_err());
    }
}

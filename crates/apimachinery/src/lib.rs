//! Kubernetes type facts and pure object machinery: schemas, strict decoding, patches, server-side apply, OpenAPI

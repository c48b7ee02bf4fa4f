//! Kubernetes' object machinery as pure functions over JSON values: no I/O, no clock, no network.
//!
//! | module | holds |
//! |---|---|
//! | [`schema`] | facts about the built-in types and resources of Kubernetes 1.35; types of custom resources |
//! | [`decode`] | JSON and YAML with the errors of Kubernetes' decoder, checks against a type |
//! | [`patch`] | JSON patch, merge patch, strategic merge patch |
//! | [`apply`] | server-side apply, managed fields |
//! | [`openapi`] | OpenAPI v2 and v3 documents |

pub mod apply;
pub mod decode;
pub mod openapi;
pub mod patch;
pub mod schema;

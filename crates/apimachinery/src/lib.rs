//! Kubernetes' object machinery as pure functions over JSON values: no I/O, no clock, no network.
//!
//! | module | holds |
//! |---|---|
//! | [`schema`] | facts about the built-in types and resources of Kubernetes 1.35; types of custom resources |

pub mod schema;

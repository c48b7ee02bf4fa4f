//! Facts about the types and resources of Kubernetes 1.35, and types made from the schemas of custom resources.

mod crd;
mod resources;
mod table;
mod text;
mod types;

pub use crd::from_crd_schema;
pub use resources::{Group, Resource, Subresource, api_version, groups, resource_named, resource_of_kind, resources};
pub use types::{ANY, Field, Gvk, ListKind, Name, Scalar, Shape, Type, TypeRef, Types, types};

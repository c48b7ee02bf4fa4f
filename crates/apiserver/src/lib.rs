//! The Kubernetes API server: discovery, OpenAPI, CRUD, watch, patches, authentication and authorisation.
//!
//! It knows resources from one table and imports no controller. Objects lie in the store as JSON that goes out to
//! clients as it is; see [`codec`]. Clients reach it over TLS ([`ApiServer::serve`]) or in process
//! ([`ApiServer::client_service`]).
//!
//! | module | holds |
//! |---|---|
//! | [`server`] | the shared parts, and the way of a request |
//! | [`serve`] | TLS connections and the in-process service |
//! | [`route`], [`request`], [`media`] | from path, method and headers to a handler |
//! | [`authn`], [`auth`], [`pki`] | who asks, and may they; keys and certificates |
//! | [`resources`], [`discovery`], [`openapi`] | what there is |
//! | [`custom`] | custom resources |
//! | [`dynamic`] | webhooks and admission policies |
//! | [`aggregation`] | API versions that others serve |
//! | [`read`] | get, list, watch, tables |
//! | [`write`] | create, update, patch, delete, admission, allocation |
//! | [`fairness`] | who is served next |
//! | [`audit`] | the audit log |
//! | [`sealing`] | Secrets at rest |
//! | [`quota`] | what namespaces may use |
//! | [`review`], [`streams`], [`proxy`] | what is answered without the store |
//! | `outbound` | requests that the server sends on |
//! | [`error`], [`answer`], [`body`], [`codec`], [`compress`], [`protobuf`], [`metrics`] | tools |

pub mod aggregation;
pub mod answer;
pub mod audit;
pub mod auth;
pub mod authn;
pub mod body;
mod bootstrap;
pub mod codec;
pub mod compress;
pub mod custom;
pub mod discovery;
pub mod dynamic;
pub mod error;
pub mod fairness;
pub mod measured;
pub mod media;
pub mod metrics;
pub mod openapi;
mod outbound;
pub mod pki;
pub mod protobuf;
pub mod proxy;
pub mod quota;
pub mod read;
pub mod request;
pub mod resources;
pub mod review;
pub mod route;
pub mod sealing;
pub mod serve;
pub mod server;
pub mod snapshot;
pub mod streams;
pub mod write;

pub use auth::Identity;
pub use body::Body;
pub use error::ApiError;
pub use mycelium_kinds::admission::Patience;
pub use pki::{CertKey, Pki, PkiError};
pub use server::{ApiServer, Config, NodeService};

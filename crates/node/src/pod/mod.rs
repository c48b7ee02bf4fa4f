//! One pod on this node: a pure plan and status, and the worker that carries them out.
//!
//! | module | holds |
//! |---|---|
//! | [`model`] | what is known of a pod |
//! | [`plan`], [`status`] | pure: what to do, what to report |
//! | [`worker`], [`handle`] | one task per pod: look, plan, act, report; the same from outside |
//! | [`sandbox`], [`start`], [`stop`] | the actions |
//! | [`probe`], [`hook`], [`exec`], [`http`] | asking containers |
//! | [`environment`], [`downward`], [`files`] | what containers find inside |
//! | [`resize`] | what containers may use, changed while they run |
//! | [`host_ports`] | which ports of the host are taken |
//! | [`disk`], [`report`] | what is written, on disk and to the API |

pub mod disk;
pub mod downward;
pub mod environment;
pub mod exec;
pub mod files;
pub mod handle;
pub mod hook;
pub mod host_ports;
pub mod http;
pub mod model;
pub mod plan;
pub mod probe;
pub mod report;
pub mod resize;
pub mod sandbox;
pub mod start;
pub mod status;
pub mod stop;
pub mod worker;

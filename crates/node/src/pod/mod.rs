//! One pod on this node: a pure plan and status, and the worker that carries them out.

pub mod downward;
pub mod environment;
pub mod files;
pub mod model;
pub mod plan;
pub mod status;

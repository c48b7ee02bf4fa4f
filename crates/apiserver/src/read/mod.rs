//! Reading: get, list, watch, and the shapes in which objects are answered.
//!
//! Stored bytes go out as they are unless a selector, a table or another version needs the object itself.

pub mod filter;
pub mod get;
pub mod list;
pub mod options;
pub mod shape;
pub mod watch;

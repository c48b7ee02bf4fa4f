//! Vocabulary that every crate shares. No I/O, no async runtime.
//!
//! | module | holds |
//! |---|---|
//! | [`mod@env`] | clock and randomness, passed in so that the simulation can own them |
//! | [`field`] | field paths and the error list of Kubernetes validation |
//! | [`names`] | name, label and port-name syntax |
//! | [`quantity`] | resource quantities such as `500m` and `1Gi` |
//! | [`selector`] | label and field selectors |

pub mod env;
pub mod field;
pub mod names;
pub mod quantity;
pub mod selector;

//! Vocabulary that every crate shares. No I/O, no async runtime.
//!
//! | module | holds |
//! |---|---|
//! | [`endophyte`] | the document of a virtual machine that survives its host |
//! | [`mod@env`] | clock and randomness, passed in so that the simulation can own them |
//! | [`error`] | errors as one sentence |
//! | [`field`] | field paths and the error list of Kubernetes validation |
//! | [`names`] | name, label and port-name syntax |
//! | [`quantity`] | resource quantities such as `500m` and `1Gi` |
//! | [`selector`] | label and field selectors |

pub mod cron;
pub mod endophyte;
pub mod env;
pub mod error;
pub mod field;
pub mod names;
pub mod quantity;
pub mod selector;
pub mod storage;

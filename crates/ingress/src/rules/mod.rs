//! From objects to a routing table. Pure.
//!
//! | module | holds |
//! |---|---|
//! | [`model`] | Ingresses, Services, EndpointSlices and Secrets, cut down to what routes are made of |
//! | [`mod@compile`] | all of them into one table, and what has to be told about them |
//! | [`table`] | the table: which route a host and a path lead to |
//! | [`path`] | paths in the form in which they are compared |
//! | [`backend`] | the endpoints of a route, and which of them is next |

pub mod backend;
pub mod compile;
pub mod model;
pub mod path;
pub mod table;

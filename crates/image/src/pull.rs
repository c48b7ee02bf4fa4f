//! stub
#[derive(Default)]
pub(crate) struct Pulls;

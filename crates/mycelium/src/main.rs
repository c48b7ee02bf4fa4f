//! Command line and composition.
fn main() {}

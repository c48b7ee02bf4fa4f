//! Fuzz targets for every decoder that takes bytes from outside.

pub mod targets;

/// Runs one target on one input, for libFuzzer.
pub fn run(name: &str, bytes: &[u8]) {
    let target = targets::all().into_iter().find(|t| t.name == name).expect("a known target");
    (target.run)(bytes);
}

//! Fuzz targets for every decoder that takes bytes from outside.

pub mod targets;

//! Chores of this repository: `cargo xtask layering | tidy | schema SWAGGER | protobuf`.

mod layering;
mod protobuf;
mod schema;
mod tidy;

use std::path::Path;

use anyhow::{Result, bail};

const USAGE: &str = "usage: cargo xtask layering | tidy | schema SWAGGER | protobuf";

fn main() -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["layering"] => layering::check(&root),
        ["protobuf"] => protobuf::generate(&root),
        ["schema", swagger] => schema::generate(&root, Path::new(swagger)),
        ["tidy"] => tidy::check(&root),
        _ => bail!(USAGE),
    }
}

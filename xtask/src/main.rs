//! Chores of this repository: `cargo xtask layering | tidy`.

mod layering;
mod tidy;

use std::path::Path;

use anyhow::{Result, bail};

const USAGE: &str = "usage: cargo xtask layering | tidy";

fn main() -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["layering"] => layering::check(&root),
        ["tidy"] => tidy::check(&root),
        _ => bail!(USAGE),
    }
}

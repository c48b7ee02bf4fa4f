//! `cargo xtask protobuf`: field numbers of the API in protocol buffers, and samples to test their decoder with.
//!
//! The Go program in `scripts/protobuf` reads them off Kubernetes' own types; Go fetches those. It writes
//!
//! - `crates/apiserver/data/protobuf.txt`, which `crates/apiserver/src/protobuf.rs` reads;
//! - `crates/apiserver/tests/data/protobuf.jsonl`: objects in both encodings, which must decode to the same.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

/// Writes both files below `root`.
pub fn generate(root: &Path) -> Result<()> {
    let home = root.join("crates/apiserver");
    fs::create_dir_all(home.join("tests/data"))?;
    fs::write(home.join("data/protobuf.txt"), go(root, &[])?)?;
    fs::write(home.join("tests/data/protobuf.jsonl"), go(root, &["samples"])?)?;
    Ok(())
}

#[expect(clippy::disallowed_methods, reason = "a chore of developers, not a part of the engine")]
fn go(root: &Path, arguments: &[&str]) -> Result<Vec<u8>> {
    let mut command = Command::new("go");
    command.args(["run", "."]).args(arguments).current_dir(root.join("scripts/protobuf"));
    let output =
        command.stderr(std::process::Stdio::inherit()).output().context("starting go, which must be installed")?;
    ensure!(output.status.success(), "go run failed: {}", output.status);
    Ok(output.stdout)
}

//! Running `nft`: one transaction per process, handed over on its standard input.

use std::io::{self, Write};
use std::process::{Child, Stdio};

use mycelium_linux::process::command;

/// A transaction that did not take effect; none of it did.
#[derive(Debug, thiserror::Error)]
pub enum NftError {
    /// The program is not there.
    #[error("`nft` cannot be started: install the package nftables")]
    Missing(#[source] io::Error),
    /// Talking to it failed.
    #[error("running `nft` failed")]
    Io(#[source] io::Error),
    /// It refused the rules.
    #[error("`nft` refused the rules: {0}")]
    Refused(String),
}

/// A transaction under way.
pub struct Running(Child);

/// Starts a transaction. The text is small or `nft` reads it as it is written, so this does not wait for the end.
pub fn start(rules: &str) -> Result<Running, NftError> {
    let mut child = command("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(NftError::Missing)?;
    let written = child.stdin.take().map_or(Ok(()), |mut stdin| stdin.write_all(rules.as_bytes()));
    match written {
        // It says on its standard error why it stopped reading.
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => {
            let _ = child.kill();
            let _ = child.wait();
            Err(NftError::Io(e))
        }
        _ => Ok(Running(child)),
    }
}

impl Running {
    /// Waits for the transaction to take effect.
    pub fn finish(self) -> Result<(), NftError> {
        let output = self.0.wait_with_output().map_err(NftError::Io)?;
        if output.status.success() {
            return Ok(());
        }
        Err(NftError::Refused(first_lines(&output.stderr)))
    }
}

/// Carries a transaction out.
pub fn apply(rules: &str) -> Result<(), NftError> {
    start(rules)?.finish()
}

/// The output of an `nft` command, or nothing if it failed (the object is not there).
pub fn query(args: &[&str]) -> Result<Option<Vec<u8>>, NftError> {
    let output = command("nft").args(args).stdin(Stdio::null()).output().map_err(NftError::Missing)?;
    Ok(output.status.success().then_some(output.stdout))
}

fn first_lines(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    text.lines().take(3).collect::<Vec<_>>().join("; ")
}

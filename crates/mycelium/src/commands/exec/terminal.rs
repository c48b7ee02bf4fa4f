//! This side's terminal while a command on the other side has it.

use anyhow::{Context, Result};
use futures::SinkExt;
use kube::api::TerminalSize;
use rustix::termios::{OptionalActions, Termios};
use tokio::signal::unix::{SignalKind, signal};

/// Keys go through as they are, interrupts included, until this is dropped.
pub(in crate::commands) struct RawTerminal {
    before: Termios,
}

impl RawTerminal {
    pub(in crate::commands) fn enter() -> Result<Self> {
        let stdin = std::io::stdin();
        let before = rustix::termios::tcgetattr(&stdin).context("the terminal cannot be read")?;
        let mut raw = before.clone();
        raw.make_raw();
        rustix::termios::tcsetattr(&stdin, OptionalActions::Now, &raw).context("the terminal cannot be changed")?;
        Ok(Self { before })
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        let _ = rustix::termios::tcsetattr(std::io::stdin(), OptionalActions::Now, &self.before);
    }
}

/// Tells the other side how large the terminal is, now and whenever that changes.
pub(super) async fn pass_sizes(mut sender: impl futures::Sink<TerminalSize> + Unpin) {
    let Ok(mut changes) = signal(SignalKind::window_change()) else { return };
    loop {
        if let Ok(size) = rustix::termios::tcgetwinsize(std::io::stdin()) {
            let size = TerminalSize { width: size.ws_col, height: size.ws_row };
            if sender.send(size).await.is_err() {
                return;
            }
        }
        if changes.recv().await.is_none() {
            return;
        }
    }
}

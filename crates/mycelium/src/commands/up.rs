//! `mycelium up`: start the engine and run until told to stop.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;

use crate::engine::config::{Config, Options};
use crate::engine::{preflight, start};

/// Start the engine.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  mycelium up
  mycelium up --nodes 8                        as many nodes, each with a network of its own; kept for the next time
  mycelium up --data-dir /srv/b --listen 127.0.0.1:7443 --pod-cidr 10.10.0.0/16 --service-cidr 10.11.0.0/16

The engine runs in the foreground until SIGTERM or Ctrl-C. Pods go on running without it; the next `up` adopts them.
`mycelium down` stops the pods too. Logging: MYCELIUM_LOG=info (tracing filter syntax).")]
pub struct Args {
    #[command(flatten)]
    options: Options,
    /// Configuration file (YAML); flags win over it
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Stay in the foreground; this is the default, and the only mode
    #[arg(long)]
    foreground: bool,
}

/// Runs the engine until a signal.
pub fn run(args: Args) -> Result<ExitCode> {
    let Args { options, config, foreground: _ } = args;
    let config = Config::load(options, config.as_deref())?;
    preflight::check()?;
    start::run(config)?;
    Ok(ExitCode::SUCCESS)
}

//! The subcommands, and what the process exits with.

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use mycelium_api::error::chain;

use crate::commands;

/// Exit codes, as `--help` documents them. 2 (usage) is clap's own.
const EXIT_FAILURE: u8 = 1;

/// One binary that runs Kubernetes workloads on a single machine.
#[derive(Parser)]
#[command(name = "mycelium", version, propagate_version = true, after_help = AFTER_HELP)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

const AFTER_HELP: &str = "\
Examples:
  mycelium up                                    start the engine in the foreground
  export KUBECONFIG=/var/lib/mycelium/admin.kubeconfig
  mycelium apply -f examples/platform/           apply manifests (kubectl works as well)
  mycelium get pods -o wide
  mycelium down                                  stop everything; leaves nothing behind but the data directory

Exit codes: 0 success, 1 failure (stderr says what and what to do), 2 wrong usage; `exec` passes on the command's own.";

#[derive(Subcommand)]
enum Verb {
    /// Start the engine: API server, scheduler, controllers, node and network in one process.
    Up(commands::up::Args),
    /// Stop the engine and every pod, and remove all they made on this machine; objects and images are kept.
    Down(commands::down::Args),
    /// Show whether the engine runs, and how it is.
    Status(commands::status::Args),
    /// Create or change objects from manifests.
    Apply(commands::apply::Args),
    /// Explain the faults of manifests before they are applied.
    Check(commands::check::Args),
    /// Show objects.
    Get(commands::get::Args),
    /// Show objects in detail, with their events.
    Describe(commands::describe::Args),
    /// Print the logs of a container.
    Logs(commands::logs::Args),
    /// Run a command in a container.
    Exec(commands::exec::Args),
    /// Delete objects.
    Delete(commands::delete::Args),
    /// Wait until objects have a condition, or are gone.
    Wait(commands::wait::Args),
    /// Load, pull, list and remove images.
    Image(commands::image::Args),
    /// Show, switch and drain the nodes.
    Node(commands::node::Args),
    /// Give people access: a certificate, a kubeconfig, a role.
    User(commands::user::Args),
    /// Run virtual machines that survive the loss of their host.
    Vm(commands::vm::Args),
    /// Write everything an engine knows into one file, while it runs or not.
    Backup(commands::backup::Args),
    /// Put the content of a backup into a data directory.
    Restore(commands::restore::Args),
    /// Print a completion script for a shell.
    Completion {
        /// The shell to complete for.
        shell: clap_complete::Shell,
    },
}

/// Parses the command line, runs the verb, prints an error once with its whole chain.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    // The process-wide choice of cryptography; fails only if made twice.
    let _ = rustls::crypto::ring::default_provider().install_default();
    match run(cli.verb) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {}", chain(error.as_ref()));
            ExitCode::from(EXIT_FAILURE)
        }
    }
}

fn run(verb: Verb) -> anyhow::Result<ExitCode> {
    match verb {
        Verb::Up(args) => commands::up::run(args),
        Verb::Down(args) => commands::down::run(args),
        Verb::Status(args) => commands::status::run(args),
        Verb::Apply(args) => commands::apply::run(args),
        Verb::Check(args) => commands::check::run(args),
        Verb::Get(args) => commands::get::run(args),
        Verb::Describe(args) => commands::describe::run(args),
        Verb::Logs(args) => commands::logs::run(args),
        Verb::Exec(args) => commands::exec::run(args),
        Verb::Delete(args) => commands::delete::run(args),
        Verb::Wait(args) => commands::wait::run(args),
        Verb::Image(args) => commands::image::run(args),
        Verb::Node(args) => commands::node::run(args),
        Verb::User(args) => commands::user::run(args),
        Verb::Vm(args) => commands::vm::run(args),
        Verb::Backup(args) => commands::backup::run(args),
        Verb::Restore(args) => commands::restore::run(args),
        Verb::Completion { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "mycelium", &mut std::io::stdout());
            Ok(ExitCode::SUCCESS)
        }
    }
}

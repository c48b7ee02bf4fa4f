//! `mycelium vm`: virtual machines that survive the loss of their host.
//!
//! | module | holds |
//! |---|---|
//! | [`run`] | the processes: `run`, `backup`, `witness` |
//! | [`ask`] | what is asked of a running process: `status`, `migrate`, `promote`, `protect`, `forget`, `stop` |
//! | [`console`] | the guest's serial console |
//! | [`progress`] | how far backups are brought in sync |
//! | [`show`] | status as a table |

mod ask;
mod console;
mod progress;
mod run;
mod show;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Subcommand;
use mycelium_endophyte::host::VmRoot;

use crate::engine::config::data_dir;

/// Run virtual machines that survive the loss of their host.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  mycelium vm init                                   once, on one host; copy the file it names to the others
  mycelium vm backup --listen 10.0.0.2:7400          on each host that stands by
  mycelium vm run --name legacy --disk debian.qcow2 --memory 512Mi --net tap:br0 --backup 10.0.0.2:7400
  mycelium vm status legacy --watch
  mycelium vm migrate legacy --to 10.0.0.3:7400

Exit codes: 0 success, 1 failure (stderr says what and what to do), 2 wrong usage, 3 no such machine is running here.")]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
    /// Directory of this host's state [default: /var/lib/mycelium]
    #[arg(long, value_name = "DIR", global = true, env = "MYCELIUM_DATA_DIR")]
    data_dir: Option<PathBuf>,
}

#[derive(Subcommand)]
enum Verb {
    /// Make the file that says which hosts belong together.
    Init,
    /// Run a machine on this host, replicated to its backups.
    Run(Box<run::Run>),
    /// Stand by for machines of other hosts.
    Backup(run::Standby),
    /// Vote for machines of other hosts without holding a copy.
    Witness(run::Standby),
    /// Show how machines are on this host.
    Status(ask::Status),
    /// Hand a machine over to another host while it runs.
    Migrate(ask::Migrate),
    /// Make this host's copy the running machine.
    Promote(ask::Promote),
    /// Take another host in as a backup of a running machine.
    Protect(ask::Protect),
    /// Take a host that will not return out of a machine's group.
    Forget(ask::Forget),
    /// Shut a machine down.
    Stop(ask::Stop),
    /// Talk to a guest's serial console.
    Console(console::Args),
}

/// What clap calls a machine.
const NAME: &str = "NAME";

/// Runs the verb.
pub fn run(args: Args) -> Result<ExitCode> {
    let root = VmRoot::of(&data_dir(args.data_dir)?);
    match args.verb {
        Verb::Init => init(&root),
        Verb::Run(args) => run::machine(&root, *args),
        Verb::Backup(args) => run::standby(&root, args, false),
        Verb::Witness(args) => run::standby(&root, args, true),
        Verb::Status(args) => ask::status(&root, &args),
        Verb::Migrate(args) => ask::migrate(&root, &args),
        Verb::Promote(args) => ask::promote(&root, &args),
        Verb::Protect(args) => ask::protect(&root, &args),
        Verb::Forget(args) => ask::forget(&root, &args),
        Verb::Stop(args) => ask::stop(&root, &args),
        Verb::Console(args) => console::run(&root, &args),
    }
}

fn init(root: &VmRoot) -> Result<ExitCode> {
    let path = mycelium_endophyte::host::init_group(root).context("the group file was not made")?;
    println!("{}", path.display());
    eprintln!(
        "Copy this file to the same place on every host of the group, and keep it secret: who has it belongs to the group."
    );
    Ok(ExitCode::SUCCESS)
}

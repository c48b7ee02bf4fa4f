//! What is asked of a machine's process on this host.

use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use mycelium_endophyte::host::control::{Request, ask};
use mycelium_endophyte::host::status::Status as VmStatus;
use mycelium_endophyte::host::{HostError, VmRoot};

use super::progress::Bars;
use super::{NAME, show};
use crate::client::out;
use crate::commands::logs::seconds;

const EXIT_NOT_RUNNING: u8 = 3;
/// How often `--watch` asks.
const WATCH_EVERY: std::time::Duration = std::time::Duration::from_millis(500);

/// Show how machines are on this host.
#[derive(clap::Args)]
pub struct Status {
    /// The machine [default: all of this host]
    #[arg(value_name = NAME)]
    name: Option<String>,
    /// Go on showing it
    #[arg(short, long)]
    watch: bool,
    /// Output format
    #[arg(short, long, value_name = "FORMAT", value_parser = ["json", "yaml", "wide", "name"])]
    output: Option<String>,
}

/// Hand a machine over to another host while it runs.
#[derive(clap::Args)]
#[command(after_help = "\
The machine pauses for some milliseconds at the very end. Ctrl-C before that, or any failure, leaves it running here. A backup
changes places with this host. A host that was none gets the machine, and this one has it no more.")]
pub struct Migrate {
    /// The machine
    #[arg(value_name = NAME)]
    name: String,
    /// The other host: its address, or its name if it is a backup already
    #[arg(long, value_name = "HOST")]
    to: String,
    /// How long it may take to catch up, such as 90s or 1h; then the machine stays here
    #[arg(long, value_name = "DURATION", value_parser = seconds, default_value = "10m")]
    timeout: u64,
}

/// Make this host's copy the running machine.
#[derive(clap::Args)]
#[command(after_help = "\
Refused while the group can decide by itself or the primary may still run. With --force this host takes what it has: use
it only when you know that the other host is off, for two machines would speak with one address otherwise.")]
pub struct Promote {
    /// The machine
    #[arg(value_name = NAME)]
    name: String,
    /// Also when output may have been released that this host does not have
    #[arg(long)]
    force: bool,
}

/// Take another host in as a backup.
#[derive(clap::Args)]
#[command(after_help = "\
The guest goes on while it is copied; this shows how far that is, and ends when the backup is in sync. Ctrl-C ends only the
showing.")]
pub struct Protect {
    /// The machine
    #[arg(value_name = NAME)]
    name: String,
    /// Where `mycelium vm backup` listens
    #[arg(long, value_name = "ADDRESS")]
    backup: String,
    /// Do not wait until it is in sync
    #[arg(long)]
    no_wait: bool,
}

/// Take a host out of a machine's group.
#[derive(clap::Args)]
pub struct Forget {
    /// The machine
    #[arg(value_name = NAME)]
    name: String,
    /// The host that will not return
    #[arg(value_name = "HOST")]
    member: String,
}

/// Shut a machine down.
#[derive(clap::Args)]
#[command(after_help = "\
The guest is asked by its power button, every 5 seconds until it obeys, so something in it must listen: systemd does, others
need acpid. Guests whose processors are emulated may take their time. After 90 seconds the machine is ended as by --force.")]
pub struct Stop {
    /// The machine
    #[arg(value_name = NAME)]
    name: String,
    /// End it at once instead of asking the guest to shut down
    #[arg(long)]
    force: bool,
}

/// Prints the status of one machine or of all.
pub fn status(root: &VmRoot, args: &Status) -> Result<ExitCode> {
    loop {
        let all = match gather(root, args.name.as_deref())? {
            Some(all) => all,
            None => return Ok(ExitCode::from(EXIT_NOT_RUNNING)),
        };
        match args.output.as_deref() {
            Some("json") if args.name.is_some() => out!("{}\n", serde_json::to_string_pretty(&all[0])?),
            Some("json") => out!("{}\n", serde_json::to_string_pretty(&all)?),
            Some("yaml") => out!("{}", serde_saphyr::to_string(&all)?),
            Some("name") => all.iter().try_for_each(show_name)?,
            other => out!("{}", show::text(&all, args.name.is_some() || other == Some("wide"))),
        }
        if !args.watch {
            return Ok(ExitCode::SUCCESS);
        }
        std::thread::sleep(WATCH_EVERY);
    }
}

fn show_name(status: &VmStatus) -> Result<()> {
    out!("{}\n", status.vm);
    Ok(())
}

/// The machines' states; `None`, with a word on stderr, when the one that was named does not run here.
fn gather(root: &VmRoot, name: Option<&str>) -> Result<Option<Vec<VmStatus>>> {
    let names = match name {
        Some(name) => vec![name.to_owned()],
        None => root.names()?,
    };
    let mut all = Vec::new();
    for each in names {
        match ask(&root.vm(&each).control(), &Request::Status, |_| {}) {
            Ok(value) => all.push(serde_json::from_value(value).context("the status is of another version")?),
            Err(HostError::NotRunning { .. }) if name.is_none() => {
                all.push(VmStatus { vm: each, phase: "not running".into(), ..VmStatus::default() });
            }
            Err(HostError::NotRunning { .. }) => {
                let known = root.names()?;
                let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
                eprintln!("error: no machine \"{each}\" runs on this host (machines known here: {known})");
                return Ok(None);
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(Some(all))
}

/// Starts a hand-over and follows it.
pub fn migrate(root: &VmRoot, args: &Migrate) -> Result<ExitCode> {
    follow(root, &args.name, &Request::Migrate { to: args.to.clone(), seconds: args.timeout })
}

/// Promotes this host's copy.
pub fn promote(root: &VmRoot, args: &Promote) -> Result<ExitCode> {
    follow(root, &args.name, &Request::Promote { force: args.force })
}

/// Adds a backup.
pub fn protect(root: &VmRoot, args: &Protect) -> Result<ExitCode> {
    follow(root, &args.name, &Request::Protect { backup: args.backup.clone(), at_once: args.no_wait })
}

/// Removes a member.
pub fn forget(root: &VmRoot, args: &Forget) -> Result<ExitCode> {
    follow(root, &args.name, &Request::Forget { member: args.member.clone() })
}

/// Stops the machine.
pub fn stop(root: &VmRoot, args: &Stop) -> Result<ExitCode> {
    follow(root, &args.name, &Request::Stop { force: args.force })
}

/// Asks, shows progress on stderr while it lasts, and prints the outcome's sentence.
fn follow(root: &VmRoot, name: &str, request: &Request) -> Result<ExitCode> {
    let mut bars = Bars::new();
    let outcome = ask(&root.vm(name).control(), request, |progress| bars.show(progress));
    match outcome {
        Ok(value) => {
            out!("{}\n", value.as_str().map_or_else(|| value.to_string(), str::to_owned));
            Ok(ExitCode::SUCCESS)
        }
        Err(HostError::NotRunning { .. }) => {
            bail!("no machine \"{name}\" runs on this host; `mycelium vm status` lists those that do")
        }
        Err(error) => Err(error.into()),
    }
}

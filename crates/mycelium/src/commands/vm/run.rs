//! The processes: one that runs a machine, one that stands by, one that votes.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use mycelium_api::endophyte::{EndophyteVM, Overrides, apply_overrides};
use mycelium_endophyte::host::control::{Request, ask};
use mycelium_endophyte::host::{HostError, HostOptions, VmRoot, addresses, run_machine, stand_by};
use mycelium_endophyte::spec;
use tokio::signal::unix::{SignalKind, signal};

use super::progress::Bars;
use crate::engine::config::node_name;
use crate::engine::sources;
use crate::engine::start::start_logging;

/// Between looks for the machine's own socket.
const LISTENS_AFTER: std::time::Duration = std::time::Duration::from_millis(100);

/// Run a machine on this host, replicated to its backups.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  mycelium vm run --name legacy --disk debian.qcow2 --cpus 2 --memory 512Mi --net tap:br0 --backup 10.0.0.2:7400
  mycelium vm run -f vm.yaml --memory 1Gi
  mycelium vm run --name tiny --kernel vmlinuz --initrd initrd.img --append console=ttyS0 --memory 256Mi

The process stays in the foreground; Ctrl-C asks the guest to shut down, a second one ends it. When the machine was
taken over by another host, this one becomes its backup.")]
pub struct Run {
    /// The machine's document (kind EndophyteVM); flags win over it
    #[arg(short, long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Its name
    #[arg(long, value_name = "NAME", required_unless_present = "file")]
    name: Option<String>,
    /// Image of its disk, qcow2 or raw; it is copied once and not changed
    #[arg(long, value_name = "FILE")]
    disk: Option<String>,
    /// Size of the disk, if larger than its image
    #[arg(long, value_name = "SIZE")]
    disk_size: Option<String>,
    /// Kernel to boot instead of the disk's own
    #[arg(long, value_name = "FILE")]
    kernel: Option<String>,
    /// Initial RAM disk for the kernel
    #[arg(long, value_name = "FILE")]
    initrd: Option<String>,
    /// The kernel's command line
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    append: Option<String>,
    /// Virtual processors
    #[arg(long, value_name = "N")]
    cpus: Option<u32>,
    /// Memory, such as 512Mi
    #[arg(long, value_name = "SIZE")]
    memory: Option<String>,
    /// Network: tap:BRIDGE, or none
    #[arg(long, value_name = "NET")]
    net: Option<String>,
    /// The network card's address
    #[arg(long, value_name = "MAC")]
    mac: Option<String>,
    /// A host that stands by (repeat for more)
    #[arg(long, value_name = "ADDRESS")]
    backup: Vec<String>,
    /// A host that only votes
    #[arg(long, value_name = "ADDRESS")]
    witness: Option<String>,
    /// With the last backup lost: go on unprotected, or hold what the guest says until there is one again
    #[arg(long, value_name = "RULE", value_parser = ["go-on", "hold"])]
    alone: Option<String>,
    /// How many backups must hold an epoch before its output leaves
    #[arg(long, value_name = "POLICY", value_parser = ["any", "majority", "all"])]
    output_commit: Option<String>,
    /// Let output leave at once; a failover may then contradict what was said (see docs/vm-protocol.md)
    #[arg(long)]
    best_effort: bool,
    /// Memory for replication, such as 256Mi
    #[arg(long, value_name = "SIZE")]
    buffer: Option<String>,
    /// Connections to each backup
    #[arg(long, value_name = "N")]
    connections: Option<u32>,
    #[command(flatten)]
    host: Host,
}

/// Stand by for machines of other hosts.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  mycelium vm backup --listen 10.0.0.2:7400

One process stands by for any number of machines. When a host is lost, its machines go on here.")]
pub struct Standby {
    #[command(flatten)]
    host: Host,
}

#[derive(clap::Args)]
struct Host {
    /// Address to listen on [default: 127.0.0.1:7400, for `run` the one that backups can reach]
    #[arg(long, value_name = "ADDRESS")]
    listen: Vec<String>,
    /// This host's name in the group [default: the machine's host name]
    #[arg(long, value_name = "NAME", env = "MYCELIUM_NODE_NAME")]
    node_name: Option<String>,
    /// Serve metrics for Prometheus at http://ADDRESS/metrics
    #[arg(long, value_name = "ADDRESS")]
    metrics: Option<std::net::SocketAddr>,
}

impl Host {
    fn options(&self, root: &VmRoot) -> Result<HostOptions> {
        let mut listen = Vec::new();
        for text in &self.listen {
            match addresses(text) {
                Ok(found) => listen.extend(found),
                Err(reason) => bail!("--listen: {reason}"),
            }
        }
        let name = node_name(self.node_name.clone())?;
        Ok(HostOptions { root: root.clone(), name, listen, clock: sources::real(), metrics: self.metrics })
    }
}

impl Run {
    fn document(&self) -> Result<EndophyteVM> {
        let base = match &self.file {
            Some(path) => {
                let text =
                    std::fs::read_to_string(path).with_context(|| format!("-f {} cannot be read", path.display()))?;
                spec::read(&text).with_context(|| format!("-f {}", path.display()))?
            }
            None => EndophyteVM::named(self.name.as_deref().unwrap_or_default()),
        };
        let overrides = Overrides {
            name: self.name.clone(),
            cpus: self.cpus,
            memory: self.memory.clone(),
            disk_size: self.disk_size.clone(),
            disk: self.disk.clone(),
            kernel: self.kernel.clone(),
            initrd: self.initrd.clone(),
            command_line: self.append.clone(),
            net: self.net.clone(),
            mac: self.mac.clone(),
            backups: self.backup.clone(),
            buffer: self.buffer.clone(),
            output_commit: self.output_commit.clone(),
            best_effort: self.best_effort.then_some(true),
            connections: self.connections,
            witness: self.witness.clone(),
            alone: self.alone.clone(),
            ..Overrides::default()
        };
        apply_overrides(&base, &overrides).map_err(|errors| anyhow::Error::from(spec::SpecError::Fields(errors)))
    }
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    Ok(runtime)
}

/// Shows how far backups are brought in sync, as long as this process runs the machine.
fn show_copies(socket: PathBuf) {
    std::thread::spawn(move || {
        let mut bars = Bars::new();
        // It takes a moment until somebody listens there.
        while let Err(HostError::NotRunning { .. }) = ask(&socket, &Request::Follow, |progress| bars.show(progress)) {
            std::thread::sleep(LISTENS_AFTER);
        }
    });
}

/// Runs a machine until it is shut down.
pub fn machine(root: &VmRoot, args: Run) -> Result<ExitCode> {
    start_logging("info");
    let document = args.document()?;
    document.warnings().iter().for_each(|warning| eprintln!("warning: {warning}"));
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    spec::unsupported(&document, std::path::Path::new("/sys"), processors)
        .iter()
        .for_each(|text| eprintln!("warning: {text}"));
    let options = args.host.options(root)?;
    let socket = root.vm(document.id()).control();
    runtime()?.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        show_copies(socket.clone());
        let machine = run_machine(options, document);
        tokio::pin!(machine);
        let mut asked = false;
        loop {
            tokio::select! {
                biased;
                outcome = &mut machine => return outcome.map_err(anyhow::Error::from),
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            let (socket, force) = (socket.clone(), asked);
            asked = true;
            eprintln!(
                "{}",
                if force { "ending the guest" } else { "asking the guest to shut down; once more ends it at once" }
            );
            tokio::task::spawn_blocking(move || ask(&socket, &Request::Stop { force }, |_| {}));
        }
    })?;
    Ok(ExitCode::SUCCESS)
}

/// Stands by, or votes, until the process is told to end.
pub fn standby(root: &VmRoot, args: Standby, witness: bool) -> Result<ExitCode> {
    start_logging("info");
    let mut options = args.host.options(root)?;
    if options.listen.is_empty() {
        options.listen = addresses("127.0.0.1:7400").unwrap_or_default();
    }
    runtime()?.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let ready = |listen: &[std::net::SocketAddr]| {
            let listen: Vec<String> = listen.iter().map(ToString::to_string).collect();
            println!("{} on {}", if witness { "voting" } else { "standing by" }, listen.join(", "));
        };
        tokio::select! {
            biased;
            outcome = stand_by(options, witness, ready) => outcome.map_err(anyhow::Error::from),
            _ = interrupt.recv() => Ok(()),
            _ = terminate.recv() => Ok(()),
        }
    })?;
    Ok(ExitCode::SUCCESS)
}

//! The two long-lived processes: one that runs a machine, one that stands by for others'.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use mycelium_api::endophyte::{EndophyteVM, LoadBalancing};
use mycelium_api::env::Env;
use mycelium_api::error::chain;
use mycelium_rhizomorph::{Balancing, Identity, Link, LinkConfig, Listener, Options};
use tokio::sync::{mpsc, oneshot};

use super::agent::backups::{AllWanted, Wanted};
use super::agent::{Agent, Beginning, Event, Outcome};
use super::assembly::{self, INITRD, KERNEL, SEED, digest};
use super::book::{Book, Hello, Setup};
use super::control;
use super::links::hear_hello;
use super::paths::{VmPaths, VmRoot};
use super::status::Status;
use super::{HostError, Place, addresses, identity, metrics};
use crate::disk::Disk;
use crate::group::Durable;
use crate::spec::Images;

/// What a process is told.
#[derive(Clone)]
pub struct HostOptions {
    /// Where machines lie.
    pub root: VmRoot,
    /// This host's name.
    pub name: String,
    /// Where it listens.
    pub listen: Vec<SocketAddr>,
    /// The wall clock.
    pub clock: Env,
    /// Where metrics are served, if anywhere.
    pub metrics: Option<SocketAddr>,
}

impl HostOptions {
    fn place(
        &self,
        vm: &str,
        listen: Vec<SocketAddr>,
        template: LinkConfig,
        witness: bool,
        identity: Identity,
    ) -> Result<Place, HostError> {
        Ok(Place {
            vm: vm.to_owned(),
            me: self.name.clone(),
            paths: self.root.vm(vm),
            identity,
            link_template: template,
            listen,
            incarnation: self.clock.random(),
            witness,
            clock: self.clock.clone(),
        })
    }
}

/// Runs a machine on this host, replicated to the hosts that its document names, until it is shut down.
///
/// # Errors
/// What keeps the machine from running here.
pub async fn run_machine(options: HostOptions, document: EndophyteVM) -> Result<(), HostError> {
    mycelium_linux::memory::limit_arenas();
    mycelium_linux::memory::return_large_blocks();
    let vm = document.id().to_owned();
    let paths = options.root.vm(&vm);
    options.root.make().map_err(|source| HostError::File { path: paths.folder().to_owned(), source })?;
    let _lock = paths.lock()?;
    let known: Option<Durable> = read_json(&paths.member())?;
    if let Some(config) = known.as_ref().and_then(|known| known.proposal.as_ref()).map(|proposal| &proposal.config)
        && !config.data.contains(options.name.as_str())
    {
        let (primary, folder) = (config.primary.to_string(), paths.folder().to_owned());
        return Err(HostError::Moved { vm, primary, folder });
    }
    let setup = match (&known, read_json::<Setup>(&paths.document())?) {
        (Some(_), Some(setup)) => setup,
        _ => set_up(&options, &paths, &document)?,
    };
    let wanted = wanted(&document)?;
    let listen = if options.listen.is_empty() { reachable(&wanted) } else { options.listen.clone() };
    let template = template(&document)?;
    let group = options.root.folder().join(&document.spec.failure_detection.group);
    let identity = identity(&group, &options.name)?;
    let listener = Listener::bind(&listen, identity.clone(), template.options).await?;
    let listen = listener.addresses().to_vec();
    let place = options.place(&vm, listen, template, false, identity)?;
    let durable =
        known.unwrap_or_else(|| Durable::founding(options.name.as_str().into(), &[], &[], assembly::rules(&document)));
    let book = read_json::<Book>(&paths.file("book.json"))?.unwrap_or_default();
    let (events, outcome) = Agent::start(Beginning { place, setup: Some(setup), durable, book, wanted, starts: true });
    tokio::spawn(serve_control(paths, events.clone()));
    if let Some(address) = options.metrics {
        let asked = events.clone();
        metrics::serve(address, move || statuses(vec![asked.clone()])).await?;
    }
    tokio::spawn(async move {
        while let Ok(link) = listener.accept().await {
            tokio::spawn(introduce(link, events.clone(), vm.clone()));
        }
    });
    settle(outcome.await)
}

fn settle(outcome: Result<Outcome, oneshot::error::RecvError>) -> Result<(), HostError> {
    match outcome {
        Ok(Outcome::Stopped | Outcome::Left) => Ok(()),
        Ok(Outcome::Failed(error)) => Err(error),
        Err(_) => Err(HostError::Refused("the machine's agent ended without a word".into())),
    }
}

/// Lets a host in that dialled the process of one machine.
async fn introduce(link: Link, events: mpsc::UnboundedSender<Event>, vm: String) {
    match hear_hello(&link).await {
        Ok(hello) if hello.vm == vm => drop(events.send(Event::Accepted { link, hello })),
        Ok(hello) => tracing::warn!(peer = link.peer(), vm = hello.vm, "a host asks for a machine that is not here"),
        Err(reason) => tracing::warn!(peer = link.peer(), reason, "a host did not introduce itself"),
    }
}

/// How these machines are.
async fn statuses(agents: Vec<mpsc::UnboundedSender<Event>>) -> Vec<Status> {
    let mut all = Vec::new();
    for agent in agents {
        let (answers, mut replies) = mpsc::channel(1);
        let call = control::Call { request: control::Request::Status, answers };
        if agent.send(Event::Call(call)).is_ok()
            && let Some(control::Answer::Done(value)) = replies.recv().await
            && let Ok(status) = serde_json::from_value(value)
        {
            all.push(status);
        }
    }
    all
}

async fn serve_control(paths: VmPaths, events: mpsc::UnboundedSender<Event>) {
    let (calls, mut inbox) = mpsc::channel(16);
    let forward = async move {
        while let Some(call) = inbox.recv().await {
            if events.send(Event::Call(call)).is_err() {
                return;
            }
        }
    };
    let socket = paths.control();
    tokio::select! {
        outcome = control::serve(&socket, calls) => {
            if let Err(error) = outcome {
                tracing::error!(error = chain(&error), "the machine cannot be asked anything");
            }
        }
        () = forward => {}
    }
}

// --- Standing by ------------------------------------------------------------------------------------------------

/// Stands by for machines of other hosts, or votes about them, until the process ends. `ready` is called with the
/// addresses when hosts can reach it.
///
/// # Errors
/// What keeps the host from listening.
pub async fn stand_by(options: HostOptions, witness: bool, ready: impl FnOnce(&[SocketAddr])) -> Result<(), HostError> {
    mycelium_linux::memory::limit_arenas();
    mycelium_linux::memory::return_large_blocks();
    options.root.make().map_err(|source| HostError::File { path: options.root.group_file(), source })?;
    let identity = identity(&options.root.group_file(), &options.name)?;
    let listener = Listener::bind(&options.listen, identity, link_options(Balancing::default())).await?;
    let listen = listener.addresses().to_vec();
    ready(&listen);
    let agents = Agents::default();
    if let Some(address) = options.metrics {
        let asked = Arc::clone(&agents);
        let all = move || statuses(asked.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect());
        metrics::serve(address, all).await?;
    }
    let mut standby = Standby { options, witness, listen, agents };
    for vm in standby.options.root.names().unwrap_or_default() {
        if let Err(error) = standby.agent(&vm) {
            tracing::warn!(vm, error = chain(&error), "a machine of this host is left alone");
        }
    }
    let (links, mut introduced) = mpsc::channel::<(Link, Hello)>(16);
    let accept = async move {
        while let Ok(link) = listener.accept().await {
            let links = links.clone();
            tokio::spawn(async move {
                match hear_hello(&link).await {
                    Ok(hello) => drop(links.send((link, hello)).await),
                    Err(reason) => tracing::warn!(peer = link.peer(), reason, "a host did not introduce itself"),
                }
            });
        }
    };
    tokio::spawn(accept);
    while let Some((link, hello)) = introduced.recv().await {
        let vm = hello.vm.clone();
        match standby.agent(&vm) {
            Ok(events) => drop(events.send(Event::Accepted { link, hello })),
            Err(error) => tracing::warn!(vm, peer = link.peer(), error = chain(&error), "the machine is not taken in"),
        }
    }
    Ok(())
}

/// The agents of a process that stands by, by machine.
type Agents = Arc<Mutex<BTreeMap<String, mpsc::UnboundedSender<Event>>>>;

struct Standby {
    options: HostOptions,
    witness: bool,
    listen: Vec<SocketAddr>,
    agents: Agents,
}

impl Standby {
    /// The agent of a machine; a new one if there is none.
    fn agent(&mut self, vm: &str) -> Result<mpsc::UnboundedSender<Event>, HostError> {
        let agents = Arc::clone(&self.agents);
        let mut agents = agents.lock().unwrap_or_else(PoisonError::into_inner);
        agents.retain(|_, events| !events.is_closed());
        if let Some(events) = agents.get(vm) {
            return Ok(events.clone());
        }
        if !valid_name(vm) {
            return Err(HostError::Refused(format!("{vm:?} is no name of a machine")));
        }
        let paths = self.options.root.vm(vm);
        let lock = paths.lock()?;
        let durable = read_json(&paths.member())?.unwrap_or_default();
        let setup = read_json::<Setup>(&paths.document())?;
        let template = match &setup {
            Some(setup) => EndophyteVM::from_value(&setup.document)
                .map_or_else(|_| Ok(LinkConfig::new(Vec::new())), |vm| template(&vm))?,
            None => LinkConfig::new(Vec::new()),
        };
        let identity = identity(&self.options.root.group_file(), &self.options.name)?;
        let place = self.options.place(vm, self.listen.clone(), template, self.witness, identity)?;
        let book = read_json::<Book>(&paths.file("book.json"))?.unwrap_or_default();
        let beginning = Beginning { place, setup, durable, book, wanted: AllWanted::new(), starts: false };
        let (events, outcome) = Agent::start(beginning);
        let control = tokio::spawn(serve_control(paths, events.clone()));
        let name = vm.to_owned();
        tokio::spawn(async move {
            match settle(outcome.await) {
                Ok(()) => tracing::info!(vm = name, "this host has nothing to do for the machine any more"),
                Err(error) => {
                    tracing::error!(vm = name, error = chain(&error), "this host's part of the machine ended")
                }
            }
            control.abort();
            drop(lock);
        });
        agents.insert(vm.to_owned(), events.clone());
        Ok(events)
    }
}

/// Names become folders.
fn valid_name(name: &str) -> bool {
    mycelium_api::names::is_dns1123_subdomain(name).is_empty()
}

// --- Setting up -------------------------------------------------------------------------------------------------

/// Makes the machine's folder: its disk from the image, its kernel, its seed.
fn set_up(options: &HostOptions, paths: &VmPaths, document: &EndophyteVM) -> Result<Setup, HostError> {
    let images = Images::new(options.root.folder());
    let mut files = BTreeMap::new();
    let kernel = images.kernel(document)?;
    if let Some((kernel, initrd)) = &kernel {
        files.insert(KERNEL.to_owned(), take_in(kernel, &paths.file(KERNEL))?);
        if let Some(initrd) = initrd {
            files.insert(INITRD.to_owned(), take_in(initrd, &paths.file(INITRD))?);
        }
    }
    let image = images.image(document)?;
    let disk_bytes = match (&image, &kernel) {
        (None, Some(_)) => None,
        (None, None) => return Err(HostError::NothingToBoot),
        (image, _) => {
            let size = Some(document.disk_bytes()).filter(|size| *size > 0);
            Some(Disk::open(&paths.disk(), image.as_deref(), size)?.size())
        }
    };
    if let Some(customization) = images.customization(document)? {
        let content = read(&customization)?;
        let customization = Some(String::from_utf8_lossy(&content).into_owned());
        let seed = crate::seed::Seed { name: document.id().to_owned(), customization, ..crate::seed::Seed::default() };
        seed.write(&paths.seed()).map_err(|source| HostError::File { path: paths.seed(), source })?;
        files.insert(SEED.to_owned(), digest(&read(&paths.seed())?));
    }
    let document = serde_json::to_value(document).map_err(|error| HostError::Refused(error.to_string()))?;
    Ok(Setup { document, disk_bytes, files })
}

fn read(path: &Path) -> Result<Vec<u8>, HostError> {
    fs::read(path).map_err(|source| HostError::File { path: path.to_owned(), source })
}

/// Copies a file into the machine's folder and tells its digest.
fn take_in(from: &Path, to: &Path) -> Result<String, HostError> {
    let content = read(from)?;
    super::paths::write_whole(to, &content).map_err(|source| HostError::File { path: to.to_owned(), source })?;
    Ok(digest(&content))
}

fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<Option<T>, HostError> {
    let file = |source| HostError::File { path: path.to_owned(), source };
    match File::open(path) {
        Ok(open) => {
            serde_json::from_reader(std::io::BufReader::new(open)).map(Some).map_err(|error| file(error.into()))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(file(source)),
    }
}

/// The hosts that the document asks to join.
fn wanted(document: &EndophyteVM) -> Result<AllWanted, HostError> {
    let spec = &document.spec;
    let backups = spec.backup_strategy.nodes.iter().enumerate();
    let backups = backups.map(|(place, node)| (node, Wanted { witness: false, place: Some(place) }));
    let witness = spec.failure_detection.witness.iter().map(|node| (node, Wanted { witness: true, place: None }));
    backups.chain(witness).map(|(node, wanted)| Ok((addresses(node).map_err(HostError::Refused)?, wanted))).collect()
}

/// An address under which the hosts that are to join can reach this one, on the usual port or another.
fn reachable(wanted: &AllWanted) -> Vec<SocketAddr> {
    let towards = wanted.keys().flatten().next();
    let local = towards.and_then(|to| {
        let socket = UdpSocket::bind(SocketAddr::from(([0, 0, 0, 0], 0))).ok()?;
        socket.connect(to).ok()?;
        Some(socket.local_addr().ok()?.ip())
    });
    vec![SocketAddr::new(local.unwrap_or(IpAddr::from([127, 0, 0, 1])), 0)]
}

/// Enough for 64 ms of a gigabit link; what waits elsewhere is bounded by the machine's buffer.
fn link_options(balancing: Balancing) -> Options {
    Options { balancing, receive_window: 8 << 20, send_buffer: 8 << 20, ..Options::default() }
}

fn template(document: &EndophyteVM) -> Result<LinkConfig, HostError> {
    let connections = &document.spec.rhizomorph_connections;
    let local = connections.local_addresses.iter().map(|text| {
        text.parse().map_err(|_| {
            HostError::Refused(format!(
                "spec.rhizomorphConnections.localAddresses: {text:?} is no IP address of this host"
            ))
        })
    });
    let balancing = match connections.load_balancing {
        LoadBalancing::AdaptiveBandwidth => Balancing::AdaptiveBandwidth,
        LoadBalancing::LatencyOptimized => Balancing::LatencyOptimized,
    };
    Ok(LinkConfig {
        local: local.collect::<Result<_, _>>()?,
        remote: Vec::new(),
        target_count: connections.target_count as usize,
        options: link_options(balancing),
    })
}

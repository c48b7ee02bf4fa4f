//! The start sequence of an engine, and what runs until it is told to stop.
//!
//! ```text
//! lock ─┬─ state file ─ keys ─ API server ─┬─ controllers ─┬─ nodes ─ Ready ─ run ─ SIGTERM ─ drain
//!       └─ network ────────────────────────┴─ objects ─────┘
//! ```
//!
//! Pods are left alone at the end: the next engine adopts them.

use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use futures::StreamExt;
use k8s_openapi::api::core::v1::Node as NodeObject;
use kube::api::{WatchEvent, WatchParams};
use mycelium_api::env::Env;
use mycelium_apiserver::audit::AuditLog;
use mycelium_apiserver::auth::Identity;
use mycelium_apiserver::pki::Pki;
use mycelium_apiserver::server::{ApiServer, Config as ApiConfig};
use mycelium_net::{NetConfig, Network};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::config::Config;
use super::fleet::Fleet;
use super::instance::{Instance, Record};
use super::keys::AdminConfig;
use super::{agents, bootstrap, ingress, keys, preflight, sources, state};
use crate::commands::status::node_ready;

/// Worker threads: the engine mostly waits, and each thread costs memory.
const WORKERS_MAX: usize = 4;
/// Threads for what blocks, and how long an unused one stays: a burst of pods must not leave hundreds behind.
const BLOCKING_MAX: usize = 16;
const BLOCKING_IDLE: Duration = Duration::from_secs(1);
/// How long requests in flight may take after SIGTERM.
const DRAIN: Duration = Duration::from_secs(5);
/// After this, a node that is not ready is reported instead of waited for.
const READY_LIMIT: Duration = Duration::from_secs(30);

/// Runs an engine until SIGTERM or Ctrl-C.
pub fn run(mut config: Config) -> Result<()> {
    let begun = Instant::now();
    start_logging("warn");
    let instance = Instance::new(&config.data_dir);
    let _lock = instance.lock()?;
    config.settle(instance.node_count())?;
    if config.nodes > 1 {
        instance.note_node_count(config.nodes)?;
    }
    mycelium_linux::process::keep_descriptors_private();
    let workers = std::thread::available_parallelism().map_or(1, std::num::NonZero::get).min(WORKERS_MAX);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(workers)
        .max_blocking_threads(BLOCKING_MAX)
        .thread_keep_alive(BLOCKING_IDLE)
        .enable_all()
        .build()?;
    let outcome = runtime.block_on(engine(&config, &instance, begun));
    runtime.shutdown_timeout(DRAIN);
    instance.remove_record();
    outcome
}

/// Sends what is logged to standard error; `default` says how much where MYCELIUM_LOG does not.
pub(crate) fn start_logging(default: &str) {
    let filter = tracing_subscriber::EnvFilter::try_from_env("MYCELIUM_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(default));
    // It fails only where a subscriber is set already, which then serves.
    let _ = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).try_init();
}

/// The API server, and where it listens.
struct Api {
    server: ApiServer,
    listener: TcpListener,
    address: SocketAddr,
    env: Env,
    admin: AdminConfig,
    root_ca: String,
    pki: Pki,
    revision: u64,
}

async fn engine(config: &Config, instance: &Instance, begun: Instant) -> Result<()> {
    let signal = stop_signal()?;
    let plan = config.network(&instance.id());
    let network = tokio::spawn(Network::setup(plan.clone()));
    let api = api(config, instance, &plan)?;
    let (stop, stopped) = watch::channel(false);
    let mut tasks = JoinSet::new();
    tasks.spawn(serve(api.server.clone(), api.listener, stopped.clone()));
    tasks.spawn(ends_with(stopped.clone(), api.admin.keep()));

    let identity = Identity::new("system:mycelium", &["system:masters", "system:authenticated"]);
    let admin = kube::Client::new(api.server.client_service(identity), "default");
    let root_ca = Some(api.root_ca.clone());
    let signer = Some(keys::signer(api.pki.clone()));
    let options = mycelium_controllers::Options { root_ca, signer, node_grace: config.node_grace };
    let controllers = mycelium_controllers::run(admin.clone(), api.env.clone(), options);
    tasks.spawn(ends_with(stopped.clone(), controllers));

    let network = match network.await? {
        Ok(network) => network,
        Err(error) => return Err(tokio::task::spawn_blocking(|| preflight::network(error)).await?),
    };
    let pods_api = listen_for_pods(&network, api.address.port()).await?;
    let pods_address = pods_api.local_addr()?;
    if let SocketAddr::V4(address) = pods_address {
        network.set_api(address);
    }
    tasks.spawn(serve(api.server.clone(), pods_api, stopped.clone()));
    tasks.spawn(ends_with(stopped.clone(), run_network(network.clone(), admin.clone())));
    let fleet = Fleet::new(config, instance, &api.env, &network, admin.clone())?;
    api.server.set_node(agents::service(fleet.clone()));
    let started = fleet.start().await?;
    tasks.spawn(fleet.keep(stopped.clone()));
    bootstrap::apply(&admin, &plan, pods_address).await?;
    let (config_of_proxy, env, pki, node_ip) = (config.clone(), api.env.clone(), api.pki.clone(), network.node_ip());
    let (client, stop_of_proxy) = (admin.clone(), until(stopped.clone()));
    tasks.spawn(async move { ingress::run(&config_of_proxy, client, env, pki, node_ip, stop_of_proxy).await });

    instance.write_record(&record(config, &api.env, api.address))?;
    let ready = futures::future::try_join_all(started.iter().map(|name| wait_node_ready(&admin, name)));
    let nodes = tokio::time::timeout(READY_LIMIT, ready).await.unwrap_or_else(|_| Err(anyhow!("timed out")))?;
    greet(config, instance, api.revision, api.address, &nodes, begun);
    signal.await;
    tracing::info!("stopping; pods are left running");
    stop.send_replace(true);
    let _ = tokio::time::timeout(DRAIN, async { while tasks.join_next().await.is_some() {} }).await;
    Ok(())
}

/// Opens the state and the keys, and takes the port.
fn api(config: &Config, instance: &Instance, plan: &NetConfig) -> Result<Api> {
    let env = sources::real();
    let store = state::open(instance.dir())?;
    let revision = store.revision();
    let listener = listen(config.listen)?;
    let address = listener.local_addr()?;
    let pki = Pki::load_or_create(&instance.path("pki"), env.clone(), &names(config, plan, address))?;
    let url = format!("https://{}", reachable(address));
    let admin = AdminConfig::write(pki.clone(), instance.path("admin.kubeconfig"), url)?;
    let root_ca = pki.ca_pem().to_owned();
    let mut settings = ApiConfig::new(store, env.clone(), pki.clone());
    settings.service_cidr = config.service_cidr;
    if let Some(path) = &config.audit_log {
        let log =
            AuditLog::open(path).with_context(|| format!("the audit log {} cannot be written", path.display()))?;
        settings.audit = Some(log);
    }
    settings.patience = config.patience;
    settings.scratch = instance.dir().to_owned();
    let server = ApiServer::new(settings)?;
    Ok(Api { server, listener, address, env, admin, root_ca, pki, revision })
}

/// All names and addresses that clients may call the API by.
fn names(config: &Config, plan: &NetConfig, address: SocketAddr) -> Vec<String> {
    let mut names: Vec<String> =
        ["localhost", "127.0.0.1", "kubernetes", "kubernetes.default", "kubernetes.default.svc"]
            .map(str::to_owned)
            .into();
    names.push(format!("kubernetes.default.svc.{}", plan.cluster_domain));
    names.push(config.node_name.clone());
    names.push(plan.kubernetes_ip().to_string());
    names.push(plan.gateway().to_string());
    if !address.ip().is_unspecified() {
        names.push(address.ip().to_string());
    }
    names.sort();
    names.dedup();
    names
}

/// An address that a client on this machine can call.
fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = if address.ip().is_unspecified() { IpAddr::V4(Ipv4Addr::LOCALHOST) } else { address.ip() };
    SocketAddr::new(ip, address.port())
}

fn listen(address: SocketAddr) -> Result<TcpListener> {
    let bound = std::net::TcpListener::bind(address).and_then(|listener| {
        listener.set_nonblocking(true)?;
        TcpListener::from_std(listener)
    });
    bound.with_context(|| {
        format!(
            "the API cannot listen on {address}. If another program has the port, choose one with --listen \
             (port 0 takes a free one); the address must be one of this machine's"
        )
    })
}

/// A listener on the node's address of the pod network, for pods only; same port if it is free there.
async fn listen_for_pods(network: &Network, port: u16) -> Result<TcpListener> {
    let address = |port| SocketAddrV4::new(network.gateway(), port);
    match TcpListener::bind(address(port)).await {
        Ok(listener) => Ok(listener),
        Err(_) => TcpListener::bind(address(0)).await.context("the API cannot listen on the pod network"),
    }
}

async fn serve(server: ApiServer, listener: TcpListener, stopped: watch::Receiver<bool>) {
    if let Err(error) = server.serve(listener, until(stopped)).await {
        tracing::error!(%error, "the API stopped serving");
    }
}

async fn run_network(network: Network, client: kube::Client) {
    if let Err(error) = network.run(client).await {
        tracing::error!(%error, "the pod network is no longer kept up to date");
    }
}

/// Runs a part until it ends or the engine stops, whichever is first.
async fn ends_with(stopped: watch::Receiver<bool>, part: impl Future<Output = ()>) {
    tokio::select! {
        biased;
        () = until(stopped) => {}
        () = part => {}
    }
}

async fn until(mut stopped: watch::Receiver<bool>) {
    // The sender lives as long as the engine: an error means that it is gone, and so are we.
    let _ = stopped.wait_for(|stopped| *stopped).await;
}

/// Resolves at SIGTERM or SIGINT. Installed before anything else, so that neither is missed.
fn stop_signal() -> Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            biased;
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

async fn wait_node_ready(client: &kube::Client, name: &str) -> Result<NodeObject> {
    let nodes: kube::Api<NodeObject> = kube::Api::all(client.clone());
    let parameters = WatchParams::default().fields(&format!("metadata.name={name}"));
    let mut events = std::pin::pin!(nodes.watch(&parameters, "0").await?);
    while let Some(event) = events.next().await {
        if let WatchEvent::Added(node) | WatchEvent::Modified(node) = event?
            && node_ready(&node)
        {
            return Ok(node);
        }
    }
    Err(anyhow!("the node {name} did not become ready"))
}

fn record(config: &Config, env: &Env, address: SocketAddr) -> Record {
    Record {
        pid: std::process::id(),
        api: reachable(address),
        node: config.node_name.clone(),
        started: env.now_rfc3339(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    }
}

fn greet(
    config: &Config,
    instance: &Instance,
    revision: u64,
    address: SocketAddr,
    nodes: &[NodeObject],
    begun: Instant,
) {
    let first = nodes.first();
    let capacity = |what: &str| {
        let all = first.and_then(|node| node.status.as_ref()).and_then(|status| status.capacity.as_ref());
        all.and_then(|all| all.get(what)).map(|quantity| quantity.0.clone()).unwrap_or_default()
    };
    let state = instance.path(state::FILE).display().to_string();
    let api = format!("https://{}", reachable(address));
    let width = state.len().max(api.len()) + 2;
    println!("store   {state:width$} revision {revision}");
    let whom = match config.nodes {
        1 if nodes.len() == 1 => format!("node {} Ready", config.node_name),
        all => format!("{} of {all} nodes Ready", nodes.len()),
    };
    println!("api     {api:width$} {whom} ({} cpu, {})", capacity("cpu"), whole(&capacity("memory")));
    let kubeconfig = shell_quoted(&instance.path("admin.kubeconfig"));
    let ready = format!("ready in {} ms", begun.elapsed().as_millis());
    println!("{ready:0$} export KUBECONFIG={kubeconfig}", width + 8);
}

/// A memory quantity in whole GiB or MiB: `24595668Ki` is `23Gi`.
fn whole(quantity: &str) -> String {
    let bytes = quantity.parse::<mycelium_api::quantity::Quantity>().map_or(0, |quantity| quantity.value());
    match bytes >> 30 {
        0 => format!("{}Mi", bytes >> 20),
        gib => format!("{gib}Gi"),
    }
}

fn shell_quoted(path: &Path) -> String {
    let text = path.display().to_string();
    if text.chars().all(|c| c.is_alphanumeric() || "/._-+".contains(c)) { text } else { format!("'{text}'") }
}

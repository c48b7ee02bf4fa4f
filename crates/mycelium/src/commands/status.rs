//! `mycelium status`: whether the engine runs, and how it is.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::api::networking::v1::IngressClass;
use kube::api::{Api, ListParams};
use serde::Serialize;

use crate::engine::config::data_dir;
use crate::engine::instance::{Instance, Record};

/// Show whether the engine runs, and how it is.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  mycelium status
  mycelium status -o json

Exit codes: 0 running and ready, 1 cannot be told, 3 not running, 4 running but not ready.")]
pub struct Args {
    /// Directory of the engine's state [default: /var/lib/mycelium]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Output format
    #[arg(short, long, value_name = "FORMAT", value_parser = ["json", "yaml"])]
    output: Option<String>,
}

const EXIT_NOT_RUNNING: u8 = 3;
const EXIT_NOT_READY: u8 = 4;

/// What is shown.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Status {
    running: bool,
    data_dir: PathBuf,
    #[serde(skip_serializing_if = "Option::is_none")]
    engine: Option<Record>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cluster: Option<Cluster>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Cluster {
    node_ready: bool,
    nodes: usize,
    nodes_ready: usize,
    pods: usize,
    pods_running: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    ingress_http: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ingress_https: Option<String>,
    memory_bytes: u64,
    state_bytes: u64,
}

/// Prints the status.
pub fn run(args: Args) -> Result<ExitCode> {
    let instance = Instance::new(&data_dir(args.data_dir)?);
    let running = instance.is_running()?;
    let engine = instance.record().filter(|_| running);
    let cluster = match &engine {
        Some(record) => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            Some(runtime.block_on(cluster(&instance, record))?)
        }
        None => None,
    };
    let ready = cluster.as_ref().is_some_and(|cluster| cluster.node_ready);
    let status = Status { running, data_dir: instance.dir().to_owned(), engine, cluster };
    match args.output.as_deref() {
        Some("json") => println!("{}", serde_json::to_string_pretty(&status)?),
        Some(_) => print!("{}", serde_saphyr::to_string(&status)?),
        None => print_text(&status),
    }
    Ok(match (running, ready) {
        (false, _) => ExitCode::from(EXIT_NOT_RUNNING),
        (true, false) => ExitCode::from(EXIT_NOT_READY),
        (true, true) => ExitCode::SUCCESS,
    })
}

async fn cluster(instance: &Instance, record: &Record) -> Result<Cluster> {
    let client = instance.client().await?;
    let nodes = Api::<Node>::all(client.clone()).list(&ListParams::default()).await.context("asking for the nodes")?;
    let node = nodes.items.iter().find(|node| node.metadata.name.as_ref() == Some(&record.node));
    let class = Api::<IngressClass>::all(client.clone()).get_opt(mycelium_ingress::CLASS).await.unwrap_or_default();
    let listening = |annotation: &str| class.as_ref()?.metadata.annotations.as_ref()?.get(annotation).cloned();
    let pods = Api::<Pod>::all(client).list(&ListParams::default()).await.context("asking for the pods")?;
    let phase = |pod: &Pod| pod.status.as_ref().and_then(|status| status.phase.clone()).unwrap_or_default();
    Ok(Cluster {
        node_ready: node.is_some_and(node_ready),
        nodes: nodes.items.len(),
        nodes_ready: nodes.items.iter().filter(|node| node_ready(node)).count(),
        pods: pods.items.len(),
        pods_running: pods.items.iter().filter(|pod| phase(pod) == "Running").count(),
        ingress_http: listening(mycelium_ingress::HTTP),
        ingress_https: listening(mycelium_ingress::HTTPS),
        memory_bytes: resident_bytes(record.pid),
        state_bytes: std::fs::metadata(instance.path("state")).map_or(0, |file| file.len()),
    })
}

/// Whether the node says that it is ready.
pub fn node_ready(node: &Node) -> bool {
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.is_some_and(|all| all.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True"))
}

/// Resident memory of a process in bytes (proc(5), `VmRSS`); 0 if it is gone.
fn resident_bytes(pid: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").trim().parse::<u64>().ok()).unwrap_or(0) * 1024
}

fn print_text(status: &Status) {
    let dir = status.data_dir.display();
    let Some(engine) = &status.engine else {
        println!("no engine is running on {dir}; start one with `mycelium up --data-dir {dir}`");
        return;
    };
    println!("engine  pid {}, version {}, since {}", engine.pid, engine.version, engine.started);
    println!("api     https://{}", engine.api);
    if let Some(cluster) = &status.cluster {
        let ready = if cluster.node_ready { "Ready" } else { "NotReady" };
        let others = match cluster.nodes {
            0 | 1 => String::new(),
            all => format!(", {} of {all} nodes ready", cluster.nodes_ready),
        };
        println!("node    {} {ready}{others}, {} of {} pods running", engine.node, cluster.pods_running, cluster.pods);
        let listening = |scheme: &str, all: &Option<String>| {
            let all = all.iter().flat_map(|all| all.split(',')).map(|address| format!("{scheme}://{address}"));
            all.collect::<Vec<_>>().join(" ")
        };
        let (http, https) = (listening("http", &cluster.ingress_http), listening("https", &cluster.ingress_https));
        if !http.is_empty() || !https.is_empty() {
            println!("ingress {}", format!("{http} {https}").trim());
        }
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        println!(
            "memory  {:.1} MiB resident; state {:.1} MiB in {dir}/state",
            mib(cluster.memory_bytes),
            mib(cluster.state_bytes)
        );
    }
}

//! `mycelium exec`: a command in a running container.

pub(in crate::commands) mod terminal;

use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Status;
use kube::api::{Api, AttachParams, AttachedProcess};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};

use crate::client::{Cluster, Connection, block_on, failure, pods, text};
use terminal::RawTerminal;

/// Run a command in a container.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  mycelium exec web-1 -- cat /etc/hostname
  mycelium exec -it deploy/web -- sh           a shell in the newest running pod
  mycelium exec -i web-1 -c db -- psql < dump.sql

Exit codes: those of the command; 1 also when it could not be run, 2 wrong usage.")]
pub struct Args {
    /// POD, or TYPE/NAME of something that has pods
    #[arg(value_name = "POD")]
    what: String,
    /// Container [default: the pod's first]
    #[arg(short, long, value_name = "NAME")]
    container: Option<String>,
    /// Pass standard input on to the command
    #[arg(short = 'i', long)]
    stdin: bool,
    /// Give the command a terminal
    #[arg(short = 't', long)]
    tty: bool,
    /// The command and its arguments, after --
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<String>,
    #[command(flatten)]
    connection: Connection,
}

/// Runs the command and gives its exit code.
pub fn run(args: Args) -> Result<ExitCode> {
    block_on(async {
        let cluster = args.connection.cluster().await?;
        let pod = pods::find(&cluster, &args.what).await?.swap_remove(0);
        let container = pods::container(&pod, args.container.as_deref())?;
        check_running(&pod, &container)?;
        let tty = args.tty && is_terminal(args.stdin);
        let parameters = AttachParams {
            container: Some(container),
            stdin: args.stdin,
            stdout: true,
            stderr: !tty,
            tty,
            max_stdin_buf_size: Some(64 << 10),
            max_stdout_buf_size: Some(64 << 10),
            max_stderr_buf_size: Some(64 << 10),
        };
        let name = text(&pod, "/metadata/name");
        let process = start(&cluster, name, &args.command, &parameters).await?;
        // From here on the terminal is raw until this is dropped.
        let terminal = if tty { Some(RawTerminal::enter()?) } else { None };
        let status = converse(process, terminal.is_some()).await;
        drop(terminal);
        exit_code(status?)
    })
}

/// A terminal is of use only if there is one on this side.
fn is_terminal(stdin: bool) -> bool {
    let terminal = std::io::IsTerminal::is_terminal(&std::io::stdin());
    if !terminal || !stdin {
        eprintln!("No terminal for the command: -t needs -i and a terminal as standard input.");
    }
    terminal && stdin
}

/// The server's own refusal comes as a mere failed upgrade: what users meet most is told before.
fn check_running(pod: &Value, container: &str) -> Result<()> {
    let name = text(pod, "/metadata/name");
    for list in ["containerStatuses", "initContainerStatuses", "ephemeralContainerStatuses"] {
        let statuses = pod.pointer("/status").and_then(|status| status[list].as_array());
        let Some(status) = statuses.into_iter().flatten().find(|status| text(status, "/name") == container) else {
            continue;
        };
        if status.pointer("/state/running").is_some() {
            return Ok(());
        }
        let reason = ["/state/waiting/reason", "/state/terminated/reason"].map(|at| text(status, at)).concat();
        bail!(
            "container {container} of pod {name} is not running ({reason}); `mycelium describe pod/{name}` says more"
        );
    }
    match text(pod, "/status/phase") {
        "Running" => Ok(()),
        phase => bail!("pod {name} is {phase}, and only a running container can run a command"),
    }
}

async fn start(cluster: &Cluster, pod: &str, command: &[String], parameters: &AttachParams) -> Result<AttachedProcess> {
    let api: Api<Pod> = Api::namespaced(cluster.client.clone(), &cluster.namespace);
    let process = api.exec(pod, command.to_vec(), parameters).await;
    process
        .map_err(|error| failure::explain(error, &cluster.server))
        .with_context(|| format!("{:?} cannot be run in pod {pod}", command.join(" ")))
}

/// Carries bytes both ways until the command ends.
async fn converse(mut process: AttachedProcess, terminal: bool) -> Result<Option<Status>> {
    let status = process.take_status().context("the server does not tell how the command ends")?;
    let input = process.stdin().map(|input| tokio::spawn(feed(input)));
    let sizes = process.terminal_size().filter(|_| terminal).map(|sender| tokio::spawn(terminal::pass_sizes(sender)));
    let (stdout, stderr) = (process.stdout(), process.stderr());
    let carried =
        futures::future::try_join(carry(stdout, tokio::io::stdout()), carry(stderr, tokio::io::stderr())).await;
    let status = status.await;
    for task in input.into_iter().chain(sizes) {
        task.abort();
    }
    carried.context("the connection to the command broke")?;
    Ok(status)
}

async fn feed(mut input: impl AsyncWrite + Unpin) {
    // The command may end before it has read all: that is no error.
    let _ = tokio::io::copy(&mut tokio::io::stdin(), &mut input).await;
    let _ = input.shutdown().await;
}

async fn carry(from: Option<impl AsyncRead + Unpin>, mut to: impl AsyncWrite + Unpin) -> std::io::Result<()> {
    let Some(mut from) = from else { return Ok(()) };
    let mut buffer = vec![0; 32 << 10];
    loop {
        let read = tokio::io::AsyncReadExt::read(&mut from, &mut buffer).await?;
        if read == 0 {
            return Ok(());
        }
        to.write_all(&buffer[..read]).await?;
        to.flush().await?;
    }
}

/// What the command's end means for ours.
fn exit_code(status: Option<Status>) -> Result<ExitCode> {
    let Some(status) = status else { bail!("the connection broke before the command ended") };
    if status.status.as_deref() == Some("Success") {
        return Ok(ExitCode::SUCCESS);
    }
    let causes = status.details.and_then(|details| details.causes).unwrap_or_default();
    let code = causes.iter().filter(|cause| cause.reason.as_deref() == Some("ExitCode"));
    let code = code.filter_map(|cause| cause.message.as_deref()).find_map(|message| message.parse::<i32>().ok());
    match code {
        Some(code) => Ok(ExitCode::from(u8::try_from(code).unwrap_or(1))),
        None => bail!("the command could not be run: {}", status.message.unwrap_or_default()),
    }
}

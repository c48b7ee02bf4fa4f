//! `mycelium logs`.

use std::io::Write;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use futures::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt};
use serde_json::Value;

use crate::client::{Cluster, Connection, block_on, pods, query, text};

/// Show what containers print.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  mycelium logs web-1
  mycelium logs -f --tail 20 deploy/web       the newest running pod of a Deployment
  mycelium logs deploy/web --all              all of its pods, each line with its pod in front
  mycelium logs -l app=web --since 10m -c proxy
  mycelium logs web-1 --previous              of the container before its last restart

Exit codes: 0 shown, 1 no such pod or container, 2 wrong usage.")]
pub struct Args {
    /// POD, or TYPE/NAME of something that has pods
    #[arg(value_name = "POD", required_unless_present = "selector", conflicts_with = "selector")]
    what: Option<String>,
    /// All pods with these labels
    #[arg(short = 'l', long, value_name = "SELECTOR")]
    selector: Option<String>,
    /// Container [default: the pod's first]
    #[arg(short, long, value_name = "NAME")]
    container: Option<String>,
    /// Every container of the pod
    #[arg(long, conflicts_with = "container")]
    all_containers: bool,
    /// Every pod of a Deployment or the like
    #[arg(long, visible_alias = "all-pods")]
    all: bool,
    /// Go on as more is printed
    #[arg(short, long)]
    follow: bool,
    /// Only the last lines
    #[arg(long, value_name = "LINES")]
    tail: Option<u64>,
    /// Only what is newer than this: 30s, 10m, 2h, 1h30m
    #[arg(long, value_name = "DURATION", value_parser = seconds, conflicts_with = "since_time")]
    since: Option<u64>,
    /// Only what is newer than this time (RFC 3339)
    #[arg(long, value_name = "TIME")]
    since_time: Option<String>,
    /// Of the container before its last restart
    #[arg(short, long)]
    previous: bool,
    /// The time in front of each line
    #[arg(long)]
    timestamps: bool,
    /// Pod and container in front of each line
    #[arg(long)]
    prefix: bool,
    /// At most so many bytes
    #[arg(long, value_name = "BYTES")]
    limit_bytes: Option<u64>,
    #[command(flatten)]
    connection: Connection,
}

/// Shows the logs.
pub fn run(args: Args) -> Result<ExitCode> {
    block_on(async {
        let cluster = args.connection.cluster().await?;
        let found = match (&args.what, &args.selector) {
            (Some(what), _) => pods::find(&cluster, what).await?,
            (None, Some(selector)) => pods::select(&cluster, selector).await?,
            (None, None) => bail!("say which pod"),
        };
        if found.is_empty() {
            bail!("no pod in namespace {} has these labels", cluster.namespace);
        }
        let all = args.all || args.selector.is_some();
        let sources = sources(&args, if all { &found } else { &found[..1] })?;
        if let [(pod, container)] = &sources[..]
            && !args.prefix
        {
            let stream = open(&args, &cluster, pod, container).await?;
            return copy(stream).await;
        }
        many(&args, &cluster, sources).await
    })
}

/// Pod and container of every log to show.
fn sources(args: &Args, found: &[Value]) -> Result<Vec<(String, String)>> {
    let mut sources = Vec::new();
    for pod in found {
        let name = text(pod, "/metadata/name").to_owned();
        if args.all_containers {
            sources.extend(pods::containers(pod).into_iter().map(|container| (name.clone(), container)));
        } else {
            sources.push((name, pods::container(pod, args.container.as_deref())?));
        }
    }
    Ok(sources)
}

async fn open(args: &Args, cluster: &Cluster, pod: &str, container: &str) -> Result<impl AsyncBufRead + Unpin + use<>> {
    let flag = |on: bool| on.then(|| "true".to_owned());
    let number = |value: Option<u64>| value.map(|value| value.to_string());
    let query = query(&[
        ("container", Some(container.to_owned())),
        ("follow", flag(args.follow)),
        ("previous", flag(args.previous)),
        ("timestamps", flag(args.timestamps)),
        ("tailLines", number(args.tail)),
        ("sinceSeconds", number(args.since)),
        ("sinceTime", args.since_time.clone()),
        ("limitBytes", number(args.limit_bytes)),
    ]);
    let path = format!("/api/v1/namespaces/{}/pods/{pod}/log{query}", cluster.namespace);
    cluster.stream(&path, "*/*").await
}

/// One log, byte by byte as it is.
async fn copy(mut stream: impl AsyncBufRead + Unpin) -> Result<ExitCode> {
    let mut buffer = vec![0; 32 << 10];
    loop {
        let read = stream.read(&mut buffer).await.context("the log broke off; run the command again")?;
        if read == 0 || !print(&buffer[..read])? {
            return Ok(ExitCode::SUCCESS);
        }
    }
}

/// Several logs: one after the other, or all at once when they are followed.
async fn many(args: &Args, cluster: &Cluster, sources: Vec<(String, String)>) -> Result<ExitCode> {
    let lines = |pod: String, container: String| async move {
        let mut stream = open(args, cluster, &pod, &container).await?;
        let mut line = format!("[pod/{pod}/{container}] ").into_bytes();
        let prefix = line.len();
        loop {
            line.truncate(prefix);
            if stream.read_until(b'\n', &mut line).await? == 0 {
                return Ok(());
            }
            if line.last() != Some(&b'\n') {
                line.push(b'\n');
            }
            if !print(&line)? {
                return Ok::<(), anyhow::Error>(());
            }
        }
    };
    let logs = sources.into_iter().map(|(pod, container)| lines(pod, container));
    if args.follow {
        futures::future::try_join_all(logs).await?;
    } else {
        for log in logs {
            log.await?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Prints; false once nobody reads any more.
fn print(bytes: &[u8]) -> Result<bool> {
    let mut out = std::io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(false),
        other => Ok(other.map(|()| true)?),
    }
}

/// `1h30m`, `10m`, `45s`, or plain seconds.
pub(super) fn seconds(given: &str) -> Result<u64, String> {
    let wrong = || format!("{given:?} is not a duration such as 30s, 10m or 1h30m");
    let (mut total, mut number) = (0u64, String::new());
    for character in given.chars() {
        let unit = match character {
            '0'..='9' => {
                number.push(character);
                continue;
            }
            's' => 1,
            'm' => 60,
            'h' => 3600,
            'd' => 86400,
            _ => return Err(wrong()),
        };
        let amount = number.parse::<u64>().map_err(|_| wrong())?;
        total = amount.checked_mul(unit).and_then(|part| total.checked_add(part)).ok_or_else(wrong)?;
        number.clear();
    }
    match number.is_empty() {
        true if !given.is_empty() => Ok(total),
        _ if total == 0 => number.parse().map_err(|_| wrong()),
        _ => Err(wrong()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read() {
        for (given, expected) in [("30s", 30), ("10m", 600), ("1h30m", 5400), ("45", 45), ("0s", 0)] {
            assert_eq!(seconds(given), Ok(expected), "{given}");
        }
        for wrong in ["", "m", "5x", "1h5", "-3s", "99999999999999999999h"] {
            assert!(seconds(wrong).is_err(), "{wrong:?}");
        }
    }
}

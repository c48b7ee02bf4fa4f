//! Flags, configuration file and defaults, merged and checked.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use ipnet::Ipv4Net;
use mycelium_apiserver::Patience;
use mycelium_ingress::Listen;
use mycelium_net::{NODES_MAX, NetConfig, node_range};
use serde::Deserialize;

use super::eviction;

/// Where everything is kept unless told otherwise.
pub const DEFAULT_DATA_DIR: &str = "/var/lib/mycelium";
const DEFAULT_LISTEN: &str = "127.0.0.1:6443";
const DEFAULT_POD_CIDR: &str = "10.244.0.0/16";
const DEFAULT_GRACE: Duration = Duration::from_secs(40);
/// Nodes say four times as often that they live.
const GRACE_MIN: Duration = Duration::from_secs(1);
const DEFAULT_SERVICE_CIDR: &str = "10.96.0.0/16";

/// What may be given, on the command line or in the file; the command line wins.
#[derive(clap::Args, Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Options {
    /// Directory of the state, images and pods [default: /var/lib/mycelium]
    #[arg(long, value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Address of the API; port 0 takes a free one [default: 127.0.0.1:6443]
    #[arg(long, value_name = "ADDR:PORT")]
    pub listen: Option<String>,
    /// Range that pods get addresses from [default: 10.244.0.0/16]
    #[arg(long, value_name = "CIDR")]
    #[serde(rename = "podCIDR")]
    pub pod_cidr: Option<String>,
    /// Range that services get addresses from [default: 10.96.0.0/16]
    #[arg(long, value_name = "CIDR")]
    #[serde(rename = "serviceCIDR")]
    pub service_cidr: Option<String>,
    /// Name of the node [default: the host name]
    #[arg(long, value_name = "NAME")]
    pub node_name: Option<String>,
    /// How many nodes there are on this machine [default: as many as before, at first 1]
    #[arg(long, value_name = "N")]
    pub nodes: Option<u32>,
    /// How long a node may be silent before it is taken for lost [default: 40s]
    #[arg(long, value_name = "DURATION")]
    pub node_monitor_grace_period: Option<String>,
    /// How long pods may stay on a node that is not ready, unless they say otherwise [default: 300]
    #[arg(long, value_name = "SECONDS")]
    pub default_not_ready_toleration_seconds: Option<u32>,
    /// How long pods may stay on a node that is lost, unless they say otherwise [default: 300]
    #[arg(long, value_name = "SECONDS")]
    pub default_unreachable_toleration_seconds: Option<u32>,
    /// Where Ingresses are served by HTTP, or `off`; port 0 takes a free one [default: port 80 of the node and of loopback]
    #[arg(long, value_name = "ADDR:PORT")]
    #[serde(rename = "ingressHTTP")]
    pub ingress_http: Option<String>,
    /// The same by HTTPS [default: port 443 of the node and of loopback]
    #[arg(long, value_name = "ADDR:PORT")]
    #[serde(rename = "ingressHTTPS")]
    pub ingress_https: Option<String>,
    /// Note every request in this file, one line of JSON each [default: no audit log]
    #[arg(long, value_name = "FILE")]
    pub audit_log: Option<PathBuf>,
    /// When pods must leave.
    #[command(flatten)]
    #[serde(default)]
    pub eviction: eviction::Options,
}

/// The checked configuration of one engine.
#[derive(Clone, Debug)]
pub struct Config {
    /// Absolute path of the data directory.
    pub data_dir: PathBuf,
    /// Address of the API.
    pub listen: SocketAddr,
    /// Pod addresses.
    pub pod_cidr: Ipv4Net,
    /// Service addresses.
    pub service_cidr: Ipv4Net,
    /// Name of the node object.
    pub node_name: String,
    /// How many nodes there are. Before [`Config::settle`], 0 stands for as many as before.
    pub nodes: u32,
    /// How long a node may be silent before it is taken for lost.
    pub node_grace: Duration,
    /// How long pods may stay on nodes that are unwell.
    pub patience: Patience,
    /// Where Ingresses are served by HTTP.
    pub ingress_http: Listen,
    /// Where they are served by HTTPS.
    pub ingress_https: Listen,
    /// Where requests are noted down.
    pub audit_log: Option<PathBuf>,
    /// When pods must leave.
    pub eviction: eviction::Options,
}

impl Config {
    /// Merges `flags` over the file at `path`, fills in defaults and checks the result.
    pub fn load(flags: Options, path: Option<&Path>) -> Result<Self> {
        let file = path.map(read).transpose()?.unwrap_or_default();
        let listen = flags.listen.or(file.listen).unwrap_or_else(|| DEFAULT_LISTEN.to_owned());
        let eviction = flags.eviction.over(file.eviction);
        eviction.pressure()?;
        let pod_cidr = range("--pod-cidr", flags.pod_cidr.or(file.pod_cidr), DEFAULT_POD_CIDR, 24)?;
        let service_cidr = range("--service-cidr", flags.service_cidr.or(file.service_cidr), DEFAULT_SERVICE_CIDR, 24)?;
        if pod_cidr.contains(&service_cidr) || service_cidr.contains(&pod_cidr) {
            bail!("--pod-cidr {pod_cidr} and --service-cidr {service_cidr} overlap; choose ranges that do not");
        }
        Ok(Self {
            data_dir: data_dir(flags.data_dir.or(file.data_dir))?,
            listen: listen.parse().with_context(|| {
                format!("--listen {listen:?} is not an address and port; write for instance {DEFAULT_LISTEN}")
            })?,
            pod_cidr,
            service_cidr,
            node_name: node_name(flags.node_name.or(file.node_name))?,
            nodes: nodes(flags.nodes.or(file.nodes), pod_cidr)?,
            node_grace: grace(flags.node_monitor_grace_period.or(file.node_monitor_grace_period))?,
            patience: Patience {
                not_ready_s: flags
                    .default_not_ready_toleration_seconds
                    .or(file.default_not_ready_toleration_seconds)
                    .unwrap_or(Patience::default().not_ready_s),
                unreachable_s: flags
                    .default_unreachable_toleration_seconds
                    .or(file.default_unreachable_toleration_seconds)
                    .unwrap_or(Patience::default().unreachable_s),
            },
            ingress_http: ingress("--ingress-http", flags.ingress_http.or(file.ingress_http), 80)?,
            ingress_https: ingress("--ingress-https", flags.ingress_https.or(file.ingress_https), 443)?,
            audit_log: flags.audit_log.or(file.audit_log),
            eviction,
        })
    }

    /// Settles how many nodes there are, from what was asked for now and what there was before.
    pub fn settle(&mut self, before: Option<u32>) -> Result<()> {
        let before = before.unwrap_or(1);
        match self.nodes {
            0 => self.nodes = before,
            fewer if fewer < before => bail!(
                "there are {before} nodes, and --nodes {fewer} would take some away with all that runs on them. Leave the \
                 option out, or take a node out of use: `mycelium node drain {name}`, then `mycelium node stop {name}`",
                name = super::fleet::name(&self.node_name, before)
            ),
            _ => {}
        }
        nodes(Some(self.nodes), self.pod_cidr).map(drop)
    }

    /// What the pod network of instance `id` is told; the fixed addresses of the ranges come from it too.
    pub fn network(&self, id: &str) -> NetConfig {
        let all = NetConfig::new(id, self.pod_cidr, self.service_cidr);
        // Every range has room for the first node.
        all.of_node(1, &self.node_name).unwrap_or(all)
    }
}

/// The number of nodes; 0 if nothing is said of it.
fn nodes(given: Option<u32>, pod_cidr: Ipv4Net) -> Result<u32> {
    let Some(count) = given else { return Ok(0) };
    if !(1..=NODES_MAX).contains(&count) {
        bail!("--nodes {count} is not possible: one machine has 1 to {NODES_MAX} nodes");
    }
    if node_range(pod_cidr, count).is_none() {
        bail!(
            "--pod-cidr {pod_cidr} is too small to be divided among nodes: with --nodes {count} it needs a prefix of at \
             most /20, for instance {DEFAULT_POD_CIDR}"
        );
    }
    Ok(count)
}

/// A time such as `40s`, `2m` or `500ms`; a bare number is seconds.
fn grace(given: Option<String>) -> Result<Duration> {
    let Some(text) = given else { return Ok(DEFAULT_GRACE) };
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit_ms = match &text[digits.len()..] {
        "" | "s" => 1000,
        "ms" => 1,
        "m" => 60_000,
        _ => 0,
    };
    match digits.parse::<u64>().map(|number| Duration::from_millis(number.saturating_mul(unit_ms))) {
        Ok(time) if time >= GRACE_MIN => Ok(time),
        _ => bail!("--node-monitor-grace-period {text:?} is not a time of at least 1s; write for instance 40s or 2m"),
    }
}

/// The data directory as an absolute path, whether or not it exists.
pub fn data_dir(given: Option<PathBuf>) -> Result<PathBuf> {
    let path = given.unwrap_or_else(|| PathBuf::from(DEFAULT_DATA_DIR));
    std::path::absolute(&path).with_context(|| format!("--data-dir {}", path.display()))
}

fn read(path: &Path) -> Result<Options> {
    let text = std::fs::read_to_string(path).with_context(|| format!("--config {} cannot be read", path.display()))?;
    serde_saphyr::from_str(&text).with_context(|| {
        format!(
            "--config {} is not a valid configuration (fields: dataDir, listen, podCIDR, serviceCIDR, nodeName, nodes, \
             ingressHTTP, ingressHTTPS, …)",
            path.display()
        )
    })
}

fn ingress(flag: &str, given: Option<String>, port: u16) -> Result<Listen> {
    match given.as_deref() {
        None => Ok(Listen::Node(port)),
        Some("off") => Ok(Listen::Off),
        Some(text) => text.parse().map(Listen::At).with_context(|| {
            format!("{flag} {text:?} is not an address and port, nor `off`; write for instance 0.0.0.0:{port}")
        }),
    }
}

fn range(flag: &str, given: Option<String>, default: &str, prefix_max: u8) -> Result<Ipv4Net> {
    let text = given.unwrap_or_else(|| default.to_owned());
    let net: Ipv4Net =
        text.parse().with_context(|| format!("{flag} {text:?} is not an IPv4 range; write for instance {default}"))?;
    if net.prefix_len() > prefix_max {
        bail!("{flag} {text} is too small: it needs a prefix of at most /{prefix_max}, for instance {default}");
    }
    Ok(net.trunc())
}

pub(crate) fn node_name(given: Option<String>) -> Result<String> {
    let name = match given {
        Some(name) => name,
        None => std::fs::read_to_string("/proc/sys/kernel/hostname")
            .context("the host name cannot be read; give --node-name")?
            .trim()
            .to_lowercase(),
    };
    match mycelium_api::names::is_dns1123_subdomain(&name).first() {
        None => Ok(name),
        Some(fault) => bail!("--node-name {name:?} is not a valid node name: {fault}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options() -> Options {
        Options { node_name: Some("host-1".to_owned()), ..Options::default() }
    }

    #[test]
    fn flags_win_over_the_file_and_the_file_over_defaults() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "listen: 127.0.0.1:1\npodCIDR: 10.1.0.0/16\n").unwrap();
        let flags = Options { listen: Some("127.0.0.1:2".to_owned()), ..options() };
        let config = Config::load(flags, Some(file.path())).unwrap();
        assert_eq!(config.listen.port(), 2);
        assert_eq!(config.pod_cidr.to_string(), "10.1.0.0/16");
        assert_eq!(config.network("000000").dns().to_string(), "10.96.0.10");
        assert_eq!(config.data_dir, Path::new(DEFAULT_DATA_DIR));
    }

    #[test]
    fn errors_name_the_field_what_was_found_and_what_is_allowed() {
        let cases: [(Options, &str); 10] = [
            (Options { nodes: Some(17), ..options() }, "--nodes 17 is not possible"),
            (Options { nodes: Some(2), pod_cidr: Some("10.1.0.0/21".into()), ..options() }, "too small to be divided"),
            (Options { node_monitor_grace_period: Some("4h".into()), ..options() }, "grace-period \"4h\""),
            (Options { listen: Some("localhost".into()), ..options() }, "--listen \"localhost\" is not an address"),
            (
                Options { pod_cidr: Some("10.0.0.0/33".into()), ..options() },
                "--pod-cidr \"10.0.0.0/33\" is not an IPv4",
            ),
            (
                Options { service_cidr: Some("10.0.0.0/30".into()), ..options() },
                "--service-cidr 10.0.0.0/30 is too small",
            ),
            (Options { pod_cidr: Some("10.96.0.0/16".into()), ..options() }, "overlap"),
            (Options { ingress_http: Some("80".into()), ..options() }, "--ingress-http \"80\" is not an address"),
            (Options { node_name: Some("A b".into()), ..options() }, "--node-name \"A b\""),
            (
                Options {
                    eviction: eviction::Options { hard: Some("memory<1".into()), ..Default::default() },
                    ..options()
                },
                "none of memory.available",
            ),
        ];
        for (flags, expected) in cases {
            let error = Config::load(flags, None).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn nodes_are_added_and_never_taken_away() {
        let config = |nodes| Config::load(Options { nodes, ..options() }, None).unwrap();
        let settled = |nodes, before| {
            let mut config = config(nodes);
            config.settle(before).map(|()| config.nodes).map_err(|error| error.to_string())
        };
        assert_eq!(settled(None, None), Ok(1));
        assert_eq!(settled(None, Some(3)), Ok(3));
        assert_eq!(settled(Some(4), Some(3)), Ok(4));
        assert!(settled(Some(2), Some(3)).unwrap_err().contains("mycelium node drain host-1-3"));
        assert_eq!(config(None).network("a1b2c3").pod_cidr.to_string(), "10.244.0.0/20");
    }

    #[test]
    fn an_unknown_field_in_the_file_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "podCidr: 10.1.0.0/16\n").unwrap();
        let error = format!("{:#}", Config::load(options(), Some(file.path())).unwrap_err());
        assert!(error.contains("podCidr") && error.contains("podCIDR"), "{error}");
    }
}

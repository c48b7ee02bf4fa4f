//! Getting pods through the firewall of others. Blocking.
//!
//! An accept in our table does not overrule a drop in another: where Docker or ufw made dropping the policy of the
//! classic `FORWARD` or `INPUT` chain, pods would reach nothing. Rules for our interfaces are put into those chains by
//! `iptables` itself, in the form its owners understand. Other firewalls are named in a warning.

use std::process::Stdio;

use mycelium_linux::process::command;
use serde_json::Value as Json;

use crate::config::Names;
use crate::error::NetError;
use crate::nft;

/// The ways in which the interfaces can match in a chain.
const RULES: [(&str, &str); 3] = [("FORWARD", "-i"), ("FORWARD", "-o"), ("INPUT", "-i")];
const LEGACY_TABLES: &str = "/proc/thread-self/net/ip_tables_names";

/// A base chain that drops what no rule accepts.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Dropping {
    family: String,
    table: String,
    chain: String,
}

impl Dropping {
    fn is_classic(&self) -> bool {
        self.family == "ip" && self.table == "filter" && matches!(self.chain.as_str(), "FORWARD" | "INPUT")
    }
}

/// Lets our interfaces through where others drop by policy.
pub fn open(names: &Names) -> Result<(), NetError> {
    let listing = nft::query(&["-j", "list", "chains"])?.and_then(|text| serde_json::from_slice(&text).ok());
    for dropping in dropping(&listing.unwrap_or_default()) {
        if !dropping.is_classic() {
            let Dropping { family, table, chain } = &dropping;
            let interfaces = names.wildcard();
            tracing::warn!(
                family,
                table,
                chain,
                interfaces,
                "a firewall drops packets by default: let it accept those of the pods' interfaces"
            );
            continue;
        }
        for (_, direction) in RULES.iter().filter(|(chain, _)| *chain == dropping.chain) {
            insert(tool("iptables-nft"), names, &dropping.chain, direction);
        }
    }
    if legacy() {
        for (chain, direction) in RULES {
            let policy = output(tool("iptables-legacy"), &["-w", "-S", chain]);
            if policy.is_some_and(|text| text.starts_with(&format!("-P {chain} DROP"))) {
                insert(tool("iptables-legacy"), names, chain, direction);
            }
        }
    }
    Ok(())
}

/// Takes the rules of [`open`] out again.
pub fn close(names: &Names) {
    let nft = nft::query(&["list", "table", "ip", "filter"]).ok().flatten();
    let ours = names.wildcard();
    if nft.is_some_and(|text| String::from_utf8_lossy(&text).contains(&ours)) {
        delete(tool("iptables-nft"), names);
    }
    if legacy() {
        delete(tool("iptables-legacy"), names);
    }
}

fn dropping(listing: &Json) -> Vec<Dropping> {
    let chains = listing["nftables"].as_array().into_iter().flatten().filter_map(|object| object.get("chain"));
    let drops = |chain: &&Json| chain["policy"] == "drop" && (chain["hook"] == "forward" || chain["hook"] == "input");
    let text = |chain: &Json, key: &str| chain[key].as_str().unwrap_or_default().to_owned();
    chains
        .filter(drops)
        .filter(|chain| chain["family"] == "ip" || chain["family"] == "inet")
        .map(|chain| Dropping {
            family: text(chain, "family"),
            table: text(chain, "table"),
            chain: text(chain, "name"),
        })
        .collect()
}

/// Whether the old kernel interface is in use; looking at it with its own tool would load it.
fn legacy() -> bool {
    std::fs::read_to_string(LEGACY_TABLES).is_ok_and(|text| text.lines().any(|table| table == "filter"))
}

/// The tool for one kernel interface, or the one that is there.
fn tool(preferred: &'static str) -> &'static str {
    if output(preferred, &["--version"]).is_some() { preferred } else { "iptables" }
}

fn output(program: &str, arguments: &[&str]) -> Option<String> {
    let output = command(program).args(arguments).stdin(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

fn rule<'a>(action: &'a str, chain: &'a str, direction: &'a str, interfaces: &'a str) -> [&'a str; 7] {
    ["-w", action, chain, direction, interfaces, "-j", "ACCEPT"]
}

/// `iptables` ends a prefix with a plus sign.
fn interfaces(names: &Names) -> String {
    names.wildcard().replace('*', "+")
}

fn insert(tool: &str, names: &Names, chain: &str, direction: &str) {
    let interfaces = interfaces(names);
    if output(tool, &rule("-C", chain, direction, &interfaces)).is_some() {
        return;
    }
    if output(tool, &rule("-I", chain, direction, &interfaces)).is_none() {
        tracing::warn!(chain, "the firewall drops packets by default, and iptables could not let the pods through");
    }
}

fn delete(tool: &str, names: &Names) {
    let interfaces = interfaces(names);
    for (chain, direction) in RULES {
        while output(tool, &rule("-D", chain, direction, &interfaces)).is_some() {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_base_chains_that_drop_packets_of_pods_count() {
        let chain = |family: &str, table: &str, name: &str, hook: &str, policy: &str| json!({"chain": {"family": family, "table": table, "name": name, "hook": hook, "policy": policy}});
        let listing = json!({"nftables": [
            chain("ip", "filter", "FORWARD", "forward", "drop"),
            chain("ip", "filter", "INPUT", "input", "accept"),
            chain("ip6", "filter", "FORWARD", "forward", "drop"),
            chain("inet", "firewall", "fwd", "forward", "drop"),
            {"chain": {"family": "ip", "table": "filter", "name": "DOCKER"}},
        ]});
        let found = dropping(&listing);
        assert_eq!(
            found.iter().map(|d| (d.chain.as_str(), d.is_classic())).collect::<Vec<_>>(),
            [("FORWARD", true), ("fwd", false)]
        );
    }
}

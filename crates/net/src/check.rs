//! Whether the machine has what the network needs, and what to do about what it lacks.

use mycelium_linux::netlink::{Family, Message, Socket};
use mycelium_linux::netns;

use crate::nft;

/// Something that is missing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing {
    /// What is missing.
    pub what: String,
    /// What to do about it.
    pub remedy: String,
}

/// Tries everything the network uses, in a network namespace of its own. Empty when nothing is missing. Blocking.
pub fn check() -> Vec<Missing> {
    let mut found = Vec::new();
    let mut miss = |what: &str, remedy: &str| found.push(Missing { what: what.to_owned(), remedy: remedy.to_owned() });
    let version = nft::query(&["--version"]);
    let Ok(namespace) = netns::create() else {
        miss("the right to create network namespaces", "run as root");
        return found;
    };
    let tried = netns::run_in(&namespace, || Ok((nft::apply(TRIAL), links())));
    let Ok((rules, (bridge, veth))) = tried else {
        miss("the right to enter network namespaces", "run as root");
        return found;
    };
    match (version, rules) {
        (Err(_), _) => miss("the program nft", "install the package nftables (Debian: apt install nftables)"),
        (_, Err(e)) => miss(
            &format!("nftables with address translation ({e})"),
            "load the kernel modules nf_tables, nft_nat, nft_masq, nft_fib_ipv4, nft_reject_ipv4, nft_numgen and nf_conntrack",
        ),
        _ => {}
    }
    if !bridge {
        miss("network bridges", "load the kernel module bridge");
    }
    if !veth {
        miss("virtual Ethernet pairs", "load the kernel module veth");
    }
    found
}

/// One of each kind of rule that we use.
const TRIAL: &str = "table ip mycelium_check {
  map m { typeof ip daddr . meta l4proto . th dport . numgen random mod 2 : ip daddr . th dport ; }
  set s { type ipv4_addr ; flags dynamic,timeout ; timeout 9s ; }
  chain c { type nat hook prerouting priority -100 ;
    fib daddr type local dnat ip to ip daddr . meta l4proto . th dport . numgen random mod 2 map @m
    update @s { ip saddr }
  }
  chain p { type nat hook postrouting priority 100 ; ct status dnat masquerade ; }
  chain f { type filter hook forward priority 0 ; ct state new reject with icmp port-unreachable ; }
}
";

fn links() -> (bool, bool) {
    let Ok(mut socket) = Socket::open(Family::Route) else { return (false, false) };
    let mut works = |message: Message| socket.batch(&[message]).is_ok();
    (
        works(crate::link::create_bridge("check0", [2, 0, 0, 0, 0, 1], 0)),
        works(crate::link::create_plain_pair("check1")),
    )
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_machine_that_runs_the_tests_lacks_nothing() {
        assert_eq!(super::check(), []);
    }
}

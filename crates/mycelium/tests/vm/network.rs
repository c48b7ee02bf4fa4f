//! What may go wrong on the lab's wires: hosts that do not hear one another, and a slow uplink. Guests' own frames are
//! bridged past the packet filter, so the client is never cut off by it.

use crate::common::{command, run};
use crate::lab::Lab;

impl Lab {
    /// From now on two hosts hear nothing of one another.
    pub fn separate(&self, one: &str, other: &str) {
        for (here, there) in [(one, other), (other, one)] {
            let rules = format!(
                "add table ip apart
                 add chain ip apart input {{ type filter hook input priority 0; }}
                 add rule ip apart input ip saddr {} drop",
                self.address(there)
            );
            self.filter(here, &rules);
        }
    }

    /// All hosts hear one another again.
    pub fn reunite(&self) {
        for host in self.names() {
            self.filter(&host, "add table ip apart; delete table ip apart");
        }
    }

    /// Sends what is dialled to a host's port to another port of it.
    pub fn redirect(&self, host: &str, from: u16, to: u16) {
        let rules = format!(
            "add table ip detour
             add chain ip detour dialled {{ type nat hook prerouting priority -100; }}
             add rule ip detour dialled tcp dport {from} redirect to :{to}"
        );
        self.filter(host, &rules);
    }

    fn filter(&self, host: &str, rules: &str) {
        run(command("ip").args(["netns", "exec", &self.namespace(host), "nft", rules]));
    }
}

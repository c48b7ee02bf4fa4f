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

    /// Whatever leaves a host, its guest's frames included, has this many megabits a second.
    pub fn slow(&self, host: &str, megabits: u32) {
        let rate = format!("{megabits}mbit");
        self.shape(
            host,
            &["replace", "dev", "uplink", "root", "tbf", "rate", &rate, "burst", "32kb", "latency", "20ms"],
        );
    }

    /// What others send to a host has this many megabits a second.
    pub fn slow_towards(&self, host: &str, megabits: u32) {
        let (rate, port) = (format!("{megabits}mbit"), format!("to-{host}"));
        let words = ["replace", "dev", &port, "root", "tbf", "rate", &rate, "burst", "32kb", "latency", "20ms"];
        self.shape("switch", &words);
    }

    /// Others can send to it as before.
    pub fn fast_towards(&self, host: &str) {
        self.shape("switch", &["delete", "dev", &format!("to-{host}"), "root"]);
    }

    /// It has all that the wire can carry again.
    pub fn fast(&self, host: &str) {
        self.shape(host, &["delete", "dev", "uplink", "root"]);
    }

    fn shape(&self, host: &str, words: &[&str]) {
        run(command("tc").args(["-n", &self.namespace(host), "qdisc"]).args(words));
    }
}

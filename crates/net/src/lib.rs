//! Pod network, services, network policies and cluster DNS of one machine.
//!
//! Each pod hangs on a routed pair of interfaces ([`pod`]). Services are nftables rules: a pure function turns the
//! cluster into rules ([`compile`]), the difference to the last ones becomes one transaction ([`ruleset`]), and `nft`
//! carries it out. The DNS server answers from the same picture of the cluster.
//!
//! Everything on the machine is named by the instance id, so that several engines live side by side and
//! [`teardown`] finds what is its own even after a crash.
//!
//! | module | holds |
//! |---|---|
//! | [`config`] | ranges, and the names and addresses that follow from them |
//! | [`ipam`] | which pod has which address |
//! | [`network`] | set up, attach, detach |
//! | [`cluster`], [`compile`], [`ruleset`] | from services to rules |
//! | [`policy`] | network policies, and their part of the rules |
//! | [`programmer`], [`tracker`] | from rules to the kernel, from watches to the cluster |
//! | [`dns`] | the cluster DNS server |
//! | [`check`] | what the machine lacks |
//! | [`resolv`] | `resolv.conf` of host and pods |

pub mod check;
pub mod cluster;
pub mod compile;
pub mod config;
pub mod conflict;
mod conntrack;
pub mod dns;
pub mod error;
mod firewall;
mod forwarding;
mod guard;
mod host;
pub mod ipam;
mod link;
pub mod network;
mod nft;
pub mod pod;
pub mod policy;
pub mod programmer;
pub mod resolv;
pub mod ruleset;
mod sync;
pub mod tracker;
mod uplink;

pub use check::{Missing, check};
pub use config::{NODES_MAX, NetConfig, node_range};
pub use error::NetError;
pub use host::parse_range;
pub use network::{Network, PodNet, teardown};

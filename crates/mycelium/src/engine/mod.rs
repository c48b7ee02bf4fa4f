//! The engine: how store, API server, controllers, network and node are put together in one process.
//!
//! | file | holds |
//! |---|---|
//! | `config.rs` | flags, configuration file and defaults, merged and checked |
//! | `instance.rs` | the data directory: its lock, its id, the record of the running engine |
//! | `preflight.rs` | what the machine must have, and what to do when it has not |
//! | `keys.rs` | certificates and the kubeconfig, renewed while the engine runs |
//! | `state.rs` | the state file, and the key of the Secrets in it |
//! | `ingress.rs` | the ingress proxy |
//! | `start.rs` | the start sequence, and what runs until the end |
//! | `fleet.rs`, `agents.rs` | the nodes: which have power; their answers to the API server |
//! | `sources.rs` | the real clock and randomness |
//! | `bootstrap.rs` | the objects that every cluster has |

pub mod agents;
pub mod bootstrap;
pub mod config;
pub mod eviction;
pub mod fleet;
pub mod ingress;
pub mod instance;
pub mod keys;
pub mod preflight;
pub mod sources;
pub mod start;
pub mod state;

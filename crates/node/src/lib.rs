//! The node agent: runs the pods that the API assigns to this machine.
//!
//! | module | holds |
//! |---|---|
//! | [`node`] | the whole: [`Node`], [`teardown`] |
//! | [`pod`] | one pod: plan, status, worker |
//! | [`shim`] | the process that holds a pod's sandbox and containers |
//! | [`client`] | the engine's end of a shim |
//! | [`spec`] | from a container to what the runtime is told |
//! | [`volumes`] | a pod's volumes |
//! | [`service`] | logs, exec, attach, port-forward |
//! | [`register`], [`events`] | the node's own objects, events |
//! | [`image`], [`network`], [`adapters`] | what the node needs of others, and how this workspace's crates give it |

pub mod adapters;
pub mod client;
pub mod context;
pub mod events;
pub mod image;
pub mod machine;
pub mod network;
pub mod node;
pub mod pod;
pub mod pressure;
pub mod register;
pub mod service;
pub mod shim;
pub mod spec;
pub mod volumes;

pub use node::{Node, NodeConfig, NodeError, cut_power, folder_of, held_network, pod_folders, teardown};
pub use service::NodeService;

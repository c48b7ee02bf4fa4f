//! The cluster DNS server: names of services and pods from the picture of the cluster, all others from the host's servers.
//!
//! | module | holds |
//! |---|---|
//! | `answer` | what a name means; pure |
//! | `server` | sockets and messages |
//! | `upstream` | asking the host's servers |

mod answer;
mod server;
mod upstream;

pub use answer::{Lookup, Zone};
pub use server::Server;

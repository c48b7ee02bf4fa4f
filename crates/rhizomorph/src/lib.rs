//! Many encrypted, mutually authenticated connections between two peers, used as one link.
//!
//! A link sends messages on channels. A message is cut into chunks, and each connection takes the next chunk when it
//! has room: a fast connection carries more, a slow one less, a dead one nothing, and what was on it goes again over
//! the others at once. Messages of one channel arrive whole, in order, each exactly once, for as long as the link
//! lives; it lives for as long as the peer is heard on any connection.
//!
//! ```text
//!  send(channel, priority, parts)                                      recv() -> Message
//!        │  bounded queue                                                    ▲  bounded by credit
//!  ┌─────▼──────┐ cut ┌── connection 0: TLS 1.3 / TCP ──────────┐ join ┌─────┴──────┐
//!  │   Sender   ├────►├── connection 1 ─────────────────────────┤─────►│  Receiver  │
//!  │ (core)     │◄────┤       ... target_count of them          │◄─────┤ (core)     │
//!  └────────────┘ ack └── one per pair of local and remote ─────┘credit└────────────┘
//! ```
//!
//! * **Urgent** messages overtake bulk ones: nothing keeps more than a few milliseconds of bulk data ahead of them.
//! * **Trust**: a [`Group`] is a CA certificate with its key; each process issues itself an [`Identity`] from it. Both
//!   sides verify the other's certificate; a connection joins a link only when both ends show the very certificates
//!   that the link was opened with.
//! * **Memory** is bounded on both sides: by [`Options::send_buffer`] on the sending one, by
//!   [`Options::receive_window`] (or one message, if that is longer) on the receiving one, where the application must
//!   take messages for more to come.
//! * **Faults**: a connection whose bytes were altered fails TLS and is dropped; one that stands still loses its share
//!   until it moves again; one that is silent for [`Options::dead_after`] is dropped and dialled again, over whatever
//!   addresses work, and goes back to its own as soon as those do.
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use mycelium_rhizomorph::{Group, Link, LinkConfig, Listener, Options, Priority};
//!
//! let group = Group::create()?;
//! let listener = Listener::bind(&["127.0.0.1:0".parse()?], group.issue("b")?, Options::default()).await?;
//! let config = LinkConfig::new(listener.addresses().to_vec());
//! let (link, accepted) = tokio::join!(Link::connect(config, group.issue("a")?), listener.accept());
//! let (link, accepted) = (link?, accepted?);
//! assert_eq!((link.peer(), accepted.peer()), ("b", "a"));
//!
//! link.send(7, Priority::Bulk, vec!["hello, ".into(), "world".into()]).await?;
//! assert_eq!(accepted.recv().await?.payload, "hello, world");
//! # Ok(())
//! # }
//! ```

mod connection;
mod core;
mod dial;
mod error;
pub mod frame;
mod greet;
mod identity;
mod link;
mod listener;
mod pairs;
mod shared;
mod stats;

pub use crate::core::Balancing;
pub use crate::core::receiver::Message;
pub use crate::error::{CloseReason, Error, Refusal, Violation};
pub use crate::identity::{Group, Identity};
pub use crate::link::{Link, LinkConfig, Options, Priority};
pub use crate::listener::Listener;
pub use crate::stats::{ConnectionStats, LinkStats, PathState};

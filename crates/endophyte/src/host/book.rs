//! What processes of one machine tell each other besides the protocol itself: who they are, where they listen, and
//! what the machine is made of.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::group::Position;

/// Channels of a link.
pub mod channel {
    /// [`super::Notice`]s.
    pub const NOTICE: u16 = 0;
    /// Messages of the replication group.
    pub const GROUP: u16 = 1;
    /// Epochs and copies, primary to backup: order matters.
    pub const STREAM: u16 = 2;
    /// What a backup says while it is brought in sync.
    pub const SYNC: u16 = 3;
}

/// Where members listen, by name. Who never listens has an empty list.
pub type Book = BTreeMap<String, Vec<SocketAddr>>;

/// A message on [`channel::NOTICE`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "notice", rename_all = "camelCase")]
pub enum Notice {
    /// The first message of each side on a new link.
    Hello(Hello),
    /// Where members listen, as the sender knows it.
    Book {
        /// The addresses.
        book: Book,
    },
    /// The sender lacks these files of the machine; they come on [`channel::STREAM`].
    Want {
        /// Their names.
        files: Vec<String>,
    },
    /// Every host of the machine has its disk at this position: what is older need not be compared with a host that was
    /// away.
    Settled {
        /// The position, as the disk counts.
        position: Position,
    },
    /// The machine moved away from the sender, who wants to be left out of its group.
    Leaving,
    /// The receiver does not belong to the machine's group any more.
    Left,
    /// The guest was shut down, for good: nobody is to take over.
    Stopped {
        /// By the host of this term.
        term: u64,
    },
}

/// Who speaks, and about which machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Hello {
    /// The machine.
    pub vm: String,
    /// Where the sender listens.
    pub listen: Vec<SocketAddr>,
    /// Tells a restarted process from the one before.
    pub incarnation: u64,
    /// It only votes.
    pub witness: bool,
    /// Where others listen.
    pub book: Book,
    /// What the machine is made of; from whoever knows.
    pub setup: Option<Setup>,
}

/// What a machine is made of, for hosts that do not know it yet.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Setup {
    /// The document in force.
    pub document: serde_json::Value,
    /// Size of the disk in bytes; none without a disk.
    pub disk_bytes: Option<u64>,
    /// Files that every host needs beside it (kernel, initrd, seed), with the hash of their content.
    pub files: BTreeMap<String, String>,
}

impl Notice {
    /// As bytes.
    pub fn encode(&self) -> Vec<u8> {
        // Plain data with string keys has a JSON form.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// From bytes.
    ///
    /// # Errors
    /// A sentence that says what is wrong with them.
    pub fn decode(bytes: &[u8]) -> Result<Self, String> {
        serde_json::from_slice(bytes)
            .map_err(|error| format!("a notice that this version does not understand: {error}"))
    }
}

/// Adds what another book knows; its entries win, for they are news.
pub fn merge(book: &mut Book, news: &Book) -> bool {
    let before = book.clone();
    for (name, addresses) in news {
        if !addresses.is_empty() || !book.contains_key(name) {
            book.insert(name.clone(), addresses.clone());
        }
    }
    *book != before
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn books_merge_and_forget_nothing() {
        let at = |port| vec![SocketAddr::from(([10, 0, 0, 1], port))];
        let mut book = Book::from([("a".into(), at(1)), ("b".into(), at(2))]);
        let news = Book::from([("a".into(), vec![]), ("b".into(), at(3)), ("c".into(), vec![])]);
        assert!(merge(&mut book, &news));
        assert_eq!(book, Book::from([("a".into(), at(1)), ("b".into(), at(3)), ("c".into(), vec![])]));
        assert!(!merge(&mut book, &news));
    }

    #[test]
    fn notices_survive_the_wire() {
        let notice = Notice::Stopped { term: 7 };
        assert_eq!(Notice::decode(&notice.encode()), Ok(notice));
        assert!(Notice::decode(b"{\"notice\":\"else\"}").is_err());
    }
}

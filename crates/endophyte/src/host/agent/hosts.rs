//! The other hosts of a machine: who is linked, who is dialled, who is asked to join.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;

use mycelium_rhizomorph::Link;

use super::Agent;
use crate::group::{Change, Command, Input};
use crate::host::book::{self, Book, Hello, Notice};
use crate::host::links;
use crate::host::paths::write_whole;

impl Agent {
    pub(super) fn hello(&self) -> Hello {
        Hello {
            vm: self.place.vm.clone(),
            listen: self.place.listen.clone(),
            incarnation: self.place.incarnation,
            witness: self.place.witness,
            book: self.book.clone(),
            setup: self.setup.clone(),
        }
    }

    /// Dials whoever should be linked and is not: those that are to join, and members whose address is known. Of two
    /// members that know each other's address the one with the lower name dials.
    pub(super) fn dial_missing(&mut self) {
        if self.apart.is_some() {
            return;
        }
        let linked: BTreeSet<&[SocketAddr]> = self.peers.values().map(|peer| peer.hello.listen.as_slice()).collect();
        let mut missing: Vec<Vec<SocketAddr>> =
            self.wanted.keys().filter(|addresses| !linked.contains(addresses.as_slice())).cloned().collect();
        // Whoever leads knows who belongs to the group; others may lag behind.
        let config = self.config().filter(|_| self.member.is_primary());
        let stranger = |name: &str| config.is_some_and(|config| config.members().all(|member| **member != *name));
        for (name, addresses) in self.book.iter().filter(|(name, _)| !stranger(name)) {
            let known = self.peers.contains_key(name) || *name == self.place.me || addresses.is_empty();
            let ours = self.place.me < *name || self.place.listen.is_empty();
            if !known && ours && !missing.contains(addresses) {
                missing.push(addresses.clone());
            }
        }
        missing.retain(|addresses| self.dialler.is_free(addresses));
        if missing.is_empty() {
            return;
        }
        let hello = Arc::new(self.hello());
        for addresses in missing {
            self.dialler.dial(addresses, Arc::clone(&hello));
        }
    }

    /// A host has said hello; `answer` says whether it waits for ours.
    pub(super) fn linked(&mut self, link: Link, hello: Hello, answer: bool) {
        let name = link.peer().to_owned();
        if hello.vm != self.place.vm || name == self.place.me {
            self.history.note(&format!("{name} speaks of machine {}; the link is closed", hello.vm));
            return;
        }
        if let Some(known) = self.peers.get(&name) {
            if known.hello.incarnation == hello.incarnation && known.link.connections() > 0 {
                return;
            }
            self.unlink(&name);
        }
        let news = Book::from([(name.clone(), hello.listen.clone())]);
        let learned = book::merge(&mut self.book, &hello.book) | book::merge(&mut self.book, &news);
        if let Some(setup) = hello.setup.clone().filter(|_| self.setup.is_none()) {
            self.learn_setup(setup);
        }
        self.next_number += 1;
        let peer = links::serve(link, hello, self.next_number, self.events.clone(), &self.held);
        if answer {
            // Before anything else is said.
            peer.notice(&Notice::Hello(self.hello()));
        }
        if !self.missing_files.is_empty() {
            peer.notice(&Notice::Want { files: self.missing_files.iter().cloned().collect() });
        }
        self.presence.forgotten.remove(&name);
        self.peers.insert(name.clone(), peer);
        self.history.note(&format!("linked with {name}"));
        if learned {
            self.share_book();
        }
        self.invite(&name);
    }

    /// Hosts that were asked to join, and are no members yet, join.
    pub(super) fn invite_all(&mut self) {
        let names: Vec<String> = self.peers.keys().cloned().collect();
        names.iter().for_each(|name| self.invite(name));
    }

    /// A host that was asked to join, and is no member yet, joins.
    pub(super) fn invite(&mut self, name: &str) {
        let Some(peer) = self.peers.get(name) else { return };
        let witness = peer.hello.witness;
        // Of those that the document lists some may be spares.
        let asked = self.wanted_as(peer).is_some_and(|wanted| wanted.place.is_none());
        let member = self.config().is_some_and(|config| config.members().any(|member| &**member == name));
        if asked && !member && self.member.is_primary() {
            let change = if witness { Change::AddWitness(name.into()) } else { Change::AddBackup(name.into()) };
            self.commands.push_back((Command::Change(change), None));
        }
    }

    pub(super) fn share_book(&mut self) {
        let path = self.place.paths.file("book.json");
        if let Ok(bytes) = serde_json::to_vec(&self.book)
            && let Err(error) = write_whole(&path, &bytes)
        {
            tracing::warn!(%error, path = %path.display(), "the address book cannot be written");
        }
        let notice = Notice::Book { book: self.book.clone() };
        self.peers.values().for_each(|peer| peer.notice(&notice));
    }

    pub(super) fn unlink(&mut self, name: &str) {
        self.peers.remove(name);
        self.drop_sync(name);
        self.input(Input::PeerDown(name.into()));
    }
}

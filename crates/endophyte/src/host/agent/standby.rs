//! A host that holds a copy: learning what the machine is made of, preparing the copy.

use std::sync::Arc;

use bytes::Bytes;
use mycelium_api::error::chain;

use super::{Agent, Event, Part};
use crate::host::book::Setup;
use crate::host::paths::write_whole;
use crate::host::replica::Replica;
use crate::host::stream::StreamMessage;
use crate::host::{HostError, assembly};

impl Agent {
    /// Takes note of what the machine is made of, and prepares a copy.
    pub(super) fn learn_setup(&mut self, setup: Setup) {
        match assembly::learn(&self.place, &setup, &self.held) {
            Ok(learned) => {
                self.missing_files = learned.missing;
                self.member.set_timing(assembly::timing(&setup));
                self.assembly = Some(Arc::new(learned.assembly));
                self.setup = Some(setup);
                self.prepare();
            }
            Err(error) => self.history.note(&format!("the machine cannot be run here: {}", chain(&error))),
        }
    }

    pub(super) fn prepare(&mut self) {
        let ready = self.missing_files.is_empty() && matches!(self.part, Part::None);
        if self.place.witness || self.is_founding() || !ready || self.departing.is_some() || self.left {
            return;
        }
        let Some(assembly) = self.assembly.clone() else { return };
        self.part = Part::Preparing;
        let events = self.events.clone();
        tokio::task::spawn_blocking(move || {
            let standby = assembly::stand_by(&assembly);
            let _ = events.send(Event::Prepared(Box::new(standby)));
        });
    }

    pub(super) fn prepared(&mut self, standby: Result<assembly::Standby, HostError>) {
        let started = standby.and_then(|assembly::Standby { parts, card }| {
            let replica = Replica::start(parts, self.events.clone())?;
            Ok(Part::Backup { replica, card })
        });
        match started {
            // A cold start may have begun meanwhile.
            Ok(part) if matches!(self.part, Part::Preparing) => {
                if let (Part::Backup { replica, .. }, Some(incoming)) = (&part, self.early_sync.take()) {
                    replica.message(incoming);
                }
                self.part = part;
            }
            Ok(_) => {}
            Err(error) => self.history.note(&format!("no copy can be kept here: {}", chain(&error))),
        }
    }

    pub(super) fn send_files(&self, to: &str, names: &[String]) {
        let (Some(peer), Some(setup)) = (self.peers.get(to), &self.setup) else { return };
        for name in names.iter().filter(|name| setup.files.contains_key(*name)) {
            match std::fs::read(self.place.paths.file(name)) {
                Ok(content) => {
                    peer.outbox.send(StreamMessage::File { name: name.clone(), content: content.into() }.encode())
                }
                // Another host that has it sends it.
                Err(error) => tracing::debug!(%error, name, "a file of the machine is not here"),
            }
        }
    }

    pub(super) fn received_file(&mut self, from: &str, name: &str, content: Bytes) {
        if !self.missing_files.contains(name) {
            return;
        }
        let digest = self.setup.as_ref().and_then(|setup| setup.files.get(name)).cloned();
        if digest.as_deref() != Some(assembly::digest(&content).as_str()) {
            return self.history.note(&format!("{from} sent a file {name} with another content than announced"));
        }
        let path = self.place.paths.file(name);
        match write_whole(&path, &content) {
            Ok(()) => {
                self.missing_files.remove(name);
                self.prepare();
            }
            Err(error) => self.history.note(&format!("{} cannot be written: {error}", path.display())),
        }
    }
}

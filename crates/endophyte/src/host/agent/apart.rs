//! A host that cannot write its part of the protocol to disk. Nothing that follows from what is not on disk may leave it,
//! so it behaves like one that is cut off, until there is room again: it votes for nobody, holds no epochs, and releases
//! nothing; another host takes over if it had the guest. What it was about to do is done then, in order.

use std::collections::VecDeque;
use std::io;
use std::time::Duration;

use mycelium_api::error::chain;

use super::{Agent, now_us};
use crate::group::{Durable, Input, Output};
use crate::host::HostError;
use crate::host::paths::write_whole;

/// Between attempts to write.
const WRITE_EVERY: Duration = Duration::from_millis(250);

/// What waits until this host's part is on disk.
pub(super) struct Apart {
    durable: Durable,
    /// What the protocol wanted done after it.
    outputs: VecDeque<Output>,
    /// What happened here since; what others said is lost, as on a broken link.
    inputs: VecDeque<Input>,
    again: Duration,
    /// What is wrong, and what to do.
    problem: String,
}

impl Agent {
    /// Carries outputs out, in order, up to one that must be on disk first and is not.
    pub(super) fn carry_out_all(&mut self, outputs: impl IntoIterator<Item = Output>) {
        let mut outputs = outputs.into_iter();
        while let Some(output) = outputs.next() {
            self.carry_out(output);
            if let Some(apart) = &mut self.apart {
                return apart.outputs.extend(outputs);
            }
        }
    }

    /// The protocol's memory. Without it nothing may follow.
    pub(super) fn persist(&mut self, durable: &Durable) {
        let Err(error) = self.write_member(durable) else { return };
        let problem = self.problem(error);
        self.history.note(&problem);
        self.apart = Some(Apart {
            durable: durable.clone(),
            outputs: VecDeque::new(),
            inputs: VecDeque::new(),
            again: crate::clock::monotonic() + WRITE_EVERY,
            problem,
        });
        let linked: Vec<String> = self.peers.keys().cloned().collect();
        for name in linked {
            if let Some(peer) = self.peers.get(&name) {
                peer.link.close();
            }
            self.unlink(&name);
        }
    }

    fn write_member(&self, durable: &Durable) -> io::Result<()> {
        let bytes = serde_json::to_vec(durable).map_err(io::Error::from)?;
        tokio::task::block_in_place(|| write_whole(&self.place.paths.member(), &bytes))
    }

    fn problem(&self, source: io::Error) -> String {
        let cure = match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "free some room",
            _ => "mend this",
        };
        let error = HostError::File { path: self.place.paths.member(), source };
        let error = chain(&error);
        format!("{error}: this host takes no part until that can be written; {cure}, and it goes on by itself")
    }

    /// What keeps this host from its part.
    pub(super) fn trouble(&self) -> Option<&str> {
        self.apart.as_ref().map(|apart| &*apart.problem)
    }

    /// Something happened while this host is apart.
    pub(super) fn later(&mut self, input: Input) {
        if let Some(apart) = self.apart.as_mut().filter(|_| !matches!(input, Input::Tick | Input::Message { .. })) {
            apart.inputs.push_back(input);
        }
    }

    /// Tries to write again, and goes on where it stopped.
    pub(super) fn return_from_apart(&mut self) {
        let Some(apart) = self.apart.as_ref().filter(|apart| crate::clock::monotonic() >= apart.again) else { return };
        let outcome = self.write_member(&apart.durable);
        let problem = outcome.err().map(|error| self.problem(error));
        match (problem, self.apart.take()) {
            (Some(problem), Some(apart)) => {
                let again = crate::clock::monotonic() + WRITE_EVERY;
                self.apart = Some(Apart { problem, again, ..apart });
            }
            (None, Some(Apart { outputs, inputs, .. })) => {
                self.history.note("this host's state can be written again; it takes part again");
                // The lease under which output was to leave may be over; what is safe leaves with the next epoch.
                let leased = self.lease_us > now_us();
                self.carry_out_all(
                    outputs.into_iter().filter(|output| leased || !matches!(output, Output::Release { .. })),
                );
                inputs.into_iter().for_each(|input| self.input(input));
            }
            (_, None) => {}
        }
    }
}

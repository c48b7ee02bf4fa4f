//! Checkpoints of a running guest.
//!
//! ```text
//!  guest   runs ────────┤ stopped                              ├ runs
//!  QEMU                 │stop│save devices ──────────────┤     │cont
//!  we      [early copy] │    │seal│scan│copy ─────┤ wait │rescan, copy
//! ```
//! `stop` and the command that saves the devices are sent in one piece. While QEMU writes the devices' state, we look for written
//! pages and copy them; what QEMU itself wrote meanwhile is found by a last look. When the last epoch wrote much, a first round
//! of copying happens before the guest is stopped.

use std::time::Duration;

use bytes::Bytes;
use serde_json::Value;

use mycelium_linux::scheduling::Urgent;

use crate::clock::monotonic;

use super::copy::Copier;
use super::dirty::DirtyTracker;
use super::error::Result;
use super::qemu::{Machine, SAVE_COMMAND, Save};
use super::qmp::Pending;
use super::staging::Pages;

/// From this many pages in one epoch on, the next is copied once before the guest stops.
const EARLY_COPY_FROM: usize = 2048;

/// Threads that hurry for longer than this may keep the very thread from running for which they wait: they are ordinary ones again.
const HURRY_LIMIT: Duration = Duration::from_millis(500);

/// One consistent state of a guest, as a difference to the one before.
#[derive(Debug)]
pub struct Capture {
    /// Its number.
    pub epoch: u64,
    /// Devices and processors, whole.
    pub devices: Bytes,
    /// The pages written since the checkpoint before.
    pub pages: Pages,
    /// How long everything took.
    pub timing: PauseTiming,
}

/// Where the time of one checkpoint went.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PauseTiming {
    /// From the order to stop until we knew that the guest runs again: an upper bound of what the guest felt.
    pub total: Duration,
    /// What the guest felt, by QEMU's own clock: from its processors' stop until their start.
    pub guest: Duration,
    /// Until QEMU had stopped the guest.
    pub stop: Duration,
    /// In the caller's `at_stop`.
    pub seal: Duration,
    /// Looking for written pages and copying them.
    pub copy: Duration,
    /// Waiting for the devices' state after that, and taking it.
    pub save: Duration,
    /// Looking again, and copying again.
    pub rescan: Duration,
    /// Until QEMU had started the guest.
    pub cont: Duration,
    /// Pages copied before the guest was stopped.
    pub early_pages: usize,
    /// Pages copied while it was stopped.
    pub pages: usize,
}

/// A part of a copy that was made while the guest ran; some pages may be torn, and come again.
#[derive(Debug)]
pub struct PreCopy {
    /// The pages.
    pub pages: Pages,
    /// Whether this part ends a pass over the whole memory.
    pub pass_complete: bool,
}

/// Takes checkpoints of a machine.
#[derive(Debug)]
pub struct Checkpointer {
    machine: Machine,
    tracker: DirtyTracker,
    copier: Copier,
    cursor: u64,
    expected: usize,
    torn: bool,
    /// The threads that a command passes through: ours (0) and QEMU's.
    commands: Vec<u32>,
    /// The threads of the virtual processors.
    processors: Vec<u32>,
}

impl Checkpointer {
    /// Starts to track what the machine's guest writes. The first pass, or capture, holds all of its memory.
    pub fn new(mut machine: Machine) -> Result<Checkpointer> {
        let tracker = DirtyTracker::new(&mut machine)?;
        let copier = Copier::new(machine.memory().clone());
        let mut commands = machine.command_threads();
        commands.push(0);
        let processors = machine.vcpu_threads()?;
        Ok(Checkpointer { machine, tracker, copier, cursor: 0, expected: 0, torn: false, commands, processors })
    }

    /// The machine.
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    /// The machine, for commands of other kinds.
    pub fn machine_mut(&mut self) -> &mut Machine {
        &mut self.machine
    }

    /// Prepares a machine that was started paused, and whose memory is filled from outside: what it writes from here on is
    /// tracked, and it waits for the devices' state.
    pub fn standing_by(machine: Machine) -> Result<Checkpointer> {
        let mut checkpointer = Checkpointer::new(machine)?;
        checkpointer.forget_written()?;
        checkpointer.machine.await_devices()?;
        Ok(checkpointer)
    }

    /// Until this is dropped, the threads that carry out commands hurry, the calling one among them.
    pub fn hurry(&self) -> Urgent {
        Urgent::enter(2, self.commands.iter().copied())
    }

    /// The threads of the virtual processors.
    pub fn vcpu_threads(&self) -> &[u32] {
        &self.processors
    }

    /// Gives the machine back; its writes are no longer tracked.
    pub fn into_machine(self) -> Machine {
        self.machine
    }

    /// The next capture or pass holds the whole memory again, for a backup that has nothing yet.
    pub fn start_over(&mut self) -> Result<()> {
        self.tracker.forget()?;
        self.cursor = 0;
        self.torn = false;
        Ok(())
    }

    /// What was written until now does not matter: whoever holds a copy has it. To be called while the guest is paused,
    /// or when all of its memory is copied anyhow.
    pub fn forget_written(&mut self) -> Result<()> {
        self.mend()?;
        let outcome = self.tracker.take(0, 0);
        self.or_torn(outcome).map(drop)
    }

    /// Copies the next written pages, at most `limit`, while the guest runs. Pass follows pass; when one was small enough, a
    /// [`Checkpointer::capture`] makes the copy whole.
    pub fn precopy(&mut self, limit: usize) -> Result<PreCopy> {
        self.mend()?;
        let outcome = self.tracker.take(self.cursor, limit as u64);
        let (wanted, next) = self.or_torn(outcome)?;
        let mut pages = self.copier.empty();
        self.copier.copy(wanted, &mut pages);
        pages.finish();
        self.cursor = next.unwrap_or(0);
        Ok(PreCopy { pages, pass_complete: next.is_none() })
    }

    /// Stops the guest for a moment and takes its state. `at_stop` is called while the guest is stopped and its block I/O is finished.
    ///
    /// When it fails, the guest goes on if QEMU still can, and the next capture holds the whole memory.
    pub fn capture(&mut self, epoch: u64, at_stop: &mut dyn FnMut()) -> Result<Capture> {
        self.capture_then(epoch, at_stop, Then::Continue)
    }

    /// Like [`Checkpointer::capture`], but the guest stays stopped: what it does next, it does elsewhere. [`Machine::cont`] takes
    /// it back.
    pub fn capture_and_hold(&mut self, epoch: u64, at_stop: &mut dyn FnMut()) -> Result<Capture> {
        self.capture_then(epoch, at_stop, Then::Hold)
    }

    fn capture_then(&mut self, epoch: u64, at_stop: &mut dyn FnMut(), then: Then) -> Result<Capture> {
        self.mend()?;
        let outcome = self.try_capture(epoch, at_stop, then);
        if let Err(error) = &outcome
            && !error.is_gone()
        {
            let _ = self.machine.cont();
        }
        let capture = self.or_torn(outcome)?;
        self.expected = capture.timing.pages.max(capture.timing.early_pages);
        Ok(capture)
    }

    fn try_capture(&mut self, epoch: u64, at_stop: &mut dyn FnMut(), then: Then) -> Result<Capture> {
        let mut pages = self.copier.empty();
        let early_pages = if self.expected >= EARLY_COPY_FROM { self.take_into(&mut pages)? } else { 0 };
        self.cursor = 0;

        // A virtual processor stops when its thread notices, and for that the thread must run: on a busy host it would wait for its
        // turn. While stopped it sleeps; it is an ordinary thread again before it goes on.
        let mut urgent = Urgent::enter(2, self.commands.iter().copied());
        let mut stopping = Urgent::enter(1, self.processors.iter().copied());
        let mut lap = Lap::start();
        let begin = lap.last;
        let (stopped, saved) = self.send_stop()?;
        if self.machine.qmp.wait_within(&stopped, HURRY_LIMIT)?.is_none() {
            tracing::warn!(epoch, "QEMU takes long to stop the guest");
            (urgent, stopping) = (Urgent::default(), Urgent::default());
            self.machine.qmp.wait(stopped)?;
        }
        let stop = lap.lap();
        at_stop();
        let seal = lap.lap();
        let first = self.take_into(&mut pages)?;
        let copy = lap.lap();
        let migrated = match saved {
            Some(saved) => self.machine.qmp.wait(saved).map(|_| None)?,
            None => Some(self.machine.save_devices()?),
        };
        let save = lap.lap();
        let last = self.take_into(&mut pages)?;
        let rescan = lap.lap();
        drop(stopping);
        let started = match then {
            Then::Continue => Some(self.machine.qmp.send("cont", Value::Null)?),
            Then::Hold => None,
        };
        let devices = migrated.map_or_else(|| self.machine.state.take(), Ok);
        if let Some(started) = started {
            self.machine.qmp.wait(started)?;
        }
        let cont = lap.lap();
        drop(urgent);
        let timing = PauseTiming {
            total: lap.last - begin,
            guest: self.guest_pause(),
            stop,
            seal,
            copy,
            save,
            rescan,
            cont,
            early_pages,
            pages: first + last,
        };
        pages.finish();
        Ok(Capture { epoch, devices: devices?, pages, timing })
    }

    /// Sends the order to stop and, where it is one command, to save the devices.
    fn send_stop(&mut self) -> Result<(Pending, Option<Pending>)> {
        if self.machine.save == Save::Migration {
            return Ok((self.machine.qmp.send("stop", Value::Null)?, None));
        }
        let commands = [("stop", Value::Null), (SAVE_COMMAND, self.machine.state.arguments())];
        let [stopped, saved] = self.machine.qmp.send_all(commands)?;
        Ok((stopped, Some(saved)))
    }

    /// Copies what was written since it was last looked; says how many pages that were.
    fn take_into(&mut self, pages: &mut Pages) -> Result<usize> {
        let (wanted, _) = self.tracker.take(0, 0)?;
        let count = wanted.len();
        self.copier.copy(wanted, pages);
        Ok(count)
    }

    fn guest_pause(&self) -> Duration {
        let stamp = |name| self.machine.qmp.last_event(name).map(|event| event.at);
        match (stamp("STOP"), stamp("RESUME")) {
            (Some(stopped), Some(resumed)) => resumed.saturating_sub(stopped),
            _ => Duration::ZERO,
        }
    }

    /// After a failure some written pages may be marked as taken and yet be lost: everything is written, then.
    fn mend(&mut self) -> Result<()> {
        if self.torn { self.start_over() } else { Ok(()) }
    }

    fn or_torn<T>(&mut self, outcome: Result<T>) -> Result<T> {
        self.torn |= outcome.is_err();
        outcome
    }
}

/// What the guest does after a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Then {
    Continue,
    Hold,
}

/// A stopwatch.
struct Lap {
    last: Duration,
}

impl Lap {
    fn start() -> Lap {
        Lap { last: monotonic() }
    }

    fn lap(&mut self) -> Duration {
        let now = monotonic();
        let lap = now - self.last;
        self.last = now;
        lap
    }
}

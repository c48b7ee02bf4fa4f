//! The thread that stops the guest, takes what it did, and lets it go on: epoch lengths, slowing, emergency pause.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use mycelium_api::endophyte::DistributedRam;
use mycelium_api::error::chain;
use tokio::sync::{mpsc, oneshot};

use super::HostError;
use super::agent::Event;
use super::held::Held;
use super::primary::{Captured, Order};
use super::sync::{MemorySync, SyncStep};
use super::timeline::Timeline;
use crate::clock::monotonic;
use crate::codec::PAGE;
use crate::disk::{BlockServer, Disk, DiskEpoch};
use crate::egress::Nic;
use crate::machine::{Capture, Checkpointer};
use crate::throttle::{
    Buffer, EpochController, EpochInputs, EpochLimits, Governor, Pressure, Reservation, Shares, VcpuThrottle,
};

/// Checkpoints that may wait to be encoded; the guest is not stopped for more.
const SLOTS: usize = 2;
/// How long QEMU may take to end after it closed its sockets.
const ENDING_TIME: Duration = Duration::from_secs(1);
/// A guest that outruns the host it is handed over to loses so much more of its processor time with each look at its lag
/// (every 5 ms), in thousandths: a fifth in a second.
const SLOWER_THOUSANDTHS: u64 = 1;
/// The most that it loses so.
const SLOWEST_THOUSANDTHS: u64 = 800;
/// How often it is looked whether QEMU still lives while there are no checkpoints.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// How busy replication is: shared by the checkpoints, the agent and whoever asks.
#[derive(Debug)]
pub(super) struct Load {
    buffer: Arc<Buffer>,
    /// From seal to release, of late, in microseconds.
    pub ack_us: AtomicU64,
    /// The present length of an epoch.
    pub length_us: AtomicU64,
    /// How full the buffer was at the end of the last epoch, and what of its processor time the guest loses for it; each in
    /// millionths, the first in the upper half.
    pressure: AtomicU64,
    /// How often the buffer was full and the guest had to wait.
    pub emergency_pauses: AtomicU64,
    /// Bytes that wait for a link while no backup in sync gives back room in the buffer.
    pub backlog: AtomicU64,
    /// While the guest is handed over: epochs are short.
    converging: AtomicBool,
    /// Thousandths of its processor time that it loses then, so that the other host can catch up.
    converge_throttle: AtomicU64,
    held: Held,
}

impl Load {
    pub fn new(shares: Shares, held: Held) -> Arc<Self> {
        let zero = || AtomicU64::new(0);
        Arc::new(Self {
            buffer: Buffer::new(shares),
            ack_us: zero(),
            length_us: zero(),
            pressure: zero(),
            emergency_pauses: zero(),
            backlog: zero(),
            converging: AtomicBool::new(false),
            converge_throttle: zero(),
            held,
        })
    }

    /// Bytes of epochs under way.
    pub fn bytes(&self) -> u64 {
        self.buffer.level().epochs
    }

    /// Bytes of epochs that may be under way.
    pub fn room(&self) -> u64 {
        self.buffer.shares().epochs
    }

    /// While the guest is handed over, epochs are as short as pauses allow. One that outruns the host that follows it is
    /// slowed, a little more each time this is said, until the hand-over ends.
    pub fn converge(&self, on: bool, outrun: bool) {
        self.converging.store(on, Ordering::Relaxed);
        let slowed = self.converge_throttle.load(Ordering::Relaxed);
        let slowed = match (on, outrun) {
            (true, true) => (slowed + SLOWER_THOUSANDTHS).min(SLOWEST_THOUSANDTHS),
            (true, false) => slowed,
            (false, _) => 0,
        };
        self.converge_throttle.store(slowed, Ordering::Relaxed);
    }

    fn slowed_to_converge(&self) -> f64 {
        self.converge_throttle.load(Ordering::Relaxed) as f64 / 1000.0
    }

    fn fill(&self, nic: &Nic) -> f64 {
        self.buffer.set_egress(nic.stats().queued_bytes);
        let backlog = self.backlog.load(Ordering::Relaxed) as f64 / self.room().max(1) as f64;
        self.buffer.fill().max(backlog)
    }

    fn tell(&self, fill: f64, intensity: f64) {
        let millionths = |share: f64| (share.min(1000.0) * 1e6) as u64;
        self.pressure.store(millionths(fill) << 32 | millionths(intensity), Ordering::Relaxed);
    }

    /// How full the buffer was at the end of the last epoch, and what the guest loses for it. 1 is full, and all.
    pub fn pressure(&self) -> (f64, f64) {
        let pressure = self.pressure.load(Ordering::Relaxed);
        ((pressure >> 32) as f64 / 1e6, f64::from(pressure as u32) / 1e6)
    }

    /// Room for a checkpoint. One that does not fit any more is taken all the same, for it exists already; then the
    /// buffer counts as full.
    fn reserve(self: &Arc<Self>, bytes: u64) -> Option<Reservation> {
        let rest = self.room().saturating_sub(self.bytes());
        self.buffer.reserve(bytes).or_else(|| self.buffer.reserve(rest))
    }
}

/// The thread that takes checkpoints.
pub(super) struct Checkpoints {
    checkpointer: Checkpointer,
    /// Goes when the guest goes.
    _server: Option<BlockServer>,
    disk: Option<Disk>,
    nic: Arc<Nic>,
    events: mpsc::UnboundedSender<Event>,
    epoch: u64,
    term: u64,
    control: EpochController,
    governor: Governor,
    throttle: VcpuThrottle,
    load: Arc<Load>,
    last: Duration,
    protected: bool,
    /// Whether it was said that checkpoints are wanted, or that they are not; before that nobody would take them.
    begun: bool,
    paused: bool,
    /// Stopped because no majority hears this host.
    halted: bool,
    /// Stopped because the buffer was full.
    held: bool,
    syncs: Vec<MemorySync>,
    slots: Slots,
}

impl Checkpoints {
    /// Takes over a paused machine.
    #[expect(clippy::too_many_arguments, reason = "the parts of a machine, once")]
    pub fn new(
        mut checkpointer: Checkpointer,
        server: Option<BlockServer>,
        disk: Option<Disk>,
        nic: Arc<Nic>,
        devices: Option<Bytes>,
        ram: &DistributedRam,
        (term, epoch): (u64, u64),
        load: Arc<Load>,
        events: mpsc::UnboundedSender<Event>,
        timeline: &mut Timeline,
    ) -> Result<Self, HostError> {
        // Backups that hold the state from which the guest goes on follow without a new copy: everything it does from
        // its first instruction counts. A guest that nobody follows is told so at once.
        if let Some(disk) = &disk {
            disk.protect(crate::disk::Protection::new(term, epoch))?;
        }
        timeline.lap("recording");
        let urgent = checkpointer.hurry();
        if let Some(devices) = devices {
            // What devices write into memory while they are loaded is news to the other holders too.
            checkpointer.machine_mut().load_devices(&devices)?;
            timeline.lap("devices");
        }
        checkpointer.machine_mut().cont()?;
        drop(urgent);
        timeline.lap("cont");
        let throttle = throttle_of(&checkpointer);
        let limits = EpochLimits::new(ram.epoch_milliseconds, load.buffer.shares().epochs);
        Ok(Self {
            checkpointer,
            _server: server,
            disk,
            nic,
            events,
            epoch,
            term,
            control: EpochController::new(limits),
            governor: Governor::new(ram),
            throttle,
            load,
            last: monotonic(),
            protected: true,
            begun: false,
            paused: false,
            halted: false,
            held: false,
            syncs: Vec::new(),
            slots: Slots::new(SLOTS),
        })
    }

    /// Works until it is told to stop, and yields whom to tell that it did.
    pub fn run(&mut self, orders: &Receiver<Order>) -> Option<oneshot::Sender<()>> {
        let mut due = monotonic() + self.control.current();
        loop {
            let idle = self.paused || self.halted || !self.protected || !self.begun;
            let wait = if idle { LOOK_EVERY } else { due.saturating_sub(monotonic()) };
            match orders.recv_timeout(wait) {
                Ok(Order::Stop(sender)) => return Some(sender),
                Ok(order) => {
                    self.obey(order);
                    continue;
                }
                Err(RecvTimeoutError::Disconnected) => return None,
                Err(RecvTimeoutError::Timeout) => {}
            }
            if let Some(status) = self.checkpointer.machine_mut().ended() {
                let _ = self.events.send(Event::GuestEnded { clean: status.success() });
                return None;
            }
            if !idle {
                if let Err(error) = self.turn() {
                    self.failed(&error);
                }
                due = monotonic() + self.control.current();
            }
        }
    }

    fn obey(&mut self, order: Order) {
        let outcome = match order {
            Order::Protect(on) => self.protect(on),
            Order::Sync(sync) => {
                self.syncs.push(*sync);
                Ok(())
            }
            Order::EndSync(id) => {
                self.syncs.retain(|sync| sync.id != id);
                Ok(())
            }
            Order::Pause => self.pause(),
            Order::Resume => {
                self.paused = false;
                self.go_on()
            }
            Order::Halt => self.halt(),
            Order::Continue => {
                self.halted = false;
                self.go_on()
            }
            Order::Powerdown => self.checkpointer.machine_mut().powerdown().map_err(HostError::from),
            Order::Stop(_) => Ok(()),
        };
        if let Err(error) = outcome {
            self.failed(&error);
        }
    }

    fn failed(&mut self, error: &HostError) {
        let event = match self.ended_meanwhile(error) {
            Some(clean) => Event::GuestEnded { clean },
            None => Event::GuestFailed { reason: chain(error) },
        };
        let _ = self.events.send(event);
    }

    /// A guest may shut down in the middle of a checkpoint; QEMU closes its sockets a moment before it ends. Tells
    /// whether it ended well, if it did.
    fn ended_meanwhile(&mut self, error: &HostError) -> Option<bool> {
        if !matches!(error, HostError::Machine(_)) {
            return None;
        }
        let until = monotonic() + ENDING_TIME;
        loop {
            if let Some(status) = self.checkpointer.machine_mut().ended() {
                return Some(status.success());
            }
            if monotonic() > until {
                return None;
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Starts or ends the recording of what the guest does.
    fn protect(&mut self, on: bool) -> Result<(), HostError> {
        self.begun = true;
        if on == self.protected {
            return Ok(());
        }
        if on {
            // A backup that holds the last epoch from before must not take the next one for its successor: what the guest
            // did in between is in neither. The number that is left out shows it the gap.
            self.epoch += 1;
        }
        if let Some(disk) = &self.disk {
            if on { disk.protect(crate::disk::Protection::new(self.term, self.epoch))? } else { disk.unprotect()? }
        }
        if on {
            // Nobody has a copy: what was written until now reaches backups as part of their first one.
            self.checkpointer.forget_written()?;
        }
        self.protected = on;
        Ok(())
    }

    /// One epoch's end: a checkpoint, unless the buffer is full.
    fn turn(&mut self) -> Result<(), HostError> {
        let fill = self.load.fill(&self.nic);
        let pressure = self.governor.update(fill);
        let intensity = pressure.intensity().max(self.load.slowed_to_converge());
        self.load.tell(fill, intensity);
        match pressure {
            Pressure::Paused if !self.held => {
                self.held = true;
                self.load.emergency_pauses.fetch_add(1, Ordering::Relaxed);
                self.throttle.lift().map_err(HostError::Throttle)?;
                return Ok(self.checkpointer.machine_mut().stop()?);
            }
            Pressure::Paused | Pressure::Skipping(_) => return Ok(()),
            Pressure::Normal | Pressure::Throttled(_) => {}
        }
        self.throttle.lift().map_err(HostError::Throttle)?;
        self.held = false;
        self.checkpoint(false)?;
        let hold = self.throttle.begin(intensity, self.control.current()).map_err(HostError::Throttle)?;
        if !hold.is_zero() {
            self.checkpointer.machine_mut().stop()?;
            thread::sleep(hold);
            self.checkpointer.machine_mut().cont()?;
        }
        Ok(())
    }

    /// Chooses the length of the next epoch by what this one showed.
    fn learn(&mut self, capture: &Capture) {
        let now = monotonic();
        let ran = now.saturating_sub(self.last).as_secs_f64().max(1e-3);
        self.last = now;
        let inputs = EpochInputs {
            dirty_bytes_per_s: (capture.pages.len() * PAGE) as f64 / ran,
            pause: capture.timing.total,
            ack: Duration::from_micros(self.load.ack_us.load(Ordering::Relaxed)),
            egress_age: match self.load.converging.load(Ordering::Relaxed) {
                // As if much waited to leave.
                true => Duration::MAX,
                false => Duration::from_micros(self.nic.stats().oldest_queued_us),
            },
        };
        self.control.next(&inputs);
        self.load.length_us.store(self.control.current().as_micros() as u64, Ordering::Relaxed);
    }

    /// Stops the guest where it is, without a checkpoint: nobody is there to take it.
    fn halt(&mut self) -> Result<(), HostError> {
        self.throttle.lift().map_err(HostError::Throttle)?;
        self.halted = true;
        Ok(self.checkpointer.machine_mut().stop()?)
    }

    /// Lets the guest go on, unless something else still holds it.
    fn go_on(&mut self) -> Result<(), HostError> {
        if self.paused || self.halted || self.held {
            return Ok(());
        }
        Ok(self.checkpointer.machine_mut().cont()?)
    }

    /// A last checkpoint, after which the guest stays stopped. Another right before it leaves it little to hold.
    fn pause(&mut self) -> Result<(), HostError> {
        self.throttle.lift().map_err(HostError::Throttle)?;
        self.held = false;
        if self.protected {
            self.checkpoint(false)?;
        }
        let since = self.checkpoint(true)?;
        self.paused = true;
        let _ = self.events.send(Event::Paused { last: self.epoch - 1, since });
        Ok(())
    }

    /// Yields when the guest was told to stop.
    fn checkpoint(&mut self, last: bool) -> Result<Duration, HostError> {
        let slot = self.slots.take();
        let memory = self.checkpointer.machine().memory().clone();
        let mut steps: Vec<SyncStep> = self.syncs.iter_mut().map(|sync| sync.copy(&memory)).collect();
        if let Some(disk) = &self.disk {
            disk.begin_stop();
        }
        let epoch = self.epoch;
        let mut sealed: Result<Option<DiskEpoch>, HostError> = Ok(None);
        let mut network = Bytes::new();
        let mut at_stop = || {
            sealed = self.nic.seal(epoch).map(|_| None).map_err(HostError::from);
            network = self.nic.learned().to_bytes().into();
            if let Some(disk) = self.disk.as_ref().filter(|_| sealed.is_ok()) {
                sealed = disk.seal(epoch).map(Some).map_err(HostError::from);
            }
        };
        let capture = if last {
            self.checkpointer.capture_and_hold(epoch, &mut at_stop)?
        } else {
            self.checkpointer.capture(epoch, &mut at_stop)?
        };
        let since = monotonic().saturating_sub(capture.timing.total);
        let disk = sealed?;
        for (sync, step) in self.syncs.iter_mut().zip(&mut steps) {
            sync.captured(capture.pages.iter().map(|(index, _)| index), step);
        }
        let complete: Vec<u64> = steps.iter().filter(|step| step.complete).map(|step| step.id).collect();
        self.syncs.retain(|sync| !complete.contains(&sync.id));
        self.epoch += 1;
        self.learn(&capture);
        let disk = disk.map(|epoch| (self.term, epoch));
        let bytes = (capture.pages.len() * PAGE) as u64 + disk.as_ref().map_or(0, |(_, epoch)| epoch.data_bytes());
        let copied = steps.iter().map(|step| step.bytes.len() as u64).sum::<u64>();
        let (room, weight) = (self.load.reserve(bytes), self.load.held.weigh(bytes + copied));
        let captured = Captured { capture, disk, network, syncs: steps, at: monotonic(), room, weight, slot };
        let _ = self.events.send(Event::Captured(Box::new(captured)));
        Ok(since)
    }
}

/// What slows the guest's processors.
fn throttle_of(checkpointer: &Checkpointer) -> VcpuThrottle {
    let threads: Vec<i32> =
        checkpointer.vcpu_threads().iter().filter_map(|thread| i32::try_from(*thread).ok()).collect();
    let pid = checkpointer.machine().pid().try_into().unwrap_or(0);
    VcpuThrottle::new(&format!("mycelium-vm-{pid}"), pid, &threads)
}

/// How many checkpoints may be under way.
#[derive(Debug, Clone)]
struct Slots(Arc<(Mutex<usize>, Condvar)>);

/// The place of one checkpoint; free again when it is dropped.
#[derive(Debug)]
pub(super) struct Slot(Slots);

impl Slots {
    fn new(count: usize) -> Self {
        Self(Arc::new((Mutex::new(count), Condvar::new())))
    }

    fn take(&self) -> Slot {
        let (free, freed) = &*self.0;
        let mut free = free.lock().unwrap_or_else(PoisonError::into_inner);
        while *free == 0 {
            free = freed.wait(free).unwrap_or_else(PoisonError::into_inner);
        }
        *free -= 1;
        Slot(self.clone())
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let (free, freed) = &*self.0.0;
        *free.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        freed.notify_one();
    }
}

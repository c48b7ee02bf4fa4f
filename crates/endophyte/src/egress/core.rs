//! Both sides of a card and what lies between them. Everything here happens under the card's one lock.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use mycelium_api::endophyte::Mac;
use mycelium_linux::bridge;
use mycelium_linux::netlink::Socket;
use mycelium_linux::tap::Tap;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};

use super::announce;
use super::framing::{Deframer, FRAME_MAX, PREFIX};
use super::learned::Learned;
use super::nic::{Mode, NicConfig, NicError, Port, Released, Sealed, Source};
use super::queue::{EgressQueue, Segment};
use super::stats::NicStats;
use crate::clock::{Clock, boottime};

/// Read from QEMU at once.
const READ: usize = 256 << 10;
/// Frames for QEMU that may wait until it reads: it does not while the guest is stopped.
const INGRESS_MAX: usize = 1 << 20;
/// Frames read from the port before QEMU gets them, so that the first does not wait for the last of a burst.
const INGRESS_BATCH: usize = 32;
const LIMIT_MIN: usize = 1 << 20;
/// When announcements are repeated, after the first.
const ANNOUNCE_AGAIN: [Duration; 4] =
    [Duration::from_millis(50), Duration::from_millis(100), Duration::from_millis(150), Duration::from_millis(200)];

/// The state of a card.
#[derive(Debug)]
pub(super) struct Core {
    epoll: Arc<OwnedFd>,
    listener: Option<UnixListener>,
    path: PathBuf,
    qemu: Option<Watched<UnixStream>>,
    port: Option<Watched<PortFd>>,
    mac: Mac,
    mode: Mode,
    /// Until when frames may leave at once, on the clock that counts suspension; forever if none.
    lease: Option<Duration>,
    fenced: bool,
    clock: Clock,
    deframer: Deframer,
    queue: EgressQueue,
    /// Released, but the port was busy; in order, and before everything else.
    leaving: VecDeque<Segment>,
    full: bool,
    /// Frames for QEMU, framed; sent up to `ingress_sent`.
    ingress: Vec<u8>,
    ingress_sent: usize,
    learned: Learned,
    announce_at: Option<(usize, Duration)>,
    scratch: Vec<u8>,
    stats: NicStats,
}

/// A descriptor and what it is watched for.
#[derive(Debug)]
struct Watched<T> {
    io: T,
    flags: EventFlags,
}

#[derive(Debug)]
enum PortFd {
    Tap(Tap, Socket),
    Socket(OwnedFd),
}

impl PortFd {
    fn write(&self, frame: &[u8]) -> rustix::io::Result<usize> {
        match self {
            Self::Tap(tap, _) => rustix::io::write(tap, frame),
            Self::Socket(fd) => rustix::net::send(fd, frame, SendFlags::NOSIGNAL | SendFlags::DONTWAIT),
        }
    }

    fn read(&self, into: &mut [u8]) -> rustix::io::Result<usize> {
        match self {
            Self::Tap(tap, _) => rustix::io::read(tap, into),
            Self::Socket(fd) => rustix::net::recv(fd, into, RecvFlags::DONTWAIT).map(|(length, _)| length),
        }
    }

    fn switch(&mut self, on: bool) {
        if let Self::Tap(tap, socket) = self
            && let Err(error) = bridge::set_up(socket, tap.name(), on)
        {
            tracing::error!(%error, tap = tap.name(), on, "cannot switch the tap device");
        }
    }
}

impl AsFd for PortFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tap(tap, _) => tap.as_fd(),
            Self::Socket(fd) => fd.as_fd(),
        }
    }
}

impl<T: AsFd> Watched<T> {
    fn new(io: T) -> Self {
        Self { io, flags: EventFlags::empty() }
    }

    /// Watched for nothing means not watched at all: that the other side hung up is always told, and would be told
    /// over and over while there is nothing to be done about it.
    fn watch(&mut self, epoll: &OwnedFd, source: Source, flags: EventFlags) {
        if self.flags == flags {
            return;
        }
        let data = EventData::new_u64(source as u64);
        let outcome = match (self.flags.is_empty(), flags.is_empty()) {
            (true, _) => epoll::add(epoll, &self.io, data, flags),
            (false, true) => epoll::delete(epoll, &self.io),
            (false, false) => epoll::modify(epoll, &self.io, data, flags),
        };
        match outcome {
            Ok(()) => self.flags = flags,
            Err(error) => tracing::error!(%error, ?source, "a descriptor of the network card cannot be watched"),
        }
    }
}

impl Core {
    pub(super) fn new(config: NicConfig, epoll: Arc<OwnedFd>) -> Result<Self, NicError> {
        let path = config.socket;
        let listener = listen(&path).map_err(|source| NicError::Listen { path: path.clone(), source })?;
        let data = EventData::new_u64(Source::Listener as u64);
        epoll::add(&epoll, &listener, data, EventFlags::IN).map_err(|e| NicError::Watch(e.into()))?;
        let port = match config.port {
            Port::None => None,
            Port::Tap(tap, socket) => Some(PortFd::Tap(tap, socket)),
            Port::Socket(fd) => Some(PortFd::Socket(fd)),
        };
        let mut limits = config.limits;
        limits.bytes = limits.bytes.max(LIMIT_MIN);
        let mut core = Self {
            epoll,
            listener: Some(listener),
            path,
            qemu: None,
            port: port.map(Watched::new),
            mac: config.mac,
            mode: Mode::Standby,
            lease: None,
            fenced: false,
            clock: config.clock,
            deframer: Deframer::default(),
            queue: EgressQueue::new(limits),
            leaving: VecDeque::new(),
            full: false,
            ingress: Vec::new(),
            ingress_sent: 0,
            learned: Learned::default(),
            announce_at: None,
            scratch: vec![0; READ],
            stats: NicStats::default(),
        };
        core.set_mode(config.mode);
        Ok(core)
    }

    pub(super) fn seal(&mut self, epoch: u64) -> Result<Sealed, NicError> {
        if self.fenced {
            return Err(NicError::Fenced);
        }
        self.accept();
        self.read_qemu(true);
        let (frames, bytes) = self.queue.seal(epoch)?;
        self.stats.seals += 1;
        self.settle();
        Ok(Sealed { frames, bytes })
    }

    pub(super) fn release(&mut self, through: u64) -> Released {
        let mut released = Released::default();
        while let Some(segment) = self.queue.release(through) {
            released.frames += segment.len();
            released.bytes += segment.bytes();
            self.leave(segment);
        }
        self.settle();
        released
    }

    pub(super) fn mode(&self) -> Mode {
        self.mode
    }

    pub(super) fn set_mode(&mut self, mode: Mode) {
        if self.fenced || mode == self.mode {
            return;
        }
        if let Some(port) = &mut self.port
            && (mode == Mode::Standby || self.mode == Mode::Standby)
        {
            port.io.switch(mode != Mode::Standby);
        }
        self.mode = mode;
        self.pass();
        self.settle();
    }

    /// Frames that leave at once do so only until then.
    pub(super) fn set_lease(&mut self, until: Duration) {
        self.lease = Some(until);
        self.pass();
    }

    pub(super) fn fence(&mut self) {
        if self.fenced {
            return;
        }
        self.fenced = true;
        self.stats.fenced_frames += self.queue.frames() as u64;
        while let Some(segment) = self.leaving.pop_front() {
            self.stats.fenced_frames += segment.frames_left() as u64;
        }
        while self.queue.release_any().is_some() {}
        (self.qemu, self.listener, self.port, self.announce_at) = (None, None, None, None);
        // Somebody may have removed it before.
        let _ = std::fs::remove_file(&self.path);
    }

    pub(super) fn is_fenced(&self) -> bool {
        self.fenced
    }

    /// Whether frames wait that belong to no sealed epoch yet.
    pub(super) fn has_unsealed(&self) -> bool {
        self.queue.has_open()
    }

    pub(super) fn learned(&self) -> &Learned {
        &self.learned
    }

    pub(super) fn restore(&mut self, learned: Learned) {
        self.learned = learned;
    }

    pub(super) fn stats(&self) -> NicStats {
        let waited = self.queue.oldest().map(|since| (self.clock)().saturating_sub(since));
        NicStats {
            queued_frames: self.queue.frames() as u64,
            queued_bytes: (self.queue.bytes() + self.leaving_bytes()) as u64,
            oldest_queued_us: waited.map_or(0, |waited| waited.as_micros() as u64),
            fenced: self.fenced,
            ..self.stats
        }
    }

    fn leaving_bytes(&self) -> usize {
        self.leaving.iter().map(Segment::left).sum()
    }

    /// Takes a new connection of QEMU's in place of the one before.
    pub(super) fn accept(&mut self) {
        let Some(listener) = &self.listener else { return };
        let Ok((stream, _)) = listener.accept() else { return };
        if let Err(error) = stream.set_nonblocking(true) {
            return tracing::error!(%error, "QEMU's network connection cannot be used");
        }
        self.hang_up();
        self.qemu = Some(Watched::new(stream));
        self.stats.connections += 1;
        self.settle();
    }

    /// Ends a connection, after reading what its QEMU wrote before it went.
    fn hang_up(&mut self) {
        self.read_qemu(true);
        self.disconnect();
    }

    /// What was half sent to or by this QEMU is void; what it sent whole stays in its epoch.
    fn disconnect(&mut self) {
        self.qemu = None;
        self.deframer.reset();
        self.stats.ingress_dropped += u64::from(self.ingress_sent < self.ingress.len());
        self.ingress.clear();
        self.ingress_sent = 0;
    }

    pub(super) fn qemu_ready(&mut self, flags: EventFlags) {
        if flags.contains(EventFlags::OUT) {
            self.flush_ingress();
        }
        if flags.intersects(EventFlags::IN | EventFlags::HUP | EventFlags::ERR) {
            self.read_qemu(false);
        }
        self.settle();
    }

    /// Reads frames from QEMU: to the last byte for a seal, or as many as one turn takes.
    fn read_qemu(&mut self, sealing: bool) {
        let mut scratch = std::mem::take(&mut self.scratch);
        while let Some(qemu) = &self.qemu {
            if !sealing && self.must_wait() {
                break;
            }
            let held = self.deframer.partial() + self.leaving_bytes();
            let room = self.queue.room().saturating_sub(held).min(READ);
            if room == 0 {
                self.stats.seals_cut += u64::from(sealing);
                break;
            }
            match rustix::io::read(&qemu.io, &mut scratch[..room]) {
                Ok(0) => self.disconnect(),
                Ok(length) => {
                    self.take(&scratch[..length]);
                    if !sealing && length < room {
                        break;
                    }
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(_) => self.disconnect(),
            }
        }
        self.scratch = scratch;
    }

    /// Queues the frames in the next piece of QEMU's stream.
    fn take(&mut self, bytes: &[u8]) {
        let now = (self.clock)();
        let Self { deframer, queue, learned, stats, mode, .. } = self;
        let outcome = deframer.push(bytes, |frame| {
            stats.egress_frames += 1;
            stats.egress_bytes += frame.len() as u64;
            learned.observe(frame);
            if *mode == Mode::Standby {
                stats.fenced_frames += 1;
            } else {
                queue.push(frame, now);
            }
        });
        if let Err(error) = outcome {
            tracing::error!(%error, "QEMU's network connection is closed");
            self.stats.stream_errors += 1;
            self.disconnect();
        }
        self.pass();
    }

    /// In best-effort mode, lets everything go.
    fn pass(&mut self) {
        while self.mode == Mode::BestEffort
            && self.lease.is_none_or(|until| boottime() < until)
            && let Some(segment) = self.queue.release_any()
        {
            self.leave(segment);
        }
    }

    fn must_wait(&self) -> bool {
        self.queue.is_full() || self.leaving_bytes() >= READ
    }

    /// Sends a segment, or what the port takes of it now.
    fn leave(&mut self, segment: Segment) {
        self.leaving.push_back(segment);
        if self.leaving.len() == 1 {
            self.send();
        }
    }

    fn send(&mut self) {
        while let Some(mut segment) = self.leaving.pop_front() {
            if !self.send_segment(&mut segment) {
                return self.leaving.push_front(segment);
            }
            self.queue.recycle(segment);
        }
    }

    /// False when the port is busy.
    fn send_segment(&mut self, segment: &mut Segment) -> bool {
        while let Some(frame) = segment.next() {
            match self.port.as_ref().map_or(Ok(0), |port| port.io.write(frame)) {
                Ok(_) => {
                    self.stats.released_frames += 1;
                    self.stats.released_bytes += frame.len() as u64;
                }
                Err(Errno::AGAIN) => return false,
                Err(Errno::INTR) => continue,
                Err(error) => {
                    if self.stats.refused_frames == 0 {
                        tracing::warn!(%error, length = frame.len(), "the network refused a frame of the guest");
                    }
                    self.stats.refused_frames += 1;
                }
            }
            segment.advance();
        }
        true
    }

    pub(super) fn port_ready(&mut self, flags: EventFlags) {
        if flags.contains(EventFlags::OUT) {
            self.send();
        }
        if flags.intersects(EventFlags::IN | EventFlags::HUP | EventFlags::ERR) {
            self.read_port();
        }
        self.settle();
    }

    fn read_port(&mut self) {
        let mut scratch = std::mem::take(&mut self.scratch);
        for _ in 0..INGRESS_BATCH {
            let Some(port) = &self.port else { break };
            if self.ingress_waiting() >= INGRESS_MAX {
                break;
            }
            match port.io.read(&mut scratch[..FRAME_MAX]) {
                Ok(0) => self.port = None,
                Ok(length) => self.deliver(&scratch[..length]),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(error) => {
                    tracing::error!(%error, "the network side of the guest's card is gone");
                    self.port = None;
                }
            }
        }
        self.scratch = scratch;
        self.flush_ingress();
    }

    /// Appends a frame to what QEMU gets next.
    fn deliver(&mut self, frame: &[u8]) {
        if self.qemu.is_none() || self.mode == Mode::Standby {
            self.stats.ingress_dropped += 1;
            return;
        }
        self.ingress.reserve(PREFIX + frame.len());
        self.ingress.extend_from_slice(&(frame.len() as u32).to_be_bytes());
        self.ingress.extend_from_slice(frame);
        self.stats.ingress_frames += 1;
        self.stats.ingress_bytes += frame.len() as u64;
    }

    fn ingress_waiting(&self) -> usize {
        self.ingress.len() - self.ingress_sent
    }

    fn flush_ingress(&mut self) {
        while self.ingress_waiting() > 0
            && let Some(qemu) = &self.qemu
        {
            let waiting = &self.ingress[self.ingress_sent..];
            match rustix::net::send(&qemu.io, waiting, SendFlags::NOSIGNAL | SendFlags::DONTWAIT) {
                Ok(sent) => self.ingress_sent += sent,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(_) => self.hang_up(),
            }
        }
        if self.ingress_waiting() == 0 {
            self.ingress.clear();
            self.ingress_sent = 0;
        } else if self.ingress_sent > INGRESS_MAX / 2 {
            self.ingress.drain(..self.ingress_sent);
            self.ingress_sent = 0;
        }
    }

    /// Watches each descriptor for what can be done about it now.
    fn settle(&mut self) {
        let wait = self.must_wait();
        self.stats.full_events += u64::from(wait && !self.full);
        self.full = wait;
        let when = |flag, wanted: bool| if wanted { flag } else { EventFlags::empty() };
        let waiting = self.ingress_waiting();
        let qemu = when(EventFlags::IN, !wait) | when(EventFlags::OUT, waiting > 0);
        let port = when(EventFlags::IN, self.mode != Mode::Standby && waiting < INGRESS_MAX)
            | when(EventFlags::OUT, !self.leaving.is_empty());
        if let Some(watched) = &mut self.qemu {
            watched.watch(&self.epoll, Source::Qemu, qemu);
        }
        if let Some(watched) = &mut self.port {
            watched.watch(&self.epoll, Source::Port, port);
        }
    }

    pub(super) fn announce(&mut self) {
        if self.fenced || self.mode == Mode::Standby {
            return;
        }
        self.announce_once();
        self.announce_at = Some((0, (self.clock)() + ANNOUNCE_AGAIN[0]));
    }

    /// Announces again if it is time to, and tells how long until the next.
    pub(super) fn announce_due(&mut self) -> Option<Duration> {
        let (round, at) = self.announce_at?;
        let now = (self.clock)();
        if now < at {
            return Some(at - now);
        }
        self.announce_once();
        let next = ANNOUNCE_AGAIN.get(round + 1).copied();
        self.announce_at = next.map(|after| (round + 1, now + after));
        next
    }

    fn announce_once(&self) {
        let Some(port) = &self.port else { return };
        let mut macs = vec![self.mac];
        macs.extend(self.learned.addresses().iter().map(|address| address.mac));
        macs.sort_unstable();
        macs.dedup();
        let rarps = macs.into_iter().map(announce::rarp);
        for frame in rarps.chain(self.learned.addresses().iter().flat_map(announce::address)) {
            if let Err(error) = port.io.write(&frame) {
                tracing::warn!(%error, "an announcement could not be sent");
            }
        }
    }
}

fn listen(path: &PathBuf) -> io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

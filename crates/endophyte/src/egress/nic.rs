//! The handle to a card, and its thread.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use mycelium_api::endophyte::{Attachment, Mac};
use mycelium_linux::netlink::{Family, Socket};
use mycelium_linux::{bridge, tap};
use rustix::event::{EventfdFlags, Timespec, epoll, eventfd};

use super::core::Core;
use super::learned::Learned;
use super::queue::{EpochOrder, Limits};
use super::stats::NicStats;
use crate::clock::{Clock, monotonic};

/// What becomes of frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Nothing passes: the card of a guest that waits to take over. Its port is switched off.
    Standby,
    /// The guest's frames wait for their epoch.
    OutputCommit,
    /// The guest's frames leave at once. After a failover the world may have seen what the guest has not yet said.
    BestEffort,
}

/// The network's side of a card.
#[derive(Debug)]
pub enum Port {
    /// Nothing: what is released is dropped.
    None,
    /// A tap device, which goes away with the card, and the way to switch it on and off.
    Tap(tap::Tap, Socket),
    /// A socket on which each message is a frame.
    Socket(OwnedFd),
}

/// What a card is made from.
#[derive(Debug)]
pub struct NicConfig {
    /// Where QEMU connects (`-netdev stream,server=off,addr.type=unix,addr.path=...`).
    pub socket: PathBuf,
    /// The network's side.
    pub port: Port,
    /// The guest's Ethernet address.
    pub mac: Mac,
    /// What becomes of frames at first.
    pub mode: Mode,
    /// How much may wait; at least a megabyte.
    pub limits: Limits,
    /// Measures how long frames wait, and when to announce again.
    pub clock: Clock,
}

/// What is wrong with a card.
#[derive(Debug, thiserror::Error)]
pub enum NicError {
    /// The tap device cannot be made.
    #[error("cannot create a tap device{}: {fix}", .name.as_ref().map(|name| format!(" {name}")).unwrap_or_default())]
    Tap {
        /// The name asked for.
        name: Option<String>,
        /// What to do about it.
        fix: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The tap device cannot join the bridge.
    #[error("cannot put {tap} on bridge {bridge}{}", if .source.raw_os_error() == Some(ENODEV) { ": there is no such bridge; `ip link add BRIDGE type bridge` makes one" } else { "" })]
    Bridge {
        /// The device.
        tap: String,
        /// The bridge.
        bridge: String,
        /// Why.
        source: io::Error,
    },
    /// The socket for QEMU cannot be opened.
    #[error("cannot listen for QEMU's network card at {path}")]
    Listen {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The card was fenced: nothing passes any more.
    #[error("this network card was fenced: another host may be running the guest")]
    Fenced,
    /// Epochs out of order.
    #[error(transparent)]
    Order(#[from] EpochOrder),
    /// Waiting for descriptors does not work.
    #[error("the network card's descriptors cannot be watched")]
    Watch(#[source] io::Error),
}

const ENODEV: i32 = 19;
const EBUSY: i32 = 16;

/// The size of a sealed epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sealed {
    /// Frames in it.
    pub frames: usize,
    /// Bytes it waits with.
    pub bytes: usize,
}

/// What a release let go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Released {
    /// Frames handed to the network.
    pub frames: usize,
    /// Their bytes.
    pub bytes: usize,
}

impl Port {
    /// Makes the port that an attachment describes, in the network namespace of the calling thread. It is switched off
    /// until the card needs it.
    pub fn open(attachment: &Attachment) -> Result<Self, NicError> {
        let Attachment::Tap { bridge, name } = attachment else { return Ok(Self::None) };
        let tap = tap::Tap::create(name.as_deref().unwrap_or("myvm%d")).map_err(|source| {
            let fix = match source.kind() {
                io::ErrorKind::NotFound => "the kernel has no /dev/net/tun; load the module with `modprobe tun`",
                io::ErrorKind::PermissionDenied => "that needs the capability CAP_NET_ADMIN, for instance as root",
                _ if source.raw_os_error() == Some(EBUSY) => "the name is taken; choose another, or remove its owner",
                _ => "the kernel refused",
            };
            NicError::Tap { name: name.clone(), fix, source }
        })?;
        let mut socket = Socket::open(Family::Route).map_err(NicError::Watch)?;
        if let Some(bridge) = bridge {
            bridge::attach(&mut socket, tap.name(), bridge).map_err(|source| NicError::Bridge {
                tap: tap.name().into(),
                bridge: bridge.clone(),
                source,
            })?;
        }
        Ok(Self::Tap(tap, socket))
    }
}

impl NicConfig {
    /// A card that holds back what the guest sends.
    pub fn new(socket: impl Into<PathBuf>, port: Port, mac: Mac) -> Self {
        let (mode, limits) = (Mode::OutputCommit, Limits::default());
        Self { socket: socket.into(), port, mac, mode, limits, clock: monotonic }
    }
}

/// A network card. Dropping it fences it.
#[derive(Debug)]
pub struct Nic {
    shared: Arc<Shared>,
    thread: Option<std::thread::JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    core: Mutex<Core>,
    epoll: Arc<OwnedFd>,
    /// Ends the thread's wait.
    wake: OwnedFd,
    /// Told by the thread when output begins to wait.
    waiting: Condvar,
}

impl Shared {
    fn core(&self) -> MutexGuard<'_, Core> {
        // What a panicking thread left behind is still in order: every step keeps the queue whole.
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self) {
        // Full means that it is awake.
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }
}

/// What a ready descriptor is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    Wake = 0,
    Listener = 1,
    Qemu = 2,
    Port = 3,
}

impl Nic {
    /// Opens the socket for QEMU and starts the thread.
    pub fn start(config: NicConfig) -> Result<Self, NicError> {
        let watch = |e: rustix::io::Errno| NicError::Watch(e.into());
        let epoll = Arc::new(epoll::create(epoll::CreateFlags::CLOEXEC).map_err(watch)?);
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(watch)?;
        let data = epoll::EventData::new_u64(Source::Wake as u64);
        epoll::add(&epoll, &wake, data, epoll::EventFlags::IN).map_err(watch)?;
        let core = Mutex::new(Core::new(config, Arc::clone(&epoll))?);
        let shared = Arc::new(Shared { core, epoll, wake, waiting: Condvar::new() });
        let served = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("nic".into()).spawn(move || serve(&served));
        Ok(Self { shared, thread: Some(thread.map_err(NicError::Watch)?) })
    }

    /// Everything that QEMU has written so far and that is not sealed yet belongs to `epoch`. To be called after `stop`.
    pub fn seal(&self, epoch: u64) -> Result<Sealed, NicError> {
        self.shared.core().seal(epoch)
    }

    /// The epochs up to and including `through` are safe: their frames leave, in order.
    pub fn release(&self, through: u64) -> Released {
        self.shared.core().release(through)
    }

    /// Changes what becomes of frames. To best effort: everything that waits leaves now.
    pub fn set_mode(&self, mode: Mode) {
        self.shared.core().set_mode(mode);
    }

    /// In best effort frames leave only until this time of [`crate::clock::boottime`]; then they wait for the next lease. A
    /// host that stood still finds its lease over before it sends another frame.
    pub fn set_lease(&self, until: Duration) {
        self.shared.core().set_lease(until);
    }

    /// What becomes of frames.
    pub fn mode(&self) -> Mode {
        self.shared.core().mode()
    }

    /// Drops what waits, for good, and closes both sides. Nothing leaves after this returned.
    pub fn fence(&self) {
        self.shared.core().fence();
        self.shared.wake();
    }

    /// Tells the network where the guest is: now, and a few times within the next half second.
    pub fn announce(&self) {
        self.shared.core().announce();
        self.shared.wake();
    }

    /// Waits until the guest has said something that no seal has taken yet, at most for `timeout`. True when it has.
    /// With nothing to say an epoch may be long; the first frame is the moment to make it short.
    pub fn wait_for_output(&self, timeout: Duration) -> bool {
        let core = self.shared.core();
        let quiet = |core: &mut Core| !core.has_unsealed() && !core.is_fenced();
        let outcome = self.shared.waiting.wait_timeout_while(core, timeout, quiet);
        outcome.unwrap_or_else(PoisonError::into_inner).0.has_unsealed()
    }

    /// The guest's addresses.
    pub fn learned(&self) -> Learned {
        self.shared.core().learned().clone()
    }

    /// Takes over the addresses that came with the last epoch of another host.
    pub fn restore(&self, learned: Learned) {
        self.shared.core().restore(learned);
    }

    /// What the card has done.
    pub fn stats(&self) -> NicStats {
        self.shared.core().stats()
    }
}

impl Drop for Nic {
    fn drop(&mut self) {
        self.fence();
        if let Some(thread) = self.thread.take() {
            // It only ends by itself; a panic there was printed there.
            let _ = thread.join();
        }
    }
}

fn serve(shared: &Shared) {
    let mut ready = Vec::with_capacity(8);
    let mut timeout: Option<Duration> = None;
    loop {
        let wait = timeout.and_then(|t| Timespec::try_from(t).ok());
        match epoll::wait(&shared.epoll, rustix::buffer::spare_capacity(&mut ready), wait.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => {
                tracing::error!(%error, "the network card's descriptors cannot be watched; it is fenced");
                return shared.core().fence();
            }
        }
        let mut core = shared.core();
        for event in ready.drain(..) {
            match event.data.u64() {
                1 => core.accept(),
                2 => core.qemu_ready(event.flags),
                3 => core.port_ready(event.flags),
                _ => {
                    let _ = rustix::io::read(shared.wake.as_fd(), &mut [0_u8; 8]);
                }
            }
        }
        if core.is_fenced() || core.has_unsealed() {
            shared.waiting.notify_all();
        }
        if core.is_fenced() {
            return;
        }
        timeout = core.announce_due();
    }
}

//! Two machines joined by several wires whose rates can be set: network namespaces and veth pairs, which vanish with
//! their descriptors. Needs root.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::thread::JoinHandle;
use std::time::Duration;

use mycelium_linux::netns;
use mycelium_linux::process::command;
use mycelium_rhizomorph::{Group, Link, LinkConfig, Listener, Options};
use tokio::time::Instant;

const PORT: u16 = 4000;

pub struct Wires {
    near: OwnedFd,
    far: OwnedFd,
    count: u8,
}

/// What a wire does to what is sent over it, in either direction, as `tc qdisc` puts it.
#[derive(Clone, Copy)]
pub enum Wire {
    /// So many megabits per second.
    Rate(u32),
    /// Loses everything without a word.
    Cut,
}

impl Wires {
    pub fn new(count: u8, wire: Wire) -> Self {
        let (near, far) = (netns::create().expect("these tests need root"), netns::create().unwrap());
        let wires = Self { near, far, count };
        let far = format!("/proc/{}/fd/{}", std::process::id(), wires.far.as_raw_fd());
        for n in 0..count {
            inside(&wires.near, &format!("ip link add w{n} type veth peer name w{n} netns {far}"));
            for (namespace, host) in [(&wires.near, 1), (&wires.far, 2)] {
                inside(namespace, &format!("ip addr add 10.7.{n}.{host}/24 dev w{n}"));
                inside(namespace, &format!("ip link set w{n} up"));
            }
            wires.set(n, wire);
        }
        wires
    }

    pub fn set(&self, n: u8, wire: Wire) {
        let discipline = match wire {
            Wire::Rate(megabits) => format!("tbf rate {megabits}mbit burst 32kb latency 40ms"),
            // No packet fits into a queue of one byte.
            Wire::Cut => "bfifo limit 1".to_owned(),
        };
        for namespace in [&self.near, &self.far] {
            inside(namespace, &format!("tc qdisc replace dev w{n} root {discipline}"));
        }
    }

    pub fn addresses(&self, host: u8) -> Vec<IpAddr> {
        (0..self.count).map(|n| Ipv4Addr::new(10, 7, n, host).into()).collect()
    }

    /// Runs `near` on one machine with a link of one connection per wire, while the other takes every message and
    /// counts its bytes.
    pub fn run<F: Future<Output = ()>>(&self, options: Options, near: impl FnOnce(Link, Arc<Received>) -> F + Send) {
        self.run_many(self.count.into(), options, near);
    }

    /// The same with so many connections.
    pub fn run_many<F: Future<Output = ()>>(
        &self,
        connections: usize,
        options: Options,
        near: impl FnOnce(Link, Arc<Received>) -> F + Send,
    ) {
        let group = Group::create().unwrap();
        let received = Arc::new(Received::default());
        let far = self.start_far(group.issue("far").unwrap(), options, received.clone());
        let config = LinkConfig {
            local: self.addresses(1),
            remote: self.addresses(2).into_iter().map(|ip| SocketAddr::new(ip, PORT)).collect(),
            target_count: connections,
            options,
        };
        let identity = group.issue("near").unwrap();
        netns::run_in(&self.near, || {
            runtime().block_on(async {
                let link = loop {
                    // Until the listener is there.
                    match Link::connect(config.clone(), identity.clone()).await {
                        Ok(link) => break link,
                        Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
                    }
                };
                super::until("every wire has a connection", || link.connections() == connections).await;
                near(link, received).await;
            });
            Ok(())
        })
        .unwrap();
        far.join().unwrap();
    }

    fn start_far(
        &self,
        identity: mycelium_rhizomorph::Identity,
        options: Options,
        received: Arc<Received>,
    ) -> JoinHandle<()> {
        let namespace = self.far.try_clone().unwrap();
        let addresses: Vec<SocketAddr> = self.addresses(2).into_iter().map(|ip| SocketAddr::new(ip, PORT)).collect();
        std::thread::spawn(move || {
            let work = async {
                let listener = Listener::bind(&addresses, identity, options).await.unwrap();
                let link = listener.accept().await.unwrap();
                while let Ok(message) = link.recv().await {
                    received.take(message.channel, &message.payload);
                }
            };
            netns::run_in(&namespace, || {
                runtime().block_on(work);
                Ok(())
            })
            .unwrap();
        })
    }
}

/// What the far machine got.
#[derive(Default)]
pub struct Received {
    bytes: AtomicU64,
    latencies_us: std::sync::Mutex<Vec<u64>>,
}

/// On this channel a message is the sender's clock.
pub const CLOCK: u16 = 9;

impl Received {
    fn take(&self, channel: u16, payload: &[u8]) {
        if channel == CLOCK {
            let sent = u64::from_le_bytes(payload.try_into().unwrap());
            self.latencies_us.lock().unwrap().push(clock_us().saturating_sub(sent));
        }
        self.bytes.fetch_add(payload.len() as u64, SeqCst);
    }

    pub fn bytes(&self) -> u64 {
        self.bytes.load(SeqCst)
    }

    /// Sorted.
    pub fn latencies_us(&self) -> Vec<u64> {
        let mut latencies = self.latencies_us.lock().unwrap().clone();
        latencies.sort_unstable();
        latencies
    }

    /// Bytes per second from now on.
    pub async fn rate(&self, over: Duration) -> f64 {
        let (bytes, begun) = (self.bytes(), Instant::now());
        tokio::time::sleep(over).await;
        (self.bytes() - bytes) as f64 / begun.elapsed().as_secs_f64()
    }
}

/// Microseconds of a clock that both machines of a test share.
pub fn clock_us() -> u64 {
    static ORIGIN: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    ORIGIN.get_or_init(Instant::now).elapsed().as_micros() as u64
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

fn inside(namespace: &OwnedFd, line: &str) {
    netns::run_in(namespace, || {
        let mut words = line.split(' ');
        let output = command(words.next().unwrap_or_default()).args(words).output()?;
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    })
    .unwrap();
}

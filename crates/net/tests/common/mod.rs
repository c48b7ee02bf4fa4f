//! A machine of its own for each test: a network namespace that plays the host, others that play pods and the world.
//!
//! All of it vanishes with the descriptors, also when a test panics.
#![allow(dead_code, reason = "each test file uses a part")]

use std::future::Future;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::Duration;

use mycelium_linux::process::command;
use mycelium_linux::{loopback, netns};
use mycelium_net::{NetConfig, Network, teardown};

pub const INSTANCE: &str = "a1b2c3";
pub const SECOND: Duration = Duration::from_secs(1);

/// Runs a test on a host of its own. Threads and processes it starts belong to that host too.
pub fn on_host<F: Future<Output = ()>>(test: impl FnOnce(Host) -> F + Send) {
    let namespace = netns::create().expect("these tests need root");
    netns::run_in(&namespace, || {
        loopback::up()?;
        let world = World::connect()?;
        // The world lasts for the whole test, also for one that has no use for it.
        let _last = world.0.try_clone()?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let outcome = catch_unwind(AssertUnwindSafe(|| runtime.block_on(test(Host { world }))));
        // Notes about settings are kept outside of the namespace.
        runtime.block_on(teardown(INSTANCE)).expect("the teardown after the test");
        outcome.unwrap_or_else(|panic| resume_unwind(panic));
        Ok(())
    })
    .expect("the test's host");
}

/// The machine under test.
pub struct Host {
    pub world: World,
}

/// What lies beyond the host's uplink `eth0`, 192.0.2.2/24; the world is 192.0.2.1.
pub struct World(pub OwnedFd);

impl World {
    pub const ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
    pub const HOST: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);

    fn connect() -> io::Result<Self> {
        let namespace = netns::create()?;
        let mut holder = netns::run_in(&namespace, || command("sleep").arg("60").spawn())?;
        ip(&format!("link add eth0 type veth peer name eth0 netns {}", holder.id()));
        holder.kill()?;
        holder.wait()?;
        ip("addr add 192.0.2.2/24 dev eth0");
        ip("link set eth0 up");
        netns::run_in(&namespace, || {
            loopback::up()?;
            ip("addr add 192.0.2.1/24 dev eth0");
            ip("link set eth0 up");
            Ok(())
        })?;
        ip("route add default via 192.0.2.1");
        Ok(Self(namespace))
    }
}

/// Runs `ip` in the namespace of the calling thread and returns its output.
pub fn ip(arguments: &str) -> String {
    run("ip", &arguments.split(' ').collect::<Vec<_>>())
}

pub fn run(program: &str, arguments: &[&str]) -> String {
    let output = command(program).args(arguments).output().unwrap_or_else(|e| panic!("{program}: {e}"));
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub fn config() -> NetConfig {
    NetConfig::new(INSTANCE, "10.77.0.0/16".parse().unwrap(), "10.78.0.0/16".parse().unwrap())
}

pub struct Pod {
    pub namespace: OwnedFd,
    pub ip: Ipv4Addr,
}

pub async fn pod(network: &Network, uid: &str) -> Pod {
    let namespace = netns::create().unwrap();
    let net = network.attach_pod(namespace.try_clone().unwrap(), uid).await.unwrap();
    Pod { namespace, ip: net.ip }
}

/// Serves TCP in a namespace: every client is sent the server's name and the client's own address.
pub fn serve_tcp(namespace: &OwnedFd, port: u16, name: &str) {
    let listener = netns::run_in(namespace, || TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))).unwrap();
    let name = name.to_owned();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let peer = stream.peer_addr().map_or(Ipv4Addr::UNSPECIFIED.into(), |peer| peer.ip());
            let _ = writeln!(stream, "{name} {peer}");
            // Stays open until the client closes, so that established connections can be watched.
            std::thread::spawn(move || {
                let mut buffer = [0; 64];
                while let Ok(length @ 1..) = stream.read(&mut buffer) {
                    if stream.write_all(&buffer[..length]).is_err() {
                        return;
                    }
                }
            });
        }
    });
}

/// Serves UDP in a namespace: every datagram is answered with the server's name.
pub fn serve_udp(namespace: &OwnedFd, port: u16, name: &str) {
    let socket = netns::run_in(namespace, || UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port))).unwrap();
    let name = name.to_owned();
    std::thread::spawn(move || {
        let mut buffer = [0; 2048];
        while let Ok((_, peer)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(name.as_bytes(), peer);
        }
    });
}

/// The greeting of a TCP server: its name and the address it saw.
pub fn greet(to: (Ipv4Addr, u16)) -> io::Result<(String, IpAddr)> {
    let mut stream = connect(to)?;
    let line = read_line(&mut stream)?;
    let (name, peer) = line.split_once(' ').ok_or(io::ErrorKind::InvalidData)?;
    Ok((name.to_owned(), peer.parse().map_err(io::Error::other)?))
}

pub fn connect(to: (Ipv4Addr, u16)) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&SocketAddr::from(to), 3 * SECOND)?;
    stream.set_read_timeout(Some(3 * SECOND))?;
    Ok(stream)
}

pub fn read_line(stream: &mut TcpStream) -> io::Result<String> {
    let (mut line, mut byte) = (Vec::new(), [0]);
    while stream.read(&mut byte)? == 1 && byte[0] != b'\n' {
        line.push(byte[0]);
    }
    String::from_utf8(line).map_err(io::Error::other)
}

/// The answer of a UDP server.
pub fn ask(socket: &UdpSocket, to: (Ipv4Addr, u16)) -> io::Result<String> {
    socket.set_read_timeout(Some(SECOND))?;
    socket.connect(to)?;
    socket.send(b"?")?;
    let mut buffer = [0; 512];
    let length = socket.recv(&mut buffer)?;
    Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
}

impl Pod {
    pub fn greet(&self, to: (Ipv4Addr, u16)) -> io::Result<(String, IpAddr)> {
        netns::run_in(&self.namespace, || greet(to))
    }
}

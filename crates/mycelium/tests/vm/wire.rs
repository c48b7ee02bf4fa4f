//! Somebody between two hosts who alters bytes, says them twice, or says again what was said before.
//!
//! What host `a` dials on host `b` is sent to a detour on `b`: every byte of their link passes through it.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use mycelium_endophyte::host::status::Status;

use crate::common::{PATIENCE, eventually};
use crate::guests::{VM, run_numbers};
use crate::lab::Lab;
use crate::numbers::Client;
use crate::random::{Random, setting};

/// Where the detour listens.
const DETOUR: u16 = 7499;
/// As much of a connection is remembered.
const MEMORY_MAX: usize = 1 << 20;

/// What is done to the bytes that pass next.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Harm {
    /// A bit of them is another.
    Flip,
    /// They are said twice.
    Twice,
}

#[derive(Default)]
struct Detour {
    harm: Mutex<Option<(Harm, u64)>>,
    done: AtomicU64,
    /// What the first connection's dialler said.
    heard: Mutex<Vec<u8>>,
}

impl Detour {
    /// Puts itself between `b` and whoever dials it. Ends with the connections and the namespace.
    fn of(lab: &Lab, host: &str) -> Arc<Self> {
        let detour = Arc::new(Self::default());
        let target = (lab.address(host).to_owned(), 7400);
        let listener = lab.at(host, || TcpListener::bind(("0.0.0.0", DETOUR))).expect("a detour");
        lab.redirect(host, 7400, DETOUR);
        let namespace = std::fs::File::open(format!("/run/netns/{}", lab.namespace(host))).expect("namespace");
        let shared = Arc::clone(&detour);
        thread::spawn(move || {
            for (number, near) in listener.incoming().map_while(Result::ok).enumerate() {
                let reached = mycelium_linux::netns::run_in(&namespace, || TcpStream::connect(target.clone()));
                let Ok(far) = reached else { continue };
                let both = (near.try_clone().expect("socket"), far.try_clone().expect("socket"));
                let (there, back) = (Arc::clone(&shared), Arc::clone(&shared));
                thread::spawn(move || there.pass(near, far, number == 0));
                thread::spawn(move || back.pass(both.1, both.0, false));
            }
        });
        detour
    }

    fn pass(&self, mut from: TcpStream, mut to: TcpStream, remember: bool) {
        let mut buffer = vec![0; 16 << 10];
        while let Ok(length @ 1..) = from.read(&mut buffer) {
            let bytes = &mut buffer[..length];
            if remember {
                let mut heard = self.heard.lock().expect("memory");
                let room = MEMORY_MAX.saturating_sub(heard.len()).min(length);
                heard.extend_from_slice(&bytes[..room]);
            }
            if self.forward(bytes, &mut to).is_err() {
                break;
            }
        }
        let _ = (from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both));
    }

    fn forward(&self, bytes: &mut [u8], to: &mut TcpStream) -> io::Result<()> {
        let harm = self.harm.lock().expect("harm").take();
        match harm {
            Some((Harm::Flip, place)) => bytes[place as usize % bytes.len()] ^= 1 << (place % 8),
            Some((Harm::Twice, _)) => to.write_all(bytes)?,
            None => {}
        }
        to.write_all(bytes)?;
        self.done.fetch_add(u64::from(harm.is_some()), Ordering::Relaxed);
        Ok(())
    }

    /// Does harm to whatever passes next.
    fn harm(&self, harm: Harm, place: u64) {
        *self.harm.lock().expect("harm") = Some((harm, place));
    }
}

/// The numbers of a host's connections to another.
fn connections(status: &Status, peer: &str) -> Vec<u64> {
    let peer = status.peers.iter().find(|known| known.name == peer);
    let all = peer.and_then(|peer| peer.connections.as_array());
    all.map_or(Vec::new(), |all| all.iter().filter_map(|one| one["id"].as_u64()).collect())
}

/// Altered and repeated bytes cost a connection, which is dialled anew; what was heard before is refused. The guest, and
/// who runs it, is not touched by any of it.
#[test]
fn altered_and_repeated_bytes_are_noticed() {
    let mut random = Random::new();
    let mut lab = Lab::new(3);
    lab.host("b").stand_by();
    lab.host("c").stand_by();
    let detour = Detour::of(&lab, "b");
    run_numbers(&mut lab, "a", &["b", "c"]);
    let client = Client::start(&lab, &mut random);
    lab.protected(VM, 2);
    client.goes_on();
    let own = |lab: &mut Lab| lab.host("a").status(VM).map_or(Vec::new(), |status| connections(&status, "b"));
    let full = own(&mut lab).len();
    assert!(full > 0 && !detour.heard.lock().expect("memory").is_empty(), "the link does not take the detour");

    for round in 0..setting("MYCELIUM_CHAOS_WIRE", 6) {
        let harm = if round % 2 == 0 { Harm::Flip } else { Harm::Twice };
        let before = own(&mut lab);
        let mut waited = 0;
        detour.harm(harm, random.next());
        eventually("a connection is lost and dialled anew", || {
            waited += 1;
            if waited % 60 == 0 {
                // Some bits of a record's head mean nothing.
                detour.harm(harm, random.next());
            }
            let now = own(&mut lab);
            let fresh = now.iter().any(|id| !before.contains(id));
            if fresh && now.len() == full { Ok(()) } else { Err(format!("{before:?}, now {now:?}")) }
        });
        client.goes_on();
        println!("{harm:?}: connections {before:?}, then {:?}", own(&mut lab));
    }
    assert!(detour.done.load(Ordering::Relaxed) >= setting("MYCELIUM_CHAOS_WIRE", 6));

    // A whole conversation said again by somebody without a certificate: b hangs up.
    let heard = detour.heard.lock().expect("memory").clone();
    let address = (lab.address("b").to_owned(), 7400);
    let mut again = lab.at("b", || TcpStream::connect(address)).expect("b listens");
    again.set_read_timeout(Some(PATIENCE)).expect("read timeout");
    // It may hang up before all is said.
    let said = again.write_all(&heard).and_then(|()| again.read_to_end(&mut Vec::new()));
    if let Err(error) = said {
        assert!(matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe), "{error}");
    }
    lab.protected(VM, 2);
    client.goes_on();
}

//! A TCP proxy that can stop reading, be late, flip bits and cut.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Mood {
    Honest,
    /// Reads nothing any more.
    Stalled,
    /// Hands on each piece [`DELAY`] after it came.
    Late,
    /// Flips one bit, then is honest again.
    Flip,
    /// Ends every connection and lets no new one through.
    Cut,
}

/// How late a late proxy is, each way.
pub const DELAY: Duration = Duration::from_millis(50);

pub struct Proxy {
    pub address: SocketAddr,
    mood: Arc<AtomicU8>,
    pub connections: Arc<AtomicUsize>,
    _task: JoinSet<()>,
}

impl Proxy {
    pub async fn new(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mood = Arc::new(AtomicU8::new(Mood::Honest as u8));
        let connections = Arc::new(AtomicUsize::new(0));
        let mut task = JoinSet::new();
        let (state, counter) = (mood.clone(), connections.clone());
        task.spawn(async move {
            let mut pipes = JoinSet::new();
            loop {
                let (client, _) = listener.accept().await.unwrap();
                if state.load(SeqCst) == Mood::Cut as u8 {
                    continue;
                }
                let Ok(server) = TcpStream::connect(target).await else { continue };
                counter.fetch_add(1, SeqCst);
                let ((cr, cw), (sr, sw)) = (client.into_split(), server.into_split());
                pipes.spawn(pipe(cr, sw, state.clone()));
                pipes.spawn(pipe(sr, cw, state.clone()));
            }
        });
        Self { address, mood, connections, _task: task }
    }

    pub fn set(&self, mood: Mood) {
        self.mood.store(mood as u8, SeqCst);
    }

    pub fn is(&self, mood: Mood) -> bool {
        self.mood.load(SeqCst) == mood as u8
    }
}

async fn pipe(mut from: tokio::net::tcp::OwnedReadHalf, mut to: tokio::net::tcp::OwnedWriteHalf, mood: Arc<AtomicU8>) {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        while mood.load(SeqCst) == Mood::Stalled as u8 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let read = tokio::time::timeout(Duration::from_millis(20), from.read(&mut buffer)).await;
        if mood.load(SeqCst) == Mood::Cut as u8 {
            return;
        }
        let Ok(read) = read else { continue };
        let Ok(length @ 1..) = read else { return };
        if mood.compare_exchange(Mood::Flip as u8, Mood::Honest as u8, SeqCst, SeqCst).is_ok() {
            buffer[length / 2] ^= 1;
        }
        if mood.load(SeqCst) == Mood::Late as u8 {
            tokio::time::sleep(DELAY).await;
        }
        if to.write_all(&buffer[..length]).await.is_err() {
            return;
        }
    }
}

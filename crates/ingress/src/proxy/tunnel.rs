//! Connections that changed their protocol: bytes both ways until one side ends or both are silent for too long.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, split};
use tokio::time::Instant;

use crate::limit::Present;

const BUFFER: usize = 8 * 1024;

/// Joins a client with a backend; `_present` counts as a request under way until the end.
pub async fn join(client: OnUpgrade, backend: OnUpgrade, silence_max: Duration, _present: Option<Present>) {
    let (client, backend) = match tokio::try_join!(client, backend) {
        Ok(both) => both,
        Err(error) => return tracing::debug!(%error, "a change of protocol failed"),
    };
    let activity = Activity { begun: Instant::now(), at_ms: AtomicU64::new(0) };
    let (client_reads, client_writes) = split(TokioIo::new(client));
    let (backend_reads, backend_writes) = split(TokioIo::new(backend));
    let both = async {
        let up = pump(client_reads, backend_writes, &activity);
        let down = pump(backend_reads, client_writes, &activity);
        tokio::try_join!(up, down)
    };
    tokio::select! {
        biased;
        result = both => {
            if let Err(error) = result {
                tracing::debug!(%error, "a tunnel ended");
            }
        }
        () = activity.silent_for(silence_max) => tracing::debug!("a tunnel was silent for too long"),
    }
}

/// When something last passed.
struct Activity {
    begun: Instant,
    at_ms: AtomicU64,
}

impl Activity {
    fn note(&self) {
        self.at_ms.store(u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(0), Ordering::Relaxed);
    }

    async fn silent_for(&self, limit: Duration) {
        loop {
            let until = self.begun + Duration::from_millis(self.at_ms.load(Ordering::Relaxed)) + limit;
            if Instant::now() >= until {
                return;
            }
            tokio::time::sleep_until(until).await;
        }
    }
}

async fn pump(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    activity: &Activity,
) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        let count = from.read(&mut buffer).await?;
        activity.note();
        if count == 0 {
            return to.shutdown().await;
        }
        to.write_all(&buffer[..count]).await?;
        to.flush().await?;
        activity.note();
    }
}

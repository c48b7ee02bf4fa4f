//! The platform bundle behind the Deployment `symphainy-platform`: one process that hosts several services
//! and says how they are.
//!
//! | request | answer |
//! |---|---|
//! | `GET /health` | 200 while at least 80 % of the hosted services are healthy, else 503; the percentage and each state as JSON |
//! | `GET /ready` | 200 once every hosted service has started and until shutdown begins, else 503 |
//! | `PUT /services/NAME` with body `running` or `stopped` | starts or stops one service; from loopback only |
//!
//! `SERVICES` (comma separated) names the hosted services, `PORT` the port (8000).

mod hosted;
mod http;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use hosted::Platform;

/// The pillars and managers that the platform bundles unless `SERVICES` says otherwise.
const DEFAULT_SERVICES: &str = "content,insights,operations,business-outcomes,delivery-manager,experience-manager,journey-manager,curator,public-works,di-container";

/// How long requests may still arrive after shutdown began: endpoints need a moment to forget this pod.
const DRAIN: Duration = Duration::from_secs(2);

#[tokio::main(flavor = "current_thread")]
async fn main() -> std::io::Result<()> {
    let names = std::env::var("SERVICES").unwrap_or_else(|_| DEFAULT_SERVICES.to_owned());
    let port = std::env::var("PORT").ok().and_then(|port| port.parse().ok()).unwrap_or(8000);
    let platform = Arc::new(Platform::start(names.split(',').map(str::trim).filter(|name| !name.is_empty())));
    let listener = TcpListener::bind(SocketAddr::from(([0, 0, 0, 0], port))).await?;
    println!("listening on {} with {} services", listener.local_addr()?, platform.len());

    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        biased;
        _ = terminate.recv() => {}
        never = http::serve(&listener, &platform) => match never {},
    }
    println!("draining");
    platform.begin_shutdown();
    // Still answering: clients that were routed here before the endpoints changed must not see a closed port.
    let drained = tokio::time::timeout(DRAIN, http::serve(&listener, &platform)).await;
    drop(drained);
    println!("stopped");
    Ok(())
}

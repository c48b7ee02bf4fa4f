//! Ports: taken when the first Ingress is there, given back with the last.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use crate::Options;
use crate::proxy::{Shared, serve};

/// How long requests under way may take at the end.
const DRAIN: Duration = Duration::from_secs(5);

/// Where the proxy listens.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bound {
    /// For HTTP.
    pub http: Vec<SocketAddr>,
    /// For HTTPS.
    pub https: Vec<SocketAddr>,
}

/// One address to listen on.
struct Spot {
    address: SocketAddr,
    secure: bool,
    bound: Option<SocketAddr>,
    fault: Option<String>,
}

/// All addresses to listen on.
pub struct Listeners {
    shared: Arc<Shared>,
    spots: Vec<Spot>,
    stop: watch::Sender<bool>,
    tasks: JoinSet<()>,
}

impl Listeners {
    pub fn new(shared: Arc<Shared>, options: &Options) -> Self {
        let of = |listen: crate::Listen, secure: bool| {
            let addresses = listen.addresses(options.node_ip).into_iter();
            addresses.map(move |address| Spot { address, secure, bound: None, fault: None })
        };
        let spots = of(options.http, false).chain(of(options.https, true)).collect();
        Self { shared, spots, stop: watch::Sender::new(false), tasks: JoinSet::new() }
    }

    /// Takes every port that is not taken yet.
    pub fn open(&mut self) {
        if self.spots.iter().all(|spot| spot.bound.is_some()) {
            return;
        }
        // Those that were closed before and have ended meanwhile.
        while self.tasks.try_join_next().is_some() {}
        for spot in self.spots.iter_mut().filter(|spot| spot.bound.is_none()) {
            let opened = tls(&self.shared, spot.secure)
                .and_then(|tls| Ok((serve::listen(spot.address).map_err(|error| error.to_string())?, tls)))
                .and_then(|(listener, tls)| {
                    Ok((listener.local_addr().map_err(|error| error.to_string())?, listener, tls))
                });
            match opened {
                Ok((address, listener, tls)) => {
                    (spot.bound, spot.fault) = (Some(address), None);
                    let mut stop = self.stop.subscribe();
                    let stopped = async move {
                        // The sender lives as long as the listeners: an error means that they are gone.
                        let _ = stop.wait_for(|stop| *stop).await;
                    };
                    self.tasks.spawn(serve::serve(self.shared.clone(), listener, tls, stopped));
                }
                Err(why) => spot.failed(&why),
            }
        }
        let https = self.spots.iter().filter(|spot| spot.secure).find_map(|spot| spot.bound);
        self.shared.set_https_port(https.map_or(0, |address| address.port()));
    }

    /// What could not be taken, a sentence each.
    pub fn faults(&self) -> Vec<String> {
        self.spots.iter().filter_map(|spot| spot.fault.clone()).collect()
    }

    /// What was taken.
    pub fn bound(&self) -> Bound {
        let of = |secure: bool| {
            self.spots.iter().filter(|spot| spot.secure == secure).filter_map(|spot| spot.bound).collect()
        };
        Bound { http: of(false), https: of(true) }
    }

    /// Gives every port back; requests under way go on.
    pub fn close(&mut self) {
        self.stop.send_replace(true);
        self.stop = watch::Sender::new(false);
        self.spots.iter_mut().for_each(|spot| (spot.bound, spot.fault) = (None, None));
        self.shared.set_https_port(0);
    }

    /// Gives every port back and waits for the end of requests under way, for a while.
    pub async fn stop(&mut self) {
        self.stop.send_replace(true);
        let _ = tokio::time::timeout(DRAIN, async { while self.tasks.join_next().await.is_some() {} }).await;
    }
}

fn tls(shared: &Arc<Shared>, secure: bool) -> Result<Option<TlsAcceptor>, String> {
    secure.then(|| serve::acceptor(shared)).transpose().map_err(|error| error.to_string())
}

impl Spot {
    fn failed(&mut self, why: &str) {
        let flag = if self.secure { "--ingress-https" } else { "--ingress-http" };
        let fault = format!(
            "Ingresses cannot be served on {}: {why}; if another program has the port, stop it or choose one with {flag}",
            self.address
        );
        if self.fault.as_ref() != Some(&fault) {
            tracing::warn!("{fault}");
        }
        self.fault = Some(fault);
    }
}

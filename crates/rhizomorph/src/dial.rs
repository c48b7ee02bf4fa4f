//! The dialling side: opens a link over the first pair of addresses that works, then keeps the wanted number of
//! connections, each over the pair that has the fewest; a pair that fails is left alone for a while.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use crate::connection;
use crate::error::{CloseReason, Error, Refusal};
use crate::greet::{Greeted, dial};
use crate::identity::Identity;
use crate::link::{LinkConfig, Options};
use crate::shared::{Shared, lock};

const BACKOFF_MIN: Duration = Duration::from_millis(100);
const BACKOFF_MAX: Duration = Duration::from_secs(3);
/// A connection that lived for less counts as a failure of its pair.
const SHORT_LIFE: Duration = Duration::from_secs(1);
/// How long opening a link may take.
const OPEN_TIME: Duration = Duration::from_secs(10);

/// A local and a remote address.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Pair {
    local: Option<IpAddr>,
    remote: SocketAddr,
    users: usize,
    failures: u32,
    not_before: Option<Instant>,
}

/// All pairs of one family, those first that have nothing in common with the ones before.
fn pairs(locals: &[IpAddr], remotes: &[SocketAddr]) -> Vec<Pair> {
    let pair = |local, remote| Pair { local, remote, users: 0, failures: 0, not_before: None };
    if locals.is_empty() {
        return remotes.iter().map(|remote| pair(None, *remote)).collect();
    }
    let most = locals.len().max(remotes.len());
    let mut pairs = Vec::new();
    for shift in 0..most {
        for step in 0..most {
            let (local, remote) = (locals[step % locals.len()], remotes[(step + shift) % remotes.len()]);
            let new = pair(Some(local), remote);
            if local.is_ipv4() == remote.is_ipv4() && !pairs.contains(&new) {
                pairs.push(new);
            }
        }
    }
    pairs
}

struct Dialer {
    identity: Identity,
    options: Options,
    pairs: Mutex<Vec<Pair>>,
    link: Arc<Shared>,
}

/// Opens a link and leaves behind the tasks that keep its connections.
pub(crate) async fn open(config: LinkConfig, identity: Identity) -> Result<Arc<Shared>, Error> {
    if config.remote.is_empty() {
        return Err(Error::NoAddresses);
    }
    let mut pairs = pairs(&config.local, &config.remote);
    let (first, index) = open_first(&pairs, &identity, &config.options).await?;
    let Greeted { transport, peer, greeting, local, remote } = first;
    let link = Arc::new(Shared::new(peer.name, peer.leaf, config.options, &greeting));
    pairs[index].users = 1;
    let dialer = Arc::new(Dialer { identity, options: config.options, pairs: Mutex::new(pairs), link: link.clone() });
    let connection = link.add(local, remote);
    let keeper = dialer.clone();
    tokio::spawn(async move {
        let begun = Instant::now();
        connection::run(keeper.link.clone(), transport, connection).await;
        keeper.leave(index, begun.elapsed() >= SHORT_LIFE);
        keeper.keep().await;
    });
    for _ in 1..config.target_count {
        tokio::spawn(dialer.clone().keep());
    }
    Ok(link)
}

async fn open_first(pairs: &[Pair], identity: &Identity, options: &Options) -> Result<(Greeted, usize), Error> {
    let deadline = Instant::now() + OPEN_TIME;
    let mut last = Error::NoAddresses;
    for (index, pair) in pairs.iter().enumerate() {
        let patience = options.dead_after.min(deadline.saturating_duration_since(Instant::now()));
        match dial(pair.local, pair.remote, None, identity, options, patience).await {
            Ok(greeted) => return Ok((greeted, index)),
            Err(error @ (Error::WrongGroup | Error::Refused { .. })) => return Err(error),
            Err(error) => last = error,
        }
    }
    Err(last)
}

impl Dialer {
    /// Keeps one connection for as long as the link lives.
    async fn keep(self: Arc<Self>) {
        let mut closed = self.link.closed.subscribe();
        tokio::select! {
            biased;
            _ = closed.wait_for(Option::is_some) => {}
            () = self.clone().keep_forever() => {}
        }
    }

    async fn keep_forever(self: Arc<Self>) {
        loop {
            let index = match self.choose() {
                Ok(index) => index,
                Err(until) => {
                    sleep_until(until).await;
                    continue;
                }
            };
            let begun = Instant::now();
            let good = match self.join(index).await {
                Ok(work) => {
                    // A task of its own, so that it can say goodbye when the link ends.
                    let _ = tokio::spawn(work).await;
                    begun.elapsed() >= SHORT_LIFE
                }
                Err(error) => {
                    tracing::debug!(error = &error as &dyn std::error::Error, "cannot add a connection");
                    self.note(&error);
                    false
                }
            };
            self.leave(index, good);
        }
    }

    /// Dials one more connection and returns what runs it.
    async fn join(&self, index: usize) -> Result<impl Future<Output = ()> + use<>, Error> {
        let (local, remote) = {
            let pairs = lock(&self.pairs);
            (pairs[index].local, pairs[index].remote)
        };
        let patience = self.options.dead_after;
        let greeted = dial(local, remote, Some(self.link.session), &self.identity, &self.options, patience).await?;
        if greeted.peer.leaf != self.link.peer_leaf {
            return Err(Error::Refused { reason: Refusal::UnknownSession });
        }
        let connection = self.link.add(greeted.local, greeted.remote);
        Ok(connection::run(self.link.clone(), greeted.transport, connection))
    }

    /// A peer that no longer knows the link has begun anew.
    fn note(&self, error: &Error) {
        let forgotten = matches!(error, Error::Refused { reason: Refusal::UnknownSession });
        if forgotten && self.link.connection_count() == 0 {
            self.link.close(CloseReason::Forgotten);
        }
    }

    /// The pair with the fewest connections of those that may be tried, or when to ask again.
    fn choose(&self) -> Result<usize, Instant> {
        let now = Instant::now();
        let mut pairs = lock(&self.pairs);
        let allowed = |pair: &Pair| pair.not_before.is_none_or(|at| at <= now);
        let best = (0..pairs.len()).filter(|index| allowed(&pairs[*index])).min_by_key(|index| pairs[*index].users);
        match best {
            Some(index) => {
                pairs[index].users += 1;
                Ok(index)
            }
            None => Err(pairs.iter().filter_map(|pair| pair.not_before).min().unwrap_or(now + BACKOFF_MIN)),
        }
    }

    /// Notes the end of a connection or attempt.
    fn leave(&self, index: usize, good: bool) {
        let mut pairs = lock(&self.pairs);
        let pair = &mut pairs[index];
        pair.users -= 1;
        pair.failures = if good { 0 } else { pair.failures.saturating_add(1) };
        let pause = (BACKOFF_MIN * 2u32.saturating_pow(pair.failures.saturating_sub(1).min(10))).min(BACKOFF_MAX);
        pair.not_before = (!good).then(|| Instant::now() + pause);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_spread_over_addresses_first() {
        let locals: Vec<IpAddr> = ["10.0.0.1", "10.0.1.1", "fd00::1"].iter().map(|a| a.parse().unwrap()).collect();
        let remotes: Vec<SocketAddr> = ["10.0.0.2:1", "10.0.1.2:1"].iter().map(|a| a.parse().unwrap()).collect();
        let found: Vec<String> =
            pairs(&locals, &remotes).iter().map(|pair| format!("{}>{}", pair.local.unwrap(), pair.remote)).collect();
        assert_eq!(found.len(), 4, "{found:?}");
        assert_eq!(found[..2], ["10.0.0.1>10.0.0.2:1", "10.0.1.1>10.0.1.2:1"]);
        assert_eq!(pairs(&[], &remotes).len(), 2);
    }
}

//! The dialling side: opens a link over the first pair of addresses that works, then keeps the wanted number of
//! connections over the pairs that the plan in `pairs` names.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until};

use crate::connection;
use crate::error::{CloseReason, Error, Refusal};
use crate::greet::{Greeted, dial};
use crate::identity::Identity;
use crate::link::{LinkConfig, Options};
use crate::pairs::Pairs;
use crate::shared::{Connection, Shared, lock};

/// A connection that lived for less counts as a failure of its pair.
const SHORT_LIFE: Duration = Duration::from_secs(1);
/// How long opening a link may take.
const OPEN_TIME: Duration = Duration::from_secs(10);
/// How often a connection looks for a better pair.
const MOVE_EVERY: Duration = Duration::from_millis(500);

struct Dialer {
    identity: Identity,
    options: Options,
    pairs: Mutex<Pairs>,
    link: Arc<Shared>,
}

/// A connection of this link and the task that runs it: one of its own, so that it can say goodbye when the link ends.
struct Running {
    connection: Arc<Connection>,
    task: JoinHandle<()>,
    begun: Instant,
}

impl Running {
    fn start(link: &Arc<Shared>, greeted: Greeted) -> Self {
        let connection = link.add(greeted.local, greeted.remote);
        let task = tokio::spawn(connection::run(link.clone(), greeted.transport, connection.clone()));
        Self { connection, task, begun: Instant::now() }
    }
}

/// Opens a link and leaves behind the tasks that keep its connections.
pub(crate) async fn open(config: LinkConfig, identity: Identity) -> Result<Arc<Shared>, Error> {
    if config.remote.is_empty() {
        return Err(Error::NoAddresses);
    }
    let mut pairs = Pairs::new(&config.local, &config.remote);
    let (first, index) = open_first(&pairs, &identity, &config.options).await?;
    let link = Arc::new(Shared::new(first.peer.name.clone(), first.peer.leaf.clone(), config.options, &first.greeting));
    pairs.hold(index);
    let dialer = Arc::new(Dialer { identity, options: config.options, pairs: Mutex::new(pairs), link: link.clone() });
    tokio::spawn(dialer.clone().keep(Some((index, Running::start(&link, first)))));
    for _ in 1..config.target_count {
        tokio::spawn(dialer.clone().keep(None));
    }
    Ok(link)
}

async fn open_first(pairs: &Pairs, identity: &Identity, options: &Options) -> Result<(Greeted, usize), Error> {
    let deadline = Instant::now() + OPEN_TIME;
    let mut last = Error::NoAddresses;
    for (index, pair) in pairs.all().iter().enumerate() {
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
    /// Keeps one connection, perhaps one that is there already, for as long as the link lives.
    async fn keep(self: Arc<Self>, first: Option<(usize, Running)>) {
        let mut closed = self.link.closed.subscribe();
        tokio::select! {
            biased;
            _ = closed.wait_for(Option::is_some) => {}
            () = self.keep_forever(first) => {}
        }
    }

    async fn keep_forever(&self, first: Option<(usize, Running)>) {
        if let Some((index, running)) = first {
            self.stay(index, running).await;
        }
        loop {
            let taken = lock(&self.pairs).take(Instant::now());
            match taken {
                Ok(index) => {
                    if let Some(running) = self.join(index).await {
                        self.stay(index, running).await;
                    }
                }
                Err(until) => sleep_until(until).await,
            }
        }
    }

    /// Dials one more connection.
    async fn join(&self, index: usize) -> Option<Running> {
        let (local, remote) = {
            let pairs = lock(&self.pairs);
            (pairs.all()[index].local, pairs.all()[index].remote)
        };
        let patience = self.options.dead_after;
        let greeted = dial(local, remote, Some(self.link.session), &self.identity, &self.options, patience).await;
        let greeted = greeted.and_then(|greeted| match greeted.peer.leaf == self.link.peer_leaf {
            true => Ok(greeted),
            false => Err(Error::Refused { reason: Refusal::UnknownSession }),
        });
        match greeted {
            Ok(greeted) => Some(Running::start(&self.link, greeted)),
            Err(error) => {
                tracing::debug!(error = &error as &dyn std::error::Error, "cannot add a connection");
                self.note(&error);
                self.leave(index, false);
                None
            }
        }
    }

    /// A peer that no longer knows the link has begun anew.
    fn note(&self, error: &Error) {
        let forgotten = matches!(error, Error::Refused { reason: Refusal::UnknownSession });
        if forgotten && self.link.connection_count() == 0 {
            self.link.close(CloseReason::Forgotten);
        }
    }

    /// Waits for the end of a connection; replaces it when a better pair works.
    async fn stay(&self, mut index: usize, mut running: Running) {
        loop {
            tokio::select! {
                _ = &mut running.task => break,
                () = sleep(MOVE_EVERY) => {}
            }
            let better = lock(&self.pairs).take_better(index, Instant::now());
            if let Some(better) = better
                && let Some(new) = self.join(better).await
            {
                running.connection.retire();
                self.leave(index, true);
                (index, running) = (better, new);
            }
        }
        self.leave(index, running.begun.elapsed() >= SHORT_LIFE);
    }

    fn leave(&self, index: usize, good: bool) {
        lock(&self.pairs).leave(index, good, Instant::now());
    }
}

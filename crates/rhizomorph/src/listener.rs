//! The side that is dialled: lets members of the group in, makes a link of each first connection and adds the others.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Mutex as AsyncMutex, Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::connection;
use crate::error::{CloseReason, Error};
use crate::frame::{Greeting, GreetingKind, SessionId};
use crate::greet::{Arrived, Greeted, arrive, greeting};
use crate::identity::{Identity, fill_random};
use crate::link::{Link, Options};
use crate::shared::{Shared, lock};

/// How long a stranger may take to introduce itself.
const GREETING_TIME: Duration = Duration::from_secs(5);
/// How many may do so at once.
const STRANGERS_MAX: usize = 64;
/// How many links wait to be accepted.
const BACKLOG: usize = 16;
/// How many connections a link may have.
const CONNECTIONS_MAX: usize = 64;

/// Waits for links. Dropping it ends what waits, and lets no connection join any more; links that were accepted stay.
pub struct Listener {
    addresses: Vec<SocketAddr>,
    links: AsyncMutex<mpsc::Receiver<Link>>,
    _tasks: JoinSet<()>,
}

struct Door {
    identity: Identity,
    options: Options,
    sessions: Mutex<HashMap<SessionId, Weak<Shared>>>,
    links: mpsc::Sender<Link>,
    strangers: Arc<Semaphore>,
}

impl Listener {
    /// Listens on these addresses.
    pub async fn bind(addresses: &[SocketAddr], identity: Identity, options: Options) -> Result<Self, Error> {
        let (links, accepted) = mpsc::channel(BACKLOG);
        let strangers = Arc::new(Semaphore::new(STRANGERS_MAX));
        let door = Arc::new(Door { identity, options, sessions: Mutex::default(), links, strangers });
        let mut tasks = JoinSet::new();
        let mut bound = Vec::new();
        for address in addresses {
            let listener = TcpListener::bind(address).await.map_err(Error::io(format!("listen on {address}")))?;
            bound.push(listener.local_addr().map_err(Error::io("learn the own address"))?);
            tasks.spawn(door.clone().watch(listener));
        }
        if bound.is_empty() {
            return Err(Error::NoAddresses);
        }
        Ok(Self { addresses: bound, links: AsyncMutex::new(accepted), _tasks: tasks })
    }

    /// The addresses it listens on, with the ports that the system chose.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// The next link that a peer opens.
    pub async fn accept(&self) -> Result<Link, Error> {
        self.links.lock().await.recv().await.ok_or(Error::Closed(CloseReason::Local))
    }
}

impl Door {
    async fn watch(self: Arc<Self>, listener: TcpListener) {
        // Dropped with this task, and with it whoever has not introduced himself.
        let mut guests = JoinSet::new();
        loop {
            let Ok(permit) = self.strangers.clone().acquire_owned().await else { return };
            tokio::select! {
                incoming = listener.accept() => match incoming {
                    Ok((stream, _)) => {
                        let door = self.clone();
                        guests.spawn(async move {
                            door.meet(stream).await;
                            drop(permit);
                        });
                    }
                    Err(error) => {
                        // Out of descriptors, most likely: others may close theirs.
                        tracing::warn!(%error, "cannot accept a connection");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                },
                Some(_) = guests.join_next() => {}
            }
        }
    }

    async fn meet(&self, stream: TcpStream) {
        let outcome = timeout(GREETING_TIME, self.introduce(stream)).await;
        if let Ok(Err(error)) = outcome {
            tracing::warn!(error = &error as &dyn std::error::Error, "a connection was not let in");
        }
    }

    async fn introduce(&self, stream: TcpStream) -> Result<(), Error> {
        let arrived = arrive(stream, &self.identity).await?;
        match arrived.greeting.kind {
            GreetingKind::Open => self.open(arrived).await,
            GreetingKind::Join => self.join(arrived).await,
            _ => self.refuse(arrived, GreetingKind::Version).await,
        }
    }

    fn answer(&self, kind: GreetingKind, session: SessionId) -> Greeting {
        greeting(kind, session, &self.options)
    }

    async fn refuse(&self, arrived: Arrived, kind: GreetingKind) -> Result<(), Error> {
        let session = arrived.greeting.session;
        let greeted = arrived.answer(&self.answer(kind, session)).await?;
        tracing::debug!(peer = %greeted.peer.name, ?kind, "refused a connection");
        Ok(())
    }

    async fn open(&self, arrived: Arrived) -> Result<(), Error> {
        let Ok(place) = self.links.try_reserve() else {
            return self.refuse(arrived, GreetingKind::Full).await;
        };
        let mut session = [0; 16];
        fill_random(&mut session)?;
        let Greeted { transport, peer, greeting, local, remote } =
            arrived.answer(&self.answer(GreetingKind::Welcome, session)).await?;
        let link = Arc::new(Shared::new(peer.name, peer.leaf, self.options, &Greeting { session, ..greeting }));
        {
            let mut sessions = lock(&self.sessions);
            sessions.retain(|_, link| link.upgrade().is_some_and(|link| link.close_reason().is_none()));
            sessions.insert(session, Arc::downgrade(&link));
        }
        let connection = link.add(local, remote);
        tokio::spawn(connection::run(link.clone(), transport, connection));
        place.send(Link::new(link));
        Ok(())
    }

    /// Adds a connection to a link that is still open, for the very process that opened it.
    async fn join(&self, arrived: Arrived) -> Result<(), Error> {
        let session = arrived.greeting.session;
        let link = lock(&self.sessions).get(&session).and_then(Weak::upgrade);
        let link = link.filter(|link| link.close_reason().is_none() && link.peer_leaf == arrived.peer.leaf);
        let Some(link) = link else {
            return self.refuse(arrived, GreetingKind::UnknownSession).await;
        };
        if link.connection_count() >= CONNECTIONS_MAX {
            return self.refuse(arrived, GreetingKind::Full).await;
        }
        let greeted = arrived.answer(&self.answer(GreetingKind::Welcome, session)).await?;
        let connection = link.add(greeted.local, greeted.remote);
        tokio::spawn(connection::run(link, greeted.transport, connection));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Refusal;
    use crate::greet::dial;
    use crate::identity::Group;

    const PATIENCE: Duration = Duration::from_secs(20);

    #[tokio::test]
    async fn only_the_process_that_opened_a_link_may_join_it_and_only_while_it_lives() {
        let (group, options) = (Group::create().unwrap(), Options::default());
        let listener = Listener::bind(&["127.0.0.1:0".parse().unwrap()], group.issue("far").unwrap(), options).await;
        let listener = listener.unwrap();
        let (near, namesake) = (group.issue("near").unwrap(), group.issue("near").unwrap());
        let at = listener.addresses()[0];
        let join = async |session, identity| dial(None, at, Some(session), identity, &options, PATIENCE).await;
        let refused = |outcome: Result<Greeted, Error>| {
            assert!(matches!(outcome, Err(Error::Refused { reason: Refusal::UnknownSession })), "{:?}", outcome.err());
        };

        let opened = dial(None, at, None, &near, &options, PATIENCE).await.unwrap();
        let link = listener.accept().await.unwrap();
        let session = opened.greeting.session;
        assert!(join(session, &near).await.is_ok());
        refused(join(session, &namesake).await);
        refused(join([7; 16], &near).await);
        link.close();
        refused(join(session, &near).await);
    }
}

//! Links to the other hosts of one machine: dialled by whoever knows an address, kept for as long as they live.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use mycelium_api::error::chain;
use mycelium_rhizomorph::{Identity, Link, LinkConfig, Priority};
use tokio::sync::{Semaphore, mpsc};

use super::agent::Event;
use super::book::{Hello, Notice, channel};
use super::held::Held;
use super::replica::Incoming;
use super::stream::{Outbox, StreamMessage};
use crate::group::Message;

/// Between attempts to reach a host.
const DIAL_EVERY: Duration = Duration::from_millis(250);
/// Bytes of the primary's stream that may wait for the copy's thread.
const UNREAD_MAX: usize = 4 << 20;
/// How long the other side may take to say hello.
const HELLO_TIME: Duration = Duration::from_secs(5);

/// A link whose other side has said hello.
#[derive(Debug, Clone)]
pub(super) struct Peer {
    /// The link.
    pub link: Link,
    /// What the other side said.
    pub hello: Hello,
    /// The way for what must stay in order.
    pub outbox: Outbox,
    /// Group messages and notices on their way.
    urgent: mpsc::UnboundedSender<(u16, Bytes)>,
    /// Tells links to the same host apart.
    pub number: u64,
    /// What the link's progress was when it was last looked at.
    progress: u64,
}

impl Peer {
    /// Sends a message of the group.
    pub fn group(&self, message: &Message) {
        let _ = self.urgent.send((channel::GROUP, message.encode().into()));
    }

    /// Whether bulk data has come or arrived since this was last asked.
    pub fn moves(&mut self) -> bool {
        let before = std::mem::replace(&mut self.progress, self.link.bulk_progress());
        self.progress != before
    }

    /// Sends a notice.
    pub fn notice(&self, notice: &Notice) {
        let _ = self.urgent.send((channel::NOTICE, notice.encode().into()));
    }
}

/// Says hello and hears the other side's.
///
/// # Errors
/// A sentence that says what came instead.
pub(super) async fn greet(link: &Link, hello: &Hello) -> Result<Hello, String> {
    let words = Notice::Hello(hello.clone()).encode();
    let sent = link.send(channel::NOTICE, Priority::Urgent, vec![words.into()]).await;
    sent.map_err(|error| chain(&error))?;
    hear_hello(link).await
}

/// Waits for the first message of a link.
pub(super) async fn hear_hello(link: &Link) -> Result<Hello, String> {
    let message = tokio::time::timeout(HELLO_TIME, link.recv_urgent()).await;
    let message = message.map_err(|_| "it said nothing".to_owned())?.map_err(|error| chain(&error))?;
    match (message.channel, Notice::decode(&message.payload)?) {
        (channel::NOTICE, Notice::Hello(hello)) => Ok(hello),
        (channel, _) => Err(format!("it did not introduce itself but spoke on channel {channel}")),
    }
}

/// Serves a link: what comes goes to the machine's agent, until the link ends.
pub(super) fn serve(link: Link, hello: Hello, number: u64, events: mpsc::UnboundedSender<Event>, held: &Held) -> Peer {
    let (urgent, mut queue) = mpsc::unbounded_channel::<(u16, Bytes)>();
    let sender = link.clone();
    tokio::spawn(async move {
        while let Some((channel, bytes)) = queue.recv().await {
            if sender.send(channel, Priority::Urgent, vec![bytes]).await.is_err() {
                return;
            }
        }
    });
    let outbox = Outbox::new(link.clone(), held);
    let peer = Peer { outbox, link: link.clone(), hello, urgent, number, progress: 0 };
    tokio::spawn(pump(link, number, events));
    peer
}

/// Hands on what comes, until the link ends. What the machine's agent decides by never waits for the stream.
async fn pump(link: Link, number: u64, events: mpsc::UnboundedSender<Event>) {
    let ended = tokio::select! {
        // The machine's part here has ended, and the link goes with it.
        () = events.closed() => return,
        (ended, ()) = async { tokio::join!(pump_urgent(&link, &events), pump_bulk(&link, &events)) } => ended,
    };
    let _ = events.send(Event::LinkClosed { peer: link.peer().to_owned(), number, reason: chain(&ended) });
}

async fn pump_urgent(link: &Link, events: &mpsc::UnboundedSender<Event>) -> mycelium_rhizomorph::Error {
    loop {
        let message = match link.recv_urgent().await {
            Ok(message) => message,
            Err(error) => return error,
        };
        let from = link.peer().to_owned();
        let event = match message.channel {
            channel::GROUP => Message::decode(&message.payload)
                .map(|message| Event::Group { from, message })
                .map_err(|error| error.to_string()),
            channel::NOTICE => Notice::decode(&message.payload).map(|notice| Event::Notice { from, notice }),
            other => Err(format!("channel {other} is not for urgent messages")),
        };
        hand_on(link, events, event);
    }
}

async fn pump_bulk(link: &Link, events: &mpsc::UnboundedSender<Event>) {
    let (reply, mut replies) = mpsc::unbounded_channel::<Vec<Bytes>>();
    let answering = link.clone();
    tokio::spawn(async move {
        while let Some(message) = replies.recv().await {
            if answering.send(channel::SYNC, Priority::Bulk, message).await.is_err() {
                return;
            }
        }
    });
    let room = Arc::new(Semaphore::new(UNREAD_MAX));
    while let Ok(message) = link.recv_bulk().await {
        let from = link.peer().to_owned();
        let event = match message.channel {
            channel::STREAM => {
                // A copy that is slow to write what it gets has the primary wait, not this host's memory grow.
                let wanted = message.payload.len().clamp(1, UNREAD_MAX) as u32;
                let Ok(room) = Arc::clone(&room).acquire_many_owned(wanted).await else { return };
                Ok(Event::Stream(Incoming::new(from, message.payload, reply.clone(), room)))
            }
            channel::SYNC => StreamMessage::decode(message.payload).map(|message| Event::Answer { from, message }),
            other => Err(format!("channel {other} is for urgent messages, or not used")),
        };
        hand_on(link, events, event);
    }
}

fn hand_on(link: &Link, events: &mpsc::UnboundedSender<Event>, event: Result<Event, String>) {
    match event {
        Ok(event) => drop(events.send(event)),
        Err(reason) => tracing::warn!(peer = link.peer(), reason, "a message was not understood"),
    }
}

/// Keeps trying to reach hosts that are not linked.
#[derive(Debug)]
pub(super) struct Dialler {
    identity: Identity,
    template: LinkConfig,
    events: mpsc::UnboundedSender<Event>,
    dialling: BTreeMap<Vec<SocketAddr>, tokio::task::JoinHandle<()>>,
}

impl Dialler {
    /// Dials with these options.
    pub fn new(identity: Identity, template: LinkConfig, events: mpsc::UnboundedSender<Event>) -> Self {
        Self { identity, template, events, dialling: BTreeMap::new() }
    }

    /// Whether these addresses can be dialled, and are not being dialled already.
    pub fn is_free(&self, addresses: &[SocketAddr]) -> bool {
        !addresses.is_empty() && self.dialling.get(addresses).is_none_or(|task| task.is_finished())
    }

    /// Dials these addresses of one host until it answers.
    pub fn dial(&mut self, addresses: Vec<SocketAddr>, hello: Arc<Hello>) {
        self.dialling.retain(|_, task| !task.is_finished());
        let config = LinkConfig { remote: addresses.clone(), ..self.template.clone() };
        let task = tokio::spawn(dial(config, self.identity.clone(), hello, self.events.clone()));
        self.dialling.insert(addresses, task);
    }
}

impl Drop for Dialler {
    fn drop(&mut self) {
        self.dialling.values().for_each(tokio::task::JoinHandle::abort);
    }
}

async fn dial(config: LinkConfig, identity: Identity, hello: Arc<Hello>, events: mpsc::UnboundedSender<Event>) {
    let mut told = String::new();
    loop {
        let outcome = match Link::connect(config.clone(), identity.clone()).await {
            Ok(link) => greet(&link, &hello).await.map(|theirs| (link, theirs)),
            Err(error) => Err(chain(&error)),
        };
        match outcome {
            Ok((link, hello)) => {
                let dialled = config.remote.clone();
                let _ = events.send(Event::Linked { link, hello, dialled });
                return;
            }
            Err(reason) if reason != told => {
                tracing::warn!(to = ?config.remote, reason, "a host cannot be reached; it is tried again");
                let _ = events.send(Event::Unreachable { to: config.remote.clone(), reason: reason.clone() });
                told = reason;
            }
            Err(_) => {}
        }
        tokio::time::sleep(DIAL_EVERY).await;
    }
}

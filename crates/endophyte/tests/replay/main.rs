//! Epochs of a former term that come again: a real backup, with QEMU, behind real links; the members that speak to it have
//! valid certificates of the group and are played by the test, so that they can say what no member should.

#[path = "../support/mod.rs"]
mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use mycelium_api::endophyte::{EndophyteVM, Overrides, apply_overrides};
use mycelium_api::env::Env;
use mycelium_endophyte::codec::{
    Compression, DeviceEncoder, EncoderConfig, EpochId, FrameKind, PAGE, PageEncoder, Parts, page_hash, seal,
};
use mycelium_endophyte::group::{Config, Message, Name, Position, Proposal, Rules, Version};
use mycelium_endophyte::host::book::{Hello, Notice, Setup, channel};
use mycelium_endophyte::host::stream::{StreamMessage, frame_message};
use mycelium_endophyte::host::{HostOptions, VmRoot, init_group, stand_by};
use mycelium_rhizomorph::{Identity, Link, LinkConfig, Priority};

const VM: &str = "legacy";
/// 64 MiB.
const PAGES: u64 = (64 << 20) / PAGE as u64;
/// However loaded the machine is.
const PATIENCE: Duration = Duration::from_secs(300);

/// A member that the test plays.
struct Played {
    link: Link,
    stamp: u64,
}

impl Played {
    async fn new(group: &str, name: &str, backup: SocketAddr, setup: &Setup) -> Self {
        let identity = Identity::from_group_pem(group, name).expect("a certificate of the group");
        let link = Link::connect(LinkConfig::new(vec![backup]), identity).await.expect("link");
        let hello = Hello {
            vm: VM.into(),
            listen: Vec::new(),
            incarnation: 1,
            witness: false,
            book: BTreeMap::new(),
            setup: Some(setup.clone()),
        };
        let words = Notice::Hello(hello).encode();
        link.send(channel::NOTICE, Priority::Urgent, vec![words.into()]).await.expect("hello");
        Self { link, stamp: 0 }
    }

    async fn say(&self, message: &Message) {
        self.link.send(channel::GROUP, Priority::Urgent, vec![message.encode().into()]).await.expect("group message");
    }

    async fn propose(&self, config: &Config) {
        let proposal = Arc::new(Proposal { config: config.clone(), under: Vec::new(), settled: true });
        self.say(&Message::Propose { term: config.version.term, proposal }).await;
    }

    async fn stream(&self, message: Vec<Bytes>) {
        self.link.send(channel::STREAM, Priority::Bulk, message).await.expect("stream message");
    }

    /// Says the message that `say` makes of a new stamp over and over, until an answer will do.
    async fn until<T>(&mut self, what: &str, say: impl Fn(u64) -> Message, answer: impl Fn(Message) -> Option<T>) -> T {
        let mut last = None;
        let asking = async {
            loop {
                self.stamp += 1;
                self.say(&say(self.stamp)).await;
                let heard = tokio::time::timeout(Duration::from_millis(50), self.link.recv_urgent()).await;
                let Ok(message) = heard else { continue };
                let message = message.expect("an open link");
                if message.channel != channel::GROUP {
                    continue;
                }
                let message = Message::decode(&message.payload).expect("a group message");
                last = Some(message.clone());
                if let Some(found) = answer(message) {
                    return found;
                }
            }
        };
        let found = tokio::time::timeout(PATIENCE, asking).await;
        found.unwrap_or_else(|_| panic!("{what}: never; heard last {last:?}"))
    }

    /// Waits until the backup reports to this primary that it holds this, whole.
    async fn held(&mut self, held: Option<Position>) {
        let term = held.map_or(1, |held| held.term);
        let same = |message| match message {
            Message::Report { term: of, held: theirs, gap, .. } => (of == term && theirs == held && !gap).then_some(()),
            _ => None,
        };
        self.until(&format!("the backup holds {held:?}"), |stamp| Message::Heartbeat { term, stamp }, same).await;
    }

    /// What the backup answers to a copy.
    async fn answer(&self) -> StreamMessage {
        let message = tokio::time::timeout(PATIENCE, self.link.recv_bulk()).await.expect("an answer in time");
        StreamMessage::decode(message.expect("an open link").payload).expect("an answer")
    }
}

/// A frame in which each of these pages is filled with one byte.
fn frame(term: u64, epoch: u64, kind: FrameKind, pages: &[(u64, u8)]) -> Vec<Bytes> {
    let compression = Compression::Never;
    let config = EncoderConfig { threads: 1, compression, ..EncoderConfig::new(PAGES, 0, term) };
    let content: Vec<[u8; PAGE]> = pages.iter().map(|(_, byte)| [*byte; PAGE]).collect();
    let list = pages.iter().zip(&content).map(|((index, _), page)| (*index, page));
    let pages = PageEncoder::new(config).encode(list, u64::MAX).chunks;
    let devices = DeviceEncoder::new(term, compression).encode(&Bytes::from(vec![epoch as u8; 300]), u64::MAX);
    let id = EpochId { vm: VM.into(), term, epoch, kind, part: 0, guest_pages: PAGES };
    frame_message(seal(&id, Parts { pages, devices, ..Parts::default() }))
}

fn config(term: u64, number: u64, primary: &str, holders: &[&str], base: Position) -> Config {
    let names = |names: &[&str]| names.iter().map(|name| Name::from(*name)).collect::<BTreeSet<_>>();
    Config {
        version: Version { term, number },
        primary: primary.into(),
        data: names(&["a", "b", "c"]),
        witnesses: BTreeSet::new(),
        voters: names(&["a", "b", "c"]),
        holders: names(holders),
        rules: Rules::default(),
        base,
    }
}

/// The backup `b`, with all that it needs, and what it is told the machine is made of.
async fn backup(root: &VmRoot) -> (SocketAddr, Setup) {
    let kernel = std::fs::read(support::kernel_folder().join("vmlinuz")).expect("kernel");
    let folder = root.folder().join(VM);
    std::fs::create_dir_all(&folder).expect("folder");
    std::fs::write(folder.join("kernel"), &kernel).expect("kernel");
    let overrides = Overrides { memory: Some("64Mi".into()), ..Overrides::default() };
    let document = apply_overrides(&EndophyteVM::named(VM), &overrides).expect("document");
    let digest = format!("{:032x}", xxhash_rust::xxh3::xxh3_128(&kernel));
    let setup = Setup {
        document: serde_json::to_value(document).expect("document"),
        disk_bytes: None,
        files: BTreeMap::from([("kernel".to_owned(), digest)]),
    };
    let options = HostOptions {
        root: root.clone(),
        name: "b".into(),
        listen: vec![SocketAddr::from(([127, 0, 0, 1], 0))],
        clock: Env::new(|| jiff::Timestamp::UNIX_EPOCH, || 7),
        metrics: None,
    };
    let (ready, listening) = tokio::sync::oneshot::channel();
    tokio::spawn(stand_by(options, false, |listen| {
        let _ = ready.send(listen[0]);
    }));
    (listening.await.expect("the backup listens"), setup)
}

/// `a` is the primary of term 1, then `c` is elected. Epochs of `a` that come again or late, over its own link or the new
/// primary's, change nothing; what follows of the new term fits as if they had not come.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_epoch_of_a_former_term_is_refused_whoever_sends_it() {
    support::require_tools();
    let folder = tempfile::Builder::new().prefix("replay-").tempdir().expect("folder");
    let root = VmRoot::of(folder.path());
    let group = std::fs::read_to_string(init_group(&root).expect("group file")).expect("group file");
    let (address, setup) = backup(&root).await;
    let mut a = Played::new(&group, "a", address, &setup).await;
    let mut c = Played::new(&group, "c", address, &setup).await;

    // The first term: a copy of almost nothing, and an epoch.
    let start = Position::new(1, 0);
    a.propose(&config(1, 0, "a", &[], start)).await;
    a.held(None).await;
    a.stream(StreamMessage::SyncBegin { id: 1, seed: 5 }.encode()).await;
    assert!(matches!(a.answer().await, StreamMessage::Hashes { id: 1, .. }));
    a.stream(StreamMessage::SyncStart { id: 1 }.encode()).await;
    a.stream(frame(1, 1, FrameKind::Epoch, &[(7, 0x11)])).await;
    a.stream(StreamMessage::SyncEnd { id: 1, at: Position::new(1, 1) }.encode()).await;
    a.held(Some(Position::new(1, 1))).await;
    a.propose(&config(1, 1, "a", &["b"], start)).await;
    let second = frame(1, 2, FrameKind::Epoch, &[(7, 0x22)]);
    a.stream(second.clone()).await;
    a.held(Some(Position::new(1, 2))).await;

    // The second term.
    let vote = |message| matches!(message, Message::Vote { term: 2, .. }).then_some(());
    c.until("the backup votes", |_| Message::VoteRequest { term: 2, handed_over: false }, vote).await;
    c.propose(&config(2, 0, "c", &["b"], Position::new(1, 2))).await;
    c.stream(frame(2, 3, FrameKind::Epoch, &[(8, 0x44)])).await;
    c.held(Some(Position::new(2, 3))).await;

    // The old primary says again what it said, and what it had still to say.
    let old = [
        second,
        frame(1, 3, FrameKind::Epoch, &[(7, 0x33)]),
        frame(1, 4, FrameKind::Epoch, &[(8, 0x33)]),
        frame(1, 4, FrameKind::Base, &[(9, 0x33)]),
    ];
    for message in &old {
        a.stream(message.clone()).await;
    }
    a.stream(StreamMessage::SyncEnd { id: 1, at: Position::new(1, 4) }.encode()).await;
    a.stream(StreamMessage::SyncBegin { id: 2, seed: 6 }.encode()).await;
    // What came before this refusal was dealt with.
    let refused = a.answer().await;
    assert!(matches!(&refused, StreamMessage::Failed { reason } if reason == "it is not followed"), "{refused:?}");
    let stale = |message| matches!(message, Message::Stale { term: 2 }).then_some(());
    a.until("the old primary is told", |stamp| Message::Heartbeat { term: 1, stamp }, stale).await;
    c.held(Some(Position::new(2, 3))).await;

    // The new primary plays the old epochs, between its own.
    for message in &old[..3] {
        c.stream(message.clone()).await;
    }
    c.stream(frame(2, 4, FrameKind::Epoch, &[(9, 0x55)])).await;
    c.held(Some(Position::new(2, 4))).await;

    c.stream(StreamMessage::SyncBegin { id: 3, seed: 9 }.encode()).await;
    let StreamMessage::Hashes { id: 3, hashes } = c.answer().await else { panic!("no hashes") };
    let expected = BTreeMap::from([(7, 0x22), (8, 0x44), (9, 0x55)]);
    for (index, hash) in hashes.chunks(16).enumerate() {
        let byte = expected.get(&index).copied().unwrap_or(0);
        assert_eq!(hash, page_hash(&[byte; PAGE], 9).to_le_bytes(), "page {index} is not filled with {byte:#x}");
    }
    assert_eq!(hashes.len() as u64, PAGES * 16);
}

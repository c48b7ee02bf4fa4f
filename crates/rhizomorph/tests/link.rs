//! Links over loopback.

mod common;

use std::time::Duration;

use bytes::Bytes;
use common::proxy::{Mood, Proxy};
use common::{LOOPBACK, drink, link, link_through, pattern, pump, until};
use mycelium_rhizomorph::{
    Balancing, CloseReason, Error, Group, Link, LinkConfig, Listener, Options, PathState, Priority,
};

const MIB: usize = 1 << 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_of_all_sizes_arrive_whole_in_order_and_once() {
    for balancing in [Balancing::AdaptiveBandwidth, Balancing::LatencyOptimized] {
        let ends = link(4, Options { balancing, ..Options::default() }).await;
        assert_eq!((ends.near.peer(), ends.far.peer()), ("far", "near"));
        let sizes = [0, 1, 4095, 70_000, 0, 3 * MIB, 17, 40 * MIB + 1, 5];
        let sender = ends.near.clone();
        let sending = tokio::spawn(async move {
            for (number, size) in sizes.into_iter().enumerate() {
                // Odd ones in many parts.
                let whole = pattern(number as u64, size);
                let parts = match number % 2 {
                    0 => vec![whole],
                    _ => whole.chunks(5000).map(Bytes::copy_from_slice).collect(),
                };
                sender.send(3, Priority::Bulk, parts).await.unwrap();
            }
            sender.flush().await.unwrap();
        });
        for (number, size) in sizes.into_iter().enumerate() {
            let message = ends.far.recv().await.unwrap();
            assert!(message.payload == pattern(number as u64, size), "message {number}");
        }
        sending.await.unwrap();
        assert!(ends.far.try_recv().is_none());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_directions_and_many_channels_at_once() {
    let ends = link(3, Options::default()).await;
    let (near, far) = (ends.near.clone(), ends.far.clone());
    let there = tokio::spawn(pump(near.clone(), 1, 300_000, 50));
    let back = tokio::spawn(pump(far.clone(), 2, 300_000, 50));
    tokio::join!(drink(&far, 1, 300_000, 50), drink(&near, 2, 300_000, 50));
    there.await.unwrap().unwrap();
    back.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_peer_of_another_group_is_told_so() {
    let (ours, theirs) = (Group::create().unwrap(), Group::create().unwrap());
    let listener =
        Listener::bind(&[LOOPBACK.parse().unwrap()], ours.issue("far").unwrap(), Options::default()).await.unwrap();
    let config = LinkConfig::new(listener.addresses().to_vec());
    let error = Link::connect(config.clone(), theirs.issue("near").unwrap()).await.unwrap_err();
    assert!(matches!(error, Error::WrongGroup), "{error:?}");
    // The listener is none the worse.
    let (near, far) = tokio::join!(Link::connect(config, ours.issue("near").unwrap()), listener.accept());
    assert_eq!((near.unwrap().peer(), far.unwrap().peer()), ("far", "near"));
}

#[tokio::test]
async fn closing_is_heard_by_the_peer_with_its_reason() {
    let ends = link(2, Options::default()).await;
    ends.near.send(0, Priority::Bulk, vec!["last words".into()]).await.unwrap();
    ends.near.flush().await.unwrap();
    ends.near.close();
    assert_eq!(ends.far.closed().await, CloseReason::Peer);
    assert_eq!(ends.far.recv().await.unwrap().payload, "last words");
    assert!(matches!(ends.far.recv().await, Err(Error::Closed(CloseReason::Peer))));
    assert!(matches!(ends.near.send(0, Priority::Bulk, vec![]).await, Err(Error::Closed(CloseReason::Local))));
}

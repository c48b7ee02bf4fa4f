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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_latency_counts_the_way_that_arrives_first_is_taken() {
    let options = Options { balancing: Balancing::LatencyOptimized, ..Options::default() };
    let group = Group::create().unwrap();
    let listener = Listener::bind(&[LOOPBACK.parse().unwrap()], group.issue("far").unwrap(), options).await.unwrap();
    let direct = listener.addresses()[0];
    let proxy = Proxy::new(direct).await;
    proxy.set(Mood::Late);
    let ends = link_through(vec![proxy.address, direct], listener, &group, 2, options).await;
    let round_trips = || ends.near.stats().connections.iter().filter(|c| c.rtt_us.is_some()).count();
    until("both round trips are measured", || round_trips() == 2).await;
    let sent = |remote| {
        let connections = ends.near.stats().connections;
        connections.iter().find(|c| c.remote == remote).map(|c| (c.sent_bytes, c.rtt_us.unwrap_or_default())).unwrap()
    };
    let before = sent(proxy.address).0;
    for number in 0..200 {
        ends.near.send(1, Priority::Bulk, vec![pattern(number, 2000)]).await.unwrap();
        assert!(ends.far.recv().await.unwrap().payload == pattern(number, 2000));
    }
    let (late, near) = (sent(proxy.address), sent(direct));
    println!("bytes sent and round trip in µs: {late:?} over the late way, {near:?} over the other");
    assert!(late.1 > 80_000, "the proxy is late: {late:?}");
    assert!(late.0 - before < 200 * 2000 / 10 && near.0 > 200 * 2000 * 9 / 10, "{late:?} {near:?}");
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

/// A listener and one proxy for each of `count` connections to it.
async fn proxied(count: usize, options: Options) -> (common::Ends, Vec<Proxy>) {
    let group = Group::create().unwrap();
    let listener = Listener::bind(&[LOOPBACK.parse().unwrap()], group.issue("far").unwrap(), options).await.unwrap();
    let mut proxies = Vec::new();
    for _ in 0..count {
        proxies.push(Proxy::new(listener.addresses()[0]).await);
    }
    let remote = proxies.iter().map(|proxy| proxy.address).collect();
    (link_through(remote, listener, &group, count, options).await, proxies)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn altered_bytes_cost_a_connection_and_nothing_else() {
    let (ends, proxies) = proxied(3, Options::default()).await;
    let sending = tokio::spawn(pump(ends.near.clone(), 5, 200_000, 60));
    for round in 0..3 {
        drink_some(&ends.far, round * 15, 15).await;
        proxies[round as usize].set(Mood::Flip);
    }
    drink_some(&ends.far, 45, 15).await;
    sending.await.unwrap().unwrap();
    until("all are back", || ends.near.connections() == 3).await;
    let flipped = proxies.iter().filter(|proxy| !proxy.is(Mood::Flip)).count();
    assert!(flipped > 0 && ends.near.stats().lost_connections >= 1, "{:?}", ends.near.stats());
}

async fn drink_some(link: &Link, from: u64, count: u64) {
    for number in from..from + count {
        assert!(link.recv().await.unwrap().payload == pattern(number, 200_000), "message {number}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cut_connections_are_made_up_for_and_dialled_again() {
    let (ends, proxies) = proxied(4, Options::default()).await;
    let sending = tokio::spawn(pump(ends.near.clone(), 5, 200_000, 60));
    drink_some(&ends.far, 0, 20).await;
    for proxy in &proxies[1..] {
        proxy.set(Mood::Cut);
    }
    drink_some(&ends.far, 20, 40).await;
    sending.await.unwrap().unwrap();
    for proxy in &proxies {
        proxy.set(Mood::Honest);
    }
    until("all are back", || ends.near.connections() == 4 && ends.far.connections() == 4).await;
    assert!(ends.near.try_recv().is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_stands_still_holds_nothing_up() {
    // Long enough for the stalled connection to stay in place.
    let options = Options { dead_after: Duration::from_secs(20), ..Options::default() };
    let (ends, proxies) = proxied(3, options).await;
    let sending = tokio::spawn(pump(ends.near.clone(), 5, 200_000, 90));
    drink_some(&ends.far, 0, 20).await;
    proxies[0].set(Mood::Stalled);
    drink_some(&ends.far, 20, 70).await;
    sending.await.unwrap().unwrap();
    // On a fast machine all was there before anybody noticed.
    let stalled = || ends.near.stats().connections.iter().filter(|c| c.state == PathState::Stalled).count();
    until("one is known to stand still", || stalled() == 1).await;
    let stats = ends.near.stats();
    assert_eq!(stats.connections.len(), 3, "it was not lost: {stats:?}");
    assert!(stats.connections.iter().any(|c| c.resent_chunks > 0), "{stats:?}");
    assert!(serde_json::to_string(&stats).unwrap().contains("\"state\":\"stalled\""));
    // It moves again, and takes part again.
    proxies[0].set(Mood::Honest);
    until("it has recovered", || ends.near.stats().connections.iter().all(|c| c.state == PathState::Active)).await;
    let sent = || ends.near.stats().connections.iter().map(|c| c.sent_bytes).min().unwrap();
    let before = sent();
    // It was slow when it was last measured: fast neighbours may carry a whole round without it.
    for round in 0.. {
        assert!(round < 10, "{:?}", ends.near.stats());
        let sending = tokio::spawn(pump(ends.near.clone(), 5, 200_000, 60));
        drink(&ends.far, 5, 200_000, 60).await;
        sending.await.unwrap().unwrap();
        if sent() > before {
            break;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_application_that_takes_nothing_bounds_memory_on_both_sides() {
    let options = Options { receive_window: 2 << 20, send_buffer: 3 << 20, ..Options::default() };
    let ends = link(4, options).await;
    let sending = tokio::spawn(pump(ends.near.clone(), 1, 100_000, 100));
    until("the window is full", || ends.far.stats().held_bytes > 1_900_000).await;
    // Urgent messages get through and are taken first, whatever waits.
    ends.near.send(2, Priority::Urgent, vec!["heartbeat".into()]).await.unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(ends.far.stats().held_bytes <= (2 << 20) + 1000, "{:?}", ends.far.stats());
    assert!(ends.near.stats().queued_bytes <= 3 << 20, "{:?}", ends.near.stats());
    assert!(!sending.is_finished());
    assert_eq!(ends.far.recv().await.unwrap().channel, 2);
    drink(&ends.far, 1, 100_000, 100).await;
    sending.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_that_its_peer_forgot_is_closed() {
    let (ends, proxies) = proxied(2, Options::default()).await;
    let session_gone = ends.far.clone();
    for proxy in &proxies {
        proxy.set(Mood::Cut);
    }
    until("the far side has lost every connection", || session_gone.connections() == 0).await;
    session_gone.close();
    for proxy in &proxies {
        proxy.set(Mood::Honest);
    }
    let reason = ends.near.closed().await;
    assert!(matches!(reason, CloseReason::Forgotten | CloseReason::Silent { .. }), "{reason:?}");
}

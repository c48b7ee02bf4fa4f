//! Links over several rate-limited wires between two machines. Need root.

mod common;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::network::{CLOCK, Received, Wire, Wires, clock_us};
use common::{pattern, until, until_or};
use mycelium_rhizomorph::{CloseReason, Link, Options, PathState, Priority};
use tokio::task::JoinHandle;

/// Slow enough for a busy machine and an unoptimised build.
const MEGABITS: u32 = 12;
const BYTES_PER_SECOND: f64 = MEGABITS as f64 * 1e6 / 8.0;
const SECOND: Duration = Duration::from_secs(1);

fn flood(link: &Link) -> JoinHandle<()> {
    let (link, message) = (link.clone(), pattern(2, 200_000));
    tokio::spawn(async move { while link.send(0, Priority::Bulk, vec![message.clone()]).await.is_ok() {} })
}

/// The best of some seconds, and of more until it is as good as wanted: what else runs on the machine can only make it
/// less, but not for ever.
async fn best_rate(received: &Received, wanted: f64) -> f64 {
    let mut rates = Vec::new();
    while rates.len() < 45 && (rates.len() < 3 || !rates.iter().any(|rate| *rate > wanted)) {
        rates.push(received.rate(SECOND).await);
    }
    println!("megabytes in each second: {:.2?}", rates.iter().map(|rate| rate / 1e6).collect::<Vec<_>>());
    rates.into_iter().fold(0.0, f64::max)
}

#[test]
fn four_wires_carry_four_times_as_much_as_one() {
    let rates: Vec<f64> = [1, 4]
        .into_iter()
        .map(|count| {
            let wires = Wires::new(count, Wire::Rate(MEGABITS));
            let rate = Mutex::new(0.0);
            wires.run(Options::default(), |link: Link, received: Arc<Received>| {
                let rate = &rate;
                async move {
                    let flood = flood(&link);
                    received.rate(SECOND).await;
                    *rate.lock().unwrap() = best_rate(&received, f64::from(count) * 0.87 * BYTES_PER_SECOND).await;
                    let stats = link.stats();
                    let all: u64 = stats.connections.iter().map(|c| c.sent_bytes).sum();
                    let fair = all as f64 / f64::from(count);
                    assert!(
                        stats.connections.iter().all(|c| (c.sent_bytes as f64 / fair - 1.0).abs() < 0.4),
                        "{stats:?}"
                    );
                    flood.abort();
                }
            });
            rate.into_inner().unwrap()
        })
        .collect();
    let ratio = rates[1] / rates[0];
    println!("one wire {:.2} MB/s, four {:.2} MB/s: {ratio:.2}", rates[0] / 1e6, rates[1] / 1e6);
    assert!(ratio >= 3.6, "{rates:?}");
}

#[test]
fn throughput_follows_what_is_left() {
    let wires = Wires::new(4, Wire::Rate(MEGABITS));
    // On a busy machine the only wire left may be silent for a while, too.
    let options = Options { dead_after: 5 * SECOND, ..Options::default() };
    wires.run(options, |link: Link, received: Arc<Received>| {
        let wires = &wires;
        async move {
            let flood = flood(&link);
            received.rate(2 * SECOND).await;
            // One cut without a word, one slowed to a tenth: a second later two and a tenth are used.
            wires.set(0, Wire::Cut);
            wires.set(1, Wire::Rate(MEGABITS / 10));
            received.rate(SECOND).await;
            let wanted = 2.1 * 0.8 * BYTES_PER_SECOND;
            let rate = best_rate(&received, wanted).await;
            assert!(rate > wanted, "{rate}: {:?}", link.stats());
            // All but one cut.
            wires.set(1, Wire::Cut);
            wires.set(2, Wire::Cut);
            received.rate(SECOND).await;
            let wanted = 0.8 * BYTES_PER_SECOND;
            let rate = best_rate(&received, wanted).await;
            assert!(rate > wanted, "{rate}: {:?}", link.stats());
            // All there again.
            for wire in 0..3 {
                wires.set(wire, Wire::Rate(MEGABITS));
            }
            let all_carry = || {
                let connections = link.stats().connections;
                connections.iter().filter(|c| c.state == PathState::Active && c.share > 0.15).count() == 4
            };
            until_or("every wire carries its part again", all_carry, || format!("{:#?}", link.stats())).await;
            flood.abort();
        }
    });
}

#[test]
fn urgent_messages_hardly_wait_on_a_full_wire() {
    // Four connections that share one wire: each must do with its part of it.
    let wires = Wires::new(1, Wire::Rate(2 * MEGABITS));
    wires.run_many(4, Options::default(), |link: Link, received: Arc<Received>| async move {
        let flood = flood(&link);
        received.rate(SECOND).await;
        for _ in 0..100 {
            tokio::time::sleep(Duration::from_millis(10)).await;
            let clock = clock_us().to_le_bytes().to_vec();
            link.send(CLOCK, Priority::Urgent, vec![clock.into()]).await.unwrap();
        }
        until("they are there", || received.latencies_us().len() == 100).await;
        let latencies = received.latencies_us();
        println!("urgent: median {} us, most {} us", latencies[50], latencies[99]);
        // The queue ahead holds megabytes, which would take seconds; a busy machine takes its share of the rest.
        let queued = link.stats().queued_bytes;
        assert!(queued > 10_000_000);
        let behind_the_queue_us = queued as f64 / (2.0 * BYTES_PER_SECOND) * 1e6;
        assert!((latencies[50] as f64) < behind_the_queue_us / 4.0, "{latencies:?}");
        flood.abort();
    });
}

#[test]
fn a_peer_behind_cut_wires_is_dead_after_the_given_time() {
    let wires = Wires::new(2, Wire::Rate(100));
    let options = Options { dead_after: Duration::from_millis(700), ..Options::default() };
    wires.run(options, |link: Link, _| {
        let wires = &wires;
        async move {
            // Silence of the application is no reason to die.
            tokio::time::sleep(Duration::from_millis(1500)).await;
            assert_eq!(link.connections(), 2);
            wires.set(0, Wire::Cut);
            wires.set(1, Wire::Cut);
            assert_eq!(link.closed().await, CloseReason::Silent { after_ms: 700 });
        }
    });
}

//! A guest that dirties memory faster than its host can send it.

use mycelium_api::endophyte::DistributedRam;

use crate::common::eventually;
use crate::guests::{VM, numbers, order};
use crate::lab::{Lab, states};
use crate::random::Random;

/// What replication may hold, in mebibytes, and what hosts can send, in megabits a second.
const BUFFER: u64 = 32;
const WIRE: u32 = 200;
const TRICKLE: u32 = 20;
/// What the guest dirties in one epoch at most.
const EPOCH_MAX: u64 = 16 << 20;

/// What the guest loses by the exponential curve, as the seed gives it: threshold, exponent and maximum of the defaults.
fn curve(fill: f64) -> f64 {
    let ram = DistributedRam::default();
    let (threshold, exponent) = (ram.throttle_threshold, ram.throttling_exponent);
    let x = ((fill - threshold) / (1.0 - threshold)).clamp(0.0, 1.0);
    ram.maximum_throttle * ((exponent * x).exp() - 1.0) / (exponent.exp() - 1.0)
}

/// The guest's throttle, and whether it is protected; fails if more is held than is allowed, or the throttle is not what the
/// curve gives.
fn look(lab: &Lab) -> Result<(f64, bool), String> {
    let (_, status) = lab.primary(VM).ok_or("no primary")?;
    let (fill, throttle) = (status.buffer.fill, status.guest.throttle);
    assert!(throttle == 1.0 || (throttle - curve(fill)).abs() < 1e-4, "{throttle} at {fill}, not {}", curve(fill));
    assert_eq!(status.buffer.limit_bytes, BUFFER << 20);
    // What is under way, what may wait for a backup that is not in sync, and the epoch that is being taken.
    let held = status.buffer.bytes + status.buffer.page_copies_bytes;
    assert!(held <= 2 * status.buffer.limit_bytes + EPOCH_MAX, "{:?}", status.buffer);
    Ok((status.guest.throttle, states(&status).iter().any(|(_, state)| *state == "backup")))
}

/// It is slowed, the buffer is bounded, it still answers, and it is free again when the load is over.
#[test]
fn a_guest_that_outruns_its_link_is_slowed_and_freed() {
    let mut random = Random::new();
    let (lab, client) = numbers(&mut random, &["--buffer", "32Mi"]);
    lab.protected(VM, 2);
    client.goes_on();
    // On a busy machine another host may take over.
    lab.names().iter().for_each(|host| lab.slow(host, WIRE));
    order(&lab, "memory", 6);
    let mut seen = Vec::new();
    for _ in 0..3 {
        eventually("the guest is slowed by a part", || match look(&lab)? {
            (throttle, true) if throttle > 0.0 && throttle < 1.0 => {
                seen.push(throttle);
                Ok(())
            }
            other => Err(format!("{other:?}")),
        });
        client.goes_on();
    }
    println!("slowed by {seen:.2?}");
    // More at once than the wire carries in a long time: nothing but a pause helps.
    lab.names().iter().for_each(|host| lab.slow(host, TRICKLE));
    order(&lab, "memory", 12);
    eventually("the guest is paused", || {
        look(&lab)?;
        match lab.primary(VM).ok_or("no primary")?.1.buffer.emergency_pauses {
            0 => Err("it was never paused".to_owned()),
            _ => Ok(()),
        }
    });
    lab.names().iter().for_each(|host| lab.slow(host, WIRE));
    order(&lab, "memory", 0);
    eventually("the guest is free again", || match look(&lab)? {
        (0.0, true) => Ok(()),
        other => Err(format!("{other:?}")),
    });
    lab.names().iter().for_each(|host| lab.fast(host));
    lab.protected(VM, 2);
    client.goes_on();
}

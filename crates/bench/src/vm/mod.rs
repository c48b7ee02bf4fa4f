//! Virtual machines in numbers: the real binary on hosts that are network namespaces, guests in QEMU, a client outside.
//!
//! | module | measures |
//! |---|---|
//! | [`pauses`] | the pause per epoch, epochs per second |
//! | [`slowdown`] | what checkpoints cost a guest that computes |
//! | [`failover`] | from the loss of a host to the guest running on another |
//! | [`migration`] | planned migration, against QEMU's own of the same guest |
//! | [`traffic`] | bytes sent per dirty byte, and memory, under PostgreSQL |
//!
//! The rest is what they share: [`lab`] makes the hosts, [`guest`] the guests, [`beats`] and [`postgres`] are clients (this
//! program again, in another network), [`svg`] draws.

mod beats;
mod failover;
mod guest;
mod lab;
mod migration;
mod pauses;
mod postgres;
mod qemu;
mod slowdown;
mod svg;
mod traffic;

use std::path::Path;

use anyhow::Result;
use serde_json::Value;

use crate::report::{Report, load};

/// The first argument of a process that is a client of a guest.
const HELPER: &str = "client-of-vm";

/// Does a client's work, if that is what this process was started for.
pub fn client() -> Option<Result<()>> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [HELPER, "beats", address] => Some(beats::listen(address)),
        [HELPER, "postgres", address] => Some(postgres::work(address)),
        _ => None,
    }
}

type Part = (&'static str, fn(&Path, &mut Report) -> Result<()>);

/// The measurements, by name.
pub const PARTS: [Part; 6] = [
    ("vm-pauses", pauses::pauses),
    ("vm-rate", pauses::rate),
    ("vm-slowdown", slowdown::slow_down),
    ("vm-failover", failover::failover),
    ("vm-migration", migration::migration),
    ("vm-traffic", traffic::traffic),
];

/// The value below which a share of the samples lies, by nearest rank; sorts in place.
fn quantile(samples: &mut [f64], share: f64) -> f64 {
    samples.sort_by(f64::total_cmp);
    let rank = (share * samples.len() as f64).ceil() as usize;
    samples.get(rank.clamp(1, samples.len().max(1)) - 1).copied().unwrap_or(f64::NAN)
}

/// A number of a status.
fn number(status: &Value, path: &str) -> f64 {
    status.pointer(path).and_then(Value::as_f64).unwrap_or(f64::NAN)
}

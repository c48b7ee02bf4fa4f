//! Pages are packed where that is sooner there: by itself, over a link that is slow.

use crate::common::eventually;
use crate::guests::{VM, numbers, order};
use crate::lab::Lab;
use crate::random::Random;

/// What hosts can send, in megabits a second.
const WIRE: u32 = 50;
/// Mebibytes that the guest rewrites over and over.
const LOAD: u64 = 2;
/// How many dirty bytes it takes to judge.
const SAMPLE: u64 = 16 << 20;

/// Bytes that were sent for each dirty one, over the next while on one host.
fn sent_per_byte(lab: &Lab) -> f64 {
    let now = || lab.primary(VM).map(|(host, status)| (host, status.term, status.traffic)).ok_or("no primary");
    let mut from = eventually("a host has the guest", || now().map_err(str::to_owned));
    eventually("the guest writes", || {
        let to = now()?;
        if (&to.0, to.1) != (&from.0, from.1) {
            from = to;
            return Err("another host has the guest".to_owned());
        }
        let (dirty, sent) = (to.2.dirty_bytes - from.2.dirty_bytes, to.2.sent_bytes - from.2.sent_bytes);
        if dirty < SAMPLE { Err(format!("{dirty} bytes")) } else { Ok(sent as f64 / dirty as f64) }
    })
}

/// What cannot be packed goes as it is; what can, at a fraction, and nobody had to say so.
#[test]
fn a_slow_link_gets_packed_pages() {
    let mut random = Random::new();
    let (lab, client) = numbers(&mut random, &[]);
    lab.protected(VM, 2);
    lab.names().iter().for_each(|host| lab.slow(host, WIRE));
    order(&lab, "memory", LOAD);
    let plain = sent_per_byte(&lab);
    order(&lab, "repeat", LOAD);
    let packed = eventually("what repeats itself is packed", || match sent_per_byte(&lab) {
        packed if packed < 0.4 && packed < plain / 2.0 => Ok(packed),
        packed => Err(format!("{packed:.2} bytes for one, {plain:.2} before")),
    });
    println!("{plain:.2} bytes for a dirty one as they are, {packed:.2} packed");
    order(&lab, "memory", 0);
    lab.names().iter().for_each(|host| lab.fast(host));
    lab.protected(VM, 2);
    client.goes_on();
}

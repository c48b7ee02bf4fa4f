//! A host that stands still for a moment loses its lease: it is elected again, or another host goes on. Either way nobody
//! contradicts anybody, and the machine stays protected.

use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::guests::{VM, numbers};
use crate::random::{Random, setting};

#[test]
fn a_host_that_stood_still_is_no_lost_host() {
    let mut random = Random::new();
    let (mut lab, client) = numbers(&mut random, &[]);
    lab.protected(VM, 2);
    let (mut stayed, mut moved) = (0, 0);
    for _ in 0..setting("MYCELIUM_CHAOS_STALLS", 6) {
        let primary = lab.protected(VM, 1);
        let process = Pid::from_raw(lab.host(&primary).process().cast_signed()).expect("a process");
        client.goes_on();
        kill_process(process, Signal::STOP).expect("it runs");
        thread::sleep(Duration::from_millis(40 + random.below(120)));
        kill_process(process, Signal::CONT).expect("it still runs");
        client.goes_on();
        if lab.protected(VM, 1) == primary { stayed += 1 } else { moved += 1 }
    }
    lab.protected(VM, 2);
    client.goes_on();
    println!("the guest stayed {stayed} times and went elsewhere {moved} times");
}
